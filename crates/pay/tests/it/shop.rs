//! A small seller over HTTP: our `Seller` and `ChannelBook`, and a STAND-IN for the chain that settles everything
//! at once. Troubles can be ordered for the next requests.

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use pay::book::{AbortWhy, Ask, Delivery, Finish, Limits, Reservation, Timing};
use pay::receipt::PaidBy;
use pay::receipt::run::Run;
use pay::seller::{FRESH_ANSWER, Quote};
use pay::wire::{PAYMENT_SIGNATURE, PaymentPayload, Resource};
use pay::{
    BookInput, Challenge, ChannelBook, Decision, Reason, Receipt, Refusal, RequestId, Seller, Settle, TransferMethod,
    Usdc, Verified,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

pub const TREASURY: Address = Address::repeat_byte(0x77);
pub const TOKEN: Address = Address::repeat_byte(0xa5);
pub const CHAIN_ID: u64 = 31337;

/// What goes wrong with one paid request.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// Served and settled, then silence.
    LoseAnswer,
    /// Served and settled, then the connection breaks in the middle of the body.
    BreakBody,
    /// A server's error that says nothing about the payment.
    Fail,
    /// "It is being answered."
    InFlight,
    /// Refused for this reason.
    Refuse(Reason),
    /// Settled, and an answer that does not come. When nobody listens any more its money goes back.
    Hang,
}

pub struct Shop {
    pub url: String,
    pub inner: Arc<Inner>,
}

pub struct Inner {
    pub seller: Seller,
    pub state: Mutex<Shelf>,
    pub now: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Answers that did not come and that nobody waits for any more, as the book knows.
    pub left: watch::Sender<usize>,
}

pub struct Shelf {
    pub book: ChannelBook,
    pub price: Usdc,
    /// Whether answers count as taken by the client.
    pub confirmed: bool,
    pub troubles: VecDeque<Trouble>,
    /// Unpaid requests go there.
    pub moved_to: Option<String>,
    /// Every PAYMENT-SIGNATURE seen, in order.
    pub seen: Vec<String>,
    pub asked: u32,
    /// Whether the head says that a payment was taken; streams of a real seller may not.
    pub tells: bool,
    /// Signs receipts.
    operator: PrivateKeySigner,
    pub receipts_asked: u32,
    answers: BTreeMap<RequestId, (Bytes, HeaderValue)>,
}

pub fn wall() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

impl Shop {
    pub async fn open(price: u128) -> Self {
        Self::open_with(price, TREASURY, wall).await
    }

    pub async fn open_with(price: u128, pay_to: Address, now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let (inner, app) = Inner::with_routes(price, pay_to, now);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, inner }
    }

    pub fn endpoint(&self) -> String {
        format!("{}/v1/chat/completions", self.url)
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut Shelf) -> T) -> T {
        look(&mut self.inner.state.lock().unwrap())
    }

    pub fn trouble(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.with(|shelf| shelf.troubles.extend(troubles));
    }

    pub fn earned(&self) -> u128 {
        self.with(|shelf| {
            assert!(shelf.book.totals().is_balanced());
            shelf.book.totals().earned.micro()
        })
    }

    /// Nonces seen, without repetition.
    pub fn nonces(&self) -> Vec<String> {
        self.with(|shelf| {
            let nonce = |header: &String| {
                PaymentPayload::from_header(header).unwrap().payload["authorization"]["nonce"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            };
            let mut nonces: Vec<_> = shelf.seen.iter().map(nonce).collect();
            nonces.sort();
            nonces.dedup();
            nonces
        })
    }
}

/// The receipt of a request that was settled.
async fn receipt(State(shop): State<Arc<Inner>>, Path(id): Path<String>) -> Response {
    let mut shelf = shop.state.lock().unwrap();
    shelf.receipts_asked += 1;
    let Some(entry) = id.parse().ok().and_then(|id| shelf.book.entry(&id)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let settlement = &entry.reservation.settlement;
    let receipt = Receipt {
        agent: shop.seller.pay_to,
        chain_id: CHAIN_ID,
        epoch: 1,
        request: entry.reservation.request,
        payer: settlement.payer().into(),
        paid_by: PaidBy::Authorization { nonce: settlement.nonce(), transaction: [0; 32] },
        model: [0; 32],
        adapter: [0; 32],
        run: Run::default(),
        prompt: entry.reservation.body_digest,
        output: [0; 32],
        prompt_tokens: 1,
        cached_tokens: 0,
        completion_tokens: 3,
        embedding_tokens: 0,
        amount: settlement.value(),
        issued_at: 1,
    };
    receipt.sign(&shelf.operator).unwrap().to_json().into_response()
}

async fn complete(State(shop): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let trouble = {
        let mut shelf = shop.state.lock().unwrap();
        shelf.asked += 1;
        match headers.get(&PAYMENT_SIGNATURE) {
            None => {
                if let Some(url) = &shelf.moved_to {
                    let location = format!("{url}/v1/chat/completions");
                    return (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)]).into_response();
                }
                None
            }
            Some(payment) => {
                let payment = payment.to_str().unwrap().to_owned();
                shelf.seen.push(payment);
                shelf.troubles.pop_front()
            }
        }
    };
    match &trouble {
        Some(Trouble::Fail) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(Trouble::InFlight) => return (StatusCode::CONFLICT, [(header::RETRY_AFTER, "1")]).into_response(),
        _ => {}
    }
    let answer = shop.sell(&headers, &body, trouble.as_ref());
    match trouble {
        Some(Trouble::LoseAnswer) => std::future::pending().await,
        Some(Trouble::BreakBody) => {
            let pieces = [Ok(Bytes::from_static(b"{\"choi")), Err(std::io::Error::other("the wire broke"))];
            let (parts, _) = answer.into_parts();
            let mut broken = Response::from_parts(parts, Body::from_stream(futures::stream::iter(pieces)));
            broken.headers_mut().remove(header::CONTENT_LENGTH);
            broken
        }
        _ => answer,
    }
}

impl Inner {
    /// A seller, and what it does on any network.
    pub fn with_routes(
        price: u128,
        pay_to: Address,
        now: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> (Arc<Self>, Router) {
        let shelf = Shelf {
            book: ChannelBook::new(Limits::default()),
            price: Usdc(price),
            confirmed: true,
            troubles: VecDeque::new(),
            moved_to: None,
            seen: Vec::new(),
            asked: 0,
            tells: true,
            operator: PrivateKeySigner::random(),
            receipts_asked: 0,
            answers: BTreeMap::new(),
        };
        let inner = Arc::new(Self {
            seller: Seller::new(CHAIN_ID, TOKEN, ("USD Coin", "2"), pay_to),
            state: Mutex::new(shelf),
            now: Box::new(now),
            left: watch::Sender::new(0),
        });
        let app = Router::new()
            .route("/v1/models", get(|| async { axum::Json(json!({ "data": [{ "id": "stand-in" }] })) }))
            .route("/v1/chat/completions", post(complete))
            .route("/receipts/{id}", get(receipt))
            .with_state(inner.clone());
        (inner, app)
    }

    fn sell(self: &Arc<Self>, headers: &HeaderMap, body: &Bytes, trouble: Option<&Trouble>) -> Response {
        let mut shelf = self.state.lock().unwrap();
        let now = (self.now)();
        let resource = Resource {
            url: "/v1/chat/completions".into(),
            description: "a stand-in's answer".into(),
            mime_type: "application/json".into(),
        };
        let book = &shelf.book;
        let quote = Quote {
            amount: shelf.price,
            resource: &resource,
            quoted_before: &|_| false,
            known: &|payer, nonce| book.request_of(TransferMethod::Eip3009, payer, nonce).is_some(),
        };
        let refused = match trouble {
            Some(Trouble::Refuse(reason)) => {
                Err(Box::new(self.seller.challenge(shelf.price, &resource, Refusal::new(*reason, "as ordered"))))
            }
            _ => self.seller.accept(headers, &quote, now),
        };
        let verified = match refused {
            Ok(verified) => verified,
            Err(challenge) => return answer(&challenge),
        };
        let ask = Ask {
            method: TransferMethod::Eip3009,
            payer: verified.payer.into_array(),
            nonce: verified.nonce.0,
            route: "POST /v1/chat/completions".into(),
            body_digest: Sha256::digest(body).into(),
            identifier: None,
            fresh: headers.contains_key(&FRESH_ANSWER),
        };
        let request = match shelf.book.decide(&ask, now) {
            Decision::New if trouble == Some(&Trouble::Hang) => return self.hold(&mut shelf, &verified, &ask, now),
            Decision::New => self.serve(&mut shelf, &verified, &ask, body, now),
            Decision::Replay { request } => request,
            Decision::Refused(limit) => {
                let refusal = Refusal::new(limit.reason().expect("a payer's own"), limit.to_string());
                return answer(&self.seller.challenge(shelf.price, &resource, refusal));
            }
            other => return (StatusCode::CONFLICT, format!("{other:?}")).into_response(),
        };
        let (answer, payment) = shelf.answers[&request].clone();
        if !shelf.tells {
            return ([(header::CONTENT_TYPE, "text/event-stream")], answer).into_response();
        }
        let form = if answer.starts_with(b"data: ") { "text/event-stream" } else { "application/json" };
        ([(header::CONTENT_TYPE.as_str(), form), ("payment-response", payment.to_str().unwrap())], answer)
            .into_response()
    }

    fn hold(self: &Arc<Self>, shelf: &mut Shelf, verified: &Verified, ask: &Ask, now: u64) -> Response {
        paid(shelf, verified, ask, now, Sha256::digest(ask.nonce).into());
        let held = Held { shop: self.clone(), payer: ask.payer, nonce: ask.nonce, amount: verified.value };
        let never = futures::stream::once(async move {
            let _held = held;
            std::future::pending::<Result<Bytes, std::convert::Infallible>>().await
        });
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(never)).into_response()
    }

    fn serve(&self, shelf: &mut Shelf, verified: &Verified, ask: &Ask, body: &Bytes, now: u64) -> RequestId {
        let request = RequestId::of_payment(ask.method, &ask.payer, &ask.nonce);
        let asked: Value = serde_json::from_slice(body).unwrap();
        let text = format!("You said: {}", asked["messages"][0]["content"].as_str().unwrap());
        let tx = Sha256::digest(ask.nonce).into();
        let answer = if asked["stream"] == json!(true) {
            let chunk = json!({ "choices": [{ "index": 0, "delta": { "content": text } }] });
            let last = json!({ "choices": [], "x402": { "request": request.to_string() } });
            format!("data: {chunk}\n\ndata: {last}\n\ndata: [DONE]\n\n")
        } else {
            json!({ "choices": [{ "index": 0, "message": { "role": "assistant", "content": text } }] }).to_string()
        };
        let delivery = Delivery {
            cached_tokens: 0,
            completion_tokens: 3,
            bytes: u64::try_from(answer.len()).unwrap(),
            output_digest: Sha256::digest(&text).into(),
            finish: Finish::Stop,
            at: now,
            confirmed: shelf.confirmed,
        };
        paid(shelf, verified, ask, now, tx);
        shelf.book.apply(BookInput::Delivered { request, delivery, amount: verified.value });
        let (_, header) = self.seller.settled_header(verified.payer, verified.value, &tx);
        shelf.answers.insert(request, (Bytes::from(answer), header));
        request
    }
}

/// Reserved and settled, with nothing delivered yet.
fn paid(shelf: &mut Shelf, verified: &Verified, ask: &Ask, now: u64, tx: [u8; 32]) {
    let (method, payer, nonce, amount) = (ask.method, ask.payer, ask.nonce, verified.value);
    let request = RequestId::of_payment(method, &payer, &nonce);
    let reservation = Reservation {
        request,
        settlement: Settle::Exact(verified.settlement()),
        timing: Timing::AtOnce,
        route: ask.route.clone(),
        body_digest: ask.body_digest,
        identifier: ask.identifier,
        prompt_tokens: 1,
        max_tokens: 16,
        run: String::new(),
        at: now,
    };
    for input in [
        BookInput::Reserved(reservation),
        BookInput::SettleSent { request },
        BookInput::Settled { method, payer, nonce, amount, tx, block: 1, recorded: true },
    ] {
        shelf.book.apply(input);
    }
}

/// 402 and its relatives.
fn answer(challenge: &Challenge) -> Response {
    let status = StatusCode::from_u16(challenge.status()).unwrap();
    (status, HeaderMap::from_iter(challenge.headers()), challenge.body("r").to_string()).into_response()
}

/// An answer that does not come, until nobody waits for it.
struct Held {
    shop: Arc<Inner>,
    payer: [u8; 20],
    nonce: [u8; 32],
    amount: Usdc,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Self { payer, nonce, amount, .. } = *self;
        let request = RequestId::of_payment(TransferMethod::Eip3009, &payer, &nonce);
        let mut shelf = self.shop.state.lock().unwrap();
        shelf.book.apply(BookInput::Aborted { request, why: AbortWhy::HungUp });
        shelf.book.apply(BookInput::Refunded { payer, nonce, amount });
        drop(shelf);
        self.shop.left.send_modify(|left| *left += 1);
    }
}
