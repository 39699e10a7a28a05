//! The buyer's side: ask, look at the offer, sign, pay, and never pay twice for one answer.
//!
//! A signed payment is money that may move until it expires. So: it is signed only for the payee, token, network
//! and limit of the policy; it is sent only to a host that has just named that payee (a redirect changes nothing
//! about that); and when its outcome is unknown the *same* one is sent again, now or by the next call with the same
//! body. A second one is signed only after the seller or the chain said that the first was not taken and never will
//! be ([`Buyer::ask_about_unknown`]). With a record on disk ([`Buyer::with_record`]) that holds over crashes: a payment
//! is on disk before it leaves.
//!
//! With a [`ChannelPolicy`] calls are paid from channels, opened and topped up as they are used. An agent buys as its
//! purse ([`Buyer::with_purse`]): by `exact` alone, with the operator's signature.

mod answer;
mod ceilings;
mod channels;
mod error;
mod permit2;
mod record;
mod unknown;

pub use answer::{Answer, Paid};
pub use channels::{ChannelPolicy, HeldChannel, Schemes};
pub use error::{Error, Kind};
pub use unknown::{Fate, Fates};

use crate::Usdc;
use crate::reason::Reason;
use crate::scheme::channel::{CHANNEL, ChannelId};
use crate::scheme::exact::{EXACT, Hash, client};
use crate::scheme::upto::UPTO;
use crate::seller::FRESH_ANSWER;
use crate::seller::identifier::IDEMPOTENCY_KEY;
use crate::wire::{
    PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequired, PaymentRequirements,
    SettlementResponse,
};
use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use answer::Resolves;
use bytes::Bytes;
use channels::Slot;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use permit2::{ByPermit2, Means, is_by_permit2, is_sponsored};
use record::{Ceiling, Memory, Record, Signed, Standing};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// Redirects followed for one call. A move of the agent is one; more than a few is a loop.
const HOPS_MAX: usize = 4;
/// Refused payments of one call that are replaced by another: whoever holds several could use each of them.
const REPLACED_MAX: u32 = 1;
/// The same for vouchers, which hold what the ones before them did. A host that dies, a price that moves and a channel
/// that is put right may come together.
const VOUCHERS_REPLACED_MAX: u32 = 4;
/// Times a signed payment is sent again when nobody knows whether it arrived, or its answer is still being made.
const RESENDS_MAX: u32 = 8;
/// Pause before sending again; doubled each time up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// How long they are, in all. A guess, unmeasured.
const PATIENCE: Duration = Duration::from_secs(120);
/// Calls with an unknown outcome that are remembered. Over it, nothing new is paid until some are resolved.
const UNRESOLVED_MAX: usize = 1_000;
/// So many more of them than the last look left, and the buyer looks what became of them.
const LOOK_EVERY: usize = 100;
/// With all of them unknown each call would look: not more often than this.
const LOOK_PAUSE: Duration = Duration::from_secs(10);
/// Longest answer that is read whole.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What may be paid, to whom. Everything else is refused before anything is signed.
#[derive(Debug, Clone)]
pub struct BuyerPolicy {
    /// CAIP-2, like `eip155:31337`.
    pub network: String,
    /// The one token that is paid with.
    pub asset: Address,
    /// The treasury that the agent's identity names; an offer for anyone else is an imposter's.
    pub pay_to: Address,
    /// What a call may cost. On a channel a voucher may allow up to twice as much, where the offer has room for a call
    /// before whose charge is not told yet; all of it counts as signed in the sums.
    pub max_per_call: Usdc,
    /// Over this buyer's lifetime. Counts what was signed, taken or not, so that a lying seller cannot exceed it; of `upto`
    /// what the chain says that it took, once it does.
    pub max_total: Usdc,
}

/// Seconds to sign validity against: chain time if the caller knows it.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A paying HTTP client. Cheap to clone; clones share the limit and the memory of unresolved payments.
#[derive(Clone)]
pub struct Buyer {
    client: net::Client,
    signer: PrivateKeySigner,
    /// The contract whose money pays, if it is not the signer's own.
    purse: Option<Address>,
    policy: BuyerPolicy,
    clock: Clock,
    /// What days are told by; `None`: by `clock`.
    day_clock: Option<Clock>,
    limits: SpendLimits,
    schemes: Schemes,
    /// What has a transaction of its own may be paid so, too.
    permit2: ByPermit2,
    /// Shared by clones. A std Mutex: it is never held over an await.
    known: Arc<Mutex<Known>>,
    /// A call ended, and with it its use of a channel.
    freed: Arc<Notify>,
    record: Option<Arc<Record>>,
    /// To the head of the answer to an unpaid request; `None`: the client's own deadline.
    quote_within: Option<Duration>,
    /// How long a payment whose answer does not come is sent again.
    patience: Duration,
    /// Address of a JSON-RPC endpoint of the policy's chain.
    chain: Option<Arc<str>>,
}

/// What this process knows.
#[derive(Debug, Default)]
struct Known {
    /// What must not be forgotten.
    memory: Memory,
    /// Calls whose answer is being waited for or read now, each as often as it is.
    on_wire: BTreeMap<Hash, u32>,
    /// Payments that the last look at them left unknown, and when that was.
    looked: Option<(usize, Instant)>,
    /// When a used budget last made it look what was charged.
    charges_looked: Option<Instant>,
}

impl Known {
    /// Whether it is time to find out what became of what is unknown.
    fn is_look_due(&self) -> bool {
        let unknown = self.memory.unknown();
        let (left, since) = self.looked.map_or((0, None), |(left, at)| (left, Some(at)));
        let is_long_ago = || since.is_none_or(|at| at.elapsed() >= LOOK_PAUSE);
        unknown >= left + LOOK_EVERY || (unknown >= UNRESOLVED_MAX && is_long_ago())
    }

    /// Whether a call that is on the wire is paid from this channel.
    fn is_in_use(&self, channel: &ChannelId) -> bool {
        let mut on_wire = self.on_wire.keys().filter_map(|key| self.memory.unresolved.get(key)?.on_channel);
        on_wire.any(|on| on.id == *channel)
    }

    /// Whether a call that is on the wire brings a permission for Permit2.
    fn is_permission_on_wire(&self) -> bool {
        let mut on_wire = self.on_wire.keys().filter_map(|key| self.memory.unresolved.get(key));
        on_wire.any(|signed| PaymentPayload::from_header(&signed.header).is_ok_and(|payment| is_sponsored(&payment)))
    }
}

/// Keeps a call on the wire until it is dropped.
struct OnWire {
    known: Arc<Mutex<Known>>,
    freed: Arc<Notify>,
    key: Hash,
}

impl OnWire {
    fn new(buyer: &Buyer, key: Hash) -> Self {
        *buyer.known().on_wire.entry(key).or_default() += 1;
        Self { known: Arc::clone(&buyer.known), freed: Arc::clone(&buyer.freed), key }
    }
}

impl Drop for OnWire {
    fn drop(&mut self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = known.on_wire.get_mut(&self.key) {
            *times -= 1;
            if *times == 0 {
                known.on_wire.remove(&self.key);
            }
        }
        drop(known);
        self.freed.notify_one();
    }
}

/// What a call has learnt of its ways to pay.
#[derive(Debug, Default)]
struct Tried {
    /// Channels that the seller holds back for now: it thinks that another call is being paid from them.
    busy: BTreeSet<ChannelId>,
    /// It refused a deposit: the payer may be short of money. `exact` needs less.
    no_deposits: bool,
    /// What Permit2 may take, when the offer at hand came; `None`: nobody looked, or the chain did not answer.
    means: Option<Means>,
}

/// Why an offer cannot be paid.
struct NoWay {
    error: Error,
    /// Channels free when the calls end that are paid from them: worth waiting for.
    passes: bool,
}

impl From<Error> for NoWay {
    fn from(error: Error) -> Self {
        Self { error, passes: false }
    }
}

/// What a seller says to a call that brings no payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quote {
    /// The cheapest `exact` offer within the policy.
    Price(Usdc),
    /// No price: it refuses the call as it is, or answers for nothing.
    Answers(StatusCode),
}

/// Limits beside the policy's, checked before anything is signed. `None`: no such limit.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SpendLimits {
    /// In a day of the buyer's clock, UTC; see [`Buyer::with_day_clock`].
    pub per_day: Option<Usdc>,
    /// The same for one host (name and port).
    pub per_host_day: Option<Usdc>,
}

impl Buyer {
    /// A buyer by the wall clock, as the official clients are; on a chain whose time runs otherwise see
    /// [`with_clock`](Self::with_clock).
    pub fn new(client: net::Client, signer: PrivateKeySigner, policy: BuyerPolicy) -> Self {
        // Before 1970 no authorisation is valid anyway.
        let wall = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            client,
            signer,
            purse: None,
            policy,
            clock: Arc::new(wall),
            day_clock: None,
            limits: SpendLimits::default(),
            schemes: Schemes::Exact,
            permit2: ByPermit2::Nothing,
            known: Arc::default(),
            freed: Arc::default(),
            record: None,
            quote_within: None,
            patience: PATIENCE,
            chain: None,
        }
    }

    pub fn with_limits(mut self, limits: SpendLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Pays from channels where the seller offers them, else by `exact`.
    pub fn with_channels(self, policy: ChannelPolicy) -> Self {
        self.with_schemes(Schemes::ChannelElseExact(policy))
    }

    pub fn with_schemes(mut self, schemes: Schemes) -> Self {
        self.schemes = schemes;
        self
    }

    /// Pays the money of this purse (`contracts/src/Purse.sol`), whose treasury's operator the signer is: by `exact` with
    /// EIP-3009 and nothing else, whatever schemes are set. What it signs is void once there is another operator, and
    /// while the treasury is paused.
    pub fn with_purse(mut self, purse: Address) -> Self {
        self.purse = Some(purse);
        self
    }

    /// Keeps what must not be forgotten in this file, and goes on from what is in it.
    ///
    /// # Errors
    /// `Usage`: another process uses it, it is damaged or cannot be read.
    pub fn with_record(mut self, path: &Path) -> Result<Self, Error> {
        let (record, memory) = Record::open(path)?;
        self.known = Arc::new(Mutex::new(Known { memory, ..Known::default() }));
        self.record = Some(Arc::new(record));
        Ok(self)
    }

    /// [`with_record`](Self::with_record) that waits while another process uses it. `waits` is called if it must.
    /// Blocks the thread.
    ///
    /// # Errors
    /// `Usage`: it is damaged or cannot be read.
    pub fn with_record_in_turn(mut self, path: &Path, waits: impl FnOnce()) -> Result<Self, Error> {
        let (record, memory) = Record::open_in_turn(path, waits)?;
        self.known = Arc::new(Mutex::new(Known { memory, ..Known::default() }));
        self.record = Some(Arc::new(record));
        Ok(self)
    }

    /// Bounds how long a seller may take to name its price, which commits nobody to anything.
    pub fn with_quote_within(mut self, quote_within: Duration) -> Self {
        self.quote_within = Some(quote_within);
        self
    }

    /// Bounds how long a payment whose answer does not come is sent again: after that its outcome is unknown. Together
    /// with the client's deadline this is the longest that a call waits for an answer's head. A call that finds all
    /// channels in use waits as long for one of them before anything is signed.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Tells the days of [`SpendLimits`] by another clock than signatures: real days, on a chain with its own time.
    pub fn with_day_clock(mut self, clock: Clock) -> Self {
        self.day_clock = Some(clock);
        self
    }

    /// A buyer of another seller's that shares this one's limits, sums and record: one budget for both.
    pub fn for_seller(&self, policy: BuyerPolicy, clock: Clock) -> Self {
        let chain = self.chain.clone().filter(|_| policy.network == self.policy.network);
        Self { policy, clock, chain, ..self.clone() }
    }

    /// Who pays.
    pub fn address(&self) -> Address {
        self.purse.unwrap_or_else(|| self.signer.address())
    }

    pub fn policy(&self) -> &BuyerPolicy {
        &self.policy
    }

    /// Signed so far, whatever became of it; of `upto` what it took, once that is known.
    pub fn signed_total(&self) -> Usdc {
        self.known().memory.signed
    }

    /// Signed since midnight, whatever became of it: what [`SpendLimits::per_day`] bounds.
    pub fn signed_today(&self) -> Usdc {
        let mut memory = self.known().memory.clone();
        memory.turn_to(self.day_now());
        memory.day_signed
    }

    /// Counts at least this much as signed today: what somebody knows who saw the payments of a buyer before this one.
    pub fn count_today_at_least(&self, amount: Usdc) {
        let now = self.day_now();
        self.change(|memory| {
            memory.turn_to(now);
            memory.count_at_least(amount);
        });
    }

    /// Whether a payment for this very call is out, or was taken and its answer never read to the end.
    pub fn is_out(&self, url: &str, body: &[u8]) -> bool {
        parse(url, url).is_ok_and(|uri| self.known().memory.unresolved.contains_key(&self.key(&uri, body)))
    }

    /// What makes two calls the same one: payee, path and body, wherever the payee is now.
    fn key(&self, uri: &Uri, body: &[u8]) -> Hash {
        let payee = Sha256::new().chain_update(self.policy.pay_to).chain_update(uri.path());
        payee.chain_update([0]).chain_update(body).finalize().into()
    }

    fn day_now(&self) -> u64 {
        self.day_clock.as_ref().unwrap_or(&self.clock)()
    }

    /// Payments of which nobody has said whether they were taken; the same call again, or asking, resolves them.
    pub fn unresolved(&self) -> usize {
        self.known().memory.unknown()
    }

    /// Asks what a call would cost, and pays nothing.
    ///
    /// # Errors
    /// As a call's, up to the signature: no offer within the policy, or nobody there.
    pub async fn quote(&self, url: &str, body: &Value) -> Result<Quote, Error> {
        let body = Bytes::from(body.to_string());
        let mut call = Call::new(self, url, &body)?;
        let client = self.quote_within.map_or_else(|| self.client.clone(), |within| self.client.with_deadline(within));
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        loop {
            let answer = client.send(Method::POST, &call.url, headers.clone(), body.clone()).await;
            let answer = answer.map_err(|error| Error::new(Kind::Unreachable, &call.url, error.message))?;
            match answer.status {
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => call.follow(&answer)?,
                StatusCode::PAYMENT_REQUIRED => {
                    let offer = required(&answer, &call.url)?;
                    return Ok(Quote::Price(self.choose_settled(&offer, None, &call.url)?.amount()));
                }
                status => return Ok(Quote::Answers(status)),
            }
        }
    }

    /// Posts JSON, pays if asked to, and reads the whole answer. If the answer breaks off after the payment was
    /// sent, the same payment asks for it again.
    pub async fn post_json(&self, url: &str, body: &Value) -> Result<Paid, Error> {
        self.post_json_with(url, HeaderMap::new(), body).await
    }

    /// [`post_json`](Self::post_json) with headers of the caller's, like [`crate::seller::FRESH_ANSWER`].
    pub async fn post_json_with(&self, url: &str, headers: HeaderMap, body: &Value) -> Result<Paid, Error> {
        let mut resends = 0;
        loop {
            let answer = self.post_stream(url, headers.clone(), body).await?;
            match answer.collect(ANSWER_BYTES_MAX).await {
                Err(error) if error.kind == Kind::OutcomeUnknown && resends < RESENDS_MAX => {
                    pause(&mut resends).await;
                }
                done => return done,
            }
        }
    }

    /// Posts JSON, pays if asked to, and returns at the answer's head. The payment counts as resolved when the body
    /// was read to its end; dropped before, the same call gets the same answer for the same payment.
    pub async fn post_stream(&self, url: &str, headers: HeaderMap, body: &Value) -> Result<Answer, Error> {
        self.post_bytes(url, headers, Bytes::from(body.to_string())).await
    }

    /// [`post_stream`](Self::post_stream) of JSON that is sent as it is written, byte by byte.
    pub async fn post_bytes(&self, url: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, Error> {
        let mut call = Call::new(self, url, &body)?;
        if self.known().is_look_due() {
            let fates = self.ask_about_unknown().await;
            self.known().looked = Some((fates.unknown, Instant::now()));
        }
        let (mut resends, mut first_sent) = (0, None);
        loop {
            let attached = call.attached();
            let mut headers = headers.clone();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if let Some(signed) = &attached {
                headers.insert(PAYMENT_SIGNATURE, header_value(&signed.header));
                // Asked for again after a crash it is the same request to the seller, even where it saw the answer
                // arrive whole. A name of the caller's is as good.
                headers.entry(IDEMPOTENCY_KEY).or_insert_with(|| header_value(&hex::encode(signed.name)));
                // Sent before: whatever was made for it then is what is asked for now.
                if !std::mem::take(&mut call.is_new) {
                    headers.remove(&FRESH_ANSWER);
                }
            }
            let client = match self.quote_within.filter(|_| attached.is_none()) {
                Some(quote_within) => self.client.with_deadline(quote_within),
                None => self.client.clone(),
            };
            let sent = if attached.is_some() { *first_sent.get_or_insert_with(Instant::now) } else { Instant::now() };
            let answer = match client.send(Method::POST, &call.url, headers, body.clone()).await {
                Ok(answer) => answer,
                Err(_) if attached.is_some() && resends < RESENDS_MAX && sent.elapsed() < self.patience => {
                    pause(&mut resends).await;
                    continue;
                }
                Err(error) => return Err(call.failed(error)),
            };
            match answer.status {
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => call.follow(&answer)?,
                StatusCode::PAYMENT_REQUIRED => {
                    if let Some(none_free) = call.pay(&answer, attached).await? {
                        call.wait(none_free).await?;
                    }
                    first_sent = None;
                }
                // "It is being answered", says our seller: ask again with the same payment.
                StatusCode::CONFLICT
                    if attached.is_some()
                        && answer.headers.contains_key(header::RETRY_AFTER)
                        && resends < RESENDS_MAX =>
                {
                    pause(&mut resends).await;
                }
                _ => return call.finish(answer, attached),
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Its holders only move values; a poisoned one is still consistent.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offer that policy allows, with the channel to pay it from unless it is `exact`; or why none is.
    fn choose<'o>(
        &self,
        known: &Known,
        (key, offer, tried): (&Hash, &'o PaymentRequired, &Tried),
        url: &str,
    ) -> Result<(&'o PaymentRequirements, Option<Slot>), NoWay> {
        let (policy, exact_too) = match &self.schemes {
            _ if self.purse.is_some() => return Ok((self.choose_settled(offer, None, url)?, None)),
            Schemes::Exact | Schemes::Upto => return Ok((self.choose_settled(offer, tried.means, url)?, None)),
            Schemes::ChannelElseExact(policy) => (policy, true),
            Schemes::Channel(policy) => (policy, false),
        };
        match self.choose_channel(policy, known, (key, offer, tried), url) {
            Ok((chosen, slot)) => Ok((chosen, Some(slot))),
            Err(none) if exact_too => match self.choose_settled(offer, tried.means, url) {
                Ok(chosen) => Ok((chosen, None)),
                // A channel will do, once one is free.
                Err(_) if none.passes => Err(none),
                // Nothing but a channel is offered: what it lacks is what the caller can mend.
                Err(error) if none.error.kind == Kind::NoAllowance && error.kind == Kind::WrongSeller => Err(none),
                Err(error) => Err(error.into()),
            },
            Err(none) => Err(none),
        }
    }

    /// Fails unless this is an offer to be paid for our payee, by any scheme that we know.
    fn vet(&self, offer: &PaymentRequired, url: &str) -> Result<(), Error> {
        let policy = &self.policy;
        let is_ours = |o: &PaymentRequirements| {
            let is_known =
                [EXACT, CHANNEL].contains(&o.scheme()) || (self.permit2 == ByPermit2::All && o.scheme() == UPTO);
            is_known && o.network() == policy.network && o.asset() == policy.asset && o.pay_to() == policy.pay_to
        };
        if offer.accepts.iter().any(is_ours) {
            return Ok(());
        }
        self.choose_settled(offer, None, url).map(|_| ())
    }

    /// The cheapest offer that is settled by a transaction of its own, of those that can be paid: by EIP-3009, or by
    /// Permit2 as far as `means` reach.
    fn choose_settled<'o>(
        &self,
        offer: &'o PaymentRequired,
        means: Option<Means>,
        url: &str,
    ) -> Result<&'o PaymentRequirements, Error> {
        let policy = &self.policy;
        let is_wanted = |o: &PaymentRequirements| match (&self.schemes, o.scheme()) {
            (Schemes::Upto, scheme) => scheme == UPTO,
            (_, UPTO) => self.permit2 == ByPermit2::All,
            _ => true,
        };
        let is_payable = |o: &&PaymentRequirements| match is_by_permit2(o) {
            _ if !is_wanted(o) => false,
            true => means.is_some_and(|means| means.reach(o.amount())),
            false => {
                o.scheme() == EXACT && o.extra_text("assetTransferMethod").is_none_or(|method| method == "eip3009")
            }
        };
        let known = offer.accepts.iter().filter(|o| o.network() == policy.network && o.asset() == policy.asset);
        let is_ours_by_permit2 =
            |o: &&PaymentRequirements| o.pay_to() == policy.pay_to && is_wanted(o) && is_by_permit2(o);
        let ours_by_permit2 = known.clone().find(is_ours_by_permit2);
        let payable: Vec<_> = known.filter(is_payable).collect();
        if payable.is_empty() {
            if let Some(offer) = ours_by_permit2.filter(|_| means.is_some()) {
                let (payer, amount) = (self.address(), offer.amount());
                let message = format!("takes {amount} by Permit2, which {payer} lets spend less");
                return Err(Error::new(Kind::NoAllowance, url, message));
            }
            let wanted = if self.schemes == Schemes::Upto { UPTO } else { EXACT };
            let message = format!("offers no `{wanted}` payment in {} on {}", policy.asset, policy.network);
            return Err(Error::new(Kind::WrongSeller, url, message));
        }
        let ours: Vec<_> = payable.iter().filter(|o| o.pay_to() == policy.pay_to).collect();
        // Of the same price: what may turn out cheaper, then what needs no allowance.
        let Some(cheapest) = ours.iter().min_by_key(|o| (o.amount(), o.scheme() != UPTO, is_by_permit2(o))) else {
            let message =
                format!("wants the money for {}, the agent's treasury is {}", payable[0].pay_to(), policy.pay_to);
            return Err(Error::new(Kind::WrongSeller, url, message));
        };
        if cheapest.amount() > policy.max_per_call {
            let message = format!("asks {}, the limit of a call is {}", cheapest.amount(), policy.max_per_call);
            return Err(Error::new(Kind::TooExpensive, url, message));
        }
        Ok(cheapest)
    }

    /// Signs within the limits and remembers it, on disk too, before it leaves.
    fn sign(&self, key: Hash, (offer, tried): (&PaymentRequired, &Tried), url: &str) -> Result<(), NoWay> {
        let now = (self.clock)();
        let mut known = self.known();
        let (chosen, slot) = self.choose(&known, (&key, offer, tried), url)?;
        // A copy is changed and made durable; only then is it what we know.
        let mut next = known.memory.clone();
        next.turn_to(self.day_now());
        next.forget_settled(now);
        let (mut payment, on_channel, amount) = match &slot {
            Some(slot) => {
                let (payment, on_channel, more) = self.sign_on_channel(&mut next, (offer, chosen), slot, url)?;
                (payment, Some(on_channel), more)
            }
            None if is_by_permit2(chosen) => {
                let means = tried.means.unwrap_or_default();
                (self.sign_by_permit2(offer, chosen, means, now, url)?, None, chosen.amount())
            }
            None => {
                let nonce = B256::from(rand::random::<[u8; 32]>());
                let payment = match self.purse {
                    Some(purse) => client::sign_for_purse(purse, &self.signer, chosen, now, nonce),
                    None => client::sign(&self.signer, chosen, now, nonce),
                };
                let payment = payment.map_err(|refusal| Error::new(Kind::WrongSeller, url, refusal))?;
                (payment, None, chosen.amount())
            }
        };
        payment.resource = Some(offer.resource.clone());
        if payment.extensions.is_none() {
            payment.extensions.clone_from(&offer.extensions);
        }
        let host = authority(url);
        for (what, signed, limit) in [
            ("in all", next.signed, Some(self.policy.max_total)),
            ("today", next.day_signed, self.limits.per_day),
            ("today to this host", next.of_host(&host), self.limits.per_host_day),
        ] {
            let Some(limit) = limit else { continue };
            if signed.checked_add(amount).is_none_or(|sum| sum > limit) {
                let message = format!("asks {amount}; {signed} of at most {limit} are signed {what}");
                return Err(Error::new(Kind::BudgetUsed, url, message).into());
            }
        }
        if next.unknown() >= UNRESOLVED_MAX {
            let message =
                format!("{UNRESOLVED_MAX} payments have unknown outcomes, and neither seller nor chain tells them");
            return Err(Error::new(Kind::OutcomeUnknown, url, message).into());
        }
        let counted_under = next.count(&host, amount);
        let signed = Signed {
            name: rand::random(),
            header: payment.to_header(),
            amount: chosen.amount(),
            on_channel,
            url: url.to_owned(),
            at: now,
            standing: Standing::Unknown,
        };
        if let Some((nonce, ceiling)) = Ceiling::of(&signed, &self.policy.network, (next.day, counted_under)) {
            next.count_ceiling(nonce, ceiling);
        }
        next.unresolved.insert(key, signed);
        if let Some(record) = &self.record {
            record.save(&next)?;
        }
        known.memory = next;
        Ok(())
    }

    fn resolve(&self, key: &Hash) {
        self.change(|memory| {
            memory.unresolved.remove(key);
        });
    }

    /// The payment for this call was taken, and its answer was left: nothing is unknown about it any more.
    fn settle(&self, key: &Hash) {
        self.change(|memory| {
            if let Some(signed) = memory.unresolved.get_mut(key) {
                signed.standing = Standing::Settled;
            }
        });
    }

    /// Changes what is remembered to something that is safe to forget. Not written is forgotten by a crash at worst:
    /// then the same payment is sent again, which charges nothing.
    fn change(&self, change: impl FnOnce(&mut Memory)) {
        let mut known = self.known();
        change(&mut known.memory);
        if let Some(record) = &self.record {
            record.save(&known.memory).ok();
        }
    }
}

/// One call on its way through redirects and payment.
struct Call<'b> {
    buyer: &'b Buyer,
    key: Hash,
    url: String,
    hops: usize,
    /// Hosts that have offered to be paid for our payee in this call.
    vetted: BTreeSet<String>,
    /// Signed in this call and not sent yet.
    is_new: bool,
    on_wire: Option<OnWire>,
    /// Refused payments that were replaced: see [`REPLACED_MAX`]. A busy channel is no refusal.
    replaced: u32,
    tried: Tried,
    /// Since when it waits for a channel, and how often it has looked.
    waits: Option<(Instant, u32)>,
}

impl<'b> Call<'b> {
    fn new(buyer: &'b Buyer, url: &str, body: &Bytes) -> Result<Self, Error> {
        let uri = parse(url, url)?;
        let key = buyer.key(&uri, body);
        let on_wire = Some(OnWire::new(buyer, key));
        Ok(Self {
            buyer,
            key,
            url: url.to_owned(),
            hops: 0,
            vetted: BTreeSet::new(),
            is_new: false,
            on_wire,
            replaced: 0,
            tried: Tried::default(),
            waits: None,
        })
    }

    /// The remembered payment, if the host at hand has named our payee.
    fn attached(&self) -> Option<Signed> {
        self.vetted
            .contains(&authority(&self.url))
            .then(|| self.buyer.known().memory.unresolved.get(&self.key).cloned())?
    }

    fn failed(&self, error: net::Error) -> Error {
        let out = self.buyer.known().memory.unresolved.contains_key(&self.key);
        let kind = match error.kind {
            _ if out => Kind::OutcomeUnknown,
            net::Kind::Usage => Kind::Usage,
            net::Kind::BadAnswer => Kind::BadAnswer,
            net::Kind::Unreachable | net::Kind::Unknown => Kind::Unreachable,
        };
        Error::new(kind, &self.url, error.message)
    }

    fn follow(&mut self, answer: &net::Response) -> Result<(), Error> {
        self.hops += 1;
        if self.hops > HOPS_MAX {
            return Err(Error::new(Kind::BadAnswer, &self.url, format!("redirected more than {HOPS_MAX} times")));
        }
        let location = answer
            .header(&header::LOCATION)
            .ok_or_else(|| Error::new(Kind::BadAnswer, &self.url, "redirects without a location"))?;
        self.url = if location.starts_with('/') && !location.starts_with("//") {
            format!("http://{}{location}", authority(&self.url))
        } else {
            parse(location, &self.url)?.to_string()
        };
        Ok(())
    }

    /// Answers a 402: vets the host, and signs unless a payment for this call is out already. `Some`: every way to pay is
    /// in use by other calls.
    async fn pay(&mut self, answer: &net::Response, attached: Option<Signed>) -> Result<Option<Error>, Error> {
        let offer = required(answer, &self.url)?;
        if let Some(signed) = attached {
            self.refused(&offer, &signed).await?;
        }
        let is_out = {
            let known = self.buyer.known();
            let is_out = known.memory.unresolved.contains_key(&self.key);
            if is_out {
                // Whoever does not ask for our payee is not shown what is out. Prices and channels may have moved.
                self.buyer.vet(&offer, &self.url)?;
            }
            is_out
        };
        if !is_out {
            self.buyer.look_at_uncertain(&offer, &self.url).await;
            match self.sign(&offer).await {
                Ok(()) => self.is_new = true,
                Err(NoWay { error, passes: true }) => return Ok(Some(error)),
                Err(NoWay { error, .. }) => return Err(error),
            }
        }
        self.vetted.insert(authority(&self.url));
        Ok(None)
    }

    /// Signs, once it is known what the choice depends on: nobody waits for the chain whose channel is free.
    async fn sign(&mut self, offer: &PaymentRequired) -> Result<(), NoWay> {
        // Without them a deposit by Permit2 is none that can be made.
        self.tried.means = None;
        let has_channel = match &self.buyer.schemes {
            Schemes::Channel(policy) | Schemes::ChannelElseExact(policy) if self.buyer.purse.is_none() => {
                let known = self.buyer.known();
                self.buyer.choose_channel(policy, &known, (&self.key, offer, &self.tried), &self.url).is_ok()
            }
            _ => false,
        };
        if !has_channel {
            self.tried.means = self.buyer.look_at_permit2(offer).await;
        }
        let signed = self.buyer.sign(self.key, (offer, &self.tried), &self.url);
        match &signed {
            // What was permitted and not taken leaves room.
            Err(NoWay { error, .. }) if error.kind == Kind::BudgetUsed && self.buyer.room_by_charges().await => {}
            // Another call was faster with the channel.
            Err(_) if has_channel => self.tried.means = self.buyer.look_at_permit2(offer).await,
            _ => return signed,
        }
        self.buyer.sign(self.key, (offer, &self.tried), &self.url)
    }

    /// The payee says that it did not take this payment. Returns if another one is worth signing in its place.
    async fn refused(&mut self, offer: &PaymentRequired, signed: &Signed) -> Result<(), Error> {
        let said = |reasons: &[Reason]| reasons.iter().any(|reason| reason.as_str() == offer.error);
        if said(&[Reason::UnexpectedSettleError, Reason::UnexpectedVerifyError]) {
            let message = format!("does not know what became of the payment: {}", offer.error);
            return Err(Error::new(Kind::OutcomeUnknown, &self.url, message));
        }
        let mut is_worth_another = said(&[Reason::PriceMoved, Reason::ValidBefore, Reason::PaymentAborted]);
        // What Permit2 may take is looked up again: another payment has used it up.
        let is_allowance = [Reason::Permit2Allowance, Reason::Permit2Simulation, Reason::Permit2Deadline];
        is_worth_another |= said(&is_allowance);
        let mut is_busy = false;
        if let Some(on) = &signed.on_channel {
            let is_mismatch = said(&[Reason::CumulativeMismatch, Reason::CumulativeBelowClaimed]);
            // Its money is elsewhere: given back, or lost with the last blocks of a chain.
            let is_empty = said(&[Reason::ChannelNotFound, Reason::CumulativeExceedsBalance]);
            let is_corrected = is_mismatch && self.buyer.correct(offer, on);
            if is_empty || (is_mismatch && !is_corrected) {
                is_worth_another |= self.buyer.look_at(&on.id).await;
            }
            if is_empty && !is_worth_another {
                self.buyer.change(|memory| memory.channels.entry(on.id).or_default().balance = Usdc::ZERO);
            }
            is_worth_another |= is_corrected || is_empty;
            is_busy = said(&[Reason::ChannelBusy]);
            if is_busy {
                self.tried.busy.insert(on.id);
            }
            let is_deposit = said(&[Reason::DepositSimulation, Reason::DepositFailed, Reason::InsufficientFunds]);
            if is_deposit && !on.deposit.is_zero() && matches!(self.buyer.schemes, Schemes::ChannelElseExact(_)) {
                self.tried.no_deposits = true;
                is_worth_another = true;
            }
        }
        self.buyer.resolve(&self.key);
        if is_busy {
            return Ok(());
        }
        // A voucher's successor on its channel holds all that it did, so whoever asks for another gains nothing by it.
        let most =
            if signed.on_channel.is_some_and(|on| on.deposit.is_zero()) { VOUCHERS_REPLACED_MAX } else { REPLACED_MAX };
        if self.replaced >= most || !is_worth_another {
            return Err(Error::new(Kind::Refused, &self.url, format!("refused the payment: {}", offer.error)));
        }
        self.replaced += 1;
        Ok(())
    }

    /// Waits until a channel may be free: for a while, then `none_free` is final.
    async fn wait(&mut self, none_free: Error) -> Result<(), Error> {
        let (since, looks) = self.waits.get_or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= self.buyer.patience {
            return Err(none_free);
        }
        let longest = pause_after(*looks);
        *looks += 1;
        // One that the seller holds back frees without a word of ours.
        tokio::time::timeout(longest, self.buyer.freed.notified()).await.ok();
        self.tried.busy.clear();
        Ok(())
    }

    fn finish(mut self, answer: net::Response, attached: Option<Signed>) -> Result<Answer, Error> {
        let payment = match answer.header(&PAYMENT_RESPONSE) {
            None => None,
            Some(header) => Some(
                SettlementResponse::from_header(header)
                    .map_err(|e| Error::new(Kind::BadAnswer, &self.url, format!("PAYMENT-RESPONSE: {e}")))?,
            ),
        };
        let taken = answer.status.is_success() || payment.as_ref().is_some_and(|p| p.success);
        let mut spent = attached.as_ref().filter(|_| taken).map_or(Usdc::ZERO, |signed| signed.amount);
        let on_channel = attached.as_ref().and_then(|signed| signed.on_channel);
        let scheme = attached.as_ref().map(Signed::scheme);
        if let (Some(UPTO), Some(charged)) = (scheme, payment.as_ref().filter(|p| p.success).and_then(|p| p.amount)) {
            // Never more than was signed, whatever is said.
            spent = charged.min(spent);
        }
        if let (Some(on), Some(response)) = (&on_channel, payment.as_ref().filter(|p| p.success)) {
            spent = self.buyer.learn(on, response);
        }
        // An error without a word about the payment leaves it unresolved: the same call sends the same one.
        let resolves = (attached.is_some() && taken).then(|| Resolves {
            buyer: self.buyer.clone(),
            key: Some(self.key),
            is_on_channel: on_channel.is_some(),
            is_said_taken: payment.as_ref().is_some_and(|p| p.success),
            _on_wire: self.on_wire.take(),
        });
        // "Bought, and no longer kept": there is nothing to come back for.
        let is_final = answer.status == StatusCode::CONFLICT && !answer.headers.contains_key(header::RETRY_AFTER);
        if attached.is_some() && is_final && !taken {
            self.buyer.resolve(&self.key);
        }
        Ok(Answer::new(answer, payment, (spent, scheme), resolves))
    }
}

/// Base64 or hexadecimal that we made or read from our own record.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

async fn pause(resends: &mut u32) {
    let pause = pause_after(*resends);
    *resends += 1;
    tokio::time::sleep(pause).await;
}

fn pause_after(times: u32) -> Duration {
    PAUSE.saturating_mul(1 << times.min(10)).min(PAUSE_MAX)
}

/// The offer in a 402.
fn required(answer: &net::Response, url: &str) -> Result<PaymentRequired, Error> {
    let header = answer
        .header(&PAYMENT_REQUIRED)
        .ok_or_else(|| Error::new(Kind::BadAnswer, url, "answers 402 without PAYMENT-REQUIRED"))?;
    PaymentRequired::from_header(header).map_err(|e| Error::new(Kind::BadAnswer, url, format!("PAYMENT-REQUIRED: {e}")))
}

fn parse(url: &str, at: &str) -> Result<Uri, Error> {
    let uri: Uri = url.parse().map_err(|e| Error::new(Kind::Usage, at, format!("{url:?} is not a URL: {e}")))?;
    if !net::is_http(&uri) {
        return Err(Error::new(Kind::Usage, at, format!("{url:?} is not an http:// or https:// URL")));
    }
    Ok(uri)
}

fn authority(url: &str) -> String {
    url.parse::<Uri>().ok().and_then(|uri| uri.authority().map(|a| a.as_str().to_ascii_lowercase())).unwrap_or_default()
}
