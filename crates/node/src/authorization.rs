//! What became of an EIP-3009 authorisation that was used, but not through the treasury.

use crate::context::Context;
use alloy::primitives::{Address, B256, U256};
use alloy::rpc::types::{Filter, Log, TransactionReceipt};
use alloy::sol;
use alloy::sol_types::SolEvent;

sol! {
    /// Of EIP-3009.
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);
    event Transfer(address indexed from, address indexed to, uint256 value);
}

/// Source: EIP-3009, and USDC's implementation of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A third party sent it to the token: the money is in the treasury, without a record there.
    PaidHere {
        amount: U256,
        tx: B256,
        block: u64,
    },
    Cancelled,
    /// The payer signed the same nonce for somebody else.
    PaidElsewhere,
}

/// Paid means: `AuthorizationUsed` *and* the matching `Transfer` to the treasury in one transaction.
pub async fn fate(cx: &Context, payer: Address, nonce: B256) -> Result<Fate, chain::Error> {
    let about = |signature: B256| {
        Filter::new()
            .address(cx.birth.token)
            .from_block(0)
            .event_signature(signature)
            .topic1(payer.into_word())
            .topic2(nonce)
    };
    let used: Vec<Log> = cx.chain.request("eth_getLogs", (about(AuthorizationUsed::SIGNATURE_HASH),)).await?;
    let Some(used) = used.first() else { return Ok(Fate::Cancelled) };
    let (Some(tx), Some(block)) = (used.transaction_hash, used.block_number) else { return Ok(Fate::PaidElsewhere) };
    let Some(receipt) = cx.chain.receipt(tx).await? else { return Ok(Fate::PaidElsewhere) };
    Ok(match transfer(&receipt, cx.birth.token, payer, cx.config.treasury) {
        Some(amount) => Fate::PaidHere { amount, tx, block },
        None => Fate::PaidElsewhere,
    })
}

/// What `payer` moved to `pay_to` in this transaction, by its first such transfer.
pub fn transfer(receipt: &TransactionReceipt, token: Address, payer: Address, pay_to: Address) -> Option<U256> {
    receipt.inner.logs().iter().filter(|log| log.address() == token).find_map(|log| {
        let transfer = Transfer::decode_log(&log.inner).ok()?;
        (transfer.from == payer && transfer.to == pay_to).then_some(transfer.value)
    })
}
