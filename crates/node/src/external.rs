//! Settling by somebody else's facilitator, where the manifest names one.
//!
//! It leaves no record in the treasury, so that nothing could be given back: an answer is made first, then it is asked,
//! and the last byte waits (for a payer without a record the first one, too). Whatever it says, the chain is asked; the
//! authorisation is taken once, whoever sends it, so the relay may settle what it did not.

use crate::api::sale;
use crate::context::Context;
use crate::settle::{Settlement, reconcile};
use pay::SettleExact;
use pay::facilitator::api::Asked;
use pay::facilitator::remote::{Remote, Said};
use pay::scheme::exact::client::payment_of;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a transaction that it says it sent is looked for, in each new block: its node may be ahead of ours. A guess,
/// unmeasured; after it the relay settles, and one of the two finds the authorisation taken.
const LOOK_FOR: Duration = Duration::from_secs(5);

/// What the chain says after it was asked. `None`: not paid by it, so that the relay may settle.
pub async fn settle(cx: &Context, remote: &Remote, terms: &SettleExact) -> Option<Settlement> {
    if !remote.is_healthy() || !terms.is_signed_by_key {
        return None;
    }
    let offer = sale::seller(cx).requirements(terms.value);
    let said = remote.settle(&Asked { payment: payment_of(terms, &offer), requirements: offer }).await;
    tracing::info!(url = remote.url(), ?said, "an external facilitator was asked to settle");
    let until = Instant::now() + if matches!(said, Said::Settled(_)) { LOOK_FOR } else { Duration::ZERO };
    let mut blocks = cx.head.subscribe();
    loop {
        match reconcile(cx, terms).await {
            Settlement::Unknown => {}
            known => return Some(known),
        }
        if !matches!(timeout_at(until, blocks.changed()).await, Ok(Ok(()))) {
            return None;
        }
    }
}
