//! Channels of a buyer: which one pays a call, when it is topped up, and what the seller's word about it is worth.

use super::record::{Memory, OnChannel, OwnChannel};
use super::{Buyer, Error, Kind};
use crate::scheme::channel::client::{TopUp, config, pay};
use crate::scheme::channel::server::recover;
use crate::scheme::channel::{CHANNEL, ChannelConfig, ChannelDomain, ChannelId};
use crate::wire::{self, PaymentPayload, PaymentRequired, PaymentRequirements, SettlementResponse};
use crate::{Reason, Usdc};
use serde_json::Value;

/// How channels are used. A deposit is not spent, but it is locked until the seller refunds it or `withdrawDelay` has
/// passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelPolicy {
    /// Put in at a time, or more where one call or the seller's minimum needs more.
    pub deposit: Usdc,
    /// Most that is ever put into one channel.
    pub deposit_max: Usdc,
    /// Longest way out without the seller that is accepted, in seconds.
    pub withdraw_delay_secs_max: u64,
    /// Channels with one seller, one for each call at the same time. Over it, `exact` is paid.
    pub slots: u8,
}

/// A channel that can pay the call at hand.
pub(super) struct Slot {
    config: ChannelConfig,
    id: ChannelId,
    domain: ChannelDomain,
}

impl Buyer {
    /// The offer of a channel that policy allows, with a free channel for it.
    pub(super) fn choose_channel<'o>(&self, offer: &'o PaymentRequired) -> Option<(&'o PaymentRequirements, Slot)> {
        let policy = self.channel_policy.as_ref()?;
        let chain_id = wire::chain_id(&self.policy.network)?;
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
                && o.amount() <= self.policy.max_per_call
        };
        let offer = offer.accepts.iter().filter(is_ours).min_by_key(|o| o.amount())?;
        let memory = self.memory();
        let busy: Vec<ChannelId> =
            memory.unresolved.values().filter_map(|signed| Some(signed.on_channel.as_ref()?.id)).collect();
        (0..policy.slots).find_map(|slot| {
            let mut salt = [0; 32];
            salt[31] = slot;
            let config = config(self.address(), offer, salt).ok()?;
            let id = domain.channel_id(&config);
            (!busy.contains(&id)).then(|| (offer, Slot { config, id, domain: domain.clone() }))
        })
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
        let policy = self.channel_policy.as_ref().expect("`choose_channel` found it");
        let own = memory.channels.entry(slot.id).or_default();
        let max = own.charged.saturating_add(offer.amount());
        let missing = max.saturating_sub(own.balance);
        let mut top_up = None;
        if !missing.is_zero() {
            let least = offer.extra_text("minDeposit").and_then(|text| wire::amount(text).ok());
            let least = least.filter(|_| own.balance.is_zero()).unwrap_or_default();
            let amount = policy.deposit.max(missing).max(least);
            let deposited = own.deposited.saturating_add(amount);
            if deposited > policy.deposit_max {
                let message = format!("the channel needs {amount} more, at most {} go in", policy.deposit_max);
                return Err(Error::new(Kind::TooExpensive, url, message));
            }
            own.deposited = deposited;
            let valid_before = (self.clock)().saturating_add(offer.max_timeout_secs());
            top_up = Some(TopUp { amount, valid_before, salt: rand::random() });
        }
        let payment = pay(&self.signer, &slot.domain, &slot.config, offer, max, top_up.as_ref())
            .map_err(|refusal| Error::new(Kind::WrongSeller, url, refusal))?;
        let more = max.saturating_sub(own.max);
        own.max = own.max.max(max);
        let deposit = top_up.map_or(Usdc::ZERO, |top_up| top_up.amount);
        Ok((payment, OnChannel { id: slot.id, max, deposit }, more))
    }

    /// Believes an answer about a channel as far as we signed; what was charged since the last one.
    pub(super) fn learn(&self, on: &OnChannel, response: &SettlementResponse) -> Usdc {
        let extra = response.rest.get("extra");
        let sum = |path: &str| extra.and_then(|e| e.pointer(path)).and_then(Value::as_str);
        let cumulative = sum("/channelState/chargedCumulativeAmount").and_then(|text| wire::amount(text).ok());
        let charged = sum("/chargedAmount").and_then(|text| wire::amount(text).ok()).unwrap_or_default();
        let mut memory = self.memory();
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
        let mut memory = self.memory();
        let own = memory.channels.entry(on.id).or_default();
        own.charged = own.charged.max(charged);
        own.balance = balance;
        own.max = own.max.max(max);
        true
    }
}
