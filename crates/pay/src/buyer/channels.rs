//! Channels of a buyer: which one pays a call, when it is topped up, and what the seller's word about it is worth.

use super::record::{Memory, OnChannel, OwnChannel};
use super::{Buyer, Error, Kind, Known};
use crate::scheme::channel::client::{TopUp, config, pay};
use crate::scheme::channel::server::recover;
use crate::scheme::channel::{CHANNEL, ChannelConfig, ChannelDomain, ChannelId};
use crate::scheme::exact::Hash;
use crate::wire::{self, PaymentPayload, PaymentRequired, PaymentRequirements, SettlementResponse};
use crate::{Reason, Usdc};
use serde_json::Value;

/// What is paid by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schemes {
    Exact,
    /// A channel where one is offered and free and its deposit is within the policy, else `exact`.
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
    /// Channels with one seller, one for each call at the same time. Over it, `exact` is paid.
    pub slots: u8,
    /// Tells programs apart that pay with one key and do not share a record: each lane has channels of its own. The
    /// official clients use the first channel of lane 0.
    pub lane: u8,
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
}

impl Buyer {
    /// The offer of a channel that policy allows, with a free channel for it.
    pub(super) fn choose_channel<'o>(
        &self,
        policy: &ChannelPolicy,
        known: &Known,
        (key, offer): (&Hash, &'o PaymentRequired),
        url: &str,
    ) -> Result<(&'o PaymentRequirements, Slot), Error> {
        let chain_id = wire::chain_id(&self.policy.network);
        let chain_id = chain_id.ok_or_else(|| Error::new(Kind::Usage, url, "the policy's network is not eip155"))?;
        let domain = ChannelDomain::new(chain_id);
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
                && o.extra_text("assetTransferMethod").is_none_or(|m| m == "eip3009")
        };
        let offer = offer.accepts.iter().filter(is_ours).min_by_key(|o| o.amount()).ok_or_else(|| {
            let message = format!("offers no channel to {} that the policy allows", self.policy.pay_to);
            Error::new(Kind::WrongSeller, url, message)
        })?;
        if offer.amount() > self.policy.max_per_call {
            let message = format!("asks up to {}, the limit of a call is {}", offer.amount(), self.policy.max_per_call);
            return Err(Error::new(Kind::TooExpensive, url, message));
        }
        let mut ids = (0..policy.slots).filter_map(|slot| {
            let mut salt = [0; 32];
            (salt[30], salt[31]) = (policy.lane, slot);
            let config = config(self.address(), offer, salt).ok()?;
            Some((domain.channel_id(&config), config))
        });
        let free = ids.find(|(id, _)| !known.is_in_use(id));
        let (id, config) = free.ok_or_else(|| {
            let message = format!("all {} channels with it are in use; nothing was paid", policy.slots);
            Error::new(Kind::Unreachable, url, message)
        })?;
        let own = known.memory.channels.get(&id).copied().unwrap_or_default();
        // What is out and unanswered may yet be charged: the next voucher covers that, too.
        let max = own.charged.max(known.memory.unknown_on(&id, key)).saturating_add(offer.amount());
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
        Ok((offer, Slot { config, id, domain, max, deposit }))
    }

    /// Signs the next voucher of a channel, with a deposit if it needs one. Changes `memory`, which the caller makes
    /// durable before the payment leaves; the amount returned is what this lets the seller take more than before.
    pub(super) fn sign_on_channel(
        &self,
        memory: &mut Memory,
        offer: &PaymentRequirements,
        slot: &Slot,
        url: &str,
    ) -> Result<(PaymentPayload, OnChannel, Usdc), Error> {
        let own = memory.channels.entry(slot.id).or_default();
        let max = slot.max;
        let valid_before = (self.clock)().saturating_add(offer.max_timeout_secs());
        let top_up = TopUp { amount: slot.deposit, valid_before, salt: rand::random() };
        let top_up = Some(top_up).filter(|top_up| !top_up.amount.is_zero());
        own.deposited = own.deposited.saturating_add(slot.deposit);
        let payment = pay(&self.signer, &slot.domain, &slot.config, offer, max, top_up.as_ref())
            .map_err(|refusal| Error::new(Kind::WrongSeller, url, refusal))?;
        let more = max.saturating_sub(own.max);
        own.max = own.max.max(max);
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
