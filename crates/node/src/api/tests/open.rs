//! The API of a node that sells: its own main loop's answers over a real journal, with STAND-INS for engine and chain.
//!
//! What a header may hold, a flood of one request, and a relay without gas, without a world of processes.

mod another;
mod batches;
mod engine;
mod flat;
mod full;
mod further;
mod land;
mod real;
mod receipts;

use self::engine::engine;
use self::land::{Land, Taken};
use super::served;
use crate::answers::Answers;
use crate::api::router;
use crate::context::{self, Context};
use crate::fence::boottime_ms;
use crate::live::Live;
use crate::main_loop::{Event, Node};
use crate::permit2::Support;
use crate::places::Places;
use crate::settle::Settlement;
use crate::shared::{Embedder, Engine, Role, Shared};
use crate::watch::News;
use alloy::primitives::{B256, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::{Json, Router, routing::post};
use economy::Price;
use futures::future::join_all;
use infer::wire::FromEngine;
use infer::{ChatTemplate, EngineClient, EngineConfig, Generate};
use pay::book::UnpaidWhy;
use pay::facilitator::remote::Remote;
use pay::receipt::{PaidBy, SignedReceipt};
use pay::scheme::channel::{CHANNEL, COLLECTOR_PERMIT2, ChannelConfig, ChannelDomain, ChannelId, client as channel};
use pay::scheme::exact::EXACT;
use pay::scheme::upto::{UPTO, client as permit2_client};
use pay::seller::identifier::IDEMPOTENCY_KEY;
use pay::wire::{
    PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequired, PaymentRequirements,
    decode_header, encode_header,
};
use pay::{Reason, RequestId, TransferMethod, Usdc};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Chain seconds.
const NOW: u64 = 1_800_000_000;
/// In each channel, and what every account has of the token, micro-USDC.
const BALANCE: u128 = 1_000_000;
/// What is bought.
const ANSWER: [&str; 3] = ["A lease", " is a", " promise."];

const ADAPTED: [&str; 3] = ["Roses ", "are ", "leased."];

/// A node that sells, until [`Shop::close`].
struct Shop {
    url: String,
    cx: Arc<Context>,
    shared: Arc<Shared>,
    land: Arc<Land>,
    node: JoinHandle<()>,
}

impl Shop {
    /// Opens it on what lies in `dir`, which is nothing the first time.
    async fn open(dir: &Path, relay_wei: u64) -> Self {
        Self::open_with(dir, relay_wei, |_| ()).await
    }

    /// One that makes vectors, too: `vectors`, of two numbers, by the same engine.
    async fn open_with_vectors(dir: &Path, change: impl FnOnce(&mut Context)) -> Self {
        let shop = Self::open_with(dir, u64::MAX, |cx| {
            let mut embedding = cx.manifest.model.clone();
            embedding.name = "vectors".to_owned();
            cx.manifest.embedding = Some(embedding);
            change(cx);
        })
        .await;
        let Engine { client, places, hello, .. } = shop.shared.engine().unwrap();
        shop.shared.set_embedder(Embedder { client, places, hello, dimensions: 2 });
        shop
    }

    async fn open_with(dir: &Path, relay_wei: u64, change: impl FnOnce(&mut Context)) -> Self {
        let land = Arc::new(Land::default());
        let rpc_url = land.clone().served().await;
        let (mut cx, mut heard) = context::for_tests(&rpc_url, dir);
        cx.permit2 = Support { proxies: true, collector: true };
        cx.token.has_permit = true;
        cx.birth.timers.fence = 3_600;
        change(&mut cx);
        let cx = Arc::new(cx);
        let shared = Arc::new(Shared::default());
        shared.set_role(Role::Active);
        shared.set_now(NOW);
        shared.set_engine(engine(dir).await);
        shared.sell_at(Price {
            call_uusdc: Usdc(100),
            call_uusdc_max: Usdc(100_000),
            mtok_prompt_uusdc: Usdc(1_000_000),
            mtok_cached_uusdc: Usdc(500_000),
            mtok_embedding_uusdc: Usdc(70_000),
            mtok_completion_uusdc: Usdc(10_000_000),
        });

        let mut node = Node::new(cx.clone(), shared.clone(), watch::channel(None).0);
        node.role = Role::Active;
        node.news = Some(Box::new(news(&cx, relay_wei)));
        node.fence.saw_block(boottime_ms(), 1, NOW);
        shared.set_relay_has_gas(!node.relay_is_poor());
        let journal = dir.join("journal");
        let found = Live::replay(&journal, crate::genesis::for_tests, node.on_durable_callback()).unwrap();
        let (state, journal) = found.unwrap_or_else(|| {
            let opened = journal::Journal::open(&journal, journal::Options::default(), node.on_durable_callback());
            (crate::genesis::for_tests(), opened.unwrap().journal)
        });
        let last = journal.next_lsn() - 1;
        let mut live = Live::new(state, journal, last, cx.ring_file.load().unwrap(), u128::MAX);
        // A checkpoint stands: conversations can be stored, and are there after a restart.
        if live.ring.memory.is_empty() {
            live.ring.begin(1);
            cx.ring_file.save(&live.ring).unwrap();
        }
        live.ring.learn(&live.state.conversations);
        live.sealing_for = Some([1; 32]);
        node.live = Some(live);
        let node = tokio::spawn(async move {
            while let Some(event) = heard.recv().await {
                match event {
                    Event::Look(read) => read(&node),
                    Event::Ask(ask) => node.on_ask(*ask).unwrap(),
                    Event::Durable(durable) => node.on_durable(durable.unwrap()).unwrap(),
                    Event::ChannelRead(read) => node.on_channel_read(*read).unwrap(),
                    Event::Settled { request, settlement } => node.on_settled(request, settlement).unwrap(),
                    Event::Stop => return,
                    _ => {}
                }
            }
        });
        let answers = Answers::open(&dir.join("answers")).unwrap();
        let url = served(router(cx.clone(), shared.clone(), answers)).await;
        Self { url, cx, shared, land, node }
    }

    /// The process ends.
    async fn close(self) {
        self.cx.tell(Event::Stop).await;
        self.node.await.unwrap();
    }

    fn question(&self, text: &str) -> Value {
        json!({ "model": self.cx.manifest.model.name, "prompt": text, "max_tokens": 8 })
    }

    /// What it offers for this question.
    async fn offers(&self, text: &str) -> Vec<PaymentRequirements> {
        let said = self.asks(text, &[]).await;
        assert_eq!(said.status, 402, "{}", said.body);
        said.offers.expect("a header").accepts
    }

    /// The offer of this scheme, by this method.
    async fn offer(&self, text: &str, scheme: &str, method: TransferMethod) -> PaymentRequirements {
        let by_permit2 = |offer: &PaymentRequirements| offer.extra_text("assetTransferMethod") == Some("permit2");
        let is_it = |offer: &PaymentRequirements| {
            offer.scheme() == scheme && (scheme == UPTO || by_permit2(offer) == (method == TransferMethod::Permit2))
        };
        self.offers(text).await.into_iter().find(is_it).expect("an offer")
    }

    async fn asks(&self, text: &str, headers: &[(HeaderName, String)]) -> Said {
        self.posts(&self.question(text), headers).await
    }

    async fn posts(&self, question: &Value, headers: &[(HeaderName, String)]) -> Said {
        let mut sent = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        for (name, value) in headers {
            sent.append(name, HeaderValue::from_str(value).unwrap());
        }
        let url = format!("{}/v1/completions", self.url);
        let body = question.to_string().into();
        let answer = net::Client::new().send(Method::POST, &url, sent, body).await.unwrap();
        let status = answer.status;
        let header = |name: &HeaderName| answer.header(name).map(str::to_owned);
        let (offers, told, later) =
            (header(&PAYMENT_REQUIRED), header(&PAYMENT_RESPONSE), header(&header::RETRY_AFTER));
        let bytes = answer.bytes(1 << 20).await.unwrap().to_vec();
        Said {
            status,
            offers: offers.map(|header| PaymentRequired::from_header(&header).unwrap()),
            told,
            later,
            body: String::from_utf8(bytes).unwrap(),
        }
    }

    async fn get(&self, path: &str) -> String {
        let url = format!("{}{path}", self.url);
        let answer = net::Client::new().send(Method::GET, &url, HeaderMap::new(), Default::default()).await.unwrap();
        String::from_utf8(answer.bytes(1 << 16).await.unwrap().to_vec()).unwrap()
    }

    /// The receipt that an answer names.
    async fn receipt(&self, said: &Said) -> SignedReceipt {
        let path = format!("/receipts/{}", said.json()["x402"]["request"].as_str().unwrap());
        SignedReceipt::from_json(&self.get(&path).await).expect("a receipt")
    }

    async fn pays(&self, text: &str, payment: &Value) -> Said {
        self.asks(text, &[(PAYMENT_SIGNATURE, encode_header(payment))]).await
    }

    /// Reservations, settled or not, and calls on channels that the book knows.
    async fn in_the_book(&self) -> (usize, usize) {
        let (reply, counts) = tokio::sync::oneshot::channel();
        let look = move |node: &Node| {
            let book = &node.live.as_ref().unwrap().state.book;
            reply.send((book.entries().count(), book.channels().calls().count())).unwrap();
        };
        self.cx.tell(Event::Look(Box::new(look))).await;
        counts.await.unwrap()
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    status: StatusCode,
    offers: Option<PaymentRequired>,
    /// PAYMENT-RESPONSE.
    told: Option<String>,
    /// Retry-After.
    later: Option<String>,
    body: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.body))
    }
}

/// A block of a chain on which this node is operator.
fn news(cx: &Context, relay_wei: u64) -> News {
    let mut news = News { relay_wei: U256::from(relay_wei), ..News::for_tests(cx) };
    news.head.timestamp = NOW;
    news
}

/// One request to the shop, with the header that tells of what is stored.
async fn asked(
    shop: &Shop,
    method: Method,
    path: &str,
    body: &Value,
    paid: Option<&str>,
) -> (u16, Option<String>, Value) {
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    if let Some(paid) = paid {
        headers.insert(PAYMENT_SIGNATURE, HeaderValue::from_str(paid).unwrap());
        // Else the same voucher, which is above what was charged so far, pays for another answer.
        let name = format!("store-{}", body["store"]);
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_str(&name).unwrap());
    }
    let url = format!("{}{path}", shop.url);
    let body = if *body == Value::Null { String::new() } else { body.to_string() };
    let answer = net::Client::new().send(method, &url, headers, body.into()).await.unwrap();
    let status = answer.status.as_u16();
    let stored = answer.header(&HeaderName::from_static("vivarium-stored")).map(str::to_owned);
    (status, stored, answer.json().await.unwrap())
}

/// A voucher of a new customer for this response, as its header.
async fn voucher_for(shop: &Shop, body: &Value, payer: &str) -> String {
    let sent = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let url = format!("{}/v1/responses", shop.url);
    let said = net::Client::new().send(Method::POST, &url, sent, body.to_string().into()).await.unwrap();
    let offers = PaymentRequired::from_header(said.header(&PAYMENT_REQUIRED).expect("what it costs")).unwrap();
    let offer = offers.accepts.into_iter().find(|offer| offer.scheme() == CHANNEL).expect("an offer by channel");
    let (payer, domain) = (customer(payer), ChannelDomain::new(shop.cx.config.chain_id));
    let config = channel::config(payer.address(), &offer, [0; 32]).unwrap();
    channel::pay(&payer, &domain, &config, &offer, offer.amount(), None).unwrap().to_header()
}

/// Stored conversations by the journal's fold and by the ring, in memory and on the disk.
async fn conversations(shop: &Shop) -> (usize, usize, usize) {
    let (reply, counts) = tokio::sync::oneshot::channel();
    let look = move |node: &Node| {
        let live = node.live.as_ref().unwrap();
        reply.send((live.state.conversations.iter().count(), live.ring.conversations.len())).unwrap();
    };
    shop.cx.tell(Event::Look(Box::new(look))).await;
    let (stored, held) = counts.await.unwrap();
    (stored, held, shop.cx.ring_file.load().unwrap().conversations.len())
}

/// What is not asked to be stored is nowhere but in the copy of a day, and what is deleted is not even there.
#[tokio::test]
async fn nothing_is_stored_unasked_and_a_deletion_takes_the_copy_of_the_day_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = store::Blocks::open(dir.path().join("blocks")).unwrap();
    let store_url = served(store::gateway::router(blocks.clone())).await;
    let shop = Shop::open_with(dir.path(), u64::MAX, |cx| {
        cx.store = store::StoreClient::new(net::Client::new(), vec![store_url]);
    })
    .await;
    let kept = || -> Vec<String> {
        let files = std::fs::read_dir(dir.path().join("answers")).unwrap();
        files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let question = |store: bool| {
        let model = &shop.cx.manifest.model.name;
        json!({ "model": model, "input": "What is a lease?", "max_output_tokens": 16, "store": store })
    };

    let voucher = voucher_for(&shop, &question(false), "keeps nothing").await;
    let (status, header, said) = asked(&shop, Method::POST, "/v1/responses", &question(false), Some(&voucher)).await;
    assert_eq!((status, header), (200, None), "{said}");
    let id = said["id"].as_str().unwrap();
    let path = format!("/v1/responses/{id}");
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(asked(&shop, method, &path, &Value::Null, None).await.0, 404);
    }
    assert_eq!(conversations(&shop).await, (0, 0, 0));
    assert_eq!(blocks.iter().count(), 0, "nothing is in the store");
    assert_eq!(kept().len(), 1, "but its copy for a repetition is kept");
    let again = asked(&shop, Method::POST, "/v1/responses", &question(false), Some(&voucher)).await;
    assert_eq!((again.0, &again.2), (200, &said));

    let voucher = voucher_for(&shop, &question(true), "keeps it").await;
    let (status, header, said) = asked(&shop, Method::POST, "/v1/responses", &question(true), Some(&voucher)).await;
    assert_eq!(status, 200, "{said}");
    let disclosure = header.expect("the head tells what deleting proves");
    assert!(disclosure.contains("nobody can prove that a host, or a quorum of stewards, kept no copy"), "{disclosure}");
    let path = format!("/v1/responses/{}", said["id"].as_str().unwrap());
    assert_eq!(asked(&shop, Method::GET, &path, &Value::Null, None).await.0, 200);
    assert_eq!((conversations(&shop).await.0, blocks.iter().count(), kept().len()), (1, 1, 2));
    let again = asked(&shop, Method::POST, "/v1/responses", &question(true), Some(&voucher)).await;
    assert_eq!((again.0, &again.2), (200, &said));

    let (status, _, deleted) = asked(&shop, Method::DELETE, &path, &Value::Null, None).await;
    assert_eq!((status, &deleted["deleted"]), (200, &json!(true)), "{deleted}");
    let note = deleted["note"].as_str().unwrap();
    for told in ["the copy of the answer", "next checkpoint", "Until that stands", "kept a copy of the key"] {
        assert!(note.contains(told), "{told}: {note}");
    }
    assert_eq!(asked(&shop, Method::GET, &path, &Value::Null, None).await.0, 404);
    assert_eq!(conversations(&shop).await, (0, 0, 0));
    assert_eq!(kept().len(), 1, "{:?}", kept());
    let (status, _, again) = asked(&shop, Method::POST, "/v1/responses", &question(true), Some(&voucher)).await;
    assert_eq!(status, 409, "{again}");
    assert!(!again.to_string().contains("promise"), "{again}");
    shop.close().await;
}

fn customer(name: &str) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(name)).unwrap()
}

/// A payment as its JSON.
fn json_of(payment: &PaymentPayload) -> Value {
    decode_header(&payment.to_header()).unwrap()
}

/// What the relay alone can send is neither offered nor taken while it has no gas, and nothing is reserved for it; the
/// rest is sold as ever. With gas it is taken.
#[tokio::test]
async fn what_only_the_relay_can_settle_waits_for_its_gas() {
    const TEXT: &str = "What is a lease?";
    let (poor_dir, rich_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (poor, rich) = (Shop::open(poor_dir.path(), 0).await, Shop::open(rich_dir.path(), u64::MAX).await);
    let payer = customer("pays by what was offered before");
    poor.land.contracts.lock().unwrap().insert(payer.address());
    // What an offer of before says, when there was gas.
    let upto = permit2_client::sign(&payer, &of(&poor, &rich, UPTO, TransferMethod::Permit2).await, NOW, [1; 32]);
    let exact = permit2_client::sign(&payer, &of(&poor, &rich, EXACT, TransferMethod::Permit2).await, NOW, [2; 32]);
    // A contract's: no key's signature, of which only its settlement tells.
    let mut by_contract = json_of(&authorization(&poor, &payer, TEXT, [3; 32]).await);
    by_contract["payload"]["signature"] = json!(format!("0x{}", "5a".repeat(80)));
    let mut deposit = json_of(&deposit(&poor, &payer, TEXT).await);
    deposit["payload"]["deposit"]["authorization"]["erc3009Authorization"]["signature"] =
        json!(format!("0x{}", "5a".repeat(80)));
    for (what, payment) in [
        ("upto", json_of(&upto.unwrap())),
        ("exact by Permit2", json_of(&exact.unwrap())),
        ("exact by a contract", by_contract),
        ("a contract's deposit", deposit),
    ] {
        let said = poor.pays(TEXT, &payment).await;
        let error = said.json()["error"].clone();
        assert_eq!((said.status.as_u16(), &error["code"]), (503, &json!("unexpected_settle_error")), "{what}: {error}");
        assert_eq!(said.later.as_deref(), Some("10"), "{what}");
        let offers = said.offers.expect("its header says so too");
        assert_eq!(Some(offers.error.as_str()), error["code"].as_str(), "{what}");
        let by_permit2 = |offer: &PaymentRequirements| offer.extra_text("assetTransferMethod") == Some("permit2");
        assert!(!offers.accepts.is_empty() && !offers.accepts.iter().any(by_permit2), "{what}: {offers:?}");
    }
    assert_eq!(poor.in_the_book().await, (0, 0), "nothing is reserved");
    assert_eq!(poor.shared.generations(), 0, "nothing is made");
    // A channel needs no gas for a call.
    let (config, offer) = own_channel(&poor, &payer, TEXT).await;
    let domain = ChannelDomain::new(poor.cx.config.chain_id);
    let voucher = channel::pay(&payer, &domain, &config, &offer, offer.amount(), None).unwrap();
    let said = poor.pays(TEXT, &json_of(&voucher)).await;
    assert_eq!(
        (said.status.as_u16(), said.json()["choices"][0]["text"].as_str()),
        (200, Some("A lease is a promise."))
    );
    poor.close().await;
    rich.close().await;
}

/// An offer of one of both, for the other.
async fn of(poor: &Shop, rich: &Shop, scheme: &str, method: TransferMethod) -> PaymentRequirements {
    let offer = rich.offer("What is a lease?", scheme, method).await;
    let mut json = offer.json().clone();
    if scheme == UPTO {
        json["extra"]["facilitatorAddress"] = json!(poor.cx.relay.address().to_checksum(None));
    }
    PaymentRequirements::from_json(json).unwrap()
}

async fn authorization(shop: &Shop, payer: &PrivateKeySigner, text: &str, nonce: [u8; 32]) -> PaymentPayload {
    let offer = shop.offer(text, EXACT, TransferMethod::Eip3009).await;
    pay::scheme::exact::client::sign(payer, &offer, NOW, nonce.into()).unwrap()
}

/// The channel of this customer, and the offer that it pays by.
async fn own_channel(shop: &Shop, payer: &PrivateKeySigner, text: &str) -> (ChannelConfig, PaymentRequirements) {
    let offer = shop.offer(text, CHANNEL, TransferMethod::Eip3009).await;
    (channel::config(payer.address(), &offer, [0; 32]).unwrap(), offer)
}

/// A voucher above what lies in the channel, with a deposit.
async fn deposit(shop: &Shop, payer: &PrivateKeySigner, text: &str) -> PaymentPayload {
    let (config, offer) = own_channel(shop, payer, text).await;
    let domain = ChannelDomain::new(shop.cx.config.chain_id);
    let top_up = channel::TopUp { amount: Usdc(BALANCE), valid_before: NOW + 300, salt: [7; 32] };
    channel::pay(payer, &domain, &config, &offer, Usdc(BALANCE + 1), Some(&top_up)).unwrap()
}

/// Whatever its header holds, a customer hears why in the header and in the body, and never a 500; nothing is reserved
/// and nothing made.
async fn are_refused(shop: &Shop, text: &str, cases: Vec<(&str, Value, Reason)>) {
    let (before, made) = (shop.in_the_book().await, shop.shared.generations());
    for (what, payment, reason) in cases {
        is_refused(what, &shop.pays(text, &payment).await, reason);
    }
    assert_eq!((shop.in_the_book().await, shop.shared.generations()), (before, made));
}

fn is_refused(what: &str, said: &Said, reason: Reason) {
    let code = said.json()["error"]["code"].clone();
    assert_eq!(
        (said.status.as_u16(), code.as_str()),
        (reason.status(), Some(reason.as_str())),
        "{what}: {}",
        said.body
    );
    let offers = said.offers.as_ref().unwrap_or_else(|| panic!("{what}: no header"));
    assert_eq!(offers.error, reason.as_str(), "{what}: header and body say the same");
    assert!(!offers.accepts.is_empty(), "{what}: it says how to pay");
}

/// This JSON with another value somewhere.
fn with(json: &Value, pointer: &str, value: Value) -> Value {
    let mut changed = json.clone();
    *changed.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} in {json}")) = value;
    changed
}

/// Without a field.
fn without(json: &Value, pointer: &str) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let mut changed = json.clone();
    changed.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field).unwrap();
    changed
}

fn elsewhere() -> Value {
    json!("0x1111111111111111111111111111111111111111")
}

/// What is wrong in `accepted`, whatever is signed.
fn wrong_terms<'w>(good: &Value) -> Vec<(&'w str, Value, Reason)> {
    vec![
        ("version 1", with(good, "/x402Version", json!(1)), Reason::InvalidX402Version),
        ("a scheme of its own", with(good, "/accepted/scheme", json!("gratis")), Reason::InvalidScheme),
        ("no scheme", without(good, "/accepted/scheme"), Reason::InvalidScheme),
        ("another chain", with(good, "/accepted/network", json!("eip155:1")), Reason::InvalidNetwork),
        ("another payee", with(good, "/accepted/payTo", elsewhere()), Reason::InvalidPaymentRequirements),
        ("another token", with(good, "/accepted/asset", elsewhere()), Reason::InvalidPaymentRequirements),
        ("other extras", with(good, "/accepted/extra/name", json!("Dollar")), Reason::InvalidPaymentRequirements),
        ("a fraction accepted", with(good, "/accepted/amount", json!("0.5")), Reason::InvalidPayload),
        ("a number accepted", with(good, "/accepted/amount", json!(1)), Reason::InvalidPayload),
        (
            "2^128 accepted",
            with(good, "/accepted/amount", json!((1u128 << 127).to_string() + "0")),
            Reason::InvalidPayload,
        ),
        ("nothing signed", with(good, "/payload", json!({})), Reason::InvalidPayload),
        ("a list signed", with(good, "/payload", json!([])), Reason::InvalidPayload),
    ]
}

#[tokio::test]
async fn what_is_wrong_with_a_voucher_is_said_by_name() {
    const TEXT: &str = "What is wrong?";
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::open(dir.path(), u64::MAX).await;
    let payer = customer("signs vouchers");
    let (config, offer) = own_channel(&shop, &payer, TEXT).await;
    let domain = ChannelDomain::new(shop.cx.config.chain_id);
    let signed = |config: &ChannelConfig, max: u128| {
        json_of(&channel::pay(&payer, &domain, config, &offer, Usdc(max), None).unwrap())
    };
    let ceiling: u128 = offer.extra_text("callCeiling").expect("room for the call before").parse().unwrap();
    let good = signed(&config, offer.amount().micro());
    let of = |change: &dyn Fn(&mut ChannelConfig)| {
        let mut config = config.clone();
        change(&mut config);
        signed(&config, offer.amount().micro())
    };
    let cheap =
        PaymentRequirements::from_json(with(offer.json(), "/amount", json!((ceiling - 1).to_string()))).unwrap();
    let cheap = json_of(&channel::pay(&payer, &domain, &config, &cheap, Usdc(ceiling), None).unwrap());
    let mut cases = wrong_terms(&good);
    cases.extend([
        ("no voucher", without(&good, "/payload/voucher"), Reason::InvalidPayload),
        ("no channel", without(&good, "/payload/channelConfig"), Reason::InvalidPayload),
        ("a type of its own", with(&good, "/payload/type", json!("gift")), Reason::ChannelPayloadType),
        ("no type", without(&good, "/payload/type"), Reason::ChannelPayloadType),
        ("a short id", with(&good, "/payload/voucher/channelId", json!("0x12")), Reason::ChannelIdInvalid),
        ("another's id", with(&good, "/payload/voucher/channelId", hex(&[0x11; 32])), Reason::ChannelIdMismatch),
        ("another salt", with(&good, "/payload/channelConfig/salt", hex(&[9; 32])), Reason::ChannelIdMismatch),
        ("a short salt", with(&good, "/payload/channelConfig/salt", json!("0x12")), Reason::InvalidPayload),
        ("no delay", without(&good, "/payload/channelConfig/withdrawDelay"), Reason::InvalidPayload),
        ("another receiver", of(&|c| c.receiver = [0x11; 20]), Reason::ReceiverMismatch),
        ("another claims", of(&|c| c.receiver_authorizer = [0x11; 20]), Reason::ReceiverAuthorizerMismatch),
        ("another token in it", of(&|c| c.token = [0x11; 20]), Reason::TokenMismatch),
        ("a shorter delay", of(&|c| c.withdraw_delay_secs -= 1), Reason::WithdrawDelayMismatch),
        ("another signs", of(&|c| c.payer_authorizer = [0x11; 20]), Reason::VoucherSignature),
        ("half a signature", with(&good, "/payload/voucher/signature", json!("0x12")), Reason::VoucherSignature),
        ("a forged one", with(&good, "/payload/voucher/signature", hex(&[0x1b; 65])), Reason::VoucherSignature),
        ("raised later", with(&good, "/payload/voucher/maxClaimableAmount", json!("999999")), Reason::VoucherSignature),
        ("a fraction", with(&good, "/payload/voucher/maxClaimableAmount", json!("0.5")), Reason::InvalidPayload),
        ("a number", with(&good, "/payload/voucher/maxClaimableAmount", json!(5)), Reason::InvalidPayload),
        ("nothing allowed", signed(&config, 0), Reason::CumulativeBelowClaimed),
        ("less than the call", signed(&config, ceiling - 1), Reason::CumulativeMismatch),
        ("more than lies there", signed(&config, BALANCE + 1), Reason::CumulativeExceedsBalance),
        ("a price of before", cheap, Reason::PriceMoved),
    ]);
    // Channels with nothing in them, and what puts something in.
    let nobodys = ChannelConfig { salt: [8; 32], ..config.clone() };
    shop.land.empty.lock().unwrap().insert(domain.channel_id(&nobodys));
    cases.push(("an empty channel", signed(&nobodys, offer.amount().micro()), Reason::ChannelNotFound));
    let putting = |amount: u128, max: u128, valid_before: u64| {
        let top_up = channel::TopUp { amount: Usdc(amount), valid_before, salt: [7; 32] };
        json_of(&channel::pay(&payer, &domain, &nobodys, &offer, Usdc(max), Some(&top_up)).unwrap())
    };
    let put = putting(100_000, offer.amount().micro(), NOW + 300);
    let at = "/payload/deposit/authorization/erc3009Authorization";
    let field = |name: &str, value: Value| with(&put, &format!("{at}/{name}"), value);
    cases.extend([
        ("no deposit", without(&put, "/payload/deposit"), Reason::InvalidPayload),
        ("no way to put it in", with(&put, "/payload/deposit/authorization", json!({})), Reason::InvalidPayload),
        ("a deposit of a fraction", with(&put, "/payload/deposit/amount", json!("0.5")), Reason::InvalidPayload),
        ("an expired deposit", putting(100_000, 5_000, NOW), Reason::DepositValidBefore),
        ("a deposit of tomorrow", field("validAfter", json!((NOW + 86_400).to_string())), Reason::DepositValidAfter),
        ("a deposit at noon", field("validAfter", json!("noon")), Reason::InvalidPayload),
        ("half a deposit's signature", field("signature", json!("0x1")), Reason::DepositSignature),
        ("a forged deposit", field("signature", hex(&[0x1b; 65])), Reason::DepositSignature),
        ("dust", putting(9_999, 5_000, NOW + 300), Reason::DepositBelowMin),
        ("less than it allows", putting(10_000, 10_001, NOW + 300), Reason::CumulativeExceedsBalance),
    ]);
    let permitted = json!({
        "from": payer.address(), "permitted": { "token": config_token(&shop), "amount": "100000" },
        "spender": COLLECTOR_PERMIT2, "nonce": "1", "deadline": (NOW + 300).to_string(),
        "witness": { "channelId": domain.channel_id(&nobodys).to_string() }, "signature": hex(&[0x1b; 65]),
    });
    let by_permit2 = with(&put, "/payload/deposit/authorization", json!({ "permit2Authorization": permitted }));
    let at = "/payload/deposit/authorization/permit2Authorization";
    let field = |name: &str, value: Value| with(&by_permit2, &format!("{at}/{name}"), value);
    cases.extend([
        ("another's money", field("from", elsewhere()), Reason::DepositPermit2Signature),
        ("another spends it", field("spender", elsewhere()), Reason::DepositPermit2Spender),
        ("another token put in", field("permitted/token", elsewhere()), Reason::TokenMismatch),
        ("less than the deposit", field("permitted/amount", json!("99999")), Reason::DepositPermit2Amount),
        ("for another channel", field("witness/channelId", hex(&[0x11; 32])), Reason::ChannelIdMismatch),
        ("too late", field("deadline", json!(NOW.to_string())), Reason::DepositDeadline),
        ("a nonce in words", field("nonce", json!("one")), Reason::InvalidPayload),
        ("nobody's signature", by_permit2.clone(), Reason::DepositSignature),
    ]);
    are_refused(&shop, TEXT, cases).await;
    shop.land.refuses.store(true, Ordering::SeqCst);
    let seen = "a deposit that would fail";
    is_refused(seen, &shop.pays(TEXT, &put).await, Reason::DepositSimulation);
    shop.land.refuses.store(false, Ordering::SeqCst);

    // Served; then the same voucher for something else, and money back that is not there.
    let used = signed(&config, ceiling);
    let served = shop.pays(TEXT, &used).await;
    assert_eq!(served.status, 200, "{}", served.body);
    let again = shop.pays("And what else?", &used).await;
    is_refused("spent on another question", &again, Reason::CumulativeMismatch);
    let offers = again.offers.unwrap().accepts;
    let state = &offers[0].json()["extra"]["channelState"];
    assert_eq!(state["chargedCumulativeAmount"], served.json()["x402"]["charged"], "it says how the channel stands");
    let charged = Usdc(served.json()["x402"]["charged"].as_str().unwrap().parse().unwrap());
    let back = |config: &ChannelConfig, amount: u128| {
        json_of(&channel::refund(&payer, &domain, config, &offer, charged, Some(Usdc(amount))).unwrap())
    };
    are_refused(
        &shop,
        TEXT,
        vec![
            ("more than is left", back(&config, BALANCE), Reason::RefundAmountInvalid),
            ("nothing back", back(&config, 0), Reason::RefundAmountInvalid),
            ("a number back", with(&back(&config, 1), "/payload/amount", json!(1)), Reason::InvalidPayload),
            ("from an empty channel", back(&nobodys, 1), Reason::RefundNoBalance),
        ],
    )
    .await;
    shop.close().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_payment_by_permit2_is_said_by_name() {
    const TEXT: &str = "What is wrong?";
    for scheme in [UPTO, EXACT] {
        let dir = tempfile::tempdir().unwrap();
        let shop = Shop::open(dir.path(), u64::MAX).await;
        let payer = customer("pays by Permit2");
        let offer = shop.offer(TEXT, scheme, TransferMethod::Permit2).await;
        let signed = |offer: &PaymentRequirements, now: u64| {
            json_of(&permit2_client::sign(&payer, offer, now, [1; 32]).unwrap())
        };
        let good = signed(&offer, NOW);
        let cheap = with(offer.json(), "/amount", json!((offer.amount().micro() - 1).to_string()));
        let cheap = signed(&PaymentRequirements::from_json(cheap).unwrap(), NOW);
        let field = |name: &str, value: Value| with(&good, &format!("/payload/permit2Authorization/{name}"), value);
        let mut cases = wrong_terms(&good);
        cases.extend([
            ("no permission", without(&good, "/payload/permit2Authorization"), Reason::InvalidPayload),
            ("no witness", without(&good, "/payload/permit2Authorization/witness"), Reason::InvalidPayload),
            ("no signature", without(&good, "/payload/signature"), Reason::InvalidPayload),
            ("half a signature", with(&good, "/payload/signature", json!("0x1")), Reason::Permit2Signature),
            ("a short signature", with(&good, "/payload/signature", json!("0x12")), Reason::Permit2Signature),
            ("a forged one", with(&good, "/payload/signature", hex(&[0x1b; 65])), Reason::Permit2Signature),
            ("another payer", field("from", elsewhere()), Reason::Permit2Signature),
            ("no payer", field("from", json!("me")), Reason::InvalidPayload),
            ("another spends it", field("spender", elsewhere()), Reason::Permit2Spender),
            ("for another", field("witness/to", elsewhere()), Reason::Permit2Recipient),
            ("another token permitted", field("permitted/token", elsewhere()), Reason::Permit2Token),
            ("less permitted", field("permitted/amount", json!("1")), Reason::Permit2Amount),
            ("a fraction permitted", field("permitted/amount", json!("0.5")), Reason::InvalidPayload),
            ("too late", signed(&offer, NOW - offer.max_timeout_secs()), Reason::Permit2Deadline),
            ("too early", field("witness/validAfter", json!((NOW + 60).to_string())), Reason::Permit2NotYetValid),
            ("a nonce in words", field("nonce", json!("one")), Reason::InvalidPayload),
            ("a nonce of 257 bits", field("nonce", json!("9".repeat(78))), Reason::InvalidPayload),
            ("an altered nonce", field("nonce", json!("2")), Reason::Permit2Signature),
            ("a price of before", cheap, Reason::PriceMoved),
        ]);
        if scheme == UPTO {
            cases.push(("another settles it", field("witness/facilitator", elsewhere()), Reason::UptoFacilitator));
        }
        are_refused(&shop, TEXT, cases).await;
        // A key's and a contract's that would not go through.
        let mut by_contract = good.clone();
        by_contract["payload"]["signature"] = hex(&[0x5a; 80]);
        shop.land.refuses.store(true, Ordering::SeqCst);
        is_refused("it would fail", &shop.pays(TEXT, &good).await, Reason::InvalidTransactionState);
        shop.land.contracts.lock().unwrap().insert(payer.address());
        is_refused("a contract's", &shop.pays(TEXT, &by_contract).await, Reason::Permit2Simulation);
        shop.land.refuses.store(false, Ordering::SeqCst);
        assert_eq!(shop.in_the_book().await, (0, 0));
        shop.close().await;
    }
}

/// A permission pays for one question: whatever else comes with its nonce is refused by name, while its answer is on its
/// way, once it is settled, once it can pay nothing, and by the node that is started after that. It is made once.
#[tokio::test]
async fn a_nonce_of_permit2_pays_for_no_other_question() {
    const TEXT: &str = "What is a nonce?";
    const OTHER: &str = "Another question?";
    for (scheme, others_scheme) in [(UPTO, EXACT), (EXACT, UPTO)] {
        let dir = tempfile::tempdir().unwrap();
        let shop = Arc::new(Shop::open(dir.path(), u64::MAX).await);
        let payer = customer("signs once");
        let (offer, other_offer) = (
            shop.offer(TEXT, scheme, TransferMethod::Permit2).await,
            shop.offer(OTHER, others_scheme, TransferMethod::Permit2).await,
        );
        let sign = |offer: &PaymentRequirements, now: u64, nonce: u8| {
            json_of(&permit2_client::sign(&payer, offer, now, [nonce; 32]).unwrap())
        };
        let request = |nonce: u8| RequestId::of_payment(TransferMethod::Permit2, &payer.address().0.0, &[nonce; 32]);
        let settled = async |nonce: u8, settlement: Settlement| {
            shop.cx.tell(Event::Settled { request: request(nonce), settlement }).await;
        };
        let others = async |shop: &Shop, nonce: u8, reason: Reason| {
            let made = shop.shared.generations();
            for (what, payment) in [
                ("the same", sign(&offer, NOW, nonce)),
                ("signed anew", sign(&offer, NOW + 7, nonce)),
                ("by the other scheme", sign(&other_offer, NOW, nonce)),
            ] {
                is_refused(what, &shop.pays(OTHER, &payment).await, reason);
            }
            assert_eq!(shop.shared.generations(), made, "nothing is made for it");
        };
        let buys = |nonce: u8| {
            let (shop, payment) = (shop.clone(), sign(&offer, NOW, nonce));
            tokio::spawn(async move { shop.pays(TEXT, &payment).await })
        };
        let is_out = async |entries: usize| {
            while shop.in_the_book().await.0 < entries {
                tokio::task::yield_now().await;
            }
        };

        // The chain has not said what became of it.
        let first = buys(1);
        is_out(1).await;
        others(&shop, 1, Reason::PaymentConflict).await;
        let amount = offer.amount().micro();
        let paid = Settlement::Paid { amount, tx: B256::repeat_byte(9), block: 1, recorded: false };
        settled(1, paid).await;
        let first = first.await.unwrap();
        assert_eq!(first.status, 200, "{scheme}: {}", first.body);
        others(&shop, 1, Reason::PaymentConflict).await;
        // Its own question again is the same request.
        let again = shop.pays(TEXT, &sign(&offer, NOW, 1)).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body));

        // Another one, whose payer spends the nonce elsewhere meanwhile.
        let second = buys(2);
        is_out(2).await;
        settled(2, Settlement::Unpaid(UnpaidWhy::UsedElsewhere)).await;
        let second = second.await.unwrap();
        assert!(second.status.is_client_error(), "{}: {}", second.status, second.body);
        others(&shop, 2, Reason::PaymentConflict).await;
        is_refused("it can pay nothing", &shop.pays(TEXT, &sign(&offer, NOW, 2)).await, Reason::Permit2Nonce);
        // And one that was spent before it came.
        shop.land.refuses.store(true, Ordering::SeqCst);
        shop.land.spent.store(true, Ordering::SeqCst);
        is_refused("spent before", &shop.pays(TEXT, &sign(&offer, NOW, 3)).await, Reason::Permit2Nonce);
        assert_eq!((shop.in_the_book().await, shop.shared.generations()), ((2, 0), 2), "made once each");

        Arc::into_inner(shop).expect("nobody else asks").close().await;
        let shop = Shop::open(dir.path(), u64::MAX).await;
        for nonce in [1, 2] {
            others(&shop, nonce, Reason::PaymentConflict).await;
        }
        let again = shop.pays(TEXT, &sign(&offer, NOW, 1)).await;
        assert_eq!((again.status, &again.body, shop.shared.generations()), (first.status, &first.body, 0));
        shop.close().await;
    }
}

/// A request on a channel, a hundred times at once and again after the node was started anew, with the same voucher and
/// with larger ones: it is made once, charged once, and answered with the same bytes.
#[tokio::test]
async fn a_named_request_on_a_channel_is_made_and_charged_once_however_often_it_comes() {
    const TEXT: &str = "What is a voucher?";
    let dir = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(dir.path(), u64::MAX).await;
    let payer = customer("asks often");
    let (config, offer) = own_channel(&shop, &payer, TEXT).await;
    let domain = ChannelDomain::new(shop.cx.config.chain_id);
    let payment = |more: u128| {
        let max = Usdc(offer.amount().micro() + more);
        let payment = channel::pay(&payer, &domain, &config, &offer, max, None).unwrap();
        [(PAYMENT_SIGNATURE, payment.to_header()), (IDEMPOTENCY_KEY, "once".to_owned())]
    };
    let payments: Vec<_> = (0..100).map(|n| payment(if n % 2 == 0 { 0 } else { 10_000 * n })).collect();
    for start in 0..2 {
        let said = join_all(payments.iter().map(|headers| shop.asks(TEXT, headers))).await;
        let first = &said[0];
        assert_eq!(first.status, 200, "{}", first.body);
        for other in &said[1..] {
            assert_eq!((other.status, &other.body), (first.status, &first.body));
        }
        assert_eq!(shop.shared.generations(), 1 - start, "made once");
        let elsewhere = shop.asks("Another question?", &payment(500_000)).await;
        is_refused("one name for two questions", &elsewhere, Reason::PaymentConflict);

        let x402 = first.json()["x402"].clone();
        let charged = Usdc(x402["charged"].as_str().unwrap().parse().unwrap());
        assert!(!charged.is_zero());
        let (reply, found) = tokio::sync::oneshot::channel();
        let id = domain.channel_id(&config);
        let look = move |node: &Node| {
            let channels = node.live.as_ref().unwrap().state.book.channels();
            let channel = channels.channel(&id).unwrap();
            let _ = reply.send((channel.charged, channel.reserved, channel.served));
        };
        shop.cx.tell(Event::Look(Box::new(look))).await;
        assert_eq!(found.await.unwrap(), (charged, Usdc::ZERO, 1), "charged once");
        // And its receipt says so.
        let signed = shop.receipt(first).await;
        assert_eq!(signed.signer().unwrap(), shop.cx.me());
        assert_eq!(
            (signed.receipt.amount, signed.receipt.paid_by),
            (charged, PaidBy::Voucher { channel: id.0, charged }),
        );
        shop.close().await;
        shop = Shop::open(dir.path(), u64::MAX).await;
    }
    shop.close().await;
}

/// What stands behind the model's name reaches the engine as a place, and the receipt as a CID; nothing else is served.
#[tokio::test]
async fn an_adapter_is_chosen_by_the_models_name_and_the_receipt_names_it() {
    const TEXT: &str = "What is a lease?";
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::open(dir.path(), u64::MAX).await;
    let payer = customer("likes poems");
    let (config, offer) = own_channel(&shop, &payer, TEXT).await;
    let domain = ChannelDomain::new(shop.cx.config.chain_id);
    let cid = store::cid::parse(&shop.cx.manifest.adapters[0].cid).unwrap();
    let mut spent = Usdc::ZERO;
    for (model, text, adapter) in
        [("m", ANSWER.concat(), [0; 32]), ("m:poet", ADAPTED.concat(), store::cid::digest(&cid))]
    {
        let most = spent.saturating_add(offer.amount());
        let voucher = channel::pay(&payer, &domain, &config, &offer, most, None).unwrap();
        let question = json!({ "model": model, "prompt": TEXT, "max_tokens": 8, "seed": 5 });
        let said = shop.posts(&question, &[(PAYMENT_SIGNATURE, encode_header(&json_of(&voucher)))]).await;
        assert_eq!((said.status.as_u16(), said.json()["choices"][0]["text"].as_str()), (200, Some(&text[..])));
        let charged: Usdc = Usdc(said.json()["x402"]["charged"].as_str().unwrap().parse().unwrap());
        spent = spent.saturating_add(charged);
        let receipt = shop.receipt(&said).await.receipt;
        assert_eq!(receipt.adapter, adapter, "{model}");
        let run = infer::Run::from_canonical(receipt.run.text().unwrap()).unwrap();
        assert_eq!(run.adapter().unwrap_or_default(), adapter, "{model}");
        assert_eq!((run.route.as_str(), run.sampling.seed.as_str()), ("POST /v1/completions", "5"));
    }
    for model in ["m:nobody", "m:", "poet", "m:poet:poet"] {
        let said = shop.posts(&json!({ "model": model, "prompt": TEXT }), &[]).await;
        let code = said.json()["error"]["code"].clone();
        assert_eq!((said.status.as_u16(), code), (404, json!("model_not_found")), "{model}");
    }
    let models: Value = serde_json::from_str(&shop.get("/v1/models").await).unwrap();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["m", "m:poet", "e", "big", "v", "theirs"]);
    shop.close().await;
}

fn hex(bytes: &[u8]) -> Value {
    json!(format!("0x{}", hex::encode(bytes)))
}

fn config_token(shop: &Shop) -> String {
    shop.cx.birth.token.to_string()
}

/// How a STAND-IN for another's facilitator takes what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    PutsIn,
    /// It says that it did, and names a transaction of something else.
    Boasts,
    Refuses,
    /// It does what it is asked, and its answer is lost.
    Late,
    /// It is not there.
    Gone,
}

/// Another's facilitator puts keys' deposits in; what it does not put in, the relay does, whatever it says. Its customer is
/// served once the channel shows the money, and told a transaction only if that did it.
#[tokio::test]
async fn a_deposit_is_put_in_by_anothers_facilitator_else_by_the_relay() {
    const TEXT: &str = "Who puts it in?";
    let tx = B256::repeat_byte(0x7d);
    for manner in [Manner::PutsIn, Manner::Boasts, Manner::Refuses, Manner::Late, Manner::Gone] {
        let dir = tempfile::tempdir().unwrap();
        let heard: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (asked, told) = (heard.clone(), Arc::new(Mutex::new(None::<Arc<Land>>)));
        let land = told.clone();
        let settle = move |Json(body): Json<Value>| async move {
            let id = body["paymentPayload"]["payload"]["voucher"]["channelId"].as_str().unwrap().to_owned();
            asked.lock().unwrap().push(body);
            let id = ChannelId(hex::decode(&id[2..]).unwrap().try_into().unwrap());
            let land = land.lock().unwrap().clone().unwrap();
            if matches!(manner, Manner::PutsIn | Manner::Late) {
                land.empty.lock().unwrap().remove(&id);
                *land.deposited.lock().unwrap() = Some((tx, id));
            }
            match manner {
                Manner::PutsIn | Manner::Boasts => {
                    Json(json!({ "success": true, "transaction": tx, "network": "eip155:31337" }))
                }
                Manner::Late => Json(json!("what?")),
                _ => Json(json!({ "success": false, "transaction": "", "network": "", "errorReason": "no" })),
            }
        };
        let url = match manner {
            Manner::Gone => "http://127.0.0.1:1".to_owned(),
            _ => served(Router::new().route("/settle", post(settle))).await,
        };
        let shop = Shop::open_with(dir.path(), u64::MAX, |cx| {
            cx.depositor = Some(Remote::new(&url, &net::Client::new()));
        })
        .await;
        *told.lock().unwrap() = Some(shop.land.clone());
        let payer = customer("puts money in");
        let (config, offer) = own_channel(&shop, &payer, TEXT).await;
        let domain = ChannelDomain::new(shop.cx.config.chain_id);
        let id = domain.channel_id(&config);
        shop.land.empty.lock().unwrap().insert(id);
        let top_up = channel::TopUp { amount: Usdc(BALANCE), valid_before: NOW + 300, salt: [7; 32] };
        let payment = channel::pay(&payer, &domain, &config, &offer, offer.amount(), Some(&top_up)).unwrap();

        let said = shop.pays(TEXT, &json_of(&payment)).await;
        assert_eq!(said.status, 200, "{manner:?}: {}", said.body);
        let told = decode_header(&said.told.unwrap()).unwrap();
        let is_theirs = manner == Manner::PutsIn;
        let named = if is_theirs { tx } else { B256::ZERO };
        assert_eq!((&told["transaction"], &told["amount"]), (&json!(named), &json!(BALANCE.to_string())), "{manner:?}");
        let tried = shop.land.about_to_be_sent.load(Ordering::SeqCst);
        let by_another = matches!(manner, Manner::PutsIn | Manner::Late);
        assert_eq!(tried, u32::from(!by_another), "{manner:?}: the relay sends what is not in, and nothing else");
        let asked = heard.lock().unwrap().clone();
        assert_eq!(asked.len(), usize::from(manner != Manner::Gone), "{manner:?}: it is asked once");
        for body in asked {
            let payload = &body["paymentPayload"]["payload"];
            assert_eq!(
                (&payload["type"], &payload["deposit"]["amount"]),
                (&json!("deposit"), &json!(BALANCE.to_string()))
            );
            assert_eq!(payload["voucher"], json_of(&payment)["payload"]["voucher"]);
            assert_eq!(body["paymentRequirements"]["scheme"], CHANNEL);
            assert_eq!(body["paymentRequirements"], body["paymentPayload"]["accepted"]);
        }
        shop.close().await;
    }
}

/// A standby is asked once a second whether it could take over.
#[tokio::test]
async fn an_engine_that_started_at_the_second_attempt_makes_its_node_able() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::open(dir.path(), u64::MAX).await;
    let is_able = async || {
        let said: Value = serde_json::from_str(&shop.get("/peer/able").await).unwrap();
        said["ready"] == true
    };
    let engine = shop.shared.engine().unwrap();
    shop.shared.set_engine_trouble("no engine: the weights are not here yet".to_owned());
    shop.shared.set_engine(engine);
    assert_eq!((is_able().await, shop.shared.engine_trouble()), (true, None));
    shop.shared.set_trouble(Some("the journal's disk failed".to_owned()));
    assert!(!is_able().await, "that does not pass");
    shop.close().await;
}

/// The agent has moved from `old` to `new`; both have the same memory here, as a successor has.
#[tokio::test]
async fn a_paid_request_at_the_former_host_is_answered_by_the_new_one() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (old, new) = (Shop::open(dirs[0].path(), u64::MAX).await, Shop::open(dirs[1].path(), u64::MAX).await);
    let payer = customer("moves");
    let (config, offer) = own_channel(&old, &payer, "where").await;
    let domain = ChannelDomain::new(old.cx.config.chain_id);
    let voucher = channel::pay(&payer, &domain, &config, &offer, offer.amount(), None).unwrap();
    let opened = json_of(&voucher);
    old.shared.set_role(Role::Draining);
    old.shared.moved_to(Some(new.url.clone()));
    // Unpaid: its client learns the address.
    assert_eq!(old.asks("where", &[]).await.status, 308);
    let said = old.pays("where", &opened).await;
    assert_eq!(said.status, 200, "{}", said.body);
    assert!(said.told.is_some() && said.json()["choices"][0]["text"] == ANSWER.concat(), "{said:?}");
    assert_eq!((old.in_the_book().await.1, new.in_the_book().await.1), (0, 1));
    // What was carried once is not carried again.
    new.shared.set_role(Role::Draining);
    new.shared.moved_to(Some(old.url.clone()));
    assert_eq!(old.pays("round", &opened).await.status, 308);
    old.close().await;
    new.close().await;
}
