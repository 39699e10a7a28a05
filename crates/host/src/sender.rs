//! The provider's transactions: queued in order, sent by one key, answered one by one.
//!
//! They go through one endpoint at a time. When it does not answer, the next one that does goes on with the same outbox: the
//! driver before has ended by then, what it may have sent has its nonce in the state that it left and is sent again to the
//! bit, and each errand keeps its id. So nothing gets a second nonce, and nothing is sent twice.

use crate::config::HostConfig;
use crate::error::{Error, Kind, Result};
use crate::lease_loop::LeaseId;
use crate::market::Call;
use alloy::eips::BlockId;
use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use chain::Chain;
use chain::outbox::Id;
use chain::sender::{Options, SenderHandle, Tx};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Blocks that must hold a transaction until it counts. What a reorg takes back the lease loop sees missing on
/// the chain, and asks for again.
const CONFIRMATIONS: u64 = 1;
/// Of a plain transfer. A tenant may name a contract as its node key: what that would do with the gift is not paid for.
const GIFT_GAS: u64 = 21_000;
/// Pause between looks whether the endpoint answers, while something is under way.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row without an answer after which another endpoint is asked: 3 s if it refuses, 15 s if it hangs. A guess.
const SILENT_LOOKS: u32 = 3;

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
    /// `of` is the lease or the offer. `income_uusdc`: what it brings if it is mined.
    Call {
        what: &'static str,
        of: u64,
        call: Call,
        income_uusdc: u128,
    },
}

impl Errand {
    /// What it is, and of which lease or offer: one of a name is under way at a time.
    fn name(&self) -> (&'static str, u64) {
        match self {
            Self::Gift { lease, .. } => ("gift of gas", *lease),
            Self::Ready { lease, .. } => ("ready", *lease),
            Self::Call { what, of, .. } => (what, *of),
        }
    }

    fn tx(&self) -> Tx {
        let (label, _) = self.name();
        match self {
            Self::Gift { to, wei, .. } => Tx::transfer(*to, *wei, label).with_gas(GIFT_GAS),
            Self::Ready { call, .. } | Self::Call { call, .. } => Tx::call(call.to, call.data.clone(), label),
        }
    }

    fn ended(self, sent: chain::Outcome) -> Outcome {
        let (label, _) = self.name();
        let has_left = !matches!(sent, chain::Outcome::NeverSent { .. });
        match sent.into_result(label) {
            Ok(_) => Outcome::Done { errand: self },
            Err(e) => {
                let error = Error::retry(format!("{label} was not accepted")).caused_by(e);
                if has_left {
                    Outcome::Failed { errand: self, error }
                } else {
                    Outcome::NotSent { errand: self, error }
                }
            }
        }
    }
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

impl Outcome {
    fn errand(&self) -> &Errand {
        match self {
            Self::Done { errand } | Self::NotSent { errand, .. } | Self::Failed { errand, .. } => errand,
        }
    }
}

/// The provider's key at work.
pub struct Sender {
    errands: mpsc::UnboundedSender<Errand>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    under_way: BTreeSet<(&'static str, u64)>,
}

impl Sender {
    /// Fails when no endpoint serves the right chain. After that an endpoint that is gone is waited for.
    pub async fn start(config: &HostConfig, key: PrivateKeySigner) -> Result<Self> {
        let connect =
            |url: &String| Chain::connect(url, config.chain_id).map_err(|e| Error::setup(e.to_string()).caused_by(e));
        let chains: Vec<_> = config.rpc_urls.iter().map(connect).collect::<Result<_>>()?;
        let at = first_reachable(&chains, config).await?;
        let (errands, queue) = mpsc::unbounded_channel();
        let (answers, outcomes) = mpsc::unbounded_channel();
        let worker = Worker { chains, at, key, under_way: BTreeMap::new(), last: 0, answers };
        tokio::spawn(worker.run(queue));
        Ok(Self { errands, outcomes, under_way: BTreeSet::new() })
    }

    /// Queues an errand, but for one that is under way already: its outcome says whether it is to be asked for again. Errands
    /// leave in the order in which they are pushed.
    pub fn push(&mut self, errand: Errand) {
        if self.under_way.insert(errand.name()) {
            // The worker ends only with this handle.
            let _ = self.errands.send(errand);
        }
    }

    /// The next outcome. Cancelling loses nothing.
    pub async fn outcome(&mut self) -> Outcome {
        let Some(outcome) = self.outcomes.recv().await else {
            // Only while the runtime shuts down.
            return std::future::pending().await;
        };
        self.under_way.remove(&outcome.errand().name());
        outcome
    }

    /// For the start, when nothing else is under way: one call, and the error of whatever became of it.
    pub async fn send_and_wait(&mut self, call: Call) -> Result<()> {
        self.push(Errand::Call { what: "setup", of: 0, call, income_uusdc: 0 });
        match self.outcome().await {
            Outcome::Done { .. } => Ok(()),
            Outcome::NotSent { mut error, .. } | Outcome::Failed { mut error, .. } => {
                error.kind = Kind::Setup;
                Err(error)
            }
        }
    }
}

/// The first endpoint that serves the right chain; an error that names them all when none does.
async fn first_reachable(chains: &[Chain], config: &HostConfig) -> Result<usize> {
    let mut last = None;
    for (index, chain) in chains.iter().enumerate() {
        match chain.verify_chain().await {
            Ok(()) => return Ok(index),
            Err(e) => last = Some(e),
        }
    }
    let urls = config.rpc_urls.join(", ");
    let error = Error::setup(format!("no chain {} at {urls}: is it running?", config.chain_id));
    Err(last.map_or_else(|| Error::setup("rpc_urls is empty"), |e| error.caused_by(e)))
}

/// One outbox at one endpoint.
struct Line {
    handle: SenderHandle,
    /// The outbox's state, written before anything leaves. Its other end goes with the driver.
    state: watch::Receiver<Option<Vec<u8>>>,
}

impl Line {
    fn open(chain: Chain, key: PrivateKeySigner, state: Option<Vec<u8>>) -> Self {
        let (keep, kept) = watch::channel(state.clone());
        let persist = Box::new(move |bytes: &[u8]| drop(keep.send_replace(Some(bytes.to_vec()))));
        let options = Options { state, persist: Some(persist), ..Options::new(CONFIRMATIONS) };
        let handle = chain::sender::Sender::spawn_with(chain, key, options);
        Self { handle: handle.expect("an outbox reads what it wrote for the same key"), state: kept }
    }

    /// Ends the driver and returns what it left: two of them with one key would get in each other's way.
    async fn close(self) -> Option<Vec<u8>> {
        let Self { handle, mut state } = self;
        drop(handle);
        while state.changed().await.is_ok() {}
        let left = state.borrow();
        left.clone()
    }
}

struct Worker {
    chains: Vec<Chain>,
    /// Which of them is used.
    at: usize,
    key: PrivateKeySigner,
    /// By the number under which the outbox knows them.
    under_way: BTreeMap<u64, Errand>,
    /// The last number given.
    last: u64,
    answers: mpsc::UnboundedSender<Outcome>,
}

/// Transactions whose outcome is waited for, by their numbers.
type Waits = JoinSet<(u64, chain::Outcome)>;

impl Worker {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Errand>) {
        let mut line = Line::open(self.chains[self.at].clone(), self.key.clone(), None);
        while let Some(next) = self.serve(&line.handle, &mut queue).await {
            let state = line.close().await;
            tracing::warn!(
                from = self.chains[self.at].url(),
                to = self.chains[next].url(),
                under_way = self.under_way.len(),
                "the chain endpoint does not answer: sending through another"
            );
            self.at = next;
            line = Line::open(self.chains[next].clone(), self.key.clone(), state);
        }
    }

    /// Sends what is under way and what comes. Returns the endpoint to go over to, or None when nobody pushes any more.
    async fn serve(&mut self, handle: &SenderHandle, queue: &mut mpsc::UnboundedReceiver<Errand>) -> Option<usize> {
        let mut waits = Waits::new();
        for (number, errand) in &self.under_way {
            submit(handle, *number, errand, &mut waits);
        }
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        loop {
            tokio::select! {
                errand = queue.recv() => {
                    let errand = errand?;
                    if self.is_needed(&errand).await {
                        self.last += 1;
                        submit(handle, self.last, &errand, &mut waits);
                        self.under_way.insert(self.last, errand);
                    }
                }
                Some(Ok((number, sent))) = waits.join_next() => {
                    if let Some(errand) = self.under_way.remove(&number) {
                        self.answer(errand.ended(sent));
                    }
                }
                _ = looks.tick(), if !self.under_way.is_empty() => {
                    silent = if self.chains[self.at].head().await.is_ok() { 0 } else { silent + 1 };
                    if silent >= SILENT_LOOKS && let Some(next) = self.another().await {
                        return Some(next);
                    }
                }
            }
        }
    }

    /// False for a gift to a key that has enough, and for one to a key whose balance no endpoint tells; these are answered.
    async fn is_needed(&self, errand: &Errand) -> bool {
        let Errand::Gift { to, wei, .. } = errand else { return true };
        let errand = errand.clone();
        match self.balance(*to).await {
            Ok(has) if has < U256::from(wei / 2) => return true,
            Ok(_) => self.answer(Outcome::Done { errand }),
            Err(e) => {
                // Not taken for none: it is asked again later, and until then nothing is given.
                let error = Error::retry(format!("the balance of node key {to} cannot be read")).caused_by(e);
                self.answer(Outcome::NotSent { errand, error });
            }
        }
        false
    }

    /// As the endpoint says that is used, or another one if it does not answer.
    async fn balance(&self, of: Address) -> std::result::Result<U256, chain::Error> {
        match self.chains[self.at].eth_balance(of, BlockId::latest()).await {
            Err(e) => match self.another().await {
                Some(next) => self.chains[next].eth_balance(of, BlockId::latest()).await,
                None => Err(e),
            },
            has => has,
        }
    }

    /// The next endpoint after the one that is used, in the order of the configuration and round, that answers and serves
    /// this chain.
    async fn another(&self) -> Option<usize> {
        let count = self.chains.len();
        for next in (1..count).map(|step| (self.at + step) % count) {
            if self.chains[next].verify_chain().await.is_ok() {
                return Some(next);
            }
        }
        None
    }

    fn answer(&self, outcome: Outcome) {
        // Nobody hears it when the daemon has ended.
        let _ = self.answers.send(outcome);
    }
}

/// Submitting fixes the order of nonces; only the outcome is waited for elsewhere.
fn submit(handle: &SenderHandle, number: u64, errand: &Errand, waits: &mut Waits) {
    let settled = handle.submit_as(Id::from(number), errand.tx());
    waits.spawn(async move { (number, settled.await) });
}
