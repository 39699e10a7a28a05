//! Payment schemes, a folder each with the same rooms: `types` (what is signed), `client` (signing),
//! `server` (verifying, no I/O) and `facilitator` (what the chain says about a settlement, and what is sent to it).
//! [`signature`] is of payers that are contracts.

pub mod channel;
pub mod exact;
pub mod permit2;
pub mod signature;
pub mod upto;

use crate::wire::{PaymentPayload, PaymentRequirements, same_terms};
use crate::{Reason, Refusal, Usdc};
use borsh::{BorshDeserialize, BorshSerialize};
use exact::{Hash, SettleExact};
use serde_json::Value;
use std::borrow::Cow;
use upto::{Permit2Payment, Proxy};

/// By which standard a payment's transfer is signed (`assetTransferMethod` on the wire). Each has nonces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum TransferMethod {
    Eip3009,
    Permit2,
}

/// The settlement of one payment: an intent for whoever holds the relay key, and a field of the journal's reservation
/// record.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Settle {
    /// `exact` by EIP-3009, through the treasury, which records it: it can be refunded.
    Exact(SettleExact),
    /// `exact` or `upto` by Permit2, through a proxy: it leaves no record, so it is settled only once delivered.
    Permit2(Permit2Payment),
}

impl Settle {
    pub fn method(&self) -> TransferMethod {
        match self {
            Self::Exact(_) => TransferMethod::Eip3009,
            Self::Permit2(_) => TransferMethod::Permit2,
        }
    }

    pub fn payer(&self) -> [u8; 20] {
        match self {
            Self::Exact(settlement) => settlement.payer,
            Self::Permit2(payment) => payment.payer,
        }
    }

    pub fn nonce(&self) -> Hash {
        match self {
            Self::Exact(settlement) => settlement.nonce,
            Self::Permit2(payment) => payment.nonce,
        }
    }

    /// The most that it can move: the price, or the ceiling of `upto`.
    pub fn value(&self) -> Usdc {
        match self {
            Self::Exact(settlement) => settlement.value,
            Self::Permit2(payment) => payment.amount,
        }
    }

    /// Chain seconds from which on it can move nothing any more.
    pub fn expires_at(&self) -> u64 {
        match self {
            Self::Exact(settlement) => settlement.valid_before,
            // Permit2's deadline is inclusive.
            Self::Permit2(payment) => payment.deadline.saturating_add(1),
        }
    }

    pub fn signature(&self) -> &[u8] {
        match self {
            Self::Exact(settlement) => &settlement.signature,
            Self::Permit2(payment) => &payment.signature,
        }
    }

    /// The payer's key signed; else a contract may have, and may change its mind until it has paid.
    pub fn is_signed_by_key(&self) -> bool {
        match self {
            Self::Exact(settlement) => settlement.is_signed_by_key,
            Self::Permit2(payment) => payment.is_signed_by_key,
        }
    }

    /// What is charged for a delivery that is worth `metered`: all of it for `exact`, at most the ceiling for `upto`.
    pub fn charge(&self, metered: Usdc) -> Usdc {
        match self {
            Self::Permit2(Permit2Payment { proxy: Proxy::Upto { .. }, amount, .. }) => metered.min(*amount),
            Self::Exact(_) | Self::Permit2(_) => self.value(),
        }
    }
}

/// What the customer accepted is what we offer. Scheme and network come first because they have names of their own.
pub(crate) fn check_terms(payment: &PaymentPayload, offered: &PaymentRequirements) -> Result<(), Refusal> {
    let text = |name: &str| payment.accepted.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("scheme") != offered.scheme() {
        let message = format!("scheme {:.40?} was not offered, {:?} was", text("scheme"), offered.scheme());
        return Err(Refusal::new(Reason::InvalidScheme, message));
    }
    if text("network") != offered.network() {
        let message = format!("network {:.60?} was not offered, {:?} was", text("network"), offered.network());
        return Err(Refusal::new(Reason::InvalidNetwork, message));
    }
    if !same_terms(&without_news(&payment.accepted), offered.json()) {
        let message = "`accepted` is not what is offered: echo one of `accepts` untouched";
        return Err(Refusal::new(Reason::InvalidPaymentRequirements, message));
    }
    Ok(())
}

/// `accepted` less what an offer tells beside its terms: what the call can cost, and in a corrective 402 the state of the
/// customer's own channel.
fn without_news(accepted: &Value) -> Cow<'_, Value> {
    const NEWS: [&str; 3] = [channel::CALL_CEILING, "channelState", "voucherState"];
    if !accepted.get("extra").is_some_and(|extra| NEWS.iter().any(|name| extra.get(name).is_some())) {
        return Cow::Borrowed(accepted);
    }
    let mut accepted = accepted.clone();
    if let Some(Value::Object(extra)) = accepted.get_mut("extra") {
        for name in NEWS {
            extra.shift_remove(name);
        }
    }
    Cow::Owned(accepted)
}
