//! The built-in crowd: customers who pay for real prompts and think in between.
//!
//! Each is a client like any other: it finds the agent by the on-chain record, checks who gets the money, pays by
//! x402 and follows the agent when it moves. Nothing of the world is told to the agent. Every second one pays by
//! channel where the agent offers it, the others by `exact`, so that both ways are always in use.

use super::record::Record;
use crate::world::files::{WorldFile, customer_record};
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result};
use economy::Usdc;
use pay::buyer::{Buyer, BuyerPolicy, ChannelPolicy, Clock, Schemes};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

const PROMPTS: &str = include_str!("prompts.txt");
/// A real day's customer asks every ten minutes; in a fast world that is scaled down to this at least.
const THINK: Duration = Duration::from_secs(600);
const THINK_MIN: Duration = Duration::from_millis(1_500);
/// After a failure: the agent may just be moving.
const AFTER_TROUBLE: Duration = Duration::from_secs(2);
const ANSWER_TOKENS_MAX: u32 = 32;
/// A customer's purse for life; test money.
const PURSE: Usdc = Usdc(1_000_000_000_000);
/// Calls that a deposit is for: the fewer, the more deposits; the more, the more money lies there. The official
/// JavaScript client's default is 5.
const DEPOSIT_CALLS: u32 = 5;

/// Chain time for signing, kept current by [`chain_clock`].
#[derive(Clone, Debug, Default)]
pub struct ChainClock(Arc<AtomicU64>);

impl ChainClock {
    pub fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    pub fn reader(&self) -> Clock {
        let now = Arc::clone(&self.0);
        Arc::new(move || now.load(Ordering::Relaxed))
    }
}

/// What a customer allows: this agent's treasury, this token, this chain.
pub fn policy(chain_id: u64, usdc: Address, treasury: Address, max_per_call: Usdc, max_total: Usdc) -> BuyerPolicy {
    BuyerPolicy { network: format!("eip155:{chain_id}"), asset: usdc, pay_to: treasury, max_per_call, max_total }
}

/// How customers of a world use channels. `deposit_max`: what may lie unspent in one.
pub fn channels(deposit_max: Usdc, slots: u8, lane: u8) -> ChannelPolicy {
    ChannelPolicy {
        deposit: Usdc::ZERO,
        deposit_calls: DEPOSIT_CALLS,
        deposit_max,
        // Longer than any mandate's margin for a seller that is gone; more is refused by the protocol itself.
        withdraw_delay_secs_max: 30 * 86_400,
        slots,
        lane,
    }
}

/// Running sums of a crowd. Shared by its customers.
#[derive(Debug, Default)]
pub struct Sums {
    answers: AtomicU64,
    failures: AtomicU64,
    spent_uusdc: AtomicU64,
}

/// A crowd's tasks; dropping it sends everybody home.
pub struct Crowd {
    customers: JoinSet<()>,
    sums: Arc<Sums>,
}

impl Crowd {
    /// `keys` are funded accounts, one for each customer; what each signs is on record in the world's folder `dir`.
    pub fn start(
        (world, dir): (&WorldFile, &Path),
        model: &str,
        day_secs: u32,
        keys: Vec<PrivateKeySigner>,
    ) -> Result<Self> {
        let sums = Arc::new(Sums::default());
        let mut customers = JoinSet::new();
        for (index, key) in keys.into_iter().enumerate() {
            let record = Record::new(&world.rpc_url, world.chain_id, world.treasury, world.lease_market)?;
            let clock = ChainClock::default();
            // The agent's own price cap protects nobody here: the purse is test money.
            let policy = policy(world.chain_id, world.usdc, world.treasury, PURSE, PURSE);
            let file = customer_record(dir, "crowd", key.address())?;
            let schemes =
                if index % 2 == 0 { Schemes::ChannelElseExact(channels(PURSE, 1, 0)) } else { Schemes::Exact };
            let buyer = Buyer::new(net::Client::new(), key, policy)
                .with_clock(clock.reader())
                .with_schemes(schemes)
                .with_chain(record.chain.url())
                .with_record(&file)?;
            let customer = Customer {
                record,
                clock,
                buyer,
                model: model.to_owned(),
                think: think(day_secs),
                sums: Arc::clone(&sums),
            };
            customers.spawn(customer.live(index));
        }
        Ok(Self { customers, sums })
    }

    /// `crowd of 2: 12 answers for 3.400000 USDC, 1 failed`.
    pub fn sums(&self) -> String {
        let read = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        format!(
            "crowd of {}: {} answers for {}, {} failed",
            self.customers.len(),
            read(&self.sums.answers),
            Usdc(u128::from(read(&self.sums.spent_uusdc))),
            read(&self.sums.failures)
        )
    }

    /// Sends everybody home and waits until they are gone: then their records are free.
    pub async fn stop(mut self) {
        self.customers.shutdown().await;
    }

    pub fn answers(&self) -> u64 {
        self.sums.answers.load(Ordering::Relaxed)
    }
}

fn think(day_secs: u32) -> Duration {
    (THINK * day_secs / economy::DAY_SECS).max(THINK_MIN)
}

struct Customer {
    record: Record,
    clock: ChainClock,
    buyer: Buyer,
    model: String,
    think: Duration,
    sums: Arc<Sums>,
}

impl Customer {
    async fn live(self, index: usize) {
        let prompts: Vec<&str> = PROMPTS.lines().filter(|line| !line.is_empty()).collect();
        // Each begins elsewhere, so that two never ask the same at the same time.
        let mut turn = index * 7;
        loop {
            match self.ask(prompts[turn % prompts.len()]).await {
                Ok(spent) => {
                    self.sums.answers.fetch_add(1, Ordering::Relaxed);
                    self.sums.spent_uusdc.fetch_add(u64::try_from(spent.micro()).unwrap_or(0), Ordering::Relaxed);
                    sleep(self.think).await;
                    turn += 1;
                }
                Err(e) => {
                    // The same prompt again: a payment whose outcome is unknown is resolved by the same call.
                    self.sums.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(customer = index, error = format!("{e:#}"), "no answer");
                    sleep(AFTER_TROUBLE).await;
                }
            }
        }
    }

    async fn ask(&self, prompt: &str) -> Result<Usdc> {
        let url = self.record.url().await?;
        self.clock.set(self.record.chain.head().await?.timestamp);
        let body = json!({
            "model": self.model,
            "messages": [{ "role": "user", "content": prompt }],
            "max_tokens": ANSWER_TOKENS_MAX,
        });
        let paid = self.buyer.post_json(&format!("{url}/v1/chat/completions"), &body).await?;
        if !paid.status.is_success() {
            let text = String::from_utf8_lossy(&paid.body);
            anyhow::bail!("answered {}: {}", paid.status, text.chars().take(200).collect::<String>());
        }
        let answer: serde_json::Value = serde_json::from_slice(&paid.body).context("the answer is not JSON")?;
        answer["choices"][0]["message"]["content"].as_str().context("the answer has no text")?;
        Ok(paid.spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_many_short_and_different() {
        let prompts: Vec<&str> = PROMPTS.lines().collect();
        let distinct: std::collections::BTreeSet<&&str> = prompts.iter().collect();
        assert!(prompts.len() >= 40 && distinct.len() == prompts.len());
        assert!(prompts.iter().all(|p| (10..120).contains(&p.len())));
    }

    #[test]
    fn thinking_scales_with_the_day_down_to_a_floor() {
        assert_eq!(think(86_400), THINK);
        assert_eq!(think(43_200), THINK / 2);
        assert_eq!(think(20), THINK_MIN);
    }
}
