//! Payment schemes, a folder each with the same rooms: `types` (what is signed), `client` (signing),
//! `server` (verifying, no I/O) and `facilitator` (what the chain says about a settlement, and what is sent to it).
//! [`signature`] is of payers that are contracts.

pub mod channel;
pub mod exact;
pub mod permit2;
pub mod signature;
pub mod upto;

use crate::wire::{PaymentPayload, PaymentRequirements, same_terms};
use crate::{Reason, Refusal};
use serde_json::Value;
use std::borrow::Cow;

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
    if !same_terms(&without_state(&payment.accepted), offered.json()) {
        let message = "`accepted` is not what is offered: echo one of `accepts` untouched";
        return Err(Refusal::new(Reason::InvalidPaymentRequirements, message));
    }
    Ok(())
}

/// `accepted` less what a corrective 402 had added to the offer: the state of the customer's own channel.
fn without_state(accepted: &Value) -> Cow<'_, Value> {
    let has_state = |extra: &Value| extra.get("channelState").is_some() || extra.get("voucherState").is_some();
    if !accepted.get("extra").is_some_and(has_state) {
        return Cow::Borrowed(accepted);
    }
    let mut accepted = accepted.clone();
    if let Some(Value::Object(extra)) = accepted.get_mut("extra") {
        extra.shift_remove("channelState");
        extra.shift_remove("voucherState");
    }
    Cow::Owned(accepted)
}
