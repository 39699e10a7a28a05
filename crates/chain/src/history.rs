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

/// What one transaction had a treasury pay an address for storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoragePaid {
    pub block: u64,
    /// Chain seconds.
    pub timestamp: u64,
    /// (place among the transaction's own logs, micro-USDC), ascending. The place stays when a reorganisation moves the
    /// transaction into another block.
    pub payments: Vec<(u64, u128)>,
}

/// What `transaction` had `treasury` pay `payee` for storage in `token`: only what both contracts say, the treasury by
/// `Spent` and the token by a `Transfer` of the same amount after it. Anybody can write a contract that emits the first.
///
/// `None`: the endpoint knows no such transaction in a block.
///
/// # Errors
/// `Rpc`.
pub async fn storage_paid(
    chain: &Chain,
    token: Address,
    (treasury, payee): (Address, Address),
    transaction: B256,
) -> Result<Option<StoragePaid>, Error> {
    let Some(receipt) = chain.receipt(transaction).await? else { return Ok(None) };
    let (Some(block), Some(hash)) = (receipt.block_number, receipt.block_hash) else { return Ok(None) };
    let Some(head) = chain.block(hash).await? else { return Ok(None) };
    let logs = receipt.logs();
    let (mut payments, mut used) = (Vec::new(), Vec::new());
    for (place, log) in logs.iter().enumerate().filter(|(_, log)| log.address() == treasury && receipt.status()) {
        let Ok(spent) = Treasury::Spent::decode_log(&log.inner) else { continue };
        if spent.kind != crate::treasury::KIND_STORAGE || spent.payee != payee {
            continue;
        }
        let moved = logs.iter().enumerate().skip(place + 1).find(|(at, log)| {
            let transfer = TestUSDC::Transfer::decode_log(&log.inner).ok().filter(|_| log.address() == token);
            !used.contains(at)
                && transfer.is_some_and(|t| {
                    (t.from, t.to) == (treasury, payee) && t.value == alloy::primitives::U256::from(spent.amount)
                })
        });
        if let Some((at, _)) = moved {
            used.push(at);
            payments.push((place as u64, spent.amount));
        }
    }
    Ok(Some(StoragePaid { block, timestamp: head.timestamp, payments }))
}

/// The transaction in which the treasury's event at this block and log index was emitted; `None` if there is none.
///
/// # Errors
/// `Rpc`.
pub async fn transaction_at(
    chain: &Chain,
    treasury: Address,
    (block, index): (u64, u32),
) -> Result<Option<B256>, Error> {
    let logs = read(chain, Filter::new().address(treasury).from_block(block).to_block(block)).await?;
    let found = logs.iter().find(|log| log.log_index == Some(index.into()));
    Ok(found.and_then(|log| log.transaction_hash))
}

async fn read(chain: &Chain, filter: Filter) -> Result<Vec<Log>, Error> {
    chain.request("eth_getLogs", (filter,)).await
}
