//! What `upto` payments took, so that their ceilings no longer count against the limits.
//!
//! The seller's word for it is worth nothing: one that took all and says that it took little would be paid over the
//! limits. The chain has it: only the facilitator that the payer named may call the proxy, and the call names the nonce
//! and the amount; the token's transfer in the same transaction says that it went through. A settlement that is not such
//! a call (a facilitator that is a contract) stays counted by its ceiling.

use super::Buyer;
use super::record::{Ceiling, Signed};
use super::unknown::{Authorization, BATCH_MAX, BLOCK_SECS_MIN, EXPIRED_SECS, Transfer, has_topics, number};
use crate::Usdc;
use crate::scheme::exact::Hash;
use crate::scheme::upto::facilitator::upto_settled;
use crate::scheme::upto::{UPTO, UPTO_PROXY};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::SolEvent;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// So many blocks over a settlement, and it is taken for what it is: until then a reorganisation may put another one, for
/// more, in its place. What sellers wait for, too (`final_blocks` of a manifest, by default).
const FINAL_BLOCKS: u64 = 10;
/// With a budget used up each call would look: not more often than this.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// One look takes no longer.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// Transactions looked at in one go, the newest.
const TXS_MAX: usize = 200;
/// The buyer's clock may be behind the chain's by this when it signs.
const CLOCK_SECS: u64 = 300;

impl Ceiling {
    /// Of a payment by `upto`, and its nonce.
    pub fn of(signed: &Signed, network: &str, (day, host): (u64, String)) -> Option<(Hash, Self)> {
        if signed.scheme() != UPTO {
            return None;
        }
        let authorization = Authorization::of(signed, network)?;
        let ceiling = Self {
            network: network.to_owned(),
            token: authorization.token.into_array(),
            pay_to: authorization.pay_to.into_array(),
            amount: authorization.value,
            deadline: authorization.valid_before.saturating_sub(1),
            at: signed.at,
            day,
            host,
        };
        Some((authorization.nonce.0, ceiling))
    }
}

impl Buyer {
    /// Whether there is more room under the limits than before, now that the chain was asked; not asked again at once.
    pub(super) async fn room_by_charges(&self) -> bool {
        {
            let mut known = self.known();
            let is_just_done = known.charges_looked.is_some_and(|at| at.elapsed() < LOOK_PAUSE);
            if known.memory.ceilings.is_empty() || is_just_done {
                return false;
            }
            known.charges_looked = Some(Instant::now());
        }
        self.look_at_charges().await > 0
    }

    /// Asks the chain what payments by `upto` took, in at most five seconds; of how many it told. What was settled is
    /// believed under ten blocks, what was not a minute after its deadline. It happens by itself when a limit is reached.
    /// Without a chain nothing happens.
    pub async fn look_at_charges(&self) -> usize {
        let Some(chain) = self.chain.as_deref() else { return 0 };
        let counted: BTreeMap<Hash, Ceiling> = {
            let known = self.known();
            let ours = known.memory.ceilings.iter().filter(|(_, ceiling)| ceiling.network == self.policy.network);
            ours.map(|(nonce, ceiling)| (*nonce, ceiling.clone())).collect()
        };
        let pairs: BTreeSet<([u8; 20], [u8; 20])> = counted.values().map(|c| (c.token, c.pay_to)).collect();
        let mut told = Vec::new();
        let look = async {
            for pair in pairs {
                let some = counted.iter().filter(|(_, ceiling)| (ceiling.token, ceiling.pay_to) == pair);
                told.extend(self.charges(chain, pair, &some.collect()).await?);
            }
            Some(())
        };
        timeout(LOOK_WITHIN, look).await.ok();
        if !told.is_empty() {
            let now = self.day_now();
            self.change(|memory| {
                memory.turn_to(now);
                told.iter().for_each(|(nonce, charged)| memory.charge(nonce, *charged));
            });
        }
        told.len()
    }

    /// What the chain tells of these, all of one token to one payee. `None`: it does not answer, or not what it should.
    async fn charges(
        &self,
        chain: &str,
        (token, pay_to): ([u8; 20], [u8; 20]),
        counted: &BTreeMap<&Hash, &Ceiling>,
    ) -> Option<Vec<(Hash, Usdc)>> {
        let (token, pay_to, payer) = (Address::from(token), Address::from(pay_to), self.address());
        let block = self.rpc(chain, &[("eth_getBlockByNumber", json!(["latest", false]))]).await?;
        let quantity = |name: &str| block[0].get(name).and_then(Value::as_str).and_then(number);
        let (height, now) = (quantity("number")?, quantity("timestamp")?);
        let first = counted.values().map(|ceiling| ceiling.at).min()?.saturating_sub(CLOCK_SECS);
        let from = height.saturating_sub(now.saturating_sub(first) / BLOCK_SECS_MIN);
        let topics = [Transfer::SIGNATURE_HASH, payer.into_word(), pay_to.into_word()];
        let filter = json!([{
            "address": token, "fromBlock": format!("{from:#x}"),
            "toBlock": format!("{:#x}", height.saturating_sub(FINAL_BLOCKS)), "topics": topics,
        }]);
        let logs =
            if height < FINAL_BLOCKS { vec![json!([])] } else { self.rpc(chain, &[("eth_getLogs", filter)]).await? };
        // By transaction: what it moved.
        let mut moved: Vec<(B256, Usdc)> = Vec::new();
        for log in logs[0].as_array()? {
            let tx = log["transactionHash"].as_str().and_then(|text| text.parse().ok());
            let amount = log["data"].as_str().and_then(|text| text.parse::<U256>().ok());
            if let (Some(tx), Some(amount), true) = (tx, amount, has_topics(log, &topics)) {
                moved.push((tx, Usdc(amount.try_into().ok()?)));
            }
        }
        let newest = moved.split_off(moved.len().saturating_sub(TXS_MAX));
        let mut told = Vec::new();
        for some in newest.chunks(BATCH_MAX) {
            let calls: Vec<_> = some.iter().map(|(tx, _)| ("eth_getTransactionByHash", json!([tx]))).collect();
            let sent = self.rpc(chain, &calls).await?;
            for ((_, amount), tx) in some.iter().zip(&sent) {
                let to = tx["to"].as_str().and_then(|text| text.parse::<Address>().ok());
                let data = tx["input"].as_str().and_then(|text| text.parse::<Bytes>().ok());
                let settled = data.filter(|_| to == Some(UPTO_PROXY)).and_then(|data| upto_settled(&data));
                if let Some((owner, nonce, charged)) = settled
                    && (owner, charged) == (payer, *amount)
                    && counted.contains_key(&nonce)
                {
                    told.push((nonce, charged));
                }
            }
        }
        // Read after the block whose time this is: what is unspent past its deadline never will be.
        let over = counted.iter().filter(|(nonce, ceiling)| {
            now > ceiling.deadline.saturating_add(EXPIRED_SECS) && told.iter().all(|(known, _)| known != **nonce)
        });
        let over: Vec<Hash> = over.take(BATCH_MAX).map(|(nonce, _)| **nonce).collect();
        let questions: Vec<_> = over
            .iter()
            .map(|nonce| {
                let (to, data) = super::unknown::permit2_question(payer, nonce);
                ("eth_call", json!([{ "to": to, "data": Bytes::from(data) }, "latest"]))
            })
            .collect();
        if !questions.is_empty() {
            let answers = self.rpc(chain, &questions).await?;
            for (nonce, answer) in over.iter().zip(&answers) {
                let answer = answer.as_str().and_then(|text| text.parse::<Bytes>().ok());
                if answer.and_then(|bytes| super::unknown::is_permit2_spent(nonce, &bytes)) == Some(false) {
                    told.push((*nonce, Usdc::ZERO));
                }
            }
        }
        Some(told)
    }
}
