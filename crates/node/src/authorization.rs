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
    PaidHere { amount: U256, tx: B256, block: u64 },
    /// The payer took it back: the token says so.
    Cancelled,
    /// The payer signed the same nonce for somebody else.
    PaidElsewhere,
    /// The endpoint does not show what became of it: it may be a block behind what it said before. Ask again.
    Untold,
}

/// Paid means: `AuthorizationUsed` *and* the matching `Transfer` to the treasury in one transaction. What is not shown is
/// never taken for what did not happen.
pub async fn fate(cx: &Context, payer: Address, nonce: B256) -> Result<Fate, chain::Error> {
    let ends = vec![AuthorizationUsed::SIGNATURE_HASH, AuthorizationCanceled::SIGNATURE_HASH];
    let about = Filter::new()
        .address(cx.birth.token)
        .from_block(0)
        .event_signature(ends)
        .topic1(payer.into_word())
        .topic2(nonce);
    let told: Vec<Log> = cx.chain.request("eth_getLogs", (about,)).await?;
    let of_kind = |signature| told.iter().find(|log| log.topic0() == Some(&signature));
    let Some(used) = of_kind(AuthorizationUsed::SIGNATURE_HASH) else {
        let is_cancelled = of_kind(AuthorizationCanceled::SIGNATURE_HASH).is_some();
        return Ok(if is_cancelled { Fate::Cancelled } else { Fate::Untold });
    };
    let (Some(tx), Some(block)) = (used.transaction_hash, used.block_number) else { return Ok(Fate::Untold) };
    let Some(receipt) = cx.chain.receipt(tx).await? else { return Ok(Fate::Untold) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{context, stand_in};
    use serde_json::{Value, json};

    const PAYER: Address = Address::repeat_byte(9);
    const TOKEN: Address = Address::repeat_byte(0xa5);

    fn log(topics: &[B256], amount: u64) -> Value {
        json!({
            "address": TOKEN, "topics": topics, "data": B256::from(U256::from(amount)), "blockHash": B256::ZERO,
            "blockNumber": "0x7", "transactionHash": B256::repeat_byte(8), "transactionIndex": "0x0", "logIndex": "0x0",
            "removed": false,
        })
    }

    fn of_nonce(signature: B256) -> Value {
        log(&[signature, PAYER.into_word(), B256::repeat_byte(1)], 0)
    }

    /// By an endpoint that shows these logs, and this receipt of a transaction.
    async fn told(logs: Vec<Value>, receipt: Value) -> Fate {
        let chain = stand_in::endpoint(move |asked: Value| {
            let shown = if asked["method"] == "eth_getLogs" { json!(logs) } else { receipt.clone() };
            async move { Ok(shown) }
        });
        let dir = tempfile::tempdir().unwrap();
        let (cx, _heard) = context::for_tests(&chain.await, dir.path());
        fate(&cx, PAYER, B256::repeat_byte(1)).await.unwrap()
    }

    #[tokio::test]
    async fn what_an_endpoint_does_not_show_yet_is_not_unpaid() {
        let (tx, block) = (B256::repeat_byte(8), 7);
        let used = || vec![of_nonce(AuthorizationUsed::SIGNATURE_HASH)];
        let to = |payee: Address| {
            let moved = log(&[Transfer::SIGNATURE_HASH, PAYER.into_word(), payee.into_word()], 5);
            stand_in::receipt(&json!(tx), block, &[moved])
        };
        let paid = Fate::PaidHere { amount: U256::from(5), tx, block };
        assert_eq!(told(used(), to(context::TREASURY_OF_TESTS)).await, paid);
        assert_eq!(told(used(), to(Address::repeat_byte(3))).await, Fate::PaidElsewhere);
        assert_eq!(told(vec![of_nonce(AuthorizationCanceled::SIGNATURE_HASH)], Value::Null).await, Fate::Cancelled);
        // A block behind, and a block behind with the receipt.
        assert_eq!(told(Vec::new(), Value::Null).await, Fate::Untold);
        assert_eq!(told(used(), Value::Null).await, Fate::Untold);
    }
}
