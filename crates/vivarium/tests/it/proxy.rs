//! `vivarium proxy` in front of stand-in sellers: they ask, verify and answer, and settle nothing.

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use economy::Usdc;
use pay::Seller;
use pay::buyer::{Buyer, Clock, SpendLimits};
use pay::seller::Quote;
use pay::wire::Resource;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use vivarium::proxy::{self, Agent, Config, Whereabouts};
use vivarium::world::crowd::policy;

const CHAIN_ID: u64 = 31337;
const TOKEN: Address = Address::repeat_byte(0x70);
const TREASURY: Address = Address::repeat_byte(0x77);
const PRICE: Usdc = Usdc(1_000);

fn real_time() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// What the stand-in was sent, and the word that lets the second half of its answers go.
struct StandInSeller {
    seller: Seller,
    heard: Mutex<Vec<HeaderMap>>,
    go_on: Notify,
}

impl StandInSeller {
    async fn open() -> (Arc<Self>, String) {
        let seller = Seller::new(CHAIN_ID, TOKEN, ("USD Coin", "2"), TREASURY);
        let shop = Arc::new(Self { seller, heard: Mutex::default(), go_on: Notify::new() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(shop.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (shop, url)
    }
}

async fn answer(State(shop): State<Arc<StandInSeller>>, headers: HeaderMap) -> Response {
    shop.heard.lock().unwrap().push(headers.clone());
    let resource = Resource { url: "/".into(), description: "an answer".into(), mime_type: "text/plain".into() };
    let quote = Quote { amount: PRICE, resource: &resource, quoted_before: &|_| false, known: &|_, _| false };
    let paid = match shop.seller.accept(&headers, &quote, real_time()()) {
        Ok(paid) => paid,
        Err(challenge) => {
            let status = StatusCode::from_u16(challenge.status()).unwrap();
            return (status, HeaderMap::from_iter(challenge.headers()), challenge.body("r").to_string())
                .into_response();
        }
    };
    let pieces = futures::stream::unfold((shop.clone(), 0), |(shop, n)| async move {
        if n == 1 {
            shop.go_on.notified().await;
        }
        (n < 2).then(|| (Ok::<_, std::convert::Infallible>(Bytes::from(format!("data: {n}\n\n"))), (shop, n + 1)))
    });
    let form = [(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))];
    let (name, value) = shop.seller.settled_header(paid.payer, paid.value, &[7; 32]);
    (form, [(name, value)], Body::from_stream(pieces)).into_response()
}

/// A proxy before the sellers at these addresses, in this order.
async fn proxy_before(places: &[&str], budget: Usdc) -> String {
    let client = net::Client::new();
    let terms = |max: Usdc| policy(CHAIN_ID, TOKEN, TREASURY, max, Usdc::MAX);
    let buyer = Buyer::new(client.clone(), PrivateKeySigner::random(), terms(Usdc(5_000)))
        .with_clock(real_time())
        .with_day_clock(real_time())
        .with_limits(SpendLimits { per_day: Some(budget), per_host_day: None });
    let agents = places.iter().map(|url| Agent::new(buyer.clone(), Whereabouts::Fixed((*url).to_owned()))).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let config = Config { agents, client, budget_per_day: budget, now: real_time() };
    tokio::spawn(proxy::serve(listener, config, std::future::pending()));
    base_url
}

async fn post(url: &str, headers: HeaderMap, body: impl Into<Bytes>) -> net::Response {
    net::Client::new().send(Method::POST, url, headers, body.into()).await.expect("the proxy answers")
}

fn question(text: &str) -> String {
    json!({ "model": "m", "messages": [{ "role": "user", "content": text }], "stream": true }).to_string()
}

async fn problem(mut response: net::Response) -> (u16, Value) {
    let (status, url) = (response.status.as_u16(), response.url.clone());
    let mut whole = Vec::new();
    while let Some(piece) = response.body.chunk(&url).await.unwrap() {
        whole.extend_from_slice(&piece);
    }
    (status, serde_json::from_slice(&whole).expect("an error in OpenAI's shape"))
}

#[tokio::test]
async fn a_stream_comes_through_as_it_is_made_and_nothing_of_the_sdk_does() {
    let (shop, url) = StandInSeller::open().await;
    let base = proxy_before(&[&url], Usdc(10_000)).await;
    let sdk = HeaderMap::from_iter([
        (header::AUTHORIZATION, HeaderValue::from_static("Bearer sk-secret")),
        (header::COOKIE, HeaderValue::from_static("id=1")),
        (header::USER_AGENT, HeaderValue::from_static("OpenAI/JS")),
    ]);
    let mut answer = post(&format!("{base}/chat/completions"), sdk, question("hi")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/event-stream");
    assert!(answer.headers.contains_key("payment-response"));
    // The first piece is here while the seller has not made the second.
    assert_eq!(answer.body.chunk(&url).await.unwrap().unwrap(), "data: 0\n\n");
    shop.go_on.notify_one();
    assert_eq!(answer.body.chunk(&url).await.unwrap().unwrap(), "data: 1\n\n");
    let heard = shop.heard.lock().unwrap();
    assert_eq!(heard.len(), 2, "the price, then the payment");
    for headers in heard.iter() {
        let leaked = [header::AUTHORIZATION, header::COOKIE].iter().any(|name| headers.contains_key(name));
        assert!(!leaked && headers.get(header::USER_AGENT).is_none_or(|agent| agent != "OpenAI/JS"), "{headers:?}");
    }
}

#[tokio::test]
async fn a_budget_holds_to_the_micro_usdc() {
    let (shop, url) = StandInSeller::open().await;
    let base = proxy_before(&[&url], Usdc(PRICE.micro() * 2)).await;
    for text in ["one", "two"] {
        shop.go_on.notify_one();
        assert_eq!(post(&format!("{base}/chat/completions"), HeaderMap::new(), question(text)).await.status, 200);
    }
    let paid = |shop: &StandInSeller| {
        shop.heard.lock().unwrap().iter().filter(|headers| headers.contains_key("payment-signature")).count()
    };
    assert_eq!(paid(&shop), 2);
    let third = post(&format!("{base}/chat/completions"), HeaderMap::new(), question("three")).await;
    let (status, said) = problem(third).await;
    assert_eq!((status, said["error"]["code"].as_str()), (429, Some("insufficient_quota")), "{said}");
    assert_eq!(paid(&shop), 2, "nothing is signed over the budget");
}

#[tokio::test]
async fn a_dead_agent_gives_way_to_a_living_one() {
    let (shop, url) = StandInSeller::open().await;
    // A port that was free a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let base = proxy_before(&[&format!("http://{nobody}"), &url], Usdc(10_000)).await;
    shop.go_on.notify_one();
    assert_eq!(post(&format!("{base}/chat/completions"), HeaderMap::new(), question("hi")).await.status, 200);
    let alone = proxy_before(&[&format!("http://{nobody}")], Usdc(10_000)).await;
    let nowhere = post(&format!("{alone}/chat/completions"), HeaderMap::new(), question("hi")).await;
    assert!(nowhere.headers.contains_key(header::RETRY_AFTER));
    let (status, said) = problem(nowhere).await;
    assert_eq!(status, 503, "{said}");
}

#[tokio::test]
async fn what_no_agent_reads_is_refused_here() {
    let (shop, url) = StandInSeller::open().await;
    let base = proxy_before(&[&url], Usdc(10_000)).await;
    let origin = HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static("https://example.org"))]);
    for (expected, headers, body) in [
        (413, HeaderMap::new(), json!({ "prompt": "x".repeat(2 << 20) }).to_string()),
        (400, HeaderMap::new(), "not JSON".to_owned()),
        (403, origin, question("hi")),
    ] {
        let (status, said) = problem(post(&format!("{base}/chat/completions"), headers, body).await).await;
        assert_eq!(status, expected, "{said}");
        assert!(said["error"]["message"].is_string() && said["error"]["code"].is_string(), "{said}");
    }
    assert!(shop.heard.lock().unwrap().is_empty());
}
