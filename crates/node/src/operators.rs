//! Who was operator in which epoch, as the treasury's own events tell: whose signature a segment must carry.

use crate::context::Context;
use crate::error::{Error, Result};
use alloy::primitives::Address;
use alloy::rpc::types::{Filter, Log};
use alloy::sol_types::SolEventInterface;
use chain::bindings::TreasuryEvent;
use std::collections::BTreeMap;

/// Epoch → operator, from the treasury's whole history. Asked for only when memory is restored.
pub async fn by_epoch(cx: &Context) -> Result<BTreeMap<u64, Address>> {
    let filter = Filter::new().address(cx.config.treasury).from_block(0);
    let logs: Vec<Log> = cx
        .chain
        .request("eth_getLogs", (filter,))
        .await
        .map_err(|e| Error::retry("the treasury's events cannot be read").caused_by(e))?;
    let mut operators = BTreeMap::new();
    for log in logs {
        let Ok(event) = TreasuryEvent::decode_log(&log.inner) else { continue };
        match event.data {
            TreasuryEvent::Activated(e) => operators.insert(1, e.operator),
            TreasuryEvent::HandedOver(e) => operators.insert(e.epoch, e.operator),
            TreasuryEvent::TakenOver(e) => operators.insert(e.epoch, e.operator),
            TreasuryEvent::Evicted(e) => operators.insert(e.epoch, e.operator),
            _ => None,
        };
    }
    Ok(operators)
}
