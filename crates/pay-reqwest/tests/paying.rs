//! A program that has a client of `reqwest`, and a seller in its way.

#[path = "../../pay/tests/it/shop.rs"]
#[allow(dead_code)]
mod shop;

use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use futures::StreamExt;
use pay::buyer::{Error as BuyerError, Kind};
use pay::{Buyer, BuyerPolicy, Usdc};
use pay_reqwest::{Paying, Payment};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error};
use shop::{CHAIN_ID, Shop, TOKEN, TREASURY, Trouble, wall};
use std::time::Duration;

fn buyer() -> Buyer {
    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: TOKEN,
        pay_to: TREASURY,
        max_per_call: Usdc(1_000),
        max_total: Usdc(2_500),
    };
    Buyer::new(net::Client::new(), PrivateKeySigner::from_bytes(&keccak256(b"a client of reqwest")).unwrap(), policy)
}

fn client(buyer: &Buyer, shops: &[&Shop]) -> ClientWithMiddleware {
    let paying = Paying::at(buyer.clone(), shops.iter().map(|shop| shop.url.as_str())).unwrap();
    ClientBuilder::new(reqwest::Client::new()).with(paying).build()
}

fn question(text: &str) -> String {
    format!(r#"{{"stream": {}, "messages": [{{"role": "user", "content": "{text}"}}]}}"#, text == "stream")
}

fn kind(error: &Error) -> Option<Kind> {
    let Error::Middleware(error) = error else { return None };
    error.downcast_ref::<BuyerError>().map(|error| error.kind)
}

#[tokio::test]
async fn a_client_of_reqwest_pays_within_the_buyers_limits() {
    let shop = Shop::open(1_000).await;
    let buyer = buyer();
    let client = client(&buyer, &[&shop]);
    let answer = client.post(shop.endpoint()).body(question("a")).send().await.unwrap();
    let payment = answer.extensions().get::<Payment>().expect("an answer says what it cost").clone();
    assert_eq!((answer.status().as_u16(), answer.url().as_str()), (200, shop.endpoint().as_str()));
    assert_eq!((payment.spent, payment.scheme), (Usdc(1_000), Some("exact")));
    assert!(payment.settlement.is_some_and(|settlement| settlement.success));
    assert!(answer.text().await.unwrap().contains("You said: a"));
    // A stream comes in pieces, and is done with at its end.
    let mut pieces = client.post(shop.endpoint()).body(question("stream")).send().await.unwrap().bytes_stream();
    let mut text = Vec::new();
    while let Some(piece) = pieces.next().await {
        text.extend_from_slice(&piece.unwrap());
    }
    assert!(text.starts_with(b"data: ") && text.ends_with(b"data: [DONE]\n\n"));
    assert_eq!((shop.earned(), buyer.unresolved()), (2_000, 0));
    // 2,000 of at most 2,500 are signed.
    let refused = client.post(shop.endpoint()).body(question("c")).send().await.unwrap_err();
    assert_eq!(kind(&refused), Some(Kind::BudgetUsed), "{refused}");
    assert_eq!((shop.earned(), shop.nonces().len()), (2_000, 2));
}

#[tokio::test]
async fn only_the_sellers_that_were_named_are_paid() {
    let (shop, other) = (Shop::open(10).await, Shop::open(10).await);
    let buyer = buyer();
    let client = client(&buyer, &[&shop]);
    // The same price for the same treasury, at an address that nobody named: the 402 is the caller's.
    let answer = client.post(other.endpoint()).body(question("a")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.extensions().get::<Payment>().is_some()), (402, false));
    // A body that can be read only once cannot be sent again with a payment.
    let once = reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>(question("a"))]));
    let answer = client.post(shop.endpoint()).body(once).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 402);
    assert_eq!((other.nonces().len(), shop.nonces().len(), buyer.signed_total()), (0, 0, Usdc(0)));
    let imposter = Shop::open_with(10, Address::repeat_byte(0x66), wall).await;
    let refused = self::client(&buyer, &[&imposter]).post(imposter.endpoint()).body(question("a")).send().await;
    assert_eq!(kind(&refused.unwrap_err()), Some(Kind::WrongSeller));
    let bad = ["ftp://agent.example", "agent.example", "http://"].map(|at| Paying::at(buyer.clone(), [at]).is_err());
    assert_eq!(bad, [true; 3], "no other scheme, no name without one, no host");
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_with_the_same_payment() {
    let shop = Shop::open(400).await;
    let buyer = buyer();
    let client = client(&buyer, &[&shop]);
    // It breaks off, and the buyer asks again.
    shop.trouble([Trouble::BreakBody, Trouble::InFlight]);
    let answer = client.post(shop.endpoint()).body(question("a")).send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("You said: a"));
    assert_eq!((shop.nonces().len(), shop.with(|shelf| shelf.seen.len())), (1, 3));
    // It never comes, and the request has a timeout of its own.
    shop.trouble([Trouble::LoseAnswer]);
    let call = || client.post(shop.endpoint()).body(question("b"));
    let lost = call().timeout(Duration::from_millis(300)).send().await.unwrap_err();
    assert!(matches!(lost, Error::Middleware(_)) && kind(&lost).is_none(), "{lost}");
    assert!(call().send().await.unwrap().text().await.unwrap().contains("You said: b"));
    assert_eq!((shop.earned(), shop.nonces().len(), buyer.signed_total()), (800, 2, Usdc(800)));
    assert_eq!(buyer.unresolved(), 0);
}
