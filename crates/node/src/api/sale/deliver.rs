//! The way of a sale from its first token: generate → deliver → charge → settle → keep → the last byte → receipt.

use super::{Making, Paying, Sale, refused, stamp};
use crate::answers::Answer;
use crate::api::problem::Problem;
use crate::ask::{Ask, tell};
use crate::context::Context;
use crate::main_loop::Event;
use crate::settle::Settlement;
use crate::shared::InFlight;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use economy::Usdc;
use futures::{Stream, StreamExt};
use infer::api::{Answered, ApiError, SSE_KEEP_ALIVE, Usage};
use infer::{EngineEvent, Finish, TokenLogprob};
use journal::crash_point;
use pay::book::{AbortWhy, Delivery, Finish as Ended, RequestId};
use pay::risk::{Held, Hold};
use pay::scheme::upto::Proxy;
use pay::wire::Resource;
use pay::{Reason, Refusal};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Tokens between two durable marks of what was delivered.
const MARK_TOKENS: u32 = 64;
/// A settlement that takes longer leaves the answer unsent; the customer may ask again with the same payment. Where it
/// must be final it has so much more for each further block: twice what a public roll-up takes for one.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
const BLOCK_PATIENCE: Duration = Duration::from_secs(4);

/// A stream that says nothing for so long says that it lives: what stands between may cut silent connections off, most
/// after a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How the tokens become a body.
pub trait Form: Send + 'static {
    fn open(&mut self) -> Vec<Bytes>;
    fn delta(&mut self, text: &str, logprobs: &[TokenLogprob]) -> Vec<Bytes>;
    /// Before the end, where texts become vectors: all of them, in the order of the texts. Returns the bytes that the
    /// receipt's digest of the output is taken of.
    fn vectors(&mut self, _: Vec<Vec<f32>>) -> Vec<u8> {
        Vec::new()
    }
    /// The end, after the payment is settled. `extra` says where the receipt is.
    fn close(&mut self, answered: Answered<'_>, extra: Map<String, Value>) -> Vec<Bytes>;
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
    J: FnMut(Answered<'_>, Map<String, Value>) -> Value + Send + 'static,
{
    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }
    fn delta(&mut self, _: &str, _: &[TokenLogprob]) -> Vec<Bytes> {
        Vec::new()
    }
    fn close(&mut self, answered: Answered<'_>, extra: Map<String, Value>) -> Vec<Bytes> {
        vec![(self.json)(answered, extra).to_string().into()]
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

/// What runs once, when the whole text is there and before the last bytes leave: it stores, and says how many bytes.
pub type BeforeEnd = Box<dyn FnOnce(Made) -> Pin<Box<dyn Future<Output = Result<u64, ApiError>> + Send>> + Send>;

/// What was generated, whole.
pub struct Made {
    pub text: String,
    pub finish: Finish,
    pub usage: Usage,
}

impl Sale {
    /// The answer: generation runs on in a task of its own, the body takes what it makes.
    pub async fn deliver(mut self, form: impl Form, before_end: Option<BeforeEnd>) -> Response {
        let (frames, taken) = mpsc::channel::<Bytes>(1);
        let run = Run {
            form,
            before_end,
            frames,
            text: String::new(),
            vectors_digest: None,
            logprobs: Vec::new(),
            tokens: 0,
            cached: 0,
            bytes: 0,
            kept: Vec::new(),
        };
        // Whom or what the policy does not trust gets nothing before its money is here.
        let streams = run.form.streams();
        let settled = match self.paying {
            Paying::Beside(hold) if hold.what == Held::Everything || !streams => match self.when_settled().await {
                Some(paid @ Settlement::Paid { .. }) => Some(paid),
                other => return self.unsettled(other),
            },
            _ => None,
        };
        let in_one_piece = !streams || matches!(self.paying, Paying::AtEnd(Hold { what: Held::Everything, .. }, _));
        if in_one_piece {
            drop(taken);
            if self.is_bought() {
                // Whoever hangs up now has paid, and so has this agent, or is about to: the answer is taken and kept.
                let whole = tokio::spawn(self.whole(run, settled));
                return whole.await.unwrap_or_else(|e| Problem::for_internal(e).into_response());
            }
            return self.whole(run, settled).await;
        }
        // A head with 200 cannot be taken back: the engine says first whether it takes the request.
        if let Err(error) = accepted(&mut self.making).await {
            self.guard.abort(AbortWhy::Engine);
            return Problem::from(error).into_response();
        }
        let header = match &self.paying {
            // The head of a stream tells of the calls before it; a whole answer waits for its own charge.
            Paying::Voucher(call) => self.api.told(call).await,
            _ => settled.as_ref().and_then(|s| self.settled_header(s)),
        };
        let (request, content_type) = (self.request, run.form.content_type());
        tokio::spawn(run.all(self, settled));
        let mut response =
            Body::from_stream(ReceiverBody(taken).map(Ok::<_, std::convert::Infallible>)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        stamp(&mut response, &request, header.as_deref());
        response
    }

    /// What became of the payment; `None` when nobody knows after a while.
    async fn when_settled(&self) -> Option<Settlement> {
        let patience = SETTLE_PATIENCE + BLOCK_PATIENCE * (self.blocks() - 1);
        tokio::time::timeout(patience, self.settlement()).await.ok()?
    }

    /// How many blocks its settlement must be under, its own counted.
    fn blocks(&self) -> u32 {
        match self.paying {
            Paying::Beside(hold) | Paying::AtEnd(hold, _) => hold.blocks,
            Paying::After | Paying::Voucher(_) => 1,
        }
    }

    async fn settlement(&self) -> Option<Settlement> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::WhenSettled { request: self.request, blocks: self.blocks(), reply };
        self.api.cx.tell(Event::Ask(Box::new(ask))).await;
        answer.await.ok()
    }

    fn settled_header(&self, settlement: &Settlement) -> Option<String> {
        let Settlement::Paid { tx, amount, .. } = settlement else { return None };
        Some(self.api.seller.settled(self.payer, Usdc(*amount), &tx.0).to_header())
    }

    /// Nothing is delivered without money. The guard tells the book.
    fn unsettled(&mut self, settlement: Option<Settlement>) -> Response {
        let message = match (settlement, &self.paying) {
            (Some(Settlement::Unpaid(why)), _) => format!("the payment cannot be settled: {why:?}"),
            (_, Paying::AtEnd(..)) => {
                "the payment's outcome is not known yet: ask again with the same payment, the answer is kept".to_owned()
            }
            _ => "the payment's outcome is not known yet; nothing was delivered, and what arrives goes back".to_owned(),
        };
        self.guard.abort(AbortWhy::NotSettled);
        let resource = Resource {
            url: self.api.cx.config.public_url.clone(),
            description: "an answer of the agent".to_owned(),
            mime_type: "application/json".to_owned(),
        };
        let refusal = Refusal::new(Reason::UnexpectedSettleError, message);
        refused(&self.api.seller.not_settled(self.amount, &resource, refusal, self.payer))
    }

    /// A body that leaves in one piece, after everything is known.
    async fn whole(mut self, mut run: Run<impl Form>, mut settled: Option<Settlement>) -> Response {
        let made = match run.generate(&mut self).await {
            Ok(made) => match run.before_end.take() {
                Some(before_end) => before_end(run.made(made)).await.map(|stored| {
                    self.stored_bytes = stored;
                    made
                }),
                None => Ok(made),
            },
            Err(error) => Err(error),
        };
        let (finish, usage) = match made {
            Ok(made) => made,
            Err(error) => {
                self.guard.abort(if self.is_bought() { AbortWhy::Supplier } else { AbortWhy::Engine });
                return Problem::from(error).into_response();
            }
        };
        if !matches!(self.paying, Paying::Beside(_)) {
            // Charged before it leaves, because the head says the charge. Nobody knows yet whether it arrives.
            let delivery = delivery(&self, &run, usage, ended(finish), false);
            self.charge(delivery).await;
        }
        if matches!(self.paying, Paying::AtEnd(..)) {
            settled = self.when_settled().await;
            if !matches!(settled, Some(Settlement::Paid { .. })) {
                let refusal = self.unsettled(settled.clone());
                if settled.is_none() {
                    tokio::spawn(run.keep_when_paid(self, finish, usage));
                }
                return refusal;
            }
        }
        let (answer, request) = (run.close(&self, settled.as_ref(), finish, usage).await, self.request);
        self.keep(&answer).await;
        self.guard.disarm();
        let delivery = delivery(&self, &run, usage, ended(finish), true);
        let amount = self.worth(usage);
        let then = Some((self.api.cx.clone(), request, delivery, amount));
        let last = OnTaken { frame: Some(answer.body), taken: false, then, _in_flight: self.in_flight };
        let mut response = Body::from_stream(last).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(run.form.content_type()));
        stamp(&mut response, &request, answer.payment_response.as_deref());
        response
    }

    /// What so many tokens are worth in this way to pay, with what was stored, at the price that was quoted and never
    /// above it.
    fn worth(&self, used: Usage) -> Usdc {
        let used = Usage { prompt_tokens: self.prompt_tokens, ..used };
        self.tariff.meter_up(used, self.stored_bytes).min(self.amount)
    }

    fn worth_of(&self, delivery: &Delivery) -> Usdc {
        let Delivery { cached_tokens, completion_tokens, .. } = *delivery;
        self.worth(Usage { prompt_tokens: self.prompt_tokens, cached_tokens, completion_tokens })
    }

    /// Whether another agent makes it.
    fn is_bought(&self) -> bool {
        matches!(self.making, Making::Purchase(_))
    }

    /// Whether it is charged by what is delivered.
    fn is_metered(&self) -> bool {
        matches!(self.paying, Paying::Voucher(_) | Paying::AtEnd(_, Some(Proxy::Upto { .. })))
    }

    /// Puts the delivery into the book and waits until it is there.
    async fn charge(&self, delivery: Delivery) {
        let amount = self.worth_of(&delivery);
        let (reply, heard) = oneshot::channel();
        let ask = Ask::Delivered { request: self.request, delivery, amount, reply: Some(reply) };
        self.api.cx.tell(Event::Ask(Box::new(ask))).await;
        // A node that stops says nothing; what it recorded is charged by whoever goes on.
        drop(heard.await);
    }

    /// Puts the delivery into the book.
    async fn say(&self, delivery: Delivery) {
        let amount = self.worth_of(&delivery);
        let ask = Ask::Delivered { request: self.request, delivery, amount, reply: None };
        self.api.cx.tell(Event::Ask(Box::new(ask))).await;
    }

    async fn keep(&self, answer: &Answer) {
        let under = (self.request, self.question, self.signature.as_slice());
        let response = self.stored_as.as_deref();
        self.api.answers.keep(under, answer, response, self.api.shared.now()).await;
        if let Some(response) = response {
            self.api.forget_answer_unless_stored(response).await;
        }
        crash_point!("pay.kept");
    }

    /// What the last piece of an answer says about its payment.
    fn extra(&self, settlement: Option<&Settlement>, used: Usage) -> Map<String, Value> {
        let mut x402 = Map::new();
        x402.insert("request".into(), json!(self.request.to_string()));
        x402.insert("receipt".into(), json!(format!("{}/receipts/{}", self.api.cx.config.public_url, self.request)));
        let amount = if self.is_metered() { self.worth(used) } else { self.amount };
        x402.insert("amount".into(), json!(amount.0.to_string()));
        if self.is_metered() {
            x402.insert("charged".into(), json!(amount.0.to_string()));
        }
        if self.stored_bytes > 0 {
            x402.insert("stored_bytes".into(), json!(self.stored_bytes));
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
    // No token of a bought answer is this agent's work.
    let (cached_tokens, completion_tokens) =
        if sale.is_bought() { (0, 0) } else { (usage.cached_tokens, usage.completion_tokens) };
    Delivery {
        cached_tokens,
        completion_tokens,
        bytes: run.bytes,
        output_digest: run.vectors_digest.unwrap_or_else(|| Sha256::digest(run.text.as_bytes()).into()),
        finish,
        at: sale.api.shared.now(),
        confirmed,
    }
}

/// Waits for the engine's first word.
async fn accepted(making: &mut Making) -> Result<(), ApiError> {
    match making.recv().await {
        Some(EngineEvent::Failed { kind, message }) => Err(ApiError::for_engine(kind, &message)),
        Some(_) => Ok(()),
        None => Err(ApiError::for_internal()),
    }
}

/// Generation on its way into a body.
struct Run<F> {
    form: F,
    before_end: Option<BeforeEnd>,
    frames: mpsc::Sender<Bytes>,
    text: String,
    /// Of vectors in the place of a text.
    vectors_digest: Option<[u8; 32]>,
    logprobs: Vec<TokenLogprob>,
    tokens: u32,
    /// Tokens of the prompt that were not computed for it.
    cached: u32,
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
        if let Making::Purchase(purchase) = &sale.making {
            // Its node may have been fenced since, or paused: then nothing is signed.
            sale.api.is_ready(purchase).await.map_err(|problem| problem.api().clone())?;
            let bought = purchase.buy().await?;
            self.text = bought.text;
            return Ok((bought.finish, bought.usage));
        }
        while let Some(event) = sale.making.recv().await {
            match event {
                EngineEvent::Accepted { .. } => {}
                EngineEvent::Tokens { text, count, cached_tokens, logprobs } => {
                    self.cached = cached_tokens;
                    self.text.push_str(&text);
                    self.logprobs.extend(logprobs);
                    self.tokens += count;
                }
                EngineEvent::Done { finish, prompt_tokens, cached_tokens, completion_tokens } => {
                    return Ok((finish, Usage { prompt_tokens, cached_tokens, completion_tokens }));
                }
                EngineEvent::Embedded { vectors, prompt_tokens } => {
                    self.vectors_digest = Some(Sha256::digest(self.form.vectors(vectors)).into());
                    return Ok((Finish::Stop, Usage { prompt_tokens, cached_tokens: 0, completion_tokens: 0 }));
                }
                EngineEvent::Failed { kind, message } => return Err(ApiError::for_engine(kind, &message)),
            }
        }
        Err(ApiError::for_internal())
    }

    fn made(&self, (finish, usage): (Finish, Usage)) -> Made {
        Made { text: self.text.clone(), finish, usage }
    }

    /// What was used up to here.
    fn used(&self, sale: &Sale) -> Usage {
        let (cached_tokens, completion_tokens) = (self.cached, self.tokens);
        Usage { prompt_tokens: sale.prompt_tokens, cached_tokens, completion_tokens }
    }

    /// The last frames.
    fn end(&mut self, finish: Finish, usage: Usage, extra: Map<String, Value>) -> Vec<Bytes> {
        self.form.close(Answered { text: &self.text, logprobs: &self.logprobs, finish, usage }, extra)
    }

    /// The engine's next event; until it comes, a sign of life now and then. `None`: the customer is gone, or the engine.
    async fn next(&mut self, making: &mut Making) -> Option<EngineEvent> {
        while_connected(&self.frames, making.recv()).await.flatten()
    }

    /// The whole body, of which nothing has left, with its header.
    async fn close(&mut self, sale: &Sale, settled: Option<&Settlement>, finish: Finish, usage: Usage) -> Answer {
        let extra = sale.extra(settled, usage);
        let mut frames = self.form.open();
        frames.extend(self.form.delta(&self.text, &self.logprobs));
        frames.extend(self.end(finish, usage, extra));
        let payment_response = match &sale.paying {
            Paying::Voucher(call) => sale.api.told(call).await,
            _ => settled.and_then(|s| sale.settled_header(s)),
        };
        self.bytes = frames.iter().map(|frame| u64::try_from(frame.len()).unwrap_or(u64::MAX)).sum();
        Answer { body: frames.concat().into(), content_type: self.form.content_type().to_owned(), payment_response }
    }

    /// The customer has waited long enough. When the payment is settled after all, its answer can be fetched with it.
    async fn keep_when_paid(mut self, sale: Sale, finish: Finish, usage: Usage) {
        if let Some(paid @ Settlement::Paid { .. }) = sale.settlement().await {
            let answer = self.close(&sale, Some(&paid), finish, usage).await;
            sale.keep(&answer).await;
        }
    }

    /// The whole way of a streamed answer.
    async fn all(mut self, mut sale: Sale, settled: Option<Settlement>) {
        let opening = self.form.open();
        let mut connected = self.push(opening).await;
        let mut marked = 0;
        let mut end = Err(ApiError::for_internal());
        while connected {
            let Some(event) = self.next(&mut sale.making).await else {
                connected = !self.frames.is_closed();
                break;
            };
            match event {
                EngineEvent::Accepted { .. } => {}
                EngineEvent::Tokens { text, count, cached_tokens, logprobs } => {
                    self.cached = cached_tokens;
                    self.text.push_str(&text);
                    let frames = self.form.delta(&text, &logprobs);
                    self.logprobs.extend(logprobs);
                    connected = self.push(frames).await;
                    if connected {
                        self.tokens += count;
                    }
                    if self.tokens >= marked + MARK_TOKENS {
                        marked = self.tokens;
                        let amount = sale.worth(self.used(&sale));
                        let ask = Ask::Mark { request: sale.request, tokens: marked, amount };
                        sale.api.cx.tell(Event::Ask(Box::new(ask))).await;
                    }
                }
                EngineEvent::Done { finish, prompt_tokens, cached_tokens, completion_tokens } => {
                    end = Ok((finish, Usage { prompt_tokens, cached_tokens, completion_tokens }));
                    break;
                }
                // Vectors are never streamed.
                EngineEvent::Embedded { .. } => break,
                EngineEvent::Failed { kind, message } => {
                    end = Err(ApiError::for_engine(kind, &message));
                    break;
                }
            }
        }
        if let (Ok(made), Some(before_end)) = (&end, self.before_end.take()) {
            match before_end(self.made(*made)).await {
                Ok(stored) => sale.stored_bytes = stored,
                Err(error) => end = Err(error),
            }
        }
        sale.guard.disarm();
        match end {
            Ok((finish, usage)) if connected => self.end_well(sale, settled, finish, usage).await,
            Ok(_) => self.end_badly(sale, None).await,
            Err(error) => self.end_badly(sale, connected.then_some(error)).await,
        }
    }

    /// Everything was generated and all but the end was taken: charge, settle, keep, and let the end go.
    async fn end_well(mut self, sale: Sale, mut settled: Option<Settlement>, finish: Finish, usage: Usage) {
        let charged = !matches!(sale.paying, Paying::Beside(_));
        if charged {
            // Before the last frame: whoever has read that can rely on the charge.
            let arrives = matches!(sale.paying, Paying::Voucher(_));
            let delivery = delivery(&sale, &self, usage, ended(finish), arrives);
            sale.charge(delivery).await;
        }
        let waits = matches!(sale.paying, Paying::Beside(_) | Paying::AtEnd(..));
        if waits && settled.is_none() {
            settled = with_signs_of_life(&self.frames, sale.when_settled()).await;
        }
        let is_paid = !waits || matches!(settled, Some(Settlement::Paid { .. }));
        let confirmed = if is_paid {
            let extra = sale.extra(settled.as_ref(), usage);
            let closing = self.end(finish, usage, extra);
            let payment_response = match &sale.paying {
                Paying::Voucher(call) => sale.api.told(call).await,
                _ => settled.as_ref().and_then(|s| sale.settled_header(s)),
            };
            let body = Bytes::from([self.kept.as_slice(), &closing.concat()].concat());
            let content_type = self.form.content_type().to_owned();
            sale.keep(&Answer { body, content_type, payment_response }).await;
            self.push(closing).await
        } else {
            let error = ApiError::for_unavail("payment_not_settled", "the payment could not be settled", 1);
            let frames = self.form.fail(&error);
            self.push(frames).await;
            if settled.is_none() && charged {
                // The body ends now, and the answer waits for its money.
                self.frames = mpsc::channel(1).0;
                return self.keep_when_paid(sale, finish, usage).await;
            }
            false
        };
        if !charged && !confirmed && self.tokens == 0 {
            let why = AbortWhy::HungUp;
            return sale.api.cx.tell(Event::Ask(Box::new(Ask::Aborted { request: sale.request, why }))).await;
        }
        let finish = match (is_paid, confirmed) {
            (true, true) => ended(finish),
            (true, false) => Ended::HungUp,
            (false, _) => Ended::Broken,
        };
        // Said before for a voucher, and again for what settled at its end: that it arrived.
        if !charged || (confirmed && matches!(sale.paying, Paying::AtEnd(..) | Paying::After)) {
            let delivery = delivery(&sale, &self, usage, finish, confirmed);
            // The sender goes last: the body ends when the book has heard.
            sale.say(delivery).await;
        }
    }

    /// It broke off: what was taken is charged, and nothing for nothing. `error` is told a customer who still listens.
    async fn end_badly(mut self, mut sale: Sale, error: Option<ApiError>) {
        sale.making.cancel();
        let finish = match &error {
            Some(error) => {
                let frames = self.form.fail(error);
                self.push(frames).await;
                Ended::Broken
            }
            None => Ended::HungUp,
        };
        if self.tokens == 0 {
            let why = if error.is_some() { AbortWhy::Engine } else { AbortWhy::HungUp };
            sale.api.cx.tell(Event::Ask(Box::new(Ask::Aborted { request: sale.request, why }))).await;
            return;
        }
        let usage = self.used(&sale);
        let delivery = delivery(&sale, &self, usage, finish, false);
        // The sender goes last: the body ends when the book has heard.
        sale.say(delivery).await;
    }
}

/// What is waited for, or `None` as soon as the customer is gone: also while its request is in the queue, or its prompt is read.
/// Until then a sign of life now and then.
async fn while_connected<T>(frames: &mpsc::Sender<Bytes>, waited: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        it = with_signs_of_life(frames, waited) => Some(it),
        () = frames.closed() => None,
    }
}

/// What is waited for; meanwhile comments, which are no part of the answer: neither counted nor kept. A customer who does not
/// read needs none.
async fn with_signs_of_life<T>(frames: &mpsc::Sender<Bytes>, waited: impl Future<Output = T>) -> T {
    let mut waited = std::pin::pin!(waited);
    loop {
        match tokio::time::timeout(KEEP_ALIVE, &mut waited).await {
            Ok(it) => return it,
            Err(_) => frames.try_send(Bytes::from_static(SSE_KEEP_ALIVE.as_bytes())).unwrap_or_default(),
        }
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
    then: Option<(Arc<Context>, RequestId, Delivery, Usdc)>,
    _in_flight: InFlight,
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
        let Some((cx, request, mut delivery, amount)) = self.then.take() else { return };
        // Not taken: the answer is kept, and the same payment fetches it.
        delivery.confirmed = self.taken;
        if !self.taken {
            delivery.finish = Ended::HungUp;
        }
        tell(&cx, Ask::Delivered { request, delivery, amount, reply: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::ListenerExt;
    use axum::{Router, routing::get};
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket};

    /// Of a customer's machine; the kernel takes twice as much.
    const RECEIVE_BUFFER_BYTES: u32 = 4 << 10;
    /// hyper's, the channel's, and the one that is on its way between them.
    const FRAMES_MAX: usize = 18;

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_is_commented_and_ends_when_the_customer_goes() {
        let (frames, mut taken) = mpsc::channel::<Bytes>(4);
        let never = std::future::pending::<()>();
        let waiting = tokio::spawn(async move { while_connected(&frames, never).await });
        for _ in 0..2 {
            let began = tokio::time::Instant::now();
            assert_eq!(taken.recv().await.unwrap(), SSE_KEEP_ALIVE.as_bytes());
            assert_eq!(began.elapsed(), KEEP_ALIVE);
        }
        drop(taken);
        assert_eq!(waiting.await.unwrap(), None, "nobody is left to wait for");

        // Whoever does not read is waited with all the same, and what has come is not lost.
        let (frames, mut taken) = mpsc::channel::<Bytes>(1);
        frames.send(Bytes::from_static(b"a")).await.unwrap();
        let settled = async {
            tokio::time::sleep(3 * KEEP_ALIVE + Duration::from_secs(1)).await;
            7
        };
        assert_eq!(with_signs_of_life(&frames, settled).await, 7);
        assert_eq!(taken.recv().await.unwrap(), "a");
        drop(taken);
        assert_eq!(while_connected(&frames, std::future::ready(8)).await, Some(8));
    }

    /// It is charged by the frames that the transport takes. What it does not read fills two small kernel buffers, its
    /// own and ours, and a few frames more; then nothing is taken any more, and the engine waits.
    #[tokio::test]
    async fn a_customer_who_stops_reading_is_charged_for_little_more_than_it_read() {
        let (frames, taken) = mpsc::channel::<Bytes>(1);
        let body = Arc::new(Mutex::new(Some(taken)));
        let stream = move || {
            let taken = body.lock().unwrap().take().unwrap();
            async move { Body::from_stream(ReceiverBody(taken).map(Ok::<_, std::convert::Infallible>)) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let app = Router::new().route("/", get(stream));
        tokio::spawn(async move { axum::serve(listener.tap_io(net::send_as_read), app).await });

        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
        let mut customer = socket.connect(at).await.unwrap();
        customer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        // A token in a chunk of a chat completion.
        let frame = Bytes::from(format!("data: {}\n\n", "x".repeat(240)));
        frames.send(frame.clone()).await.unwrap();
        let mut read = [0; 1_024];
        while !String::from_utf8_lossy(&read).contains("data: ") {
            assert_ne!(customer.read(&mut read).await.unwrap(), 0);
        }
        let kernels = 2 * (net::SEND_BUFFER_BYTES + usize::try_from(RECEIVE_BUFFER_BYTES).unwrap());
        let most = kernels + FRAMES_MAX * frame.len();
        let mut charged = 0;
        // Once nothing has been taken for a second, nothing will be.
        while let Ok(sent) = tokio::time::timeout(Duration::from_secs(1), frames.send(frame.clone())).await {
            sent.expect("it stays connected");
            charged += frame.len();
            assert!(charged <= most, "{charged} bytes are taken of what nobody reads; {most} at most");
        }
        drop(customer);
    }
}
