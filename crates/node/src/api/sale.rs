//! The way of a paid request: quote → verify → reserve → generate → deliver → charge → receipt.
//!
//! Generation starts while the reservation becomes durable; no byte leaves before it is. A payer who has never
//! paid is settled before its first byte, everybody else before its last.

pub mod call;
mod contract;

use super::Api;
use super::problem::{Problem, fresh_id};
use crate::ask::{Ask, Reserved, Want};
use crate::context::Context;
use crate::main_loop::Event;
use crate::settle::Settlement;
use crate::shared::{Answer, Engine, InFlight};
use alloy::primitives::Address;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use call::Call;
use economy::{Price, Usdc};
use futures::{Stream, StreamExt};
use infer::api::{ApiError, Usage};
use infer::{EngineEvent, Finish, Generate, Generation};
use pay::book::{AbortWhy, Delivery, Finish as Ended, LimitReached, RequestId};
use pay::seller::FRESH_ANSWER;
use pay::seller::offers::{Accepted, ChannelPrice, Prices, Terms as Offers, TransferMethod};
use pay::wire::Resource;
use pay::{Challenge, Reason, Refusal, Seller, book};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// EIP-712 domain of the token. USDC's own on every chain it is native to.
const TOKEN: (&str, &str) = ("USD Coin", "2");
/// Completion tokens when the customer names no bound.
pub const MAX_TOKENS_DEFAULT: u32 = 256;
/// Tokens between two durable marks of what was delivered.
const MARK_TOKENS: u32 = 64;
/// How long a request waits for an engine that still starts.
pub const ENGINE_START: Duration = Duration::from_secs(15);
/// How long a request waits for a price when none is set.
const FIRST_PRICE: Duration = Duration::from_secs(3);
/// A repeated request waits this long for the answer of the first one.
const TWIN_PATIENCE: Duration = Duration::from_secs(60);
/// A settlement that takes longer leaves the answer unsent; the customer may ask again with the same payment.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

pub fn seller(cx: &Context) -> Seller {
    Seller::new(cx.config.chain_id, cx.birth.token, TOKEN, cx.config.treasury)
}

/// Why somebody comes to a paid route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    Buy,
    /// To see the terms, or to have a channel's money back: never to pay.
    Probe,
}

/// What a customer wants, already checked, with the prompt rendered.
pub struct Order {
    pub errand: Errand,
    pub route: &'static str,
    pub description: &'static str,
    pub body_digest: [u8; 32],
    pub prompt: String,
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub sampling: infer::api::Sampling,
}

/// A reserved, durable, running request.
pub struct Sale {
    pub request: RequestId,
    pub prompt_tokens: u32,
    payer: Address,
    amount: Usdc,
    generation: Generation,
    known_payer: bool,
    /// Paid by a voucher: charged by what is delivered, and never waits for the chain.
    call: Option<Call>,
    price: Price,
    guard: Guard,
    api: Api,
}

/// Tells the book that nothing was delivered, unless somebody says otherwise first.
struct Guard {
    cx: Arc<Context>,
    request: Option<RequestId>,
    _in_flight: InFlight,
}

impl Guard {
    fn disarm(&mut self) {
        self.request = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            tell(&self.cx, Ask::Aborted { request, why: AbortWhy::HungUp });
        }
    }
}

/// From a destructor nothing can be awaited: a task carries the message.
fn tell(cx: &Arc<Context>, ask: Ask) {
    let cx = cx.clone();
    tokio::spawn(async move { cx.tell(Event::Ask(Box::new(ask))).await });
}

/// The price of an order and whether it fits the model, or the refusal.
struct Terms {
    engine: Engine,
    prompt_tokens: u32,
    max_tokens: u32,
    /// The most that this order costs.
    price: Usdc,
    tariff: Price,
    resource: Resource,
    quote_key: [u8; 32],
}

impl Api {
    /// Everything up to the first token. The error is a finished answer: 402, 308, 4xx or 503.
    pub async fn sell(&self, headers: &HeaderMap, order: Order) -> Result<Sale, Response> {
        let entered = self.shared.enter();
        let path = order.route.split_once(' ').map_or(order.route, |(_, path)| path);
        self.here(path).await?;
        let terms = self.terms(&order).await.map_err(IntoResponse::into_response)?;
        let fresh = headers.contains_key(&FRESH_ANSWER);
        let verified = match (self.accepted(headers, &terms).map_err(|refusal| *refusal)?, order.errand) {
            (Accepted::Channel(paid), errand) => {
                return self.sell_call(paid, order, terms, (errand, fresh), entered).await;
            }
            (Accepted::Exact(verified), Errand::Buy) => verified,
            (Accepted::Unproven(payer), Errand::Buy) => self.contract_payer(*payer, &terms).await?,
            (Accepted::Exact(_) | Accepted::Permit2(_) | Accepted::Unproven(_), _) => {
                let refusal = Refusal::new(Reason::PaymentRequired, "nothing is sold here: post your question");
                return Err(self.refuse(&terms, refusal));
            }
        };
        self.has_the_money(&verified, &terms).await?;

        let seed = rand::random();
        let request = order.sampling.generate(order.prompt, terms.max_tokens, order.stop, seed);
        let (reply, answer) = oneshot::channel();
        let want = Want {
            settlement: verified.settlement(),
            ask: book::Ask {
                payer: verified.payer.into_array(),
                nonce: verified.nonce.0,
                route: order.route.to_owned(),
                body_digest: order.body_digest,
                fresh,
            },
            prompt_tokens: terms.prompt_tokens,
            max_tokens: terms.max_tokens,
        };
        self.cx.tell(Event::Ask(Box::new(Ask::Reserve { want: Box::new(want), reply }))).await;
        // Prefill runs while the record becomes durable.
        let generation = start(&terms.engine, request).map_err(IntoResponse::into_response)?;
        let reserved = answer.await.map_err(|_| Problem::for_unavail("the node is stopping", 5).into_response())?;
        match reserved {
            Reserved::Yes { request, known_payer } => Ok(Sale {
                request,
                prompt_tokens: terms.prompt_tokens,
                payer: verified.payer,
                amount: verified.value,
                generation,
                // A contract may change its mind as long as it has not paid.
                known_payer: known_payer && verified.is_signed_by_key,
                call: None,
                price: terms.tariff,
                guard: Guard { cx: self.cx.clone(), request: Some(request), _in_flight: entered },
                api: self.clone(),
            }),
            other => Err(self.not_reserved(other, &terms).await),
        }
    }

    /// Takes the payment out of the headers and verifies it, or says what this costs.
    fn accepted(&self, headers: &HeaderMap, terms: &Terms) -> Result<Accepted, Box<Response>> {
        let domain = &self.channels.domain;
        let found =
            self.with_offers(terms, |offers| self.seller.accept_any(headers, offers, domain, self.shared.now()));
        found.map_err(|challenge| {
            if challenge.refusal.reason == Reason::PaymentRequired {
                self.shared.quoted(terms.quote_key, terms.price.0);
            } else {
                self.shared.refuse();
            }
            Box::new(refused(&challenge))
        })
    }

    /// What is offered for an order: channels first where there are any, and `exact`.
    fn with_offers<T>(&self, terms: &Terms, then: impl FnOnce(&Offers<'_>) -> T) -> T {
        let channel = self.channels.is_open.then_some(ChannelPrice { ceiling: terms.price, carry: terms.price });
        then(&Offers {
            prices: Prices { channel, upto: None, exact: Some(terms.price) },
            resource: &terms.resource,
            quoted_before: &|amount| self.shared.was_quoted(&terms.quote_key, amount.0),
            known: &|payer, nonce| self.shared.answer(&RequestId::of_payment(payer, nonce).to_string()).is_some(),
            facilitator: self.cx.relay.address(),
            channels: &self.channels.terms,
            transfer: TransferMethod::Eip3009,
        })
    }

    fn refuse(&self, terms: &Terms, refusal: Refusal) -> Response {
        self.shared.refuse();
        self.with_offers(terms, |offers| refused(&self.seller.refuse(offers, refusal)))
    }

    async fn terms(&self, order: &Order) -> Result<Terms, Problem> {
        let closed = || {
            let why = self.shared.closed_because().unwrap_or_else(|| "the agent does not sell now".to_owned());
            Problem::for_unavail(why, 2)
        };
        // Right after a start or a move the first price is a block away: that is no reason to refuse.
        let mut prices = self.shared.prices();
        let opened = tokio::time::timeout(FIRST_PRICE, prices.wait_for(Option::is_some)).await.is_ok();
        let price = self.shared.price().filter(|_| opened).ok_or_else(closed)?;
        let engine = self
            .shared
            .engine_within(ENGINE_START)
            .await
            .ok_or_else(|| Problem::for_unavail("the engine is still starting", 5))?;
        let prompt_tokens = engine
            .client
            .count_tokens(&order.prompt)
            .await
            .map_err(|e| Problem::for_unavail(format!("the engine does not answer: {e}"), 1))?;
        let room = engine.hello.n_ctx.saturating_sub(prompt_tokens);
        if room == 0 {
            return Err(ApiError::for_field(
                "context_length_exceeded",
                "messages",
                format!("the prompt has {prompt_tokens} tokens; the context holds {}", engine.hello.n_ctx),
            )
            .into());
        }
        let max_tokens = order.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT).min(room);
        let quote_key = Sha256::new().chain_update(order.body_digest).chain_update(order.route).finalize().into();
        let path = order.route.split_once(' ').map_or(order.route, |(_, path)| path);
        Ok(Terms {
            engine,
            prompt_tokens,
            max_tokens,
            price: price.quote_up(u64::from(prompt_tokens), u64::from(max_tokens)),
            tariff: price,
            resource: Resource {
                url: format!("{}{path}", self.cx.config.public_url),
                description: order.description.to_owned(),
                mime_type: "application/json".to_owned(),
            },
            quote_key,
        })
    }

    /// One look at the chain before work is done: balance and nonce. The settlement is what decides.
    async fn has_the_money(&self, verified: &pay::Verified, terms: &Terms) -> Result<(), Response> {
        let usdc = self.cx.chain.usdc(self.cx.birth.token);
        match usdc.balance(verified.payer).await {
            Ok(balance) if balance < alloy::primitives::U256::from(verified.value.0) => {
                let message = format!(
                    "{} holds {balance} micro-USDC, the authorisation is for {}",
                    verified.payer, verified.value
                );
                Err(self.refuse(terms, Refusal::new(Reason::InsufficientFunds, message)))
            }
            Ok(_) => Ok(()),
            Err(e) => {
                tracing::warn!(error = %e, "the payer's balance cannot be read");
                Err(Problem::for_unavail("the chain does not answer; nothing was charged", 2).into_response())
            }
        }
    }

    async fn not_reserved(&self, reserved: Reserved, terms: &Terms) -> Response {
        self.shared.refuse();
        match reserved {
            Reserved::Replay { request } | Reserved::InFlight { request } => {
                match self.shared.wait_for_answer(&request.to_string(), TWIN_PATIENCE).await {
                    Some(answer) => replay(&request, answer),
                    None => Problem::for_conflict(
                        "answer_not_kept",
                        format!("this payment bought request {request}, whose answer is not kept here; its receipt is at /receipts/{request}"),
                    )
                    .into_response(),
                }
            }
            Reserved::Conflict => Problem::for_conflict(
                "payment_reused",
                "this authorisation pays for another request; sign a new one for this body",
            )
            .into_response(),
            Reserved::Aborted => {
                let message =
                    "nothing was delivered for this authorisation and its money is on the way back: sign a new one";
                self.refuse(terms, Refusal::new(Reason::PaymentAborted, message))
            }
            Reserved::Spent => {
                let message = "this authorisation has paid for an answer that is no longer kept: sign a new one";
                self.refuse(terms, Refusal::new(Reason::NonceUsed, message))
            }
            Reserved::Refused(limit @ LimitReached::OpenPerPayer) => {
                Problem::from(ApiError { status: 429, ..ApiError::for_unavail("too_many_open", limit.to_string(), 2) })
                    .into_response()
            }
            Reserved::Refused(limit) => Problem::for_unavail(limit.to_string(), 2).into_response(),
            Reserved::Closed(why) => Problem::for_unavail(why, 2).into_response(),
            Reserved::Yes { .. } => Problem::for_internal("a reservation was taken for a refusal").into_response(),
        }
    }
}

fn start(engine: &Engine, request: Generate) -> Result<Generation, Problem> {
    engine.client.generate(request).map_err(|e| Problem::for_unavail(format!("the engine cannot take it: {e}"), 1))
}

/// 402 and its relatives.
fn refused(challenge: &Challenge) -> Response {
    let status = StatusCode::from_u16(challenge.status()).unwrap_or(StatusCode::PAYMENT_REQUIRED);
    let mut response = (status, Json(challenge.body(&fresh_id("req_")))).into_response();
    for (name, value) in challenge.headers() {
        response.headers_mut().insert(name, value);
    }
    response
}

fn replay(request: &RequestId, answer: Answer) -> Response {
    let mut response = Body::from(answer.body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    stamp(&mut response, request, answer.payment_response.as_deref());
    response
}

fn stamp(response: &mut Response, request: &RequestId, payment_response: Option<&str>) {
    if let Ok(value) = HeaderValue::from_str(&request.to_string()) {
        response.headers_mut().insert("x-request-id", value);
    }
    if let Some(value) = payment_response.and_then(|v| HeaderValue::from_str(v).ok()) {
        response.headers_mut().insert(pay::wire::PAYMENT_RESPONSE, value);
    }
}

/// How the tokens become a body.
pub trait Form: Send + 'static {
    fn open(&mut self) -> Vec<Bytes>;
    fn delta(&mut self, text: &str) -> Vec<Bytes>;
    /// The end, after the payment is settled. `extra` says where the receipt is.
    fn close(&mut self, text: &str, finish: Finish, usage: Usage, extra: Map<String, Value>) -> Vec<Bytes>;
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes>;
    fn content_type(&self) -> &'static str;
    /// Whether bytes may leave before the end.
    fn streams(&self) -> bool;
}

/// One JSON object when the answer is complete.
pub struct Whole<J> {
    /// Of the answer, for an error in its place.
    pub id: String,
    pub json: J,
}

impl<J> Form for Whole<J>
where
    J: FnMut(&str, Finish, Usage, Map<String, Value>) -> Value + Send + 'static,
{
    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }
    fn delta(&mut self, _: &str) -> Vec<Bytes> {
        Vec::new()
    }
    fn close(&mut self, text: &str, finish: Finish, usage: Usage, extra: Map<String, Value>) -> Vec<Bytes> {
        vec![(self.json)(text, finish, usage, extra).to_string().into()]
    }
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![error.to_json(&self.id).to_string().into()]
    }
    fn content_type(&self) -> &'static str {
        "application/json"
    }
    fn streams(&self) -> bool {
        false
    }
}

/// What runs once, when the whole text is there and before the last bytes leave.
pub type BeforeEnd = Box<dyn FnOnce(String) -> Pin<Box<dyn Future<Output = Result<(), ApiError>> + Send>> + Send>;

impl Sale {
    /// The answer: generation runs on in a task of its own, the body takes what it makes.
    pub async fn deliver(mut self, form: impl Form, before_end: Option<BeforeEnd>) -> Response {
        let waits = self.call.is_none() && !(self.known_payer && form.streams());
        let first_settled = if waits { Some(self.when_settled().await) } else { None };
        let streams = form.streams();
        let content_type = form.content_type();
        let request = self.request;
        if streams
            && let Some(settlement) = &first_settled
            && !matches!(settlement, Some(Settlement::Paid { .. }))
        {
            return self.unsettled(settlement.clone());
        }
        let header = match &self.call {
            // The head of a stream tells of the calls before it; a whole answer waits for its own charge.
            Some(call) if streams => self.api.told(call).await,
            _ => first_settled.clone().flatten().and_then(|s| self.settled_header(&s)),
        };
        let (frames, taken) = mpsc::channel::<Bytes>(1);
        let run = Run { form, before_end, frames, text: String::new(), tokens: 0, bytes: 0, kept: Vec::new() };
        if streams {
            tokio::spawn(run.all(self, first_settled.flatten()));
            let mut response =
                Body::from_stream(ReceiverBody(taken).map(Ok::<_, std::convert::Infallible>)).into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            stamp(&mut response, &request, header.as_deref());
            return response;
        }
        self.whole(run, taken, first_settled.flatten()).await
    }

    async fn when_settled(&self) -> Option<Settlement> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::WhenSettled { request: self.request, reply };
        self.api.cx.tell(Event::Ask(Box::new(ask))).await;
        tokio::time::timeout(SETTLE_PATIENCE, answer).await.ok()?.ok()
    }

    fn settled_header(&self, settlement: &Settlement) -> Option<String> {
        let Settlement::Paid { tx, .. } = settlement else { return None };
        Some(self.api.seller.settled(self.payer, self.amount, &tx.0).to_header())
    }

    /// Nothing is delivered without money. The guard tells the book.
    fn unsettled(&mut self, settlement: Option<Settlement>) -> Response {
        let message = match settlement {
            Some(Settlement::Unpaid(why)) => format!("the payment cannot be settled: {why:?}"),
            _ => "the payment's outcome is not known yet; nothing was delivered, and what arrives goes back".to_owned(),
        };
        self.guard.disarm();
        let ask = Ask::Aborted { request: self.request, why: AbortWhy::NotSettled };
        tell(&self.api.cx, ask);
        let resource = Resource {
            url: self.api.cx.config.public_url.clone(),
            description: "an answer of the agent".to_owned(),
            mime_type: "application/json".to_owned(),
        };
        let refusal = Refusal::new(Reason::UnexpectedSettleError, message);
        refused(&self.api.seller.not_settled(self.amount, &resource, refusal, self.payer))
    }

    /// A body that leaves in one piece, after everything is known.
    async fn whole(
        mut self,
        mut run: Run<impl Form>,
        taken: mpsc::Receiver<Bytes>,
        settled: Option<Settlement>,
    ) -> Response {
        drop(taken);
        if self.call.is_none() && !matches!(settled, Some(Settlement::Paid { .. })) {
            return self.unsettled(settled);
        }
        let mut header = settled.as_ref().and_then(|s| self.settled_header(s));
        let outcome = run.generate(&mut self).await;
        let (finish, usage) = match outcome {
            Ok(done) => done,
            Err(error) => {
                self.guard.disarm();
                tell(&self.api.cx, Ask::Aborted { request: self.request, why: AbortWhy::Engine });
                return Problem::from(error).into_response();
            }
        };
        if let Some(before_end) = run.before_end.take()
            && let Err(error) = before_end(run.text.clone()).await
        {
            self.guard.disarm();
            tell(&self.api.cx, Ask::Aborted { request: self.request, why: AbortWhy::Engine });
            return Problem::from(error).into_response();
        }
        if let Some(call) = &self.call {
            // Charged before it leaves, because the head says the charge. Nobody knows yet whether it arrives.
            let delivery = delivery(&self, &run, usage, ended(finish), false);
            self.charge(delivery).await;
            header = self.api.told(call).await;
        }
        let extra = self.extra(settled.as_ref(), usage.completion_tokens);
        let body: Vec<u8> = run.form.close(&run.text, finish, usage, extra).concat();
        let body = Bytes::from(body);
        let answer =
            Answer { body: body.clone(), content_type: run.form.content_type(), payment_response: header.clone() };
        self.api.shared.keep_answer(&self.request.to_string(), answer);
        self.guard.disarm();
        let delivery = delivery(&self, &run, usage, ended(finish), true);
        let then = (self.api.cx.clone(), self.request, delivery);
        let last =
            OnTaken { frame: Some(body), taken: false, then: self.call.is_none().then_some(then), _guard: self.guard };
        let mut response = Body::from_stream(last).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(run.form.content_type()));
        stamp(&mut response, &self.request, header.as_deref());
        response
    }

    /// What so many tokens are worth on a channel, at the price that was quoted and never above its ceiling.
    fn metered(&self, completion_tokens: u32) -> Usdc {
        self.price.quote_up(u64::from(self.prompt_tokens), u64::from(completion_tokens)).min(self.amount)
    }

    /// Puts the delivery into the book and waits until it is there.
    async fn charge(&self, delivery: Delivery) {
        let amount = self.metered(delivery.completion_tokens);
        let (reply, heard) = oneshot::channel();
        let ask = Ask::Delivered { request: self.request, delivery, amount, reply: Some(reply) };
        self.api.cx.tell(Event::Ask(Box::new(ask))).await;
        // A node that stops says nothing; what it recorded is charged by whoever goes on.
        drop(heard.await);
    }

    /// What the last piece of an answer says about its payment.
    fn extra(&self, settlement: Option<&Settlement>, completion_tokens: u32) -> Map<String, Value> {
        let mut x402 = Map::new();
        x402.insert("request".into(), json!(self.request.to_string()));
        x402.insert("receipt".into(), json!(format!("{}/receipts/{}", self.api.cx.config.public_url, self.request)));
        let amount = if self.call.is_some() { self.metered(completion_tokens) } else { self.amount };
        x402.insert("amount".into(), json!(amount.0.to_string()));
        if self.call.is_some() {
            x402.insert("charged".into(), json!(amount.0.to_string()));
        }
        if let Some(Settlement::Paid { tx, .. }) = settlement {
            x402.insert("transaction".into(), json!(tx.to_string()));
        }
        Map::from_iter([("x402".to_owned(), Value::Object(x402))])
    }
}

fn ended(finish: Finish) -> Ended {
    match finish {
        Finish::Stop => Ended::Stop,
        Finish::Length => Ended::Length,
        Finish::Cancelled => Ended::HungUp,
    }
}

fn delivery(sale: &Sale, run: &Run<impl Form>, usage: Usage, finish: Ended, confirmed: bool) -> Delivery {
    Delivery {
        completion_tokens: usage.completion_tokens,
        bytes: run.bytes,
        output_digest: Sha256::digest(run.text.as_bytes()).into(),
        finish,
        at: sale.api.shared.now(),
        confirmed,
    }
}

/// Generation on its way into a body.
struct Run<F> {
    form: F,
    before_end: Option<BeforeEnd>,
    frames: mpsc::Sender<Bytes>,
    text: String,
    tokens: u32,
    bytes: u64,
    /// A copy of all frames, for a repetition of the request.
    kept: Vec<u8>,
}

impl<F: Form> Run<F> {
    /// Sends frames; false when the customer is gone.
    async fn push(&mut self, frames: Vec<Bytes>) -> bool {
        for frame in frames {
            self.kept.extend_from_slice(&frame);
            let length = u64::try_from(frame.len()).unwrap_or(u64::MAX);
            if self.frames.send(frame).await.is_err() {
                return false;
            }
            self.bytes = self.bytes.saturating_add(length);
        }
        true
    }

    /// Takes the whole generation without sending anything.
    async fn generate(&mut self, sale: &mut Sale) -> Result<(Finish, Usage), ApiError> {
        while let Some(event) = sale.generation.recv().await {
            match event {
                EngineEvent::Accepted { .. } => {}
                EngineEvent::Tokens { text, count } => {
                    self.text.push_str(&text);
                    self.tokens += count;
                }
                EngineEvent::Done { finish, prompt_tokens, completion_tokens } => {
                    return Ok((finish, Usage { prompt_tokens, completion_tokens }));
                }
                EngineEvent::Failed { kind, message } => return Err(ApiError::for_engine(kind, &message)),
            }
        }
        Err(ApiError::for_internal())
    }

    /// The whole way of a streamed answer.
    async fn all(mut self, mut sale: Sale, mut settled: Option<Settlement>) {
        let opening = self.form.open();
        let mut connected = self.push(opening).await;
        let mut marked = 0;
        let mut end = Err(ApiError::for_internal());
        while connected {
            let Some(event) = sale.generation.recv().await else { break };
            match event {
                EngineEvent::Accepted { .. } => {}
                EngineEvent::Tokens { text, count } => {
                    self.text.push_str(&text);
                    let frames = self.form.delta(&text);
                    connected = self.push(frames).await;
                    if connected {
                        self.tokens += count;
                    }
                    if self.tokens >= marked + MARK_TOKENS {
                        marked = self.tokens;
                        let amount = sale.metered(marked);
                        let ask = Ask::Mark { request: sale.request, tokens: marked, amount };
                        sale.api.cx.tell(Event::Ask(Box::new(ask))).await;
                    }
                }
                EngineEvent::Done { finish, prompt_tokens, completion_tokens } => {
                    end = Ok((finish, Usage { prompt_tokens, completion_tokens }));
                    break;
                }
                EngineEvent::Failed { kind, message } => {
                    end = Err(ApiError::for_engine(kind, &message));
                    break;
                }
            }
        }
        if connected && settled.is_none() && sale.call.is_none() {
            settled = sale.when_settled().await;
        }
        if let (Ok(_), Some(before_end)) = (&end, self.before_end.take())
            && let Err(error) = before_end(self.text.clone()).await
        {
            end = Err(error);
        }
        self.finish(sale, connected, settled, end).await;
    }

    async fn finish(
        mut self,
        mut sale: Sale,
        mut connected: bool,
        settled: Option<Settlement>,
        end: Result<(Finish, Usage), ApiError>,
    ) {
        sale.guard.disarm();
        let mut charged = false;
        let paid = sale.call.is_some() || matches!(settled, Some(Settlement::Paid { .. }));
        let usage = Usage { prompt_tokens: sale.prompt_tokens, completion_tokens: self.tokens };
        let (finish, usage, confirmed) = match end {
            Ok((finish, usage)) if paid => {
                if sale.call.is_some() && connected {
                    // Before the last frame: whoever has read that can rely on the charge.
                    let delivery = delivery(&sale, &self, usage, ended(finish), true);
                    sale.charge(delivery).await;
                    charged = true;
                }
                let extra = sale.extra(settled.as_ref(), usage.completion_tokens);
                let closing = self.form.close(&self.text.clone(), finish, usage, extra);
                connected = connected && self.push(closing).await;
                if !connected {
                    sale.generation.cancel();
                }
                (if connected { ended(finish) } else { Ended::HungUp }, usage, connected)
            }
            Ok(_) => {
                let error = ApiError::for_unavail("payment_not_settled", "the payment could not be settled", 1);
                let frames = self.form.fail(&error);
                connected = connected && self.push(frames).await;
                (Ended::Broken, usage, connected)
            }
            Err(error) => {
                if connected {
                    let frames = self.form.fail(&error);
                    connected = self.push(frames).await;
                } else {
                    sale.generation.cancel();
                }
                (if connected { Ended::Broken } else { Ended::HungUp }, usage, false)
            }
        };
        let request = sale.request;
        if paid && confirmed {
            let payment_response = match &sale.call {
                Some(call) => sale.api.told(call).await,
                None => settled.as_ref().and_then(|s| sale.settled_header(s)),
            };
            let body = Bytes::from(std::mem::take(&mut self.kept));
            let answer = Answer { body, content_type: self.form.content_type(), payment_response };
            sale.api.shared.keep_answer(&request.to_string(), answer);
        }
        if charged {
            return;
        }
        let ask = if self.tokens == 0 && !confirmed {
            Ask::Aborted { request, why: if connected { AbortWhy::Engine } else { AbortWhy::HungUp } }
        } else {
            let delivery = delivery(&sale, &self, usage, finish, confirmed);
            Ask::Delivered { request, amount: sale.metered(delivery.completion_tokens), delivery, reply: None }
        };
        // The sender goes last: the body ends when the book has heard.
        sale.api.cx.tell(Event::Ask(Box::new(ask))).await;
    }
}

/// The receiving end as a body.
struct ReceiverBody(mpsc::Receiver<Bytes>);

impl Stream for ReceiverBody {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Bytes>> {
        self.0.poll_recv(cx)
    }
}

/// A body of one frame that tells the book when the transport has taken it: it asks for the next one then.
struct OnTaken {
    frame: Option<Bytes>,
    taken: bool,
    then: Option<(Arc<Context>, RequestId, Delivery)>,
    _guard: Guard,
}

impl Stream for OnTaken {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        match self.frame.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => {
                self.taken = true;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for OnTaken {
    fn drop(&mut self) {
        let Some((cx, request, mut delivery)) = self.then.take() else { return };
        // Not taken: the answer is kept, and the same payment fetches it.
        delivery.confirmed = self.taken;
        if !self.taken {
            delivery.finish = Ended::HungUp;
        }
        // An authorisation pays its whole amount; only vouchers are metered.
        tell(&cx, Ask::Delivered { request, delivery, amount: Usdc::ZERO, reply: None });
    }
}
