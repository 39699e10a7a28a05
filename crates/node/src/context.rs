//! What every part of a node shares: configuration, keys, clients. Nothing here changes after the start but the height of
//! the chain.

use crate::batches::Batches;
use crate::config::NodeConfig;
use crate::contract_payers;
use crate::instance::Instances;
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
    pub instances: Instances,
    /// How payers sign for the birth token.
    pub token: chain::Signing,
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
    /// The same, asked for deposits. Its health is told apart: one that knows no channels settles `exact` all the same.
    pub depositor: Option<Remote>,
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

/// Of a node for tests.
#[cfg(test)]
pub const TREASURY_OF_TESTS: alloy::primitives::Address = alloy::primitives::Address::repeat_byte(0x77);

/// What a node begins with, for tests: its chain is what answers at `rpc_url`, its birth names the channel contract,
/// its files lie in `dir`. With what its main loop would hear.
#[cfg(test)]
pub fn for_tests(rpc_url: &str, dir: &std::path::Path) -> (Context, mpsc::Receiver<Event>) {
    use crate::batches::Ether;
    use crate::outboxes::Outboxes;
    use alloy::primitives::Address;
    use pay::facilitator::batch::{BatchPolicy, TRANSFER_GAS};
    let chain_id = 31337;
    let treasury = TREASURY_OF_TESTS;
    let mut birth = Birth { token: Address::repeat_byte(0xa5), ..Birth::default() };
    birth.options.channels = pay::scheme::channel::BATCH_SETTLEMENT;
    birth.options.withdrawDelay = 900;
    let config = NodeConfig {
        rpc_urls: vec![rpc_url.to_owned()],
        chain_id,
        treasury,
        lease_market: Address::repeat_byte(0x3a),
        lease: 1,
        store_urls: vec!["http://127.0.0.1:1".to_owned()],
        listen: ([127, 0, 0, 1], 0).into(),
        public_url: "http://agent".to_owned(),
        data_dir: dir.to_owned(),
        code_dir: dir.to_owned(),
        seal_key_file: dir.join("seal"),
        threads: 1,
    };
    let chain = Chain::connect(rpc_url, chain_id).unwrap();
    let keys = Keys::load_or_make(dir, &[1; 32]).unwrap();
    let Outboxes { operator, relay } = Outboxes::open(std::slice::from_ref(&chain), &keys, dir, &[1; 32], true);
    let policy =
        BatchPolicy { gas: TRANSFER_GAS, fee_ppm_max: 0, sum_max: pay::Usdc::ZERO, wait_ms_max: 0, rows_max: 1 };
    let http = net::Client::new();
    let (events, heard) = mpsc::channel(64);
    let context = Context {
        manifest: Manifest::parse(&crate::manifest::tests::whole()).unwrap(),
        birth,
        market_timers: MarketTimers { ready_within: 600, grace: 600, drop_after: 600 },
        ring_file: RingFile::new(dir, [1; 32]),
        instances: Instances::begin(dir, &[1; 32]).unwrap(),
        token: chain::Signing {
            name: "USD Coin".to_owned(),
            version: "2".to_owned(),
            has_eip3009: true,
            has_permit: false,
        },
        permit2: permit2::Support::default(),
        chains: vec![chain.clone()],
        treasury: chain.treasury(treasury),
        operator,
        batches: Batches::start(chain.clone(), relay.clone(), Ether::Said(pay::Usdc(1)), policy),
        relay,
        contract_attempts: contract_payers::Attempts::default(),
        facilitator: None,
        depositor: None,
        suppliers: Suppliers::none(),
        store: store::client::StoreClient::new(http.clone(), config.store_urls.clone()),
        http,
        born_at: 0,
        head: watch::Sender::new(0),
        events,
        config,
        keys,
        chain,
    };
    (context, heard)
}
