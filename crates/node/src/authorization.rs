//! What became of an EIP-3009 authorisation that was used, but not through the treasury.

use crate::context::Context;
use crate::permit2;
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
    let told = ends(cx, payer, nonce).await?;
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

/// What the token tells of the nonce's end. Newest first and in pieces, for endpoints that give out no more at once; what is
/// older than that is asked for whole, and such an endpoint's refusal is an error.
async fn ends(cx: &Context, payer: Address, nonce: B256) -> Result<Vec<Log>, chain::Error> {
    let newest = cx.chain.head().await?.number;
    let since = newest.saturating_sub(permit2::BLOCKS_BACK);
    let older = since.checked_sub(1).map(|last| 0..=last);
    for blocks in permit2::pieces(since, newest).chain(older) {
        let about = Filter::new()
            .address(cx.birth.token)
            .select(blocks)
            .event_signature(vec![AuthorizationUsed::SIGNATURE_HASH, AuthorizationCanceled::SIGNATURE_HASH])
            .topic1(payer.into_word())
            .topic2(nonce);
        let told: Vec<Log> = cx.chain.request("eth_getLogs", (about,)).await?;
        if !told.is_empty() {
            return Ok(told);
        }
    }
    Ok(Vec::new())
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
    use alloy::rpc::types::{Block, Transaction};
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
        told_at(7, logs, receipt).await
    }

    /// By one whose newest block is this, and which gives out the logs of 1,000 blocks at once.
    async fn told_at(newest: u64, logs: Vec<Value>, receipt: Value) -> Fate {
        let chain = stand_in::endpoint(move |asked: Value| {
            let of = |name: &str| {
                let text = asked["params"][0][name].as_str().unwrap_or("0x0");
                u64::from_str_radix(&text[2..], 16).unwrap()
            };
            let said = match asked["method"].as_str() {
                Some("eth_getBlockByNumber") => {
                    let mut head = serde_json::to_value(Block::<Transaction>::default()).unwrap();
                    head["number"] = json!(format!("{newest:#x}"));
                    Ok(head)
                }
                Some("eth_getLogs") if of("toBlock") - of("fromBlock") >= 1_000 => Err(json!({ "code": -32005 })),
                Some("eth_getLogs") if of("fromBlock") <= 7 && 7 <= of("toBlock") => Ok(json!(logs)),
                Some("eth_getLogs") => Ok(json!([])),
                _ => Ok(receipt.clone()),
            };
            async move { said }
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
        // Long ago, for an endpoint that gives out little at once.
        assert_eq!(told_at(5_007, used(), to(context::TREASURY_OF_TESTS)).await, paid);
    }
}
