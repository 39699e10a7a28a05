//! Over HTTP: whoever opens all that it may and holds on to it keeps nobody else out, and pays for what it got.

use crate::chain::{CHAIN_ID, TREASURY};
use crate::market::{Market, price_up, wall};
use crate::shop::{Shop, Trouble};
use alloy::primitives::{B256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Method};
use net::Response;
use pay::book::channels::ChannelLimits;
use pay::book::{ChannelBook, Limits};
use pay::scheme::channel::client::{TopUp, config, pay};
use pay::scheme::channel::{ChannelDomain, ChannelId};
use pay::scheme::exact::client::sign;
use pay::seller::offers::TransferMethod;
use pay::wire::{PAYMENT_REQUIRED, PAYMENT_SIGNATURE, PaymentRequired, PaymentRequirements};
use pay::{Reason, Usdc};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Notify;

const MAX_TOKENS: u64 = 16;

/// Somebody who signs what it likes, unlike our buyer.
struct Payer<'a> {
    key: PrivateKeySigner,
    market: &'a Market,
    http: net::Client,
    offer: PaymentRequirements,
}

/// What a call is paid by: one of the payer's channels, all that it may ever owe there, and what goes in first.
#[derive(Clone, Copy)]
struct Voucher {
    channel: u8,
    max: Usdc,
    deposit: Option<Usdc>,
}

impl<'a> Payer<'a> {
    async fn come(name: &str, market: &'a Market) -> Self {
        let key = PrivateKeySigner::from_bytes(&keccak256(name)).unwrap();
        market.chain().mint(market.token(), key.address(), 1_000_000).await;
        let http = net::Client::new();
        let asked = http.post_json(&url_of(market), &question(name, false)).await.unwrap();
        let required = PaymentRequired::from_header(asked.header(&PAYMENT_REQUIRED).unwrap()).unwrap();
        Self { key, market, http, offer: required.accepts.into_iter().next().unwrap() }
    }

    fn channel(&self, number: u8) -> ChannelId {
        ChannelDomain::new(CHAIN_ID).channel_id(&config(self.key.address(), &self.offer, [number; 32]).unwrap())
    }

    async fn asks(&self, text: &str, is_stream: bool, voucher: Voucher) -> Response {
        let config = config(self.key.address(), &self.offer, [voucher.channel; 32]).unwrap();
        let top_up = voucher.deposit.map(|amount| TopUp { amount, valid_before: wall() + 300, salt: [1; 32] });
        let domain = ChannelDomain::new(CHAIN_ID);
        let payment = pay(&self.key, &domain, &config, &self.offer, voucher.max, top_up.as_ref()).unwrap();
        let headers = HeaderMap::from_iter([
            (http::header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (PAYMENT_SIGNATURE, payment.to_header().try_into().unwrap()),
        ]);
        let body = question(text, is_stream).to_string();
        self.http.send(Method::POST, &url_of(self.market), headers, body.into()).await.unwrap()
    }

    /// Begins a stream, takes its first word, and holds on to it.
    async fn hangs(&self, text: &str, voucher: Voucher) -> Response {
        let mut stream = self.asks(text, true, voucher).await;
        assert_eq!(stream.status, 200, "{text}");
        let first = stream.body.chunk("the market").await.unwrap().unwrap();
        assert!(first.starts_with(b"data: "), "{first:?}");
        stream
    }

    fn charged(&self, channel: u8) -> Usdc {
        self.market.with(|desk| desk.book.channels().channel(&self.channel(channel)).unwrap().charged)
    }
}

fn url_of(market: &Market) -> String {
    format!("{}/v1/chat/completions", market.url)
}

fn question(text: &str, is_stream: bool) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": MAX_TOKENS, "stream": is_stream })
}

fn times(amount: Usdc, count: u32) -> Usdc {
    Usdc(amount.micro() * u128::from(count))
}

async fn too_many_are_open(refused: Response) {
    assert_eq!(refused.status, 429);
    let offered = PaymentRequired::from_header(refused.header(&PAYMENT_REQUIRED).unwrap()).unwrap();
    assert_eq!(offered.error, Reason::TooManyOpen.as_str());
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], Reason::TooManyOpen.as_str(), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_on_to_all_that_it_may_open_keeps_nobody_out_and_pays_for_what_it_got() {
    let limits = ChannelLimits::default();
    let (of_channel, of_payer) = (limits.open_per_channel_max, limits.open_per_payer_max);
    let market = Market::open(&["batch-settlement"], TransferMethod::Eip3009).await;
    market.with(|desk| {
        // Room for the one who hangs, and for one call of everybody else.
        let limits = ChannelLimits { open_max: of_payer + 1, ..limits };
        desk.book = ChannelBook::with_channels(Limits::default(), limits);
        (desk.held, desk.held_after) = (Some(Arc::new(Notify::new())), 1);
    });
    let deposits = || market.with(|desk| desk.transactions.get("deposit").copied().unwrap_or_default());
    let ceiling = price_up(MAX_TOKENS);
    // Enough for all calls that a channel may have and three more, and not below the least deposit.
    let deposit = times(ceiling, of_channel + 3);
    assert!(deposit >= limits.deposit_min);
    let hanging = Payer::come("hangs", &market).await;

    let mut held = Vec::new();
    let channels = u8::try_from(of_payer / of_channel).unwrap();
    for channel in 0..channels {
        let max = times(ceiling, of_channel);
        let later = Voucher { channel, max, deposit: None };
        let first = Voucher { deposit: Some(deposit), ..later };
        held.push(hanging.hangs(&format!("{channel}, 0"), first).await);
        let texts: Vec<String> = (1..of_channel).map(|call| format!("{channel}, {call}")).collect();
        held.extend(join_all(texts.iter().map(|text| hanging.hangs(text, later))).await);
        // One more than a channel may have, though its money would do.
        too_many_are_open(hanging.asks("one more", true, Voucher { max: deposit, ..later }).await).await;
    }
    assert_eq!((held.len(), deposits()), (usize::try_from(of_payer).unwrap(), u32::from(channels)));
    // More channels buy no more room, and their money is not taken.
    let another = Voucher { channel: channels, max: ceiling, deposit: Some(deposit) };
    too_many_are_open(hanging.asks("one more channel", true, another).await).await;
    assert_eq!(deposits(), u32::from(channels));

    // Everybody else is served meanwhile, as far as there is room at all.
    let (other, third) = (Payer::come("another payer", &market).await, Payer::come("a third", &market).await);
    let first = Voucher { channel: 0, max: ceiling, deposit: Some(deposit) };
    let answer = other.asks("hello", false, first).await;
    assert_eq!(answer.status, 200);
    let cost_of_other = other.charged(0);
    let second = Voucher { channel: 0, max: times(ceiling, 2), deposit: None };
    held.push(other.hangs("hold the last place", second).await);
    assert_eq!(third.asks("hello", false, first).await.status, 503, "the market is full");

    // They hang up. What each had is charged: one word.
    let calls = of_payer + 1;
    market.with(|desk| desk.held = None);
    drop(held);
    market.inner.over.subscribe().wait_for(|over| *over == calls).await.unwrap();
    for channel in 0..channels {
        assert_eq!(hanging.charged(channel), times(price_up(1), of_channel), "channel {channel}");
    }
    assert_eq!(other.charged(0), cost_of_other.saturating_add(price_up(1)));

    // Whoever hung is a customer like others again, and so is who found no place.
    let max = hanging.charged(0).saturating_add(ceiling);
    let again = hanging.asks("I am back", false, Voucher { channel: 0, max, deposit: None }).await;
    assert_eq!((again.status.as_u16(), third.asks("hello", false, first).await.status.as_u16()), (200, 200));
    market.claim_and_settle().await;
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    let whole = [cost_of_other, third.charged(0)].into_iter().sum::<Usdc>();
    let hung = times(price_up(1), calls);
    let back = Usdc(hanging.charged(0).micro() - times(price_up(1), of_channel).micro());
    assert_eq!(receipts, [whole, hung, back].into_iter().sum());
    assert_eq!(market.chain().balance(market.token(), TREASURY).await, receipts);
}

/// Payments with a transaction of their own. The shop's stand-in for a chain settles and refunds at once.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_on_to_all_the_payments_that_it_may_open_keeps_nobody_out_and_has_its_money_back() {
    const PRICE: Usdc = Usdc(2_000);
    let shop = Shop::open(PRICE.micro()).await;
    let of_payer = Limits::default().open_per_payer_max;
    let http = net::Client::new();
    let offer = shop.inner.seller.requirements(PRICE);
    let asks = async |name: &str, call: u32| {
        let key = PrivateKeySigner::from_bytes(&keccak256(name)).unwrap();
        let payment = sign(&key, &offer, wall(), B256::left_padding_from(&call.to_be_bytes())).unwrap();
        let headers = HeaderMap::from_iter([
            (http::header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (PAYMENT_SIGNATURE, payment.to_header().try_into().unwrap()),
        ]);
        let body = question(&format!("{name} {call}"), true).to_string();
        http.send(Method::POST, &shop.endpoint(), headers, body.into()).await.unwrap()
    };
    shop.trouble((0..of_payer).map(|_| Trouble::Hang));
    let held = join_all((0..of_payer).map(|call| asks("hangs", call))).await;
    assert!(held.iter().all(|answer| answer.status == 200));
    too_many_are_open(asks("hangs", of_payer).await).await;
    assert_eq!(asks("another payer", 0).await.status, 200);

    let calls = held.len();
    drop(held);
    shop.inner.left.subscribe().wait_for(|left| *left == calls).await.unwrap();
    assert_eq!(asks("hangs", of_payer).await.status, 200, "the same payment, which was refused and not taken");
    let totals = shop.with(|shelf| shelf.book.totals());
    assert_eq!((totals.earned, totals.refunded), (times(PRICE, 2), times(PRICE, of_payer)));
    assert!(totals.is_balanced());
}
