//! What a treasury's own events tell of its past: who was operator in which epoch, and which roots of receipts it
//! committed to. For readers who trust nothing but the chain.

use crate::bindings::{Treasury, TreasuryEvent};
use crate::{Chain, Error};
use alloy::primitives::{Address, B256};
use alloy::rpc::types::{Filter, Log};
use alloy::sol_types::{SolEvent, SolEventInterface};
use std::collections::BTreeMap;

/// Epoch → operator, from the treasury's whole history. Zero: nobody, after an eviction.
///
/// # Errors
/// `Rpc` when the endpoint fails, or gives out no logs over so many blocks.
pub async fn operators(chain: &Chain, treasury: Address) -> Result<BTreeMap<u64, Address>, Error> {
    let kinds = vec![
        Treasury::Activated::SIGNATURE_HASH,
        Treasury::HandedOver::SIGNATURE_HASH,
        Treasury::TakenOver::SIGNATURE_HASH,
        Treasury::Evicted::SIGNATURE_HASH,
    ];
    let logs = read(chain, Filter::new().address(treasury).from_block(0).event_signature(kinds)).await?;
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

/// The first block whose heartbeat carried `root`, if any did.
///
/// # Errors
/// As [`operators`].
pub async fn block_of_root(chain: &Chain, treasury: Address, root: B256) -> Result<Option<u64>, Error> {
    let filter = Filter::new().address(treasury).from_block(0).event_signature(Treasury::Heartbeat::SIGNATURE_HASH);
    let logs = read(chain, filter).await?;
    Ok(logs.iter().find_map(|log| {
        let heartbeat = Treasury::Heartbeat::decode_log(&log.inner).ok()?;
        if heartbeat.receiptsRoot == root { log.block_number } else { None }
    }))
}

async fn read(chain: &Chain, filter: Filter) -> Result<Vec<Log>, Error> {
    chain.request("eth_getLogs", (filter,)).await
}
