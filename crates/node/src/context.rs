//! What every part of a node shares: configuration, keys, clients. Nothing here changes after the start but the height of
//! the chain.

use crate::batches::Batches;
use crate::config::NodeConfig;
use crate::contract_payers;
use crate::keys::Keys;
use crate::main_loop::Event;
use crate::manifest::Manifest;
use crate::memory::RingFile;
use crate::permit2;
use crate::suppliers::Suppliers;
use chain::bindings::ITreasury::Birth;
use chain::{Chain, SenderHandle, TreasuryClient};
use pay::facilitator::remote::Remote;
use tokio::sync::{mpsc, watch};

/// The market's own clockwork, seconds.
#[derive(Clone, Copy, Debug)]
pub struct MarketTimers {
    pub ready_within: u32,
    pub grace: u32,
    pub drop_after: u32,
}

pub struct Context {
    pub config: NodeConfig,
    pub manifest: Manifest,
    pub birth: Birth,
    pub market_timers: MarketTimers,
    pub keys: Keys,
    pub ring_file: RingFile,
    /// What the chain has for payments by Permit2.
    pub permit2: permit2::Support,
    /// The endpoint that is asked and told.
    pub chain: Chain,
    /// It and the others that must say the same of each new block.
    pub chains: Vec<Chain>,
    pub treasury: TreasuryClient,
    /// Sends typed calls to the treasury, and nothing else.
    pub operator: SenderHandle,
    /// Sends settlements of strangers' payments.
    pub relay: SenderHandle,
    /// Sends by it, too, what can wait for company.
    pub batches: Batches,
    /// What of them was for contracts and has not gone through.
    pub contract_attempts: contract_payers::Attempts,
    /// Another's facilitator, where the manifest names one.
    pub facilitator: Option<Remote>,
    /// Other agents whose answers are sold here, and the purse that pays them.
    pub suppliers: Suppliers,
    pub store: store::client::StoreClient,
    pub http: net::Client,
    /// Chain seconds when this process started.
    pub born_at: u64,
    /// Height of the newest block that was looked at, for tasks that wait for the next one.
    pub head: watch::Sender<u64>,
    /// Everything that can wake the agent goes through here.
    pub events: mpsc::Sender<Event>,
}

impl Context {
    pub fn me(&self) -> alloy::primitives::Address {
        self.keys.node.address()
    }

    /// Tells the main loop. A closed channel means that the node is stopping, so nobody needs to hear.
    pub async fn tell(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}
