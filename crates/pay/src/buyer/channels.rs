//! Channels of a buyer: which one pays a call, when it is topped up, and what the seller's word about it is worth.

use super::permit2::{ByPermit2, Means};
use super::record::{Memory, OnChannel, OwnChannel};
use super::{Buyer, Call, Error, Kind, Known, NoWay, Tried, header_value, required};
use crate::scheme::channel::client::{TopUp, config, deposits_by_permit2, pay, refund};
use crate::scheme::channel::facilitator::{read_state, state_calls};
use crate::scheme::channel::server::recover;
use crate::scheme::channel::{
    BATCH_SETTLEMENT, CALL_CEILING, CHANNEL, ChannelConfig, ChannelDomain, ChannelId, ChannelState,
};
use crate::scheme::exact::Hash;
use crate::wire::{
    self, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequired, PaymentRequirements, SettlementResponse,
};
use crate::{Reason, Usdc};
use alloy::primitives::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

/// The least part of a channel that is asked for when the seller's day has no room for all of it is one of so many.
const REFUND_PARTS: u128 = 8;

/// What is paid by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schemes {
    /// What has a transaction of its own: `exact`, and by Permit2 what [`Buyer::with_permit2`] allows.
    Exact,
    /// `upto` or nothing; needs [`Buyer::with_permit2`].
    Upto,
    /// A channel where one is offered and free and its deposit is within the policy, else as [`Schemes::Exact`].
    ChannelElseExact(ChannelPolicy),
    /// A channel or nothing.
    Channel(ChannelPolicy),
}

/// How channels are used. A deposit is not spent, but it is locked until the seller refunds it or `withdrawDelay` has
/// passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelPolicy {
    /// Put in at a time, or more where one call or the seller's minimum needs more.
    pub deposit: Usdc,
    /// Put in at least what so many calls like the one at hand may cost.
    pub deposit_calls: u32,
    /// Most that may lie in one channel and not be spent.
    pub deposit_max: Usdc,
    /// Longest way out without the seller that is accepted, in seconds.
    pub withdraw_delay_secs_max: u64,
    /// Channels with one seller, one for each call at the same time. Over it, `exact` is paid, or a call waits.
    pub slots: u8,
    /// Tells programs apart that pay with one key and do not share a record: each lane has channels of its own. The
    /// official clients use the first channel of lane 0.
    pub lane: u8,
}

/// A channel of this buyer's, as it is on the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldChannel {
    pub id: ChannelId,
    pub config: ChannelConfig,
    pub state: ChannelState,
}

impl HeldChannel {
    /// In the channel and not claimed: what its payer can take out without the seller.
    pub fn free(&self) -> Usdc {
        self.state.balance.saturating_sub(self.state.claimed)
    }

    /// Chain seconds from which on a withdrawal that has begun can be finalized.
    pub fn ready_at(&self) -> Option<u64> {
        Some(self.state.withdrawal?.since.saturating_add(self.config.withdraw_delay_secs))
    }
}

/// A channel that can pay the call at hand.
pub(super) struct Slot {
    config: ChannelConfig,
    id: ChannelId,
    domain: ChannelDomain,
    /// The voucher to sign.
    max: Usdc,
    /// To put in with it; zero for nothing.
    deposit: Usdc,
    /// By which it goes in, if that is by Permit2.
    means: Option<Means>,
}

/// The most that a call costs by this offer of a channel. Its amount is more than that where it has room for a call
/// before, whose charge we were not told yet; that room is at most one such call, or nobody's word but the amount counts.
fn cost_max(offer: &PaymentRequirements) -> Usdc {
    let told = offer.extra_text(CALL_CEILING).and_then(|text| wire::amount(text).ok());
    let is_plausible = |told: &Usdc| *told <= offer.amount() && offer.amount().saturating_sub(*told) <= *told;
    told.filter(is_plausible).unwrap_or(offer.amount())
}

impl Buyer {
    /// The offer of a channel that policy allows, with a free channel for it.
    pub(super) fn choose_channel<'o>(
        &self,
        policy: &ChannelPolicy,
        known: &Known,
        (key, offer, tried): (&Hash, &'o PaymentRequired, &Tried),
        url: &str,
    ) -> Result<(&'o PaymentRequirements, Slot), NoWay> {
        let domain = self.channel_domain(url)?;
        let offer = self.channel_offer(policy, offer, url)?;
        let by_permit2 = deposits_by_permit2(offer);
        let (cost, limit) = (cost_max(offer), self.policy.max_per_call);
        if cost > limit {
            let message = format!("a call costs up to {cost} on a channel, the limit of a call is {limit}");
            return Err(Error::new(Kind::TooExpensive, url, message).into());
        }
        let mut none: Option<NoWay> = None;
        for (id, config) in self.own_channels(policy, &domain, offer) {
            if known.is_in_use(&id) || tried.busy.contains(&id) {
                continue;
            }
            match self.fill(policy, known, (key, offer, &id), url) {
                Ok((_, deposit)) if tried.no_deposits && !deposit.is_zero() => {
                    let message = format!("refused a deposit of {deposit}");
                    none = Some(Error::new(Kind::Refused, url, message).into());
                }
                Ok((max, deposit)) => {
                    let means = match by_permit2 && !deposit.is_zero() {
                        true => self.means_of_deposit(known, tried, deposit, url).map(Some),
                        false => Ok(None),
                    };
                    match means {
                        Ok(means) => return Ok((offer, Slot { config, id, domain, max, deposit, means })),
                        Err(no_way) => none = Some(no_way),
                    }
                }
                Err(error) => none = Some(error.into()),
            }
        }
        Err(none.unwrap_or_else(|| {
            let message = format!("all {} channels with it are in use; nothing was paid", policy.slots);
            NoWay { error: Error::new(Kind::Unreachable, url, message), passes: true }
        }))
    }

    /// By what a deposit of so much goes through Permit2.
    fn means_of_deposit(&self, known: &Known, tried: &Tried, deposit: Usdc, url: &str) -> Result<Means, NoWay> {
        let payer = self.address();
        let Some(means) = tried.means else {
            let message = format!("nobody says what Permit2 may take of {payer}, by which its deposits go");
            return Err(Error::new(Kind::Unreachable, url, message).into());
        };
        if !means.reach(deposit) {
            let message = format!("takes a deposit of {deposit} by Permit2, which {payer} lets spend less");
            return Err(Error::new(Kind::NoAllowance, url, message).into());
        }
        // The token takes permissions one after the other.
        if !means.is_allowed(deposit) && known.is_permission_on_wire() {
            let message = "a permission for Permit2 is on its way with another call; nothing was paid";
            return Err(NoWay { error: Error::new(Kind::Unreachable, url, message), passes: true });
        }
        Ok(means)
    }

    fn channel_domain(&self, url: &str) -> Result<ChannelDomain, Error> {
        let chain_id = wire::chain_id(&self.policy.network);
        chain_id
            .map(ChannelDomain::new)
            .ok_or_else(|| Error::new(Kind::Usage, url, "the policy's network is not eip155"))
    }

    /// The offer of a channel to our payee, claimed and refunded by nobody else.
    fn channel_offer<'o>(
        &self,
        policy: &ChannelPolicy,
        offer: &'o PaymentRequired,
        url: &str,
    ) -> Result<&'o PaymentRequirements, Error> {
        let is_ours = |o: &&PaymentRequirements| {
            let delay = o.json().get("extra").and_then(|e| e.get("withdrawDelay")).and_then(Value::as_u64);
            let authorizer = o.extra_text("receiverAuthorizer").and_then(|text| wire::address(text).ok());
            o.scheme() == CHANNEL
                && o.network() == self.policy.network
                && o.asset() == self.policy.asset
                && o.pay_to() == self.policy.pay_to
                // Whoever else could claim or refund is a stranger to us.
                && authorizer == Some(self.policy.pay_to)
                && delay.is_none_or(|delay| delay <= policy.withdraw_delay_secs_max)
                && match o.extra_text("assetTransferMethod") {
                    None | Some("eip3009") => true,
                    Some("permit2") => self.permit2 != ByPermit2::Nothing && self.chain.is_some(),
                    Some(_) => false,
                }
        };
        // By Permit2 only where nothing else is offered: it needs an allowance.
        let cheapest = offer.accepts.iter().filter(is_ours).min_by_key(|o| (deposits_by_permit2(o), o.amount()));
        cheapest.ok_or_else(|| {
            let message = format!("offers no channel to {} that the policy allows", self.policy.pay_to);
            Error::new(Kind::WrongSeller, url, message)
        })
    }

    /// All channels that policy lets us have by this offer, whether they exist or not.
    fn own_channels(
        &self,
        policy: &ChannelPolicy,
        domain: &ChannelDomain,
        offer: &PaymentRequirements,
    ) -> Vec<(ChannelId, ChannelConfig)> {
        let channel = |slot| {
            let mut salt = [0; 32];
            (salt[30], salt[31]) = (policy.lane, slot);
            let config = config(self.address(), offer, salt).ok()?;
            Some((domain.channel_id(&config), config))
        };
        (0..policy.slots).filter_map(channel).collect()
    }

    /// The voucher to sign on a channel for a call, and the deposit that it needs.
    fn fill(
        &self,
        policy: &ChannelPolicy,
        known: &Known,
        (key, offer, id): (&Hash, &PaymentRequirements, &ChannelId),
        url: &str,
    ) -> Result<(Usdc, Usdc), Error> {
        let own = known.memory.channels.get(id).copied().unwrap_or_default();
        // What is out and unanswered may yet be charged: the next voucher covers that, too.
        let max = own.charged.max(known.memory.unknown_on(id, key)).saturating_add(offer.amount());
        let missing = max.saturating_sub(own.balance);
        let mut deposit = Usdc::ZERO;
        if !missing.is_zero() {
            let least = offer.extra_text("minDeposit").and_then(|text| wire::amount(text).ok());
            let least = least.filter(|_| own.balance.is_zero()).unwrap_or_default();
            let calls = Usdc(offer.amount().micro().saturating_mul(u128::from(policy.deposit_calls)));
            let locked = own.deposited.saturating_sub(own.charged);
            let room = policy.deposit_max.saturating_sub(locked);
            deposit = policy.deposit.max(calls).min(room).max(missing).max(least);
            if deposit > room {
                let message = format!("the channel needs {deposit} more, at most {} lie in it", policy.deposit_max);
                return Err(Error::new(Kind::TooExpensive, url, message));
            }
        }
        Ok((max, deposit))
    }

    /// Asks the chain about channels whose deposits nobody has answered for, before more is put into them. In use: their
    /// call's answer says it.
    pub(super) async fn look_at_uncertain(&self, offer: &PaymentRequired, url: &str) {
        let (Schemes::Channel(policy) | Schemes::ChannelElseExact(policy)) = &self.schemes else { return };
        let Ok(domain) = self.channel_domain(url) else { return };
        let Ok(offer) = self.channel_offer(policy, offer, url) else { return };
        let ids = self.own_channels(policy, &domain, offer).into_iter().map(|(id, _)| id);
        let uncertain: Vec<ChannelId> = {
            let known = self.known();
            let is_uncertain = |id: &ChannelId| known.memory.channels.get(id).is_some_and(OwnChannel::is_uncertain);
            ids.filter(|id| is_uncertain(id) && !known.is_in_use(id)).collect()
        };
        for id in uncertain {
            self.look_at(&id).await;
        }
    }

    /// Asks the chain how a channel stands and believes it; whether it answered.
    pub(super) async fn look_at(&self, id: &ChannelId) -> bool {
        let Some(state) = self.state_of(id).await else { return false };
        let now = (self.clock)();
        self.change(|memory| memory.see(id, &state, now));
        true
    }

    async fn state_of(&self, id: &ChannelId) -> Option<ChannelState> {
        let chain = self.chain.as_deref()?;
        let call = |data| ("eth_call", json!([{ "to": BATCH_SETTLEMENT, "data": Bytes::from(data) }, "latest"]));
        let answers = self.rpc(chain, &state_calls(id).map(call)).await?;
        let bytes = |answer: &Value| answer.as_str()?.parse::<Bytes>().ok().map(|bytes| bytes.to_vec());
        let answers: Vec<Vec<u8>> = answers.iter().map(bytes).collect::<Option<_>>()?;
        read_state(&answers.try_into().ok()?, 0)
    }

    /// The channels in this buyer's record that lie on the policy's chain, whoever they pay, as the chain has them now.
    /// No seller is asked: with these a payer leaves without one
    /// ([`initiate_withdraw_call`](crate::scheme::channel::facilitator::initiate_withdraw_call)).
    ///
    /// # Errors
    /// `Usage`: the buyer has no chain. `Unreachable`: the chain does not answer, or has no channel contract.
    pub async fn held_channels(&self) -> Result<Vec<HeldChannel>, Error> {
        let Some(chain) = self.chain.clone() else {
            return Err(Error::new(Kind::Usage, "", "a buyer without a chain cannot look at its channels"));
        };
        let domain = self.channel_domain(&chain)?;
        let configs = self.known().memory.configs.clone();
        let mut held = Vec::new();
        // A channel's name is made with the chain's id.
        for (id, config) in configs.into_iter().filter(|(id, config)| domain.channel_id(config) == *id) {
            let Some(state) = self.state_of(&id).await else {
                return Err(Error::new(Kind::Unreachable, &chain, format!("does not say how channel {id} stands")));
            };
            let now = (self.clock)();
            self.change(|memory| memory.see(&id, &state, now));
            held.push(HeldChannel { id, config, state });
        }
        Ok(held)
    }

    /// What lies in channels and is not spent, of all sellers in this buyer's record.
    pub fn left_in_channels(&self) -> Usdc {
        self.known().memory.channels.values().map(OwnChannel::left).sum()
    }

    /// Asks the seller at `url`, a paid route, to give back what its channels with this buyer hold beyond its charges;
    /// what came back. Channels that calls are being paid from are left alone. Of a channel for which the seller's day has
    /// no room, half, a quarter or an eighth is asked for.
    ///
    /// # Errors
    /// `Refused` with the seller's reason, or if a part is left for another day, `WrongSeller`, `Unreachable`, `BadAnswer`.
    /// What came back before that is counted in the record.
    pub async fn refund(&self, url: &str) -> Result<Usdc, Error> {
        let (Schemes::Channel(policy) | Schemes::ChannelElseExact(policy)) = &self.schemes else {
            return Ok(Usdc::ZERO);
        };
        let mut call = Call::new(self, url, &bytes::Bytes::new())?;
        let offer = loop {
            let answer = self.get(&call.url, HeaderMap::new()).await?;
            match answer.status {
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => call.follow(&answer)?,
                StatusCode::PAYMENT_REQUIRED => break required(&answer, &call.url)?,
                status => return Err(Error::new(Kind::BadAnswer, &call.url, format!("answers {status} to a look"))),
            }
        };
        let domain = self.channel_domain(&call.url)?;
        let offer = self.channel_offer(policy, &offer, &call.url)?;
        let (mut back, mut left) = (Usdc::ZERO, Usdc::ZERO);
        for (id, config) in self.own_channels(policy, &domain, offer) {
            if self.known().is_in_use(&id) {
                continue;
            }
            self.look_at(&id).await;
            let own = self.known().memory.channels.get(&id).copied().unwrap_or_default();
            if own.left().is_zero() {
                continue;
            }
            let mut part = None;
            let answer = loop {
                let asked = refund(&self.signer, &domain, &config, offer, own.charged, part)
                    .map_err(|refusal| Error::new(Kind::WrongSeller, &call.url, refusal))?;
                let headers = HeaderMap::from_iter([(PAYMENT_SIGNATURE, header_value(&asked.to_header()))]);
                let answer = self.get(&call.url, headers).await?;
                let less = Usdc(part.unwrap_or(own.left()).micro() / 2);
                let is_over_day = answer.status == StatusCode::TOO_MANY_REQUESTS
                    && required(&answer, &call.url).is_ok_and(|said| said.error == Reason::RefundOverDay.as_str());
                if !is_over_day || less.is_zero() || less.micro() * REFUND_PARTS < own.left().micro() {
                    break answer;
                }
                part = Some(less);
            };
            if matches!(answer.status, StatusCode::PAYMENT_REQUIRED | StatusCode::TOO_MANY_REQUESTS) {
                let why = required(&answer, &call.url)?.error;
                return Err(Error::new(
                    Kind::Refused,
                    &call.url,
                    format!("refuses to give back {}: {why}", own.left()),
                ));
            }
            let said = answer.header(&PAYMENT_RESPONSE).and_then(|text| SettlementResponse::from_header(text).ok());
            let Some(amount) = said.filter(|said| said.success).and_then(|said| said.amount) else {
                let message = format!("answers {} to a refund, without a word about its amount", answer.status);
                return Err(Error::new(Kind::BadAnswer, &call.url, message));
            };
            self.change(|memory| {
                let own = memory.channels.entry(id).or_default();
                own.balance = own.balance.saturating_sub(amount);
                own.deposited = own.deposited.saturating_sub(amount);
                // All that is free came back: what stays was charged, as far as we allowed it.
                if part.is_none() {
                    own.charged = own.charged.max(own.balance.min(own.max));
                }
                left = left.saturating_add(own.left());
            });
            back = back.saturating_add(amount);
        }
        if !left.is_zero() {
            let message = format!("gives back {back} now; its day has no room for the other {left}: ask again later");
            return Err(Error::new(Kind::Refused, &call.url, message));
        }
        Ok(back)
    }

    async fn get(&self, url: &str, headers: HeaderMap) -> Result<net::Response, Error> {
        let sent = self.client.send(Method::GET, url, headers, bytes::Bytes::new()).await;
        sent.map_err(|error| Error::new(Kind::Unreachable, url, error.message))
    }

    /// Signs the next voucher of a channel, with a deposit if it needs one; the offer's extensions are in it. Changes
    /// `memory`, which the caller makes durable before the payment leaves; the amount returned is what this lets the
    /// seller take more than before.
    pub(super) fn sign_on_channel(
        &self,
        memory: &mut Memory,
        (asked, offer): (&PaymentRequired, &PaymentRequirements),
        slot: &Slot,
        url: &str,
    ) -> Result<(PaymentPayload, OnChannel, Usdc), Error> {
        let own = memory.channels.entry(slot.id).or_default();
        let max = slot.max;
        let now = (self.clock)();
        let valid_before = now.saturating_add(offer.max_timeout_secs());
        let top_up = TopUp { amount: slot.deposit, valid_before, salt: rand::random() };
        let top_up = Some(top_up).filter(|top_up| !top_up.amount.is_zero());
        if top_up.is_some() {
            own.deposited = own.deposited.saturating_add(slot.deposit);
            own.deposit_until = own.deposit_until.max(valid_before);
        }
        let mut payment = pay(&self.signer, &slot.domain, &slot.config, offer, max, top_up.as_ref())
            .map_err(|refusal| Error::new(Kind::WrongSeller, url, refusal))?;
        payment.extensions.clone_from(&asked.extensions);
        if let Some(means) = slot.means {
            self.allow_permit2(&mut payment, (offer, slot.deposit), means, now, url)?;
        }
        let more = max.saturating_sub(own.max);
        own.max = own.max.max(max);
        memory.configs.entry(slot.id).or_insert_with(|| slot.config.clone());
        Ok((payment, OnChannel { id: slot.id, max, deposit: slot.deposit }, more))
    }

    /// Believes an answer about a channel as far as we signed; what was charged since the last one.
    pub(super) fn learn(&self, on: &OnChannel, response: &SettlementResponse) -> Usdc {
        let extra = response.rest.get("extra");
        let sum = |path: &str| extra.and_then(|e| e.pointer(path)).and_then(Value::as_str);
        let cumulative = sum("/channelState/chargedCumulativeAmount").and_then(|text| wire::amount(text).ok());
        let charged = sum("/chargedAmount").and_then(|text| wire::amount(text).ok()).unwrap_or_default();
        let mut known = self.known();
        let memory = &mut known.memory;
        // An answer that is read again tells of the same deposit: it counts once.
        let is_it = |out: &&mut OnChannel| out.id == on.id && out.max == on.max;
        let out = memory.unresolved.values_mut().filter_map(|signed| signed.on_channel.as_mut()).find(is_it);
        let deposit = out.map(|out| std::mem::take(&mut out.deposit)).unwrap_or_default();
        let own: &mut OwnChannel = memory.channels.entry(on.id).or_default();
        own.balance = own.balance.saturating_add(deposit);
        if let Some(cumulative) = cumulative.filter(|sum| *sum <= on.max) {
            own.charged = own.charged.max(cumulative);
        }
        charged
    }

    /// Takes a corrective 402: the seller shows our own newest signature, which proves that we once allowed what it
    /// says was charged. Without it, or with another's, nothing is believed.
    pub(super) fn correct(&self, offer: &PaymentRequired, on: &OnChannel) -> bool {
        let is_correction = [Reason::CumulativeMismatch, Reason::CumulativeBelowClaimed];
        if !is_correction.iter().any(|reason| reason.as_str() == offer.error) {
            return false;
        }
        let Some(chain_id) = wire::chain_id(&self.policy.network) else { return false };
        let domain = ChannelDomain::new(chain_id);
        let signed = |o: &PaymentRequirements| {
            let extra = o.json().get("extra")?;
            let text = |path: &str| extra.pointer(path).and_then(Value::as_str);
            let amount = |path: &str| text(path).and_then(|text| wire::amount(text).ok());
            let charged = amount("/channelState/chargedCumulativeAmount")?;
            let balance = amount("/channelState/balance")?;
            let max = amount("/voucherState/signedMaxClaimable")?;
            let signature = wire::bytes(text("/voucherState/signature")?)?;
            let signer = recover(&signature, domain.voucher_digest(&on.id, max)).ok()?;
            (signer == self.address() && charged <= max && max <= balance).then_some((charged, balance, max))
        };
        let Some((charged, balance, max)) = offer.accepts.iter().filter(|o| o.scheme() == CHANNEL).find_map(signed)
        else {
            return false;
        };
        let mut known = self.known();
        let own = known.memory.channels.entry(on.id).or_default();
        own.charged = own.charged.max(charged);
        own.balance = balance;
        own.max = own.max.max(max);
        true
    }
}
