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
/// Of a plain transfer. A tenant may name a contract as its node key: what that would do with the gift is not paid for.
const GIFT_GAS: u64 = 21_000;

/// What to send, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Gas for a node key, unless it has half of that already.
    Gift {
        lease: LeaseId,
        to: Address,
        wei: u128,
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

/// What became of an errand. Whatever is not done is decided about anew at the next block.
#[derive(Debug)]
pub enum Outcome {
    Done {
        errand: Errand,
    },
    /// Nothing has left, and nothing will.
    NotSent {
        errand: Errand,
        error: Error,
    },
    /// Refused by a contract, or it is not known what became of it.
    Failed {
        errand: Errand,
        error: Error,
    },
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
                let has = match chain.eth_balance(*to, BlockId::latest()).await {
                    Ok(has) => has,
                    Err(e) => {
                        // Not taken for none: it is asked again later, and until then nothing is given.
                        let error = Error::retry(format!("the balance of node key {to} cannot be read")).caused_by(e);
                        let _ = answers.send(Outcome::NotSent { errand, error });
                        continue;
                    }
                };
                if has >= U256::from(wei / 2) {
                    let _ = answers.send(Outcome::Done { errand });
                    continue;
                }
                Tx::transfer(*to, *wei, "gift of gas").with_gas(GIFT_GAS)
            }
            Errand::Ready { call, .. } => tx(call.clone(), "ready"),
            Errand::Call { what, call, .. } => tx(call.clone(), what),
        };
        let label = tx.label;
        // Submitting fixes the order of nonces; only the outcome is waited for elsewhere.
        let settled = handle.submit(tx);
        let answers = answers.clone();
        tokio::spawn(async move {
            let _ = answers.send(outcome(errand, label, settled.await));
        });
    }
}

fn outcome(errand: Errand, label: &'static str, sent: chain::Outcome) -> Outcome {
    let left = !matches!(sent, chain::Outcome::NeverSent { .. });
    match sent.into_result(label) {
        Ok(_) => Outcome::Done { errand },
        Err(e) => {
            let error = Error::retry(format!("{label} was not accepted")).caused_by(e);
            if left { Outcome::Failed { errand, error } } else { Outcome::NotSent { errand, error } }
        }
    }
}

fn tx(call: Call, label: &'static str) -> Tx {
    Tx::call(call.to, call.data, label)
}
