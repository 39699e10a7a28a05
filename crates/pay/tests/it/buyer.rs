//! The buyer and everything that can go wrong with a payment that is out.

use crate::shop::{CHAIN_ID, Shop, TOKEN, TREASURY, Trouble};
use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use pay::buyer::{Buyer, BuyerPolicy, Fate, Fates, Kind};
use pay::seller::FRESH_ANSWER;
use pay::{Reason, Usdc};
use serde_json::{Value, json};
use std::time::Duration;

fn buyer() -> Buyer {
    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: TOKEN,
        pay_to: TREASURY,
        max_per_call: Usdc(1_000),
        max_total: Usdc(2_500),
    };
    // Short, so that a lost answer is noticed at once; loopback answers in far less.
    let client = net::Client::new().with_deadline(Duration::from_millis(700));
    Buyer::new(client, PrivateKeySigner::from_bytes(&keccak256(b"buyer")).unwrap(), policy)
}

fn question(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }] })
}

#[tokio::test]
async fn pays_what_is_asked_and_no_more() {
    let shop = Shop::open(1_000).await;
    let buyer = buyer();
    let paid = buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
    assert_eq!((paid.status.as_u16(), paid.spent), (200, Usdc(1_000)));
    assert!(String::from_utf8_lossy(&paid.body).contains("You said: a"));
    buyer.post_json(&shop.endpoint(), &question("b")).await.unwrap();
    // 2,000 of at most 2,500 are signed.
    let error = buyer.post_json(&shop.endpoint(), &question("c")).await.unwrap_err();
    assert_eq!(error.kind, Kind::BudgetUsed, "{error}");
    shop.with(|shelf| shelf.price = Usdc(1_001));
    let error = self::buyer().post_json(&shop.endpoint(), &question("c")).await.unwrap_err();
    assert_eq!(error.kind, Kind::TooExpensive, "{error}");
    assert_eq!((shop.earned(), shop.nonces().len()), (2_000, 2));
}

#[tokio::test]
async fn an_imposter_gets_nothing() {
    let imposter = Shop::open_with(10, Address::repeat_byte(0x66), crate::shop::wall).await;
    let buyer = buyer();
    let error = buyer.post_json(&imposter.endpoint(), &question("a")).await.unwrap_err();
    assert_eq!(error.kind, Kind::WrongSeller, "{error}");
    // Nor by a redirect from the real one.
    let shop = Shop::open(10).await;
    shop.with(|shelf| shelf.moved_to = Some(imposter.url.clone()));
    let error = buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap_err();
    assert_eq!(error.kind, Kind::WrongSeller, "{error}");
    assert_eq!((imposter.nonces().len(), buyer.signed_total()), (0, Usdc(0)));
}

#[tokio::test]
async fn a_payment_that_is_out_is_never_shown_to_an_imposter() {
    let imposter = Shop::open_with(10, Address::repeat_byte(0x66), crate::shop::wall).await;
    let shop = Shop::open(10).await;
    shop.trouble([Trouble::Fail]);
    let buyer = buyer();
    buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
    assert_eq!(buyer.unresolved(), 1);
    // The same call at another address, then by a redirect.
    let error = buyer.post_json(&imposter.endpoint(), &question("a")).await.unwrap_err();
    assert_eq!(error.kind, Kind::WrongSeller, "{error}");
    shop.with(|shelf| shelf.moved_to = Some(imposter.url.clone()));
    let error = buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap_err();
    assert_eq!(error.kind, Kind::WrongSeller, "{error}");
    assert_eq!((imposter.nonces().len(), buyer.unresolved()), (0, 1));
}

#[tokio::test]
async fn follows_a_move_and_pays_there_once() {
    let (old, new) = (Shop::open(300).await, Shop::open(300).await);
    old.with(|shelf| shelf.moved_to = Some(new.url.clone()));
    let buyer = buyer();
    let paid = buyer.post_json(&old.endpoint(), &question("a")).await.unwrap();
    assert_eq!(paid.url, new.endpoint());
    assert_eq!((old.earned(), new.earned(), buyer.signed_total()), (0, 300, Usdc(300)));
    let endless = Shop::open(1).await;
    endless.with(|shelf| shelf.moved_to = Some(endless.url.clone()));
    let error = buyer.post_json(&endless.endpoint(), &question("a")).await.unwrap_err();
    assert_eq!(error.kind, Kind::BadAnswer, "{error}");
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_with_the_same_payment() {
    for trouble in [Trouble::LoseAnswer, Trouble::BreakBody, Trouble::InFlight] {
        let shop = Shop::open(400).await;
        shop.trouble([trouble.clone(), trouble.clone()]);
        let buyer = buyer();
        let paid = buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
        assert!(String::from_utf8_lossy(&paid.body).contains("You said: a"), "{trouble:?}");
        assert_eq!((shop.earned(), shop.nonces().len()), (400, 1), "{trouble:?}");
        assert_eq!(shop.with(|shelf| shelf.seen.len()), 3, "{trouble:?}");
        assert_eq!((buyer.signed_total(), buyer.unresolved()), (Usdc(400), 0), "{trouble:?}");
    }
}

#[tokio::test]
async fn an_error_leaves_the_payment_to_the_next_call() {
    let shop = Shop::open(400).await;
    shop.trouble([Trouble::Fail]);
    let buyer = buyer();
    let failed = buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
    assert_eq!((failed.status.as_u16(), failed.spent, buyer.unresolved()), (500, Usdc(0), 1));
    shop.trouble([Trouble::Refuse(Reason::UnexpectedSettleError)]);
    let unknown = buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap_err();
    assert_eq!((unknown.kind, buyer.unresolved()), (Kind::OutcomeUnknown, 1));
    let paid = buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
    assert_eq!((paid.status.as_u16(), paid.spent, buyer.unresolved()), (200, Usdc(400), 0));
    assert_eq!(shop.nonces().len(), 1);
}

#[tokio::test]
async fn a_second_payment_only_after_the_first_was_refused_for_good_reason() {
    for (reason, nonces) in [(Reason::PriceMoved, 2), (Reason::ValidBefore, 2), (Reason::PaymentAborted, 2)] {
        let shop = Shop::open(400).await;
        shop.trouble([Trouble::Refuse(reason)]);
        let buyer = buyer();
        buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
        assert_eq!((shop.nonces().len(), shop.earned()), (nonces, 400), "{reason}");
        assert_eq!(buyer.signed_total(), Usdc(800), "a refused one could still be used: it counts");
    }
    for reason in [Reason::Signature, Reason::InsufficientFunds, Reason::NonceUsed] {
        let shop = Shop::open(400).await;
        shop.trouble([Trouble::Refuse(reason)]);
        let error = buyer().post_json(&shop.endpoint(), &question("a")).await.unwrap_err();
        assert_eq!((error.kind, shop.nonces().len()), (Kind::Refused, 1), "{reason}");
    }
    // Twice is enough.
    let shop = Shop::open(400).await;
    shop.trouble([Trouble::Refuse(Reason::PriceMoved), Trouble::Refuse(Reason::PriceMoved)]);
    let error = buyer().post_json(&shop.endpoint(), &question("a")).await.unwrap_err();
    assert_eq!((error.kind, shop.nonces().len()), (Kind::Refused, 2));
}

#[tokio::test]
async fn a_stream_dropped_half_way_is_resumed_by_the_same_payment() {
    let shop = Shop::open(400).await;
    let buyer = buyer();
    let mut ask = question("a");
    ask["stream"] = json!(true);
    let answer = buyer.post_stream(&shop.endpoint(), Default::default(), &ask).await.unwrap();
    assert!(answer.payment.as_ref().unwrap().success);
    drop(answer);
    // The head said that it was paid: nothing is unknown, and its answer is still to be had.
    assert_eq!((buyer.unresolved(), buyer.is_out(&shop.endpoint(), ask.to_string().as_bytes())), (0, true));
    let mut answer = buyer.post_stream(&shop.endpoint(), Default::default(), &ask).await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = answer.chunk().await.unwrap() {
        text.extend_from_slice(&piece);
    }
    assert!(String::from_utf8(text).unwrap().ends_with("data: [DONE]\n\n"));
    assert_eq!((shop.earned(), shop.nonces().len(), buyer.unresolved()), (400, 1, 0));
}

/// A stream's head does not say that it was paid. More of them than may be unknown at once, each left: the seller's
/// receipts tell what became of them, so the next one is paid all the same.
#[tokio::test]
async fn a_thousand_streams_that_were_left_do_not_stop_a_buyer() {
    let shop = Shop::open(1).await;
    shop.with(|shelf| shelf.tells = false);
    let buyer = buyer();
    let mut ask = question("");
    ask["stream"] = json!(true);
    for n in 0..1_020 {
        ask["messages"][0]["content"] = json!(n.to_string());
        let answer = buyer.post_stream(&shop.endpoint(), Default::default(), &ask).await.unwrap();
        assert!(answer.payment.is_none() && answer.status.is_success());
    }
    assert!(buyer.unresolved() <= 100, "{} are unknown", buyer.unresolved());
    assert_eq!((shop.earned(), shop.nonces().len()), (1_020, 1_020));
    // Each is asked about once.
    assert!(shop.with(|shelf| shelf.receipts_asked) <= 1_020);
    // What is known to be paid is not paid again: the last question but one, asked again.
    ask["messages"][0]["content"] = json!("900");
    buyer.post_stream(&shop.endpoint(), Default::default(), &ask).await.unwrap();
    assert_eq!(shop.earned(), 1_020);
}

/// Without a receipt and without a chain nobody knows: then nothing new is paid.
#[tokio::test]
async fn what_nobody_knows_stays_unknown() {
    let shop = Shop::open(1).await;
    let buyer = buyer();
    shop.trouble([Trouble::Fail]);
    buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
    assert_eq!(buyer.ask_about_unknown().await, Fates { unknown: 1, ..Fates::default() });
    let body = question("a").to_string();
    assert_eq!(buyer.ask_about(&shop.endpoint(), body.as_bytes()).await, Some(Fate::Unknown));
    assert_eq!(buyer.ask_about(&shop.endpoint(), b"another").await, None);
}

#[tokio::test]
async fn a_fresh_answer_is_paid_again() {
    let shop = Shop::open(400).await;
    shop.with(|shelf| shelf.confirmed = false);
    let buyer = buyer();
    buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
    buyer.post_json(&shop.endpoint(), &question("a")).await.unwrap();
    assert_eq!(shop.earned(), 400, "the stored answer");
    let fresh = http::HeaderMap::from_iter([(FRESH_ANSWER, http::HeaderValue::from_static("1"))]);
    buyer.post_json_with(&shop.endpoint(), fresh, &question("a")).await.unwrap();
    assert_eq!(shop.earned(), 800);
}

#[tokio::test]
async fn what_is_no_seller_is_said() {
    let buyer = buyer();
    let closed = buyer.post_json("http://127.0.0.1:1/", &question("a")).await.unwrap_err();
    assert_eq!(closed.kind, Kind::Unreachable);
    for url in ["ftp://x/", "x", "https://"] {
        assert_eq!(buyer.post_json(url, &question("a")).await.unwrap_err().kind, Kind::Usage, "{url}");
    }
}
