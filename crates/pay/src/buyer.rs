//! The buyer's side: ask, look at the offer, sign, pay, and never pay twice for one answer.
//!
//! A signed payment is money that may move until it expires. So: it is signed only for the payee, token, network
//! and limit of the policy; it is sent only to a host that has just named that payee (a redirect changes nothing
//! about that); and when its outcome is unknown the *same* one is sent again, now or by the next call with the same
//! body. A second one is signed only after the seller said that the first was not taken. With a record on disk
//! ([`Buyer::with_record`]) that holds over crashes: a payment is on disk before it leaves.
//!
//! With a [`ChannelPolicy`] calls are paid from channels, opened and topped up as they are used.

mod answer;
mod channels;
mod error;
mod record;

pub use answer::{Answer, Paid};
pub use channels::ChannelPolicy;
pub use error::{Error, Kind};

use crate::Usdc;
use crate::reason::Reason;
use crate::scheme::exact::{EXACT, Hash, client};
use crate::wire::{
    PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentRequired, PaymentRequirements, SettlementResponse,
};
use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use answer::Resolves;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use record::{Memory, Record, Signed};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Redirects followed for one call. A move of the agent is one; more than a few is a loop.
const HOPS_MAX: usize = 4;
/// Times a signed payment is sent again when nobody knows whether it arrived, or its answer is still being made.
const RESENDS_MAX: u32 = 8;
/// Pause before sending again; doubled each time up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// Calls with an unknown outcome that are remembered. Over it, nothing new is paid until some are resolved.
const UNRESOLVED_MAX: usize = 1_000;
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
    pub max_per_call: Usdc,
    /// Over this buyer's lifetime. Counts what was signed, taken or not, so that a lying seller cannot exceed it.
    pub max_total: Usdc,
}

/// Seconds to sign validity against: chain time if the caller knows it.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A paying HTTP client. Cheap to clone; clones share the limit and the memory of unresolved payments.
#[derive(Clone)]
pub struct Buyer {
    client: net::Client,
    signer: PrivateKeySigner,
    policy: BuyerPolicy,
    clock: Clock,
    /// What days are told by; `None`: by `clock`.
    day_clock: Option<Clock>,
    limits: SpendLimits,
    channel_policy: Option<ChannelPolicy>,
    /// Shared by clones. A std Mutex: it is never held over an await.
    memory: Arc<Mutex<Memory>>,
    record: Option<Arc<Record>>,
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
            policy,
            clock: Arc::new(wall),
            day_clock: None,
            limits: SpendLimits::default(),
            channel_policy: None,
            memory: Arc::default(),
            record: None,
        }
    }

    pub fn with_limits(mut self, limits: SpendLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Pays from channels where the seller offers them.
    pub fn with_channels(mut self, policy: ChannelPolicy) -> Self {
        self.channel_policy = Some(policy);
        self
    }

    /// Keeps what must not be forgotten in this file, and goes on from what is in it.
    ///
    /// # Errors
    /// `Usage`: another process uses it, it is damaged or cannot be read.
    pub fn with_record(mut self, path: &Path) -> Result<Self, Error> {
        let (record, memory) = Record::open(path)?;
        self.memory = Arc::new(Mutex::new(memory));
        self.record = Some(Arc::new(record));
        Ok(self)
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
        Self { policy, clock, ..self.clone() }
    }

    pub fn address(&self) -> Address {
        self.signer.address()
    }

    pub fn policy(&self) -> &BuyerPolicy {
        &self.policy
    }

    /// Signed so far, whatever became of it.
    pub fn signed_total(&self) -> Usdc {
        self.memory().signed
    }

    /// Signed since midnight, whatever became of it: what [`SpendLimits::per_day`] bounds.
    pub fn signed_today(&self) -> Usdc {
        let mut memory = self.memory().clone();
        memory.turn_to(self.day_now());
        memory.day_signed
    }

    /// Whether a payment for this very call is out.
    pub fn is_out(&self, url: &str, body: &[u8]) -> bool {
        parse(url, url).is_ok_and(|uri| self.memory().unresolved.contains_key(&self.key(&uri, body)))
    }

    /// What makes two calls the same one: payee, path and body, wherever the payee is now.
    fn key(&self, uri: &Uri, body: &[u8]) -> Hash {
        let payee = Sha256::new().chain_update(self.policy.pay_to).chain_update(uri.path());
        payee.chain_update([0]).chain_update(body).finalize().into()
    }

    fn day_now(&self) -> u64 {
        self.day_clock.as_ref().unwrap_or(&self.clock)()
    }

    /// Calls whose payment may or may not have been taken; calling again resolves them.
    pub fn unresolved(&self) -> usize {
        self.memory().unresolved.len()
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
        let mut resends = 0;
        loop {
            let attached = call.attached();
            let mut headers = headers.clone();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if let Some(signed) = &attached {
                headers.insert(PAYMENT_SIGNATURE, header_value(&signed.header));
            }
            let answer = match self.client.send(Method::POST, &call.url, headers, body.clone()).await {
                Ok(answer) => answer,
                Err(_) if attached.is_some() && resends < RESENDS_MAX => {
                    pause(&mut resends).await;
                    continue;
                }
                Err(error) => return Err(call.failed(error)),
            };
            match answer.status {
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => call.follow(&answer)?,
                StatusCode::PAYMENT_REQUIRED => call.pay(&answer, attached)?,
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

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Its holders only move values; a poisoned one is still consistent.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offer that policy allows, or why none is.
    fn choose<'o>(&self, offer: &'o PaymentRequired, url: &str) -> Result<&'o PaymentRequirements, Error> {
        let policy = &self.policy;
        let known = offer.accepts.iter().filter(|o| o.scheme() == EXACT && o.network() == policy.network);
        let payable = known.filter(|o| o.extra_text("assetTransferMethod").is_none_or(|m| m == "eip3009"));
        let payable: Vec<_> = payable.filter(|o| o.asset() == policy.asset).collect();
        if payable.is_empty() {
            let message = format!("offers no `exact` payment in {} on {}", policy.asset, policy.network);
            return Err(Error::new(Kind::WrongSeller, url, message));
        }
        let ours: Vec<_> = payable.iter().filter(|o| o.pay_to() == policy.pay_to).collect();
        let Some(cheapest) = ours.iter().min_by_key(|o| o.amount()) else {
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
    fn sign(&self, key: Hash, offer: &PaymentRequired, url: &str) -> Result<(), Error> {
        let chosen = match self.choose_channel(offer) {
            Some((chosen, slot)) => (chosen, Some(slot)),
            None => (self.choose(offer, url)?, None),
        };
        let now = (self.clock)();
        let mut memory = self.memory();
        // A copy is changed and made durable; only then is it what we know.
        let mut next = memory.clone();
        next.turn_to(self.day_now());
        let (mut payment, on_channel, amount) = match &chosen {
            (chosen, Some(slot)) => {
                let (payment, on_channel, more) = self.sign_on_channel(&mut next, chosen, slot, url)?;
                (payment, Some(on_channel), more)
            }
            (chosen, None) => {
                let payment = client::sign(&self.signer, chosen, now, B256::from(rand::random::<[u8; 32]>()))
                    .map_err(|refusal| Error::new(Kind::WrongSeller, url, refusal))?;
                (payment, None, chosen.amount())
            }
        };
        payment.resource = Some(offer.resource.clone());
        payment.extensions.clone_from(&offer.extensions);
        let host = authority(url);
        for (what, signed, limit) in [
            ("in all", next.signed, Some(self.policy.max_total)),
            ("today", next.day_signed, self.limits.per_day),
            ("today to this host", next.of_host(&host), self.limits.per_host_day),
        ] {
            let Some(limit) = limit else { continue };
            if signed.checked_add(amount).is_none_or(|sum| sum > limit) {
                let message = format!("asks {amount}; {signed} of at most {limit} are signed {what}");
                return Err(Error::new(Kind::BudgetUsed, url, message));
            }
        }
        if next.unresolved.len() >= UNRESOLVED_MAX {
            let message = format!("{UNRESOLVED_MAX} payments have unknown outcomes; repeat those calls first");
            return Err(Error::new(Kind::OutcomeUnknown, url, message));
        }
        next.count(&host, amount);
        let signed = Signed { header: payment.to_header(), amount: chosen.0.amount(), on_channel };
        next.unresolved.insert(key, signed);
        if let Some(record) = &self.record {
            record.save(&next)?;
        }
        *memory = next;
        Ok(())
    }

    fn resolve(&self, key: &Hash) {
        let mut memory = self.memory();
        memory.unresolved.remove(key);
        // Not written is forgotten by a crash at worst: then the same payment is sent again, which charges nothing.
        if let Some(record) = &self.record {
            record.save(&memory).ok();
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
    /// A refused payment was replaced once; a second refusal is final.
    replaced: bool,
}

impl<'b> Call<'b> {
    fn new(buyer: &'b Buyer, url: &str, body: &Bytes) -> Result<Self, Error> {
        let uri = parse(url, url)?;
        let key = buyer.key(&uri, body);
        Ok(Self { buyer, key, url: url.to_owned(), hops: 0, vetted: BTreeSet::new(), replaced: false })
    }

    /// The remembered payment, if the host at hand has named our payee.
    fn attached(&self) -> Option<Signed> {
        self.vetted.contains(&authority(&self.url)).then(|| self.buyer.memory().unresolved.get(&self.key).cloned())?
    }

    fn failed(&self, error: net::Error) -> Error {
        let out = self.buyer.memory().unresolved.contains_key(&self.key);
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

    /// Answers a 402: vets the host, and signs unless a payment for this call is out already.
    fn pay(&mut self, answer: &net::Response, attached: Option<Signed>) -> Result<(), Error> {
        let header = answer
            .header(&PAYMENT_REQUIRED)
            .ok_or_else(|| Error::new(Kind::BadAnswer, &self.url, "answers 402 without PAYMENT-REQUIRED"))?;
        let offer = PaymentRequired::from_header(header)
            .map_err(|e| Error::new(Kind::BadAnswer, &self.url, format!("PAYMENT-REQUIRED: {e}")))?;
        if attached.is_some() {
            let said = |reason: &Reason| reason.as_str() == offer.error;
            if [Reason::UnexpectedSettleError, Reason::UnexpectedVerifyError].iter().any(said) {
                let message = format!("does not know what became of the payment: {}", offer.error);
                return Err(Error::new(Kind::OutcomeUnknown, &self.url, message));
            }
            // The payee says that it did not take this one.
            let on_channel = attached.as_ref().and_then(|signed| signed.on_channel);
            let is_corrected = on_channel.is_some_and(|on| self.buyer.correct(&offer, &on));
            self.buyer.resolve(&self.key);
            let worth_another = [Reason::PriceMoved, Reason::ValidBefore, Reason::PaymentAborted];
            if self.replaced || !(is_corrected || worth_another.iter().any(said)) {
                return Err(Error::new(Kind::Refused, &self.url, format!("refused the payment: {}", offer.error)));
            }
            self.replaced = true;
        }
        if self.buyer.choose_channel(&offer).is_none() {
            self.buyer.choose(&offer, &self.url)?;
        }
        self.vetted.insert(authority(&self.url));
        if self.buyer.memory().unresolved.contains_key(&self.key) {
            return Ok(());
        }
        self.buyer.sign(self.key, &offer, &self.url)
    }

    fn finish(&self, answer: net::Response, attached: Option<Signed>) -> Result<Answer, Error> {
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
        if let (Some(on), Some(response)) = (&on_channel, payment.as_ref().filter(|p| p.success)) {
            spent = self.buyer.learn(on, response);
        }
        // An error without a word about the payment leaves it unresolved: the same call sends the same one.
        let resolves = (attached.is_some() && taken).then(|| Resolves {
            buyer: self.buyer.clone(),
            key: Some(self.key),
            is_on_channel: on_channel.is_some(),
        });
        Ok(Answer::new(answer, payment, spent, resolves))
    }
}

/// Base64 that we made or read from our own record.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

async fn pause(resends: &mut u32) {
    let pause = PAUSE.saturating_mul(1 << (*resends).min(10)).min(PAUSE_MAX);
    *resends += 1;
    tokio::time::sleep(pause).await;
}

fn parse(url: &str, at: &str) -> Result<Uri, Error> {
    let uri: Uri = url.parse().map_err(|e| Error::new(Kind::Usage, at, format!("{url:?} is not a URL: {e}")))?;
    if uri.scheme_str() != Some("http") || uri.authority().is_none() {
        return Err(Error::new(Kind::Usage, at, format!("{url:?} is not an http:// URL")));
    }
    Ok(uri)
}

fn authority(url: &str) -> String {
    url.parse::<Uri>().ok().and_then(|uri| uri.authority().map(|a| a.as_str().to_ascii_lowercase())).unwrap_or_default()
}
