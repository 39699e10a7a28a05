//! Settling by somebody else's facilitator, where the manifest names one.
//!
//! It leaves no record in the treasury, so that nothing could be given back: an answer is made first, then it is asked,
//! and the last byte waits (for a payer without a record the first one, too). Deposits into channels it puts in before
//! their calls, like the relay. Whatever it says, the chain is asked; the authorisation is taken once, whoever sends it,
//! so the relay may send what it did not.

use crate::api::sale;
use crate::channels;
use crate::context::Context;
use crate::settle::{Settlement, reconcile};
use alloy::primitives::B256;
use net::chain_of;
use pay::facilitator::api::Asked;
use pay::facilitator::remote::{Remote, Said};
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelId, ChannelState};
use pay::scheme::exact::client::payment_of;
use pay::{SettleExact, Usdc};
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

/// Once `wanted` lies in the channel that a customer's deposit is for: its state, and the transaction, as far as it is
/// known. `None`: it is not in, so that the relay may put it in.
pub async fn deposit(
    cx: &Context,
    remote: &Remote,
    asked: &Asked,
    channel: &ChannelId,
    wanted: Usdc,
) -> Option<(ChannelState, B256)> {
    if !remote.is_healthy() {
        return None;
    }
    let said = remote.settle(asked).await;
    tracing::info!(url = remote.url(), ?said, %channel, "an external facilitator was asked for a deposit");
    let named = match said {
        Said::Settled(tx) => Some(B256::from(tx)),
        Said::Refused(_) | Said::Unknown(_) => None,
    };
    let until = Instant::now() + if named.is_some() { LOOK_FOR } else { Duration::ZERO };
    let mut blocks = cx.head.subscribe();
    loop {
        match channels::try_read(cx, channel).await {
            Ok(state) if state.balance >= wanted => {
                let tx = match named {
                    Some(tx) if put_in(cx, tx, channel).await => tx,
                    _ => B256::ZERO,
                };
                return Some((state, tx));
            }
            Ok(_) => {}
            Err(e) => tracing::warn!(error = %chain_of(&e), %channel, "a channel cannot be read"),
        }
        if !matches!(timeout_at(until, blocks.changed()).await, Ok(Ok(()))) {
            return None;
        }
    }
}

/// Whether this transaction is one of the channel contract's about this channel: its customer is told no other.
async fn put_in(cx: &Context, tx: B256, channel: &ChannelId) -> bool {
    let id = B256::from(channel.0);
    let mined = cx.chain.receipt(tx).await.ok().flatten();
    mined.is_some_and(|mined| {
        mined.logs().iter().any(|log| log.address() == BATCH_SETTLEMENT && log.topics().get(1) == Some(&id))
    })
}
