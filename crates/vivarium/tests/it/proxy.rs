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
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use vivarium::proxy::{self, Agent, Config, WhenUnknown, Whereabouts};
use vivarium::world::crowd::policy;

const CHAIN_ID: u64 = 31337;
const TOKEN: Address = Address::repeat_byte(0x70);
const TREASURY: Address = Address::repeat_byte(0x77);
const PRICE: Usdc = Usdc(1_000);
/// Of another agent.
const OTHER: Address = Address::repeat_byte(0x78);
/// To the head of an answer that comes at all: long for a loopback on a busy machine, short for whoever waits in vain.
const SOON: Duration = Duration::from_secs(2);

fn real_time() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// What the stand-in was sent, and the word that lets the second half of its answers go.
struct StandInSeller {
    seller: Seller,
    heard: Mutex<Vec<HeaderMap>>,
    go_on: Notify,
    /// Somebody left before the end of an answer.
    left: Notify,
    /// Names its price, takes payments and says nothing more.
    hangs_when_paid: bool,
}

/// Told when it is dropped, unless the answer came to its end.
struct Leaving {
    shop: Arc<StandInSeller>,
    piece: u32,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if self.piece < 2 {
            self.shop.left.notify_one();
        }
    }
}

impl StandInSeller {
    async fn open() -> (Arc<Self>, String) {
        Self::open_for(TREASURY, false).await
    }

    async fn open_for(treasury: Address, hangs_when_paid: bool) -> (Arc<Self>, String) {
        let seller = Seller::new(CHAIN_ID, TOKEN, ("USD Coin", "2"), treasury);
        let (go_on, left) = (Notify::new(), Notify::new());
        let shop = Arc::new(Self { seller, heard: Mutex::default(), go_on, left, hangs_when_paid });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(shop.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (shop, url)
    }

    /// The payments that it was sent, in order.
    fn payments(&self) -> Vec<HeaderValue> {
        self.heard.lock().unwrap().iter().filter_map(|headers| headers.get("payment-signature").cloned()).collect()
    }
}

/// Takes connections and never says a word; how many there were.
async fn hung() -> (Arc<Mutex<Vec<tokio::net::TcpStream>>>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let taken: Arc<Mutex<Vec<_>>> = Arc::default();
    let keep = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            keep.lock().unwrap().push(stream);
        }
    });
    (taken, url)
}

/// A STAND-IN for a chain: its time is `now`, and no authorisation was ever used.
async fn idle_chain(now: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |axum::Json(calls): axum::Json<Value>| async move {
        let one = |call: &Value| {
            let block = json!({ "number": "0x10", "timestamp": format!("{now:#x}") });
            let unused = json!(format!("0x{}", "0".repeat(64)));
            let result = if call["method"] == "eth_getBlockByNumber" { block } else { unused };
            json!({ "jsonrpc": "2.0", "id": call["id"], "result": result })
        };
        axum::Json(calls.as_array().unwrap().iter().map(one).collect::<Vec<_>>())
    };
    let app = Router::new().route("/", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

async fn answer(State(shop): State<Arc<StandInSeller>>, headers: HeaderMap) -> Response {
    shop.heard.lock().unwrap().push(headers.clone());
    let resource = Resource { url: "/".into(), description: "an answer".into(), mime_type: "text/plain".into() };
    let accepted = {
        let quote = Quote { amount: PRICE, resource: &resource, quoted_before: &|_| false, known: &|_, _| false };
        shop.seller.accept(&headers, &quote, real_time()())
    };
    let paid = match accepted {
        Ok(paid) => paid,
        Err(challenge) => {
            let status = StatusCode::from_u16(challenge.status()).unwrap();
            return (status, HeaderMap::from_iter(challenge.headers()), challenge.body("r").to_string())
                .into_response();
        }
    };
    if shop.hangs_when_paid {
        std::future::pending::<()>().await;
    }
    let pieces = futures::stream::unfold(Leaving { shop: shop.clone(), piece: 0 }, |mut answer| async move {
        if answer.piece == 1 {
            answer.shop.go_on.notified().await;
        }
        let piece = Bytes::from(format!("data: {}\n\n", answer.piece));
        answer.piece += 1;
        (answer.piece <= 2).then_some((Ok::<_, std::convert::Infallible>(piece), answer))
    });
    let form = [(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))];
    let (name, value) = shop.seller.settled_header(paid.payer, paid.value, &[7; 32]);
    (form, [(name, value)], Body::from_stream(pieces)).into_response()
}

/// A proxy before the sellers at these addresses, in this order.
async fn proxy_before(places: &[&str], budget: Usdc) -> String {
    let places: Vec<(&str, Address)> = places.iter().map(|url| (*url, TREASURY)).collect();
    serve(&places, budget, (WhenUnknown::Wait, Duration::from_secs(30)), |buyer| buyer).await
}

/// A proxy before agents of different treasuries, with what `make` makes of its buyer.
async fn serve(
    places: &[(&str, Address)],
    budget: Usdc,
    (when_unknown, deadline): (WhenUnknown, Duration),
    make: impl FnOnce(Buyer) -> Buyer,
) -> String {
    let client = net::Client::new();
    let terms = |treasury: Address| policy(CHAIN_ID, TOKEN, treasury, Usdc(5_000), Usdc::MAX);
    let buyer = Buyer::new(client.with_deadline(deadline), PrivateKeySigner::random(), terms(TREASURY))
        .with_day_clock(real_time())
        .with_limits(SpendLimits { per_day: Some(budget), per_host_day: None });
    let buyer = make(buyer);
    let agents = places.iter().map(|(url, treasury)| {
        let buyer = buyer.for_seller(terms(*treasury), real_time());
        Agent::new(buyer, Whereabouts::Fixed((*url).to_owned()))
    });
    let agents = agents.collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let config = Config { agents, client, budget_per_day: budget, when_unknown, now: real_time(), lister: None };
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

/// Not dead, which is noticed at once: it takes the connection and never answers.
#[tokio::test]
async fn a_hung_agent_gives_way_and_is_then_asked_last() {
    let (shop, url) = StandInSeller::open().await;
    let (taken, nowhere) = hung().await;
    let short = |buyer: Buyer| buyer.with_quote_within(Duration::from_millis(300));
    let places = [(nowhere.as_str(), TREASURY), (url.as_str(), TREASURY)];
    let base = serve(&places, Usdc(10_000), (WhenUnknown::Wait, Duration::from_secs(30)), short).await;
    for text in ["one", "two"] {
        shop.go_on.notify_one();
        assert_eq!(post(&format!("{base}/chat/completions"), HeaderMap::new(), question(text)).await.status, 200);
    }
    assert_eq!((taken.lock().unwrap().len(), shop.payments().len()), (1, 2));
}

/// It took the payment and hangs: nobody else is paid for the same question until that payment is known to be dead.
#[tokio::test]
async fn two_agents_are_not_paid_for_one_question() {
    let (first, first_url) = StandInSeller::open_for(TREASURY, true).await;
    let (second, second_url) = StandInSeller::open_for(OTHER, false).await;
    let places = [(first_url.as_str(), TREASURY), (second_url.as_str(), OTHER)];
    let impatient = |buyer: Buyer| buyer.with_patience(Duration::ZERO);
    let base = serve(&places, Usdc(10_000), (WhenUnknown::Wait, SOON), impatient).await;
    for _ in 0..2 {
        let asked = post(&format!("{base}/chat/completions"), HeaderMap::new(), question("hi")).await;
        let (status, said) = problem(asked).await;
        assert_eq!((status, said["error"]["code"].as_str()), (504, Some("outcome_unknown")), "{said}");
    }
    let payments = first.payments();
    assert_eq!((payments.len(), payments[0] == payments[1]), (2, true), "the same payment again");
    assert!(second.payments().is_empty());
    // Another question is nobody's yet.
    second.go_on.notify_one();
    assert_eq!(post(&format!("{base}/chat/completions"), HeaderMap::new(), question("else")).await.status, 200);
    assert_eq!(second.payments().len(), 1);
}

#[tokio::test]
async fn a_payment_that_is_known_to_be_dead_frees_its_question() {
    let (first, first_url) = StandInSeller::open_for(TREASURY, true).await;
    let (second, second_url) = StandInSeller::open_for(OTHER, false).await;
    let places = [(first_url.as_str(), TREASURY), (second_url.as_str(), OTHER)];
    // Past the expiry of whatever is signed now.
    let chain = idle_chain(real_time()() + 10_000).await;
    let make = |buyer: Buyer| buyer.with_patience(Duration::ZERO).with_chain(&chain);
    let base = serve(&places, Usdc(10_000), (WhenUnknown::Wait, SOON), make).await;
    second.go_on.notify_one();
    assert_eq!(post(&format!("{base}/chat/completions"), HeaderMap::new(), question("hi")).await.status, 200);
    assert_eq!((first.payments().len(), second.payments().len()), (1, 1));
}

#[tokio::test]
async fn who_wants_to_may_pay_another() {
    let (first, first_url) = StandInSeller::open_for(TREASURY, true).await;
    let (second, second_url) = StandInSeller::open_for(OTHER, false).await;
    let places = [(first_url.as_str(), TREASURY), (second_url.as_str(), OTHER)];
    let impatient = |buyer: Buyer| buyer.with_patience(Duration::ZERO);
    let base = serve(&places, Usdc(10_000), (WhenUnknown::PayAnother, SOON), impatient).await;
    second.go_on.notify_one();
    assert_eq!(post(&format!("{base}/chat/completions"), HeaderMap::new(), question("hi")).await.status, 200);
    assert_eq!((first.payments().len(), second.payments().len()), (1, 1));
}

#[tokio::test]
async fn who_hangs_up_stops_the_agent_and_gets_the_same_answer_later() {
    let (shop, url) = StandInSeller::open().await;
    let base = proxy_before(&[&url], Usdc(10_000)).await;
    let mut answer = post(&format!("{base}/chat/completions"), HeaderMap::new(), question("hi")).await;
    assert_eq!(answer.body.chunk(&url).await.unwrap().unwrap(), "data: 0\n\n");
    drop(answer);
    // The agent hears of it, though it has not made the second half.
    shop.left.notified().await;
    shop.go_on.notify_one();
    assert_eq!(post(&format!("{base}/chat/completions"), HeaderMap::new(), question("hi")).await.status, 200);
    let payments = shop.payments();
    assert_eq!((payments.len(), payments[0] == payments[1]), (2, true), "the same payment: nothing more is spent");
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
