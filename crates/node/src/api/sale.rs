//! The way of a paid request up to its first token: quote → verify → ask the book → look at the chain → reserve →
//! generate. [`deliver`] is the rest of it.
//!
//! Generation starts while the reservation becomes durable; no byte leaves before it is. When a payment is settled
//! depends on what can be taken back: see [`Paying`].

pub mod call;
mod contract;
mod deliver;
pub mod refund;

pub use deliver::{BeforeEnd, Form, Made, Whole};

use super::Api;
use super::problem::{Problem, fresh_id};
use crate::answers::{Answer, Question};
use crate::ask::{Ask, Guard, Reserved, Stage, Want};
use crate::context::Context;
use crate::main_loop::{Event, Node};
use crate::permit2;
use crate::places::{Place, Places, Running};
use crate::settle::Settlement;
use crate::shared::{Embedder, Engine, InFlight};
use crate::suppliers::Purchase;
use alloy::primitives::{Address, U256};
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use call::Call;
use economy::{Price, Tokens, Usdc};
use futures::TryFutureExt;
use futures::future::try_join_all;
use infer::api::embeddings::tokens_of;
use infer::api::{ApiError, Settings, Usage};
use infer::{EngineClient, EngineEvent, Finish, Generate, Run};
use net::chain_of;
use pay::book::{AbortWhy, RequestId};
use pay::risk::{Hold, When};
use pay::scheme::channel::CHANNEL;
use pay::scheme::upto::{Permit2Payment, Proxy};
use pay::seller::FRESH_ANSWER;
use pay::seller::offers::{Accepted, ChannelPrice, Prices, Taken, Terms as Offers, TransferMethod};
use pay::wire::{PAYMENT_SIGNATURE, Resource};
use pay::{Challenge, Reason, Refusal, Seller, Settle, book};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Bytes of text that a generated token may be, for the price of storing it. They have 4 on average; an answer of longer
/// ones costs no more to store. A guess.
const TOKEN_BYTES_MAX: u64 = 16;
/// How long a request waits for an engine that still starts.
pub const ENGINE_START: Duration = Duration::from_secs(15);
/// How long a request waits for a price when none is set.
const FIRST_PRICE: Duration = Duration::from_secs(3);
/// A repeated request waits this long for the answer of the first one while that is made or settled, and this long for
/// one that is being written down.
const TWIN_PATIENCE: Duration = Duration::from_secs(60);
const WRITING_PATIENCE: Duration = Duration::from_secs(2);
/// `Retry-After` of a 429.
const LATER_SECS: u32 = 2;
/// `Retry-After` where the relay's gas is missing: a few blocks, in which the treasury fuels it. A guess.
const GAS_LATER_SECS: u32 = 10;
/// Between two looks at what became of the first one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub fn seller(cx: &Context) -> Seller {
    let domain = (cx.token.name.as_str(), cx.token.version.as_str());
    Seller::new(cx.config.chain_id, cx.birth.token, domain, cx.config.treasury)
}

/// What is offered for which price, `alone` with a transaction of its own.
fn prices(channel: Option<ChannelPrice>, alone: Option<Usdc>, has_eip3009: bool, has_permit2: bool) -> Prices {
    let by_permit2 = alone.filter(|_| has_permit2);
    Prices { channel, upto: by_permit2, exact: alone.filter(|_| has_eip3009), exact_permit2: by_permit2 }
}

/// What deposits are paid with, and `exact` beside Permit2.
fn transfer(cx: &Context) -> TransferMethod {
    if cx.token.has_eip3009 { TransferMethod::Eip3009 } else { TransferMethod::Permit2 }
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
    pub question: Question,
    pub prompt: Prompt,
    /// Where the prompt comes from, to be named when it is too long.
    pub prompt_field: &'static str,
    pub settings: Settings,
    /// Place of the adapter that the model has on, among the manifest's.
    pub adapter: Option<usize>,
    /// Bytes of text that are stored beside the answer's own; `None`: nothing is stored.
    pub stored_bytes: Option<u64>,
    /// What the call costs; `None`: it is metered.
    pub flat: Option<Flat>,
}

impl Order {
    /// Where it is asked for.
    fn path(&self) -> &str {
        match &self.prompt {
            Prompt::Ready(ready) => &ready.path,
            _ => self.route.split_once(' ').map_or(self.route, |(_, path)| path),
        }
    }
}

/// A price of a whole call, whatever is in it.
#[derive(Clone, Copy, Debug)]
pub struct Flat {
    /// The manifest's. Zero: what the tokens below cost by today's meter.
    pub uusdc: Usdc,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
}

impl Flat {
    /// At least what the least call costs today, and at most what any may. `metered`: of the class of its tokens.
    pub fn today(&self, metered: Price) -> Usdc {
        let of_tokens = || metered.quote_up(self.prompt_tokens.into(), self.completion_tokens.into());
        let call = if self.uusdc.is_zero() { of_tokens() } else { self.uusdc };
        call.max(metered.call_uusdc).min(metered.call_uusdc_max)
    }

    /// The same in the form that everything sold has, for a call of at most so many tokens of prompt and answer. One
    /// that would cost more by the meter is refused: nothing is sold below it.
    fn price(&self, metered: Price, tokens: (u32, u32), field: &str) -> Result<Price, ApiError> {
        let call = self.today(metered);
        let meant = metered.quote_up(tokens.0.into(), tokens.1.into());
        if meant > call {
            let message = format!(
                "`{field}`: by its tokens this would cost {meant} micro-USDC today, and a call costs {call}: shorten \
                 it, or ask for fewer tokens"
            );
            return Err(ApiError::for_field("over_fixed_price", field, message));
        }
        Ok(Price {
            call_uusdc: call,
            call_uusdc_max: Usdc::MAX,
            mtok_prompt_uusdc: Usdc::ZERO,
            mtok_cached_uusdc: Usdc::ZERO,
            mtok_embedding_uusdc: Usdc::ZERO,
            mtok_completion_uusdc: Usdc::ZERO,
        })
    }
}

/// What the model gets.
pub enum Prompt {
    /// It goes on with it.
    Text(Rendered),
    /// It makes a vector of each. `name_of` a text, for errors; `further` as in [`Rendered`].
    Texts { texts: Vec<String>, name_of: NameOf, further: Option<usize> },
    /// No model here gets anything: another agent's makes the answer.
    Bought(Purchase),
    /// Nor does one now: what is sold was made before, or will be.
    Ready(Ready),
}

/// What is sold without any work in the call.
#[derive(Clone)]
pub struct Ready {
    /// Where it is asked for, where that is not its route.
    pub path: String,
    pub price: Price,
    /// For the receipt.
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    /// What the receipt's digest of the output is taken of.
    pub text: String,
}

/// What an error calls the text with a number.
pub type NameOf = Box<dyn Fn(usize) -> String + Send + Sync>;

/// A prompt as the model gets it.
pub struct Rendered {
    pub text: String,
    /// The date that a template was told, chain seconds; zero where there was none.
    pub date: u64,
    /// Place of the model among the manifest's further ones; `None`: the first one.
    pub further: Option<usize>,
}

/// What is done for an order: the engine is asked for it, or another agent.
#[derive(Clone)]
enum Work {
    Answer(Box<Generate>),
    Vectors(Vec<String>),
    Bought(Purchase),
    Ready(Ready),
}

impl Prompt {
    /// Of [`Rendered`].
    fn date(&self) -> u64 {
        match self {
            Self::Text(prompt) => prompt.date,
            Self::Texts { .. } | Self::Bought(_) | Self::Ready(_) => 0,
        }
    }

    /// Of [`Rendered`].
    pub(super) fn further(&self) -> Option<usize> {
        match self {
            Self::Text(prompt) => prompt.further,
            Self::Texts { further, .. } => *further,
            Self::Bought(_) | Self::Ready(_) => None,
        }
    }
}

impl Ready {
    fn events(self) -> Vec<EngineEvent> {
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, self.completion_tokens);
        let end = EngineEvent::Done { finish: Finish::Stop, prompt_tokens, cached_tokens: 0, completion_tokens };
        let text =
            EngineEvent::Tokens { text: self.text, count: completion_tokens, cached_tokens: 0, logprobs: Vec::new() };
        vec![end, text]
    }
}

impl Work {
    fn of(prompt: Prompt, settings: Settings, adapter: Option<usize>, max_tokens: u32) -> Work {
        match prompt {
            Prompt::Text(prompt) => {
                let generate = settings.generate(prompt.text, max_tokens, rand::random());
                let adapter = adapter.and_then(|adapter| u32::try_from(adapter).ok());
                Work::Answer(Box::new(Generate { adapter, ..generate }))
            }
            Prompt::Texts { texts, .. } => Work::Vectors(texts),
            Prompt::Bought(purchase) => Work::Bought(purchase),
            Prompt::Ready(ready) => Work::Ready(ready),
        }
    }
}

/// Work that was begun.
enum Making {
    Engine(Running),
    /// Begun only when its payment is sure: see [`deliver`].
    Purchase(Purchase),
    /// What an engine would have said, last first.
    Ready(Vec<EngineEvent>),
}

impl Making {
    /// The engine's next event. What is bought has none: it comes whole.
    async fn recv(&mut self) -> Option<EngineEvent> {
        match self {
            Self::Engine(running) => running.recv().await,
            Self::Purchase(_) => None,
            Self::Ready(events) => events.pop(),
        }
    }

    fn cancel(&mut self) {
        if let Self::Engine(running) = self {
            running.cancel();
        }
    }
}

/// The work of a reservation; `None`: the book did not take it.
struct Begun(Option<Result<Making, Problem>>);

impl Begun {
    /// Of a reservation that was taken, with its guard.
    fn running(self, guard: &mut Guard) -> Result<Making, Problem> {
        let begun = self.0.unwrap_or_else(|| Err(Problem::for_internal("a reservation that was not taken")));
        begun.inspect_err(|_| guard.abort(AbortWhy::Engine))
    }
}

/// What a customer says about repetitions.
#[derive(Clone, Copy)]
struct Wishes {
    /// Digest of the name that it gave its request.
    identifier: Option<[u8; 32]>,
    /// It wants a new answer to the same question.
    fresh: bool,
}

/// A reserved, durable, running request.
pub struct Sale {
    pub request: RequestId,
    pub prompt_tokens: u32,
    pub payer: Address,
    /// The price, or the most that is charged.
    amount: Usdc,
    making: Making,
    paying: Paying,
    tariff: Tariff,
    /// Text that was stored for it. Zero until it is.
    stored_bytes: u64,
    /// The response's id, if the answer is to be stored.
    pub stored_as: Option<String>,
    question: Question,
    /// Of the payment: the other half of the key that the answer is kept under.
    signature: Vec<u8>,
    guard: Guard,
    in_flight: InFlight,
    api: Api,
}

/// How a sale is paid, and with that when.
enum Paying {
    /// `exact` by EIP-3009: the price, settled while it is served, since the treasury can give it back.
    Beside(Hold),
    /// By Permit2, through this proxy, or by another's facilitator: settled when all is made, before the last byte, since
    /// nobody can give it back.
    AtEnd(Hold, Option<Proxy>),
    /// `exact` by EIP-3009 of a payer who has paid before: settled after the last byte, with others.
    After,
    /// A voucher: charged before the last byte, and never waits for the chain.
    Voucher(Box<Call>),
}

/// What tokens and stored bytes cost in one way to pay.
#[derive(Clone, Copy)]
struct Tariff {
    price: Price,
    /// Of a million bytes.
    stored: Usdc,
    /// The way's own gas, on top.
    gas: Usdc,
}

impl Tariff {
    /// Metered, rounded up once.
    fn meter_up(&self, tokens: Usage, stored_bytes: u64) -> Usdc {
        let tokens = Tokens {
            prompt: u64::from(tokens.prompt_tokens),
            cached: u64::from(tokens.cached_tokens),
            completion: u64::from(tokens.completion_tokens),
        };
        let metered = self.price.meter_beside_up(tokens, self.stored.0.saturating_mul(u128::from(stored_bytes)));
        metered.saturating_add(self.gas).min(self.price.call_uusdc_max)
    }
}

/// The engine that makes what is sold.
type Maker = (EngineClient, Places);

/// The price of an order and whether it fits the model, or the refusal.
struct Terms {
    /// Of what is answered here; what makes vectors is in `maker` alone.
    engine: Option<Engine>,
    /// `None`: no engine makes it.
    maker: Option<Maker>,
    prompt_tokens: u32,
    max_tokens: u32,
    /// The most that this order costs on a channel.
    price: Usdc,
    /// The same with a transaction of its own: `None` where that costs more than a call may.
    price_alone: Option<Usdc>,
    tariff: Price,
    resource: Resource,
    quote_key: [u8; 32],
}

impl Terms {
    /// `None`: no engine makes it.
    fn place(&self) -> Result<Option<Place>, Problem> {
        let place = self.maker.as_ref().map(|(client, places)| places.take(client)).transpose();
        Ok(place?)
    }
}

impl Api {
    /// Everything up to the first token. The error is a finished answer: 402, 308, 4xx or 503.
    pub async fn sell(&self, headers: &HeaderMap, order: Order) -> Result<Sale, Response> {
        let entered = self.shared.enter();
        self.here(order.path()).await?;
        let pays = headers.contains_key(&PAYMENT_SIGNATURE);
        let terms = self.terms(&order, pays).await.map_err(IntoResponse::into_response)?;
        let Taken { payment, identifier } = self.accepted(headers, &terms).map_err(|refusal| *refusal)?;
        let wishes = Wishes { identifier, fresh: headers.contains_key(&FRESH_ANSWER) };
        let settlement = match (payment, order.errand) {
            (Accepted::Channel(paid), _) => return self.sell_call(*paid, order, terms, wishes, entered).await,
            (Accepted::Exact(verified), Errand::Buy) => Settle::Exact(verified.settlement()),
            (Accepted::Permit2(payment), Errand::Buy) => Settle::Permit2(payment),
            (Accepted::Unproven(payer), Errand::Buy) => self.contract_payer(*payer, &terms).await?,
            (Accepted::Exact(_) | Accepted::Permit2(_) | Accepted::Unproven(_), Errand::Probe) => {
                let refusal = Refusal::new(Reason::PaymentRequired, "nothing is sold here: post your question");
                return Err(self.refuse(&terms, refusal));
            }
        };
        self.sell_one(settlement, order, terms, wishes, entered).await
    }

    /// A sale with a transaction of its own.
    async fn sell_one(
        &self,
        settlement: Settle,
        order: Order,
        terms: Terms,
        wishes: Wishes,
        entered: InFlight,
    ) -> Result<Sale, Response> {
        let ask = book::Ask {
            method: settlement.method(),
            payer: settlement.payer(),
            nonce: settlement.nonce(),
            route: self.cx.manifest.booked(order.route, order.prompt.further()),
            body_digest: order.question.digest,
            identifier: wishes.identifier,
            fresh: wishes.fresh,
        };
        // What the book knows comes before what the chain says: a repetition was paid long ago.
        let asked = ask.clone();
        let known = self.look(move |node| node.known(&asked)).await.map_err(IntoResponse::into_response)?;
        if let Some(known) = known {
            return Err(self.not_reserved(known, order.question, &terms).await);
        }
        if let Prompt::Bought(purchase) = &order.prompt {
            // What is settled first would have to go back.
            self.is_ready(purchase).await.map_err(IntoResponse::into_response)?;
            purchase.quote().await.map_err(|e| Problem::from(e).into_response())?;
        }
        if is_relays_alone(&settlement) && !self.shared.relay_has_gas() {
            return Err(self.without_gas(&terms));
        }
        self.can_pay(&settlement, &terms).await?;
        // Last, so that nobody keeps a place who cannot pay: and before the book, which has the payment settled.
        let place = self.place(&terms).map_err(IntoResponse::into_response)?;

        let tariff = self.tariff(terms.tariff, self.gas());
        let proxy = match &settlement {
            Settle::Exact(_) => None,
            Settle::Permit2(payment) => Some(payment.proxy),
        };
        let (payer, amount, signature) =
            (Address::from(settlement.payer()), settlement.value(), settlement.signature().to_vec());
        let date = order.prompt.date();
        let work = Work::of(order.prompt, order.settings, order.adapter, terms.max_tokens);
        let run = self.run_of(order.route, date, &work, terms.engine.as_ref());
        let Terms { prompt_tokens, max_tokens, .. } = terms;
        let want = Box::new(Want { settlement, ask, prompt_tokens, max_tokens, run });
        let begin = || self.start(place, work);
        let (begun, reserved) = self.reserve(begin, |taken, reply| Ask::Reserve { want, taken, reply }).await?;
        match reserved {
            Reserved::Yes { request, mut guard, when } => Ok(Sale {
                request,
                prompt_tokens: terms.prompt_tokens,
                payer,
                amount,
                making: begun.running(&mut guard).map_err(IntoResponse::into_response)?,
                paying: match when {
                    When::Beside(hold) => Paying::Beside(hold),
                    When::AtEnd(hold) => Paying::AtEnd(hold, proxy),
                    When::After => Paying::After,
                },
                tariff,
                stored_bytes: 0,
                stored_as: None,
                question: order.question,
                signature,
                guard,
                in_flight: entered,
                api: self.clone(),
            }),
            other => Err(self.not_reserved(other, order.question, &terms).await),
        }
    }

    /// Takes the payment out of the headers and verifies it, or says what this costs.
    fn accepted(&self, headers: &HeaderMap, terms: &Terms) -> Result<Taken, Box<Response>> {
        let domain = &self.channels.domain;
        // What was offered with gas may come without: then it is verified, and hears what is missing.
        let found = self.with_ways(terms, self.takes_permit2(terms), |offers| {
            self.seller.accept_any(headers, offers, domain, self.shared.now())
        });
        found.map_err(|challenge| {
            if challenge.refusal.reason == Reason::PaymentRequired {
                self.shared.quoted(terms.quote_key, terms.price.0);
            } else {
                self.shared.refuse();
            }
            Box::new(self.with_offers(terms, |offers| refused(&self.seller.refuse(offers, challenge.refusal))))
        })
    }

    /// What is offered for an order: channels first where there are any, then what needs a transaction of its own. Only
    /// the relay may settle by Permit2, and it needs gas for it.
    fn with_offers<T>(&self, terms: &Terms, then: impl FnOnce(&Offers<'_>) -> T) -> T {
        self.with_ways(terms, self.takes_permit2(terms) && self.shared.relay_has_gas(), then)
    }

    /// Settled when all is made, it may fail when a supplier has been paid.
    fn takes_permit2(&self, terms: &Terms) -> bool {
        terms.maker.is_some() && self.cx.permit2.proxies
    }

    fn with_ways<T>(&self, terms: &Terms, by_permit2: bool, then: impl FnOnce(&Offers<'_>) -> T) -> T {
        let channel = self.channels.is_open.then_some(ChannelPrice { ceiling: terms.price, carry: terms.price });
        let prices = prices(channel, terms.price_alone, self.cx.token.has_eip3009, by_permit2);
        then(&Offers {
            prices,
            resource: &terms.resource,
            quoted_before: &|scheme, amount| {
                let gas = if scheme == CHANNEL { Usdc::ZERO } else { self.gas() };
                self.shared.was_quoted(&terms.quote_key, amount.saturating_sub(gas).0)
            },
            known: &|method, payer, nonce| self.answers.has(&RequestId::of_payment(method, payer, nonce)),
            facilitator: self.cx.relay.address(),
            channels: &self.channels.terms,
            transfer: transfer(&self.cx),
            takes_permits: self.cx.token.has_permit,
        })
    }

    /// How the model is run for an order, for its receipt. `engine` as in [`Terms`].
    fn run_of(&self, route: &str, date: u64, work: &Work, engine: Option<&Engine>) -> String {
        match (work, engine) {
            (Work::Answer(generate), Some(engine)) => {
                let at = generate.adapter.and_then(|adapter| usize::try_from(adapter).ok());
                let adapter = at.and_then(|at| self.cx.manifest.adapters.get(at));
                let digest = adapter.and_then(|adapter| store::cid::parse(&adapter.cid).ok());
                let digest = digest.map(|cid| store::cid::digest(&cid));
                Run::of(route, date, generate, digest, engine.class()).to_canonical()
            }
            // No receipt names how vectors are made yet, and what is bought was run elsewhere.
            _ => String::new(),
        }
    }

    fn tariff(&self, price: Price, gas: Usdc) -> Tariff {
        Tariff { price, stored: Usdc(self.cx.manifest.payments.storage_uusdc_per_mbyte), gas }
    }

    /// What a transaction of its own adds to a call's price.
    fn gas(&self) -> Usdc {
        Usdc(self.shared.settling_up(self.cx.manifest.settlement_uusdc))
    }

    fn refuse(&self, terms: &Terms, refusal: Refusal) -> Response {
        self.shared.refuse();
        self.with_offers(terms, |offers| refused(&self.seller.refuse(offers, refusal)))
    }

    /// `pays`: a payment came along. Without one nothing is asked of the engine but how long the prompt is.
    async fn terms(&self, order: &Order, pays: bool) -> Result<Terms, Problem> {
        let price = self.first_price().await.map_err(|why| Problem::for_unavail(why, 2))?;
        let (engine, maker, prompt_tokens, room, price) = match &order.prompt {
            Prompt::Text(prompt) => {
                let (engine, tokens, room) = self.room_after(prompt, order, pays).await?;
                let maker = (engine.client.clone(), engine.places.clone());
                (Some(engine), Some(maker), tokens, room, self.price_of(price, prompt.further))
            }
            Prompt::Texts { texts, name_of, further } => {
                let embedder = self.embedder_of(*further).await?;
                let (maker, tokens) = texts_fit(embedder, texts, name_of, order.prompt_field).await?;
                (None, Some(maker), tokens, 0, self.price_of(price, *further).of_embeddings())
            }
            Prompt::Ready(ready) => (None, None, ready.prompt_tokens, ready.completion_tokens, ready.price),
            // By the call: no token of it is this host's.
            Prompt::Bought(purchase) => {
                if !pays {
                    self.is_ready(purchase).await?;
                }
                (None, None, 0, 0, purchase.supplier.price())
            }
        };
        let max_tokens = order.settings.max_tokens_within(room);
        let price = match order.flat {
            Some(flat) => flat.price(price, (prompt_tokens, max_tokens), order.prompt_field)?,
            None => price,
        };
        let quote_key = Sha256::new().chain_update(order.question.digest).chain_update(order.route).finalize().into();
        let path = order.path();
        let (alone, channel) = (self.tariff(price, self.gas()), self.tariff(price, Usdc::ZERO));
        // Nothing of it may be in the cache when its turn comes.
        let most = Usage { prompt_tokens, cached_tokens: 0, completion_tokens: max_tokens };
        let answer_bytes = u64::from(max_tokens).saturating_mul(TOKEN_BYTES_MAX);
        let stored_max = order.stored_bytes.map_or(0, |beside| beside.saturating_add(answer_bytes));
        let mut description = described(order, &price);
        if order.stored_bytes.is_some() {
            description += &format!("; a million bytes that are stored {}", alone.stored);
        }
        Ok(Terms {
            engine,
            maker,
            prompt_tokens,
            max_tokens,
            price: channel.meter_up(most, stored_max),
            price_alone: Some(alone.meter_up(most, stored_max)).filter(|whole| *whole > alone.gas),
            tariff: price,
            resource: Resource {
                url: format!("{}{path}", self.cx.config.public_url),
                description,
                mime_type: "application/json".to_owned(),
            },
            quote_key,
        })
    }

    /// Today's price, or why nothing is sold. Right after a start or a move the first price is a block away: that is no
    /// reason to refuse.
    pub(super) async fn first_price(&self) -> Result<Price, String> {
        let mut prices = self.shared.prices();
        let opened = tokio::time::timeout(FIRST_PRICE, prices.wait_for(Option::is_some)).await.is_ok();
        let price = self.shared.price().filter(|_| opened);
        price.ok_or_else(|| self.shared.closed_because().unwrap_or_else(|| "the agent does not sell now".to_owned()))
    }

    /// The engine, the prompt's tokens, and the most that an answer to it may have.
    async fn room_after(&self, prompt: &Rendered, order: &Order, pays: bool) -> Result<(Engine, u32, u32), Problem> {
        let engine = self.engine_of(prompt.further).await?;
        let prompt_tokens = engine
            .client
            .count_tokens(&prompt.text, order.settings.add_bos)
            .await
            .map_err(|e| Problem::for_unavail(format!("the engine does not answer: {e}"), 1))?;
        order.settings.check(engine.hello.n_vocab)?;
        if pays {
            can_hold_to(&engine, &order.settings).await?;
        }
        let room = engine.hello.n_ctx.saturating_sub(prompt_tokens);
        if room == 0 {
            return Err(ApiError::for_field(
                "context_length_exceeded",
                order.prompt_field,
                format!("the prompt has {prompt_tokens} tokens; the context holds {}", engine.hello.n_ctx),
            )
            .into());
        }
        Ok((engine, prompt_tokens, room))
    }

    /// Before anything is reserved: nobody would know for a while what becomes of it.
    fn without_gas(&self, terms: &Terms) -> Response {
        let message = "only the agent's relay can settle this, and it has no gas now; nothing was taken: try again, pay \
                       by a key's EIP-3009 authorisation, or from what lies in a channel";
        let mut response = self.refuse(terms, Refusal::new(Reason::UnexpectedSettleError, message));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(GAS_LATER_SECS));
        response
    }

    /// One look at the chain before work is done. The settlement is what decides.
    async fn can_pay(&self, settlement: &Settle, terms: &Terms) -> Result<(), Response> {
        let missing = match settlement {
            Settle::Exact(payment) => self.has_the_money(payment.payer.into(), payment.value).await,
            // A contract's was simulated before the book was asked.
            Settle::Permit2(payment) if !payment.is_signed_by_key => Ok(None),
            Settle::Permit2(payment) => self.can_be_moved(payment).await,
        };
        match missing {
            Ok(None) => Ok(()),
            Ok(Some(refusal)) => Err(self.refuse(terms, refusal)),
            Err(e) => {
                tracing::warn!(error = %chain_of(&e), "the chain does not say whether a payment is good");
                Err(Problem::for_unavail("the chain does not answer; nothing was charged", 2).into_response())
            }
        }
    }

    async fn has_the_money(&self, payer: Address, value: Usdc) -> Result<Option<Refusal>, chain::Error> {
        let balance = self.cx.chain.usdc(self.cx.birth.token).balance(payer).await?;
        let message = format!("{payer} holds {balance} micro-USDC, the authorisation is for {value}");
        Ok((balance < U256::from(value.0)).then(|| Refusal::new(Reason::InsufficientFunds, message)))
    }

    /// What settles only after the work is simulated before it: balance, allowance, nonce, signature and times at once.
    async fn can_be_moved(&self, payment: &Permit2Payment) -> Result<Option<Refusal>, chain::Error> {
        let Err(error) = permit2::simulate(&self.cx, payment).await else { return Ok(None) };
        if !matches!(error.kind, chain::Kind::Reverted(_)) {
            return Err(error);
        }
        if !permit2::is_spent(&self.cx, payment).await? {
            return permit2::what_is_missing(&self.cx, payment).await.map(Some);
        }
        // Anybody may have settled an `exact` one already: then its money is here, and buys this answer.
        match permit2::fate(&self.cx, payment, &Default::default()).await? {
            paid @ Settlement::Paid { .. } => {
                let (payer, nonce) = (payment.payer, payment.nonce);
                self.cx.tell(Event::Ask(Box::new(Ask::Found { payer, nonce, paid }))).await;
                Ok(None)
            }
            Settlement::Unpaid(_) | Settlement::Unknown => Ok(Some(Refusal::new(
                Reason::Permit2Nonce,
                "this nonce is spent, and paid nothing here: sign a new one",
            ))),
        }
    }

    /// Asks the book for a reservation, and has the work begun once it is taken: prefill runs while the record becomes
    /// durable, and for nothing that the book has not taken. A voucher for a channel that does not exist is signed for
    /// free.
    async fn reserve<T>(
        &self,
        begin: impl FnOnce() -> Result<Making, Problem>,
        make: impl FnOnce(oneshot::Sender<()>, oneshot::Sender<T>) -> Ask,
    ) -> Result<(Begun, T), Response> {
        let (taken, is_taken) = oneshot::channel();
        let (begun, answer) = futures::join!(is_taken.map_ok(|()| begin()), self.ask(|reply| make(taken, reply)));
        Ok((Begun(begun.ok()), answer?))
    }

    /// Where the engine takes it. One that is full, or being started again, is known before anything is reserved: whoever
    /// pays for the call alone has paid by then.
    fn place(&self, terms: &Terms) -> Result<Option<Place>, Problem> {
        terms.place().inspect_err(|_| self.shared.refuse())
    }

    fn start(&self, place: Option<Place>, work: Work) -> Result<Making, Problem> {
        let place = || place.ok_or_else(|| Problem::for_internal("work of this agent's own, and no engine for it"));
        let started = match work {
            Work::Answer(request) => place()?.generate(*request),
            Work::Vectors(texts) => place()?.embed(texts),
            Work::Bought(purchase) => return Ok(Making::Purchase(purchase)),
            Work::Ready(ready) => return Ok(Making::Ready(ready.events())),
        };
        self.shared.count_generation();
        Ok(Making::Engine(started?))
    }

    /// Whether the purse, the day's limit and the supplier allow a purchase now.
    async fn is_ready(&self, purchase: &Purchase) -> Result<(), Problem> {
        let holds = self.look(Node::purse_can_pay).await?;
        Ok(purchase.supplier.is_ready(holds)?)
    }

    async fn not_reserved(&self, reserved: Reserved, question: Question, terms: &Terms) -> Response {
        match reserved {
            Reserved::Replay { request } | Reserved::InFlight { request } => {
                self.shared.refuse();
                self.again(request, question).await
            }
            Reserved::Conflict => {
                let message =
                    "this payment, or this name of a request, belongs to another request; use a new one for this body";
                self.refuse(terms, Refusal::new(Reason::PaymentConflict, message))
            }
            Reserved::Aborted => {
                let message =
                    "nothing was delivered for this authorisation and its money is on the way back: sign a new one";
                self.refuse(terms, Refusal::new(Reason::PaymentAborted, message))
            }
            Reserved::Spent { method } => {
                let message =
                    "this payment has paid for an answer that is no longer kept, or can pay nothing: sign a new one";
                let reason = match method {
                    TransferMethod::Eip3009 => Reason::NonceUsed,
                    TransferMethod::Permit2 => Reason::Permit2Nonce,
                };
                self.refuse(terms, Refusal::new(reason, message))
            }
            Reserved::HungUp => {
                let message = "you hung up on too many payments today before their answers came, and each cost two \
                               transactions: pay from a channel, or tomorrow";
                self.refuse(terms, Refusal::new(Reason::TooManyOpen, message))
            }
            Reserved::Refused(limit) => match limit.reason() {
                Some(reason) => self.refuse(terms, Refusal::new(reason, limit.to_string())),
                None => self.unavailable(limit.to_string()),
            },
            Reserved::Closed(why) => self.unavailable(why),
            Reserved::Yes { .. } => Problem::for_internal("a reservation was taken for a refusal").into_response(),
        }
    }

    fn unavailable(&self, why: String) -> Response {
        self.shared.refuse();
        Problem::for_unavail(why, 2).into_response()
    }

    /// The stored answer of a request that is asked again, or its receipt where the answer is not here any more.
    async fn again(&self, request: RequestId, question: Question) -> Response {
        let known = match self.look(move |node| node.kept_under(&request)).await {
            Ok(known) => known,
            Err(problem) => return problem.into_response(),
        };
        if let Some((signature, stage)) = known {
            let patience = if stage == Stage::Coming { TWIN_PATIENCE } else { WRITING_PATIENCE };
            let until = Instant::now() + patience;
            let mut stage = stage;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                if let Some(answer) = self.answers.read((request, question, &signature), left.min(LOOK_AGAIN)).await {
                    return replay(&request, answer);
                }
                if left.is_zero() || stage == Stage::Aborted {
                    break;
                }
                // Its host may have died on it: then it ends here, with nothing delivered.
                if let Ok(Some((_, now))) = self.look(move |node| node.kept_under(&request)).await {
                    stage = now;
                }
            }
            let message = match stage {
                Stage::Made => None,
                Stage::Coming => {
                    Some("the answer to this payment is still being made: ask again with the same payment")
                }
                Stage::Aborted => {
                    Some("nothing was delivered for this payment, and nothing charged: ask again with the same payment")
                }
            };
            if let Some(message) = message {
                let error = Problem::for_conflict("answer_not_ready", message);
                return error.retry_after(1).into_response();
            }
        }
        let id = request.to_string();
        let receipt = self.look(move |node| node.live.as_ref()?.state.receipts.get(&id).cloned()).await;
        let message = format!(
            "this payment bought request {request}, whose answer is not kept here; \
             for a new answer send the header {FRESH_ANSWER} and pay again"
        );
        let receipt = receipt.ok().flatten().and_then(|kept| serde_json::from_str(&kept.json).ok());
        Problem::for_conflict("answer_not_kept", message).with("receipt", receipt).into_response()
    }
}

/// What no key but the relay's sends. For a key's EIP-3009 authorisation the operator stands in.
fn is_relays_alone(settlement: &Settle) -> bool {
    match settlement {
        Settle::Permit2(_) => true,
        Settle::Exact(payment) => !payment.is_signed_by_key,
    }
}

/// What is sold, and how it is metered.
fn described(order: &Order, price: &Price) -> String {
    let what = order.description;
    if let Prompt::Bought(purchase) = &order.prompt {
        let (seller, call) = (purchase.supplier.terms.treasury, price.call_uusdc);
        return format!("{what}, bought from the agent {seller}; a call costs {call}");
    }
    if let Prompt::Ready(ready) = &order.prompt {
        return format!("{what}; it costs {}", ready.price.call_uusdc);
    }
    if order.flat.is_some() {
        return format!("{what}; a call costs {}, whatever is in it", price.call_uusdc);
    }
    if matches!(order.prompt, Prompt::Texts { .. }) {
        let (embedded, least) = (price.mtok_embedding_uusdc, price.call_uusdc);
        return format!("{what}; a million tokens of the texts cost {embedded}; a call at least {least}");
    }
    format!(
        "{what}; a million tokens cost: prompt {}, of the prompt what is cached {}, generated {}; a call at least {}",
        price.mtok_prompt_uusdc, price.mtok_cached_uusdc, price.mtok_completion_uusdc, price.call_uusdc
    )
}

/// The engine that makes vectors, and the tokens of all texts together, if it takes each of them.
async fn texts_fit(
    embedder: Embedder,
    texts: &[String],
    name_of: &NameOf,
    field: &str,
) -> Result<(Maker, u32), Problem> {
    let counts = try_join_all(texts.iter().map(|text| embedder.client.count_tokens(text, true))).await;
    let counts = counts.map_err(|e| Problem::for_unavail(format!("the engine does not answer: {e}"), 1))?;
    let tokens = tokens_of(field, &counts, embedder.hello.n_ctx, name_of)?;
    Ok(((embedder.client, embedder.places), tokens))
}

/// Refuses a form that answers cannot be held to, before anything is paid for it. A schema takes milliseconds to compile,
/// so whoever only asks for the price is not told.
pub(super) async fn can_hold_to(engine: &Engine, settings: &Settings) -> Result<(), Problem> {
    let Some(form) = &settings.form else { return Ok(()) };
    let checked = engine.client.check_grammar(form.grammar.clone()).await;
    match checked.map_err(|e| Problem::for_unavail(format!("the engine does not answer: {e}"), 1))? {
        None => Ok(()),
        Some(why) => {
            let message = format!("`{}`: the answer cannot be held to this schema: {why}", form.field);
            Err(ApiError::for_field("invalid_schema", form.field, message).into())
        }
    }
}

/// 402 and its relatives.
fn refused(challenge: &Challenge) -> Response {
    let status = StatusCode::from_u16(challenge.status()).unwrap_or(StatusCode::PAYMENT_REQUIRED);
    let mut response = (status, Json(challenge.body(&fresh_id("req_")))).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(LATER_SECS));
    }
    for (name, value) in challenge.headers() {
        response.headers_mut().insert(name, value);
    }
    response
}

fn replay(request: &RequestId, answer: Answer) -> Response {
    let mut response = Body::from(answer.body).into_response();
    if let Ok(value) = HeaderValue::from_str(&answer.content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_eip3009_is_paid_by_permit2_alone() {
        let alone = Some(Usdc(9));
        assert_eq!(prices(None, alone, true, false), Prices { exact: alone, ..Prices::default() });
        let by_permit2 = Prices { upto: alone, exact_permit2: alone, ..Prices::default() };
        assert_eq!(prices(None, alone, false, true), by_permit2);
        assert_eq!(prices(None, alone, true, true), Prices { exact: alone, ..by_permit2 });
        assert_eq!(prices(None, None, true, true), Prices::default());
    }

    fn price() -> Price {
        Price {
            call_uusdc: Usdc(10),
            call_uusdc_max: Usdc(1_000),
            mtok_prompt_uusdc: Usdc(500_000),
            mtok_cached_uusdc: Usdc(250_000),
            mtok_embedding_uusdc: Usdc(35_000),
            mtok_completion_uusdc: Usdc(1_000_000),
        }
    }

    #[test]
    fn a_call_of_a_fixed_price_costs_that_and_is_never_sold_below_the_meter() {
        let flat = |uusdc| Flat { uusdc: Usdc(uusdc), prompt_tokens: 400, completion_tokens: 100 };
        let fixed = |uusdc, tokens| flat(uusdc).price(price(), tokens, "input");
        let cost = |price: Price, tokens: u32| {
            let used = Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: tokens };
            Tariff { price, stored: Usdc(1_000), gas: Usdc(7) }.meter_up(used, 0)
        };
        let of = fixed(300, (200, 200)).unwrap();
        assert_eq!((cost(of, 1), cost(of, 200)), (Usdc(307), Usdc(307)), "and the gas");
        assert_eq!(cost(fixed(300, (100, 250)).unwrap(), 250), Usdc(307), "300 by the meter");
        let refused = fixed(300, (102, 250)).unwrap_err();
        assert_eq!((refused.status, refused.code, refused.param.as_deref()), (400, "over_fixed_price", Some("input")));
        assert_eq!(fixed(3, (1, 1)).unwrap().call_uusdc, Usdc(10), "at least the least call");
        assert_eq!(fixed(5_000, (1, 1)).unwrap().call_uusdc, Usdc(1_000), "at most what any may cost");
        assert_eq!(fixed(0, (1, 1)).unwrap().call_uusdc, Usdc(300), "400 and 100 tokens of today, unless it is said");
    }

    #[test]
    fn stored_bytes_are_a_class_like_the_others() {
        let tokens = Usage { prompt_tokens: 21, cached_tokens: 0, completion_tokens: 30 };
        let cost =
            |stored, bytes| Tariff { price: price(), stored: Usdc(stored), gas: Usdc(7) }.meter_up(tokens, bytes);
        assert_eq!(cost(1_000, 0), Usdc(48), "40.5 and the gas");
        // 40.5 and 0.5, rounded up once.
        assert_eq!((cost(1_000, 500), cost(1_000, 501)), (Usdc(48), Usdc(49)));
        assert_eq!(cost(0, u64::MAX), Usdc(48), "storing may be free");
        assert_eq!(cost(u128::MAX, u64::MAX), Usdc(1_000), "never above the most a call may cost");
    }
}
