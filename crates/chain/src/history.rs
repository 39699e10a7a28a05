//! What a treasury's own events tell of its past: who was operator in which epoch, and which roots of receipts it
//! committed to. For readers who trust nothing but the chain.

use crate::bindings::{TestUSDC, Treasury, TreasuryEvent};
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

/// Blocks of logs asked for at once: public endpoints give out no more.
const RANGE: u64 = 1_000;

/// What `from` paid `to` in `token` since chain time `since`, micro-USDC, by the newest block.
///
/// # Errors
/// `Rpc`.
pub async fn paid_since(
    chain: &Chain,
    token: Address,
    (from, to): (Address, Address),
    since: u64,
) -> Result<u128, Error> {
    let head = chain.head().await?;
    // The first block of that time or later.
    let (mut first, mut last) = (0, head.number.saturating_add(1));
    while first < last {
        let middle = first + (last - first) / 2;
        let block = chain.block_at(middle).await?;
        let block = block.ok_or_else(|| Error::rpc(format!("{} has no block {middle}", chain.url())))?;
        if block.timestamp < since { first = middle + 1 } else { last = middle }
    }
    let mut sum = 0_u128;
    while first <= head.number {
        let until = first.saturating_add(RANGE - 1).min(head.number);
        let filter = Filter::new()
            .address(token)
            .event_signature(TestUSDC::Transfer::SIGNATURE_HASH)
            .topic1(from.into_word())
            .topic2(to.into_word())
            .from_block(first)
            .to_block(until);
        for log in read(chain, filter).await? {
            let transfer = TestUSDC::Transfer::decode_log(&log.inner);
            sum = sum.saturating_add(transfer.map_or(0, |transfer| transfer.value.saturating_to()));
        }
        first = until.saturating_add(1);
    }
    Ok(sum)
}

async fn read(chain: &Chain, filter: Filter) -> Result<Vec<Log>, Error> {
    chain.request("eth_getLogs", (filter,)).await
}
