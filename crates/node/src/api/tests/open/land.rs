//! The chain.

use super::BALANCE;
use crate::authorization::{AuthorizationUsed, Transfer};
use crate::context;
use crate::stand_in::{self, Said};
use ::chain::bindings::{TestUSDC, Treasury};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::rpc::types::{Block, Transaction};
use alloy::sol_types::{SolCall, SolEvent};
use pay::Usdc;
use pay::scheme::channel::facilitator::state_calls;
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// `nonceBitmap(address,uint256)` of Permit2: which nonces are spent.
const NONCE_BITMAP: [u8; 4] = [0x4f, 0xe0, 0x2b, 0x44];

/// A STAND-IN for a chain on which every account and every channel holds [`BALANCE`] and every call goes through, but
/// for what is named here.
#[derive(Default)]
pub struct Land {
    pub empty: Mutex<BTreeSet<ChannelId>>,
    pub contracts: Mutex<BTreeSet<Address>>,
    /// What is simulated reverts.
    pub refuses: AtomicBool,
    /// What somebody is about to send waits: nothing is estimated.
    pub hangs: AtomicBool,
    /// All nonces of Permit2 are, and paid nothing here.
    pub spent: AtomicBool,
    /// Transactions that somebody was about to send: refused, since what they would do is just being done by others.
    /// Nothing is empty any more then.
    pub about_to_be_sent: AtomicU32,
    /// Of a channel's deposit that was mined.
    pub deposited: Mutex<Option<(B256, ChannelId)>>,
    /// EIP-3009 authorisations that the token took, by their nonce, and one that it takes once the relay is about to send.
    pub taken: Mutex<BTreeMap<B256, Taken>>,
    pub taken_meanwhile: Mutex<Option<(B256, Taken)>>,
}

/// What an authorisation moved to the treasury.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub tx: B256,
    pub payer: Address,
    pub token: Address,
    pub amount: Usdc,
}

impl Land {
    pub async fn served(self: Arc<Self>) -> String {
        let answer = move |asked: Value| {
            let land = self.clone();
            async move {
                if land.hangs.load(Ordering::SeqCst) && asked["method"] == "eth_estimateGas" {
                    std::future::pending::<()>().await;
                }
                land.answer(&asked)
            }
        };
        stand_in::endpoint(answer).await
    }

    fn answer(&self, asked: &Value) -> Said {
        Ok(match asked["method"].as_str() {
            Some("eth_getBlockByNumber") => serde_json::to_value(Block::<Transaction>::default()).unwrap(),
            Some("eth_getTransactionCount") => json!("0x0"),
            Some("eth_estimateGas") => {
                self.about_to_be_sent.fetch_add(1, Ordering::SeqCst);
                self.empty.lock().unwrap().clear();
                self.taken.lock().unwrap().extend(self.taken_meanwhile.lock().unwrap().take());
                return Err(reverted());
            }
            Some("eth_getLogs") => self.logs(&asked["params"][0]["topics"]),
            Some("eth_getTransactionReceipt") => self.receipt(&asked["params"][0]),
            Some("eth_getCode") => {
                let at: Address = asked["params"][0].as_str().unwrap().parse().unwrap();
                json!(if self.contracts.lock().unwrap().contains(&at) { "0x00" } else { "0x" })
            }
            Some("eth_call") => match self.called(&asked["params"][0]) {
                Some(words) => stand_in::words(&words),
                None => return Err(reverted()),
            },
            _ => Value::Null,
        })
    }

    fn receipt(&self, tx: &Value) -> Value {
        let deposited = self.deposited.lock().unwrap();
        let taken = self.taken.lock().unwrap();
        let log = if let Some((_, id)) = deposited.as_ref().filter(|(mined, _)| json!(mined) == *tx) {
            log_of(tx, BATCH_SETTLEMENT, &[B256::ZERO, B256::from(id.0)], "0x".to_owned())
        } else if let Some(taken) = taken.values().find(|taken| json!(taken.tx) == *tx) {
            let topics = [Transfer::SIGNATURE_HASH, taken.payer.into_word(), context::TREASURY_OF_TESTS.into_word()];
            log_of(tx, taken.token, &topics, B256::from(U256::from(taken.amount.micro())).to_string())
        } else {
            return Value::Null;
        };
        stand_in::receipt(tx, 1, &[log])
    }

    /// The tokens' word that an authorisation was used.
    fn logs(&self, topics: &Value) -> Value {
        // One, or some of which any will do.
        let used = json!(AuthorizationUsed::SIGNATURE_HASH);
        let is_asked = topics[0] == used || topics[0].as_array().is_some_and(|any| any.contains(&used));
        let is_it = |nonce: &B256| is_asked && topics[2] == json!(nonce);
        let taken = self.taken.lock().unwrap();
        let logs = taken.iter().filter(|(nonce, _)| is_it(nonce)).map(|(nonce, taken)| {
            let topics = [AuthorizationUsed::SIGNATURE_HASH, taken.payer.into_word(), *nonce];
            log_of(&json!(taken.tx), taken.token, &topics, "0x".to_owned())
        });
        logs.collect()
    }

    /// `None`: it reverts.
    fn called(&self, call: &Value) -> Option<Vec<u128>> {
        let data: Bytes = stand_in::input(call).parse().unwrap();
        let [channels, pending, nonce] = state_calls(&ChannelId([0; 32]));
        let selector: [u8; 4] = data.get(..4).unwrap_or_default().try_into().unwrap_or_default();
        let is = |known: &[u8]| selector == known[..4];
        if is(&channels) {
            let id = ChannelId(data[4..36].try_into().unwrap());
            return Some(vec![if self.empty.lock().unwrap().contains(&id) { 0 } else { BALANCE }, 0]);
        }
        if is(&pending) {
            return Some(vec![0, 0]);
        }
        if is(&TestUSDC::authorizationStateCall::SELECTOR) {
            return Some(vec![self.taken.lock().unwrap().contains_key(&B256::from_slice(&data[36..68])).into()]);
        }
        if is(&Treasury::recordedCall::SELECTOR) {
            return Some(vec![0, 0]);
        }
        if is(&TestUSDC::balanceOfCall::SELECTOR) || is(&TestUSDC::allowanceCall::SELECTOR) {
            return Some(vec![BALANCE]);
        }
        if is(&NONCE_BITMAP) && self.spent.load(Ordering::SeqCst) {
            return Some(vec![u128::MAX]);
        }
        let is_read = is(&nonce) || is(&NONCE_BITMAP);
        (is_read || !self.refuses.load(Ordering::SeqCst)).then(|| vec![0])
    }
}

fn log_of(tx: &Value, at: Address, topics: &[B256], data: String) -> Value {
    json!({
        "address": at, "topics": topics, "data": data, "blockHash": B256::ZERO, "blockNumber": "0x1",
        "transactionHash": tx, "transactionIndex": "0x0", "logIndex": "0x0", "removed": false,
    })
}

fn reverted() -> Value {
    json!({ "code": 3, "message": "execution reverted", "data": "0x" })
}
