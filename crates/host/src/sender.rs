//! The provider's transactions: queued in order, sent by one key, answered one by one.

use crate::config::HostConfig;
use crate::error::{Error, Result};
use crate::lease_loop::LeaseId;
use crate::market::Call;
use alloy::eips::BlockId;
use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use chain::Chain;
use chain::sender::{SenderHandle, Tx};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Blocks that must hold a transaction until it counts. What a reorg takes back the lease loop sees missing on
/// the chain, and asks for again.
const CONFIRMATIONS: u64 = 1;

/// What to send, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Dust for a node key, unless it has half of that already: after a restart it is asked for again.
    Gift {
        lease: LeaseId,
        to: Address,
        wei: U256,
    },
    Ready {
        lease: LeaseId,
        call: Call,
    },
    /// `income_uusdc`: what it brings if it is mined.
    Call {
        what: &'static str,
        call: Call,
        income_uusdc: u128,
    },
}

/// What became of an errand. Whatever failed is decided about anew at the next block.
#[derive(Debug)]
pub enum Outcome {
    Done { errand: Errand },
    Failed { errand: Errand, error: Error },
}

/// The provider's key at work.
pub struct Sender {
    handle: SenderHandle,
    errands: UnboundedSender<Errand>,
    outcomes: UnboundedReceiver<Outcome>,
}

impl Sender {
    pub async fn start(config: &HostConfig, key: PrivateKeySigner) -> Result<Self> {
        let chain = reachable(config).await?;
        let handle = chain::sender::Sender::spawn(chain.clone(), key, CONFIRMATIONS);
        let (errands, queue) = unbounded_channel();
        let (answers, outcomes) = unbounded_channel();
        tokio::spawn(work(chain, handle.clone(), queue, answers));
        Ok(Self { handle, errands, outcomes })
    }

    /// Queues an errand; errands leave in the order in which they are pushed.
    pub fn push(&self, errand: Errand) {
        // The worker ends only with this handle.
        let _ = self.errands.send(errand);
    }

    /// The next outcome. Cancelling loses nothing.
    pub async fn outcome(&mut self) -> Outcome {
        match self.outcomes.recv().await {
            Some(outcome) => outcome,
            // Only while the runtime shuts down.
            None => std::future::pending().await,
        }
    }

    /// For the start: one call, and the error of whatever became of it.
    pub async fn send_and_wait(&self, call: Call) -> Result<()> {
        let sent = self.handle.send_and_wait(tx(call, "setup")).await;
        sent.map(drop).map_err(|e| Error::setup(e.to_string()).caused_by(e))
    }
}

/// The first endpoint that serves the right chain; an error that names them all when none does.
async fn reachable(config: &HostConfig) -> Result<Chain> {
    let mut last = None;
    for url in &config.rpc_urls {
        let chain = Chain::connect(url, config.chain_id).map_err(|e| Error::setup(e.to_string()).caused_by(e))?;
        match chain.verify_chain().await {
            Ok(()) => return Ok(chain),
            Err(e) => last = Some(e),
        }
    }
    let urls = config.rpc_urls.join(", ");
    let error = Error::setup(format!("no chain {} at {urls}: is it running?", config.chain_id));
    Err(last.map_or_else(|| Error::setup("rpc_urls is empty"), |e| error.caused_by(e)))
}

async fn work(
    chain: Chain,
    handle: SenderHandle,
    mut queue: UnboundedReceiver<Errand>,
    answers: UnboundedSender<Outcome>,
) {
    while let Some(errand) = queue.recv().await {
        let tx = match &errand {
            Errand::Gift { to, wei, .. } => {
                // A balance that cannot be read is taken for none: dust twice is better than a mute node.
                let has = chain.eth_balance(*to, BlockId::latest()).await.unwrap_or_default();
                if has >= *wei / U256::from(2) {
                    let _ = answers.send(Outcome::Done { errand });
                    continue;
                }
                tx(Call::gift(*to, *wei), "gift of gas")
            }
            Errand::Ready { call, .. } => tx(call.clone(), "ready"),
            Errand::Call { what, call, .. } => tx(call.clone(), what),
        };
        let label = tx.label;
        // Submitting fixes the order of nonces; only the outcome is waited for elsewhere.
        let settled = handle.submit(tx);
        let answers = answers.clone();
        tokio::spawn(async move {
            let outcome = match settled.await.into_result(label) {
                Ok(_) => Outcome::Done { errand },
                Err(e) => {
                    Outcome::Failed { errand, error: Error::retry(format!("{label} was not accepted")).caused_by(e) }
                }
            };
            let _ = answers.send(outcome);
        });
    }
}

fn tx(call: Call, label: &'static str) -> Tx {
    // A gift is far below 2^128 wei; anything larger would be refused by the chain anyway.
    let value = u128::try_from(call.value_wei).unwrap_or(u128::MAX);
    Tx::call(call.to, call.data, label).with_value(value)
}
