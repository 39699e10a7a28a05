//! A chain with the contracts on it, and the people of a small world.

use chain::{
    Addresses, Chain, Sender, SenderHandle, TreasuryClient, Tx,
    alloy::{
        primitives::{Address, B256, U256},
        signers::local::PrivateKeySigner,
    },
    anvil::{Anvil, AnvilOptions},
    bindings::{Birth, Offer, Options, Policy, Timers},
    deploy::{MarketParams, deploy, fund_eth},
    market, treasury, usdc,
};
use std::path::PathBuf;

/// The chain's tool, installed by `npm ci` in `contracts/`.
pub fn anvil_bin() -> PathBuf {
    if let Some(path) = std::env::var_os("VIVARIUM_ANVIL") {
        return path.into();
    }
    let bin = "../../contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(bin);
    assert!(path.exists(), "no anvil at {}: run `npm ci` in contracts/ or set VIVARIUM_ANVIL", path.display());
    path
}

pub const ETHER: u128 = 1_000_000_000_000_000_000;
pub const SEED: u128 = 20_000_000;
/// Micro-USDC x 1e-6 per second.
pub const PRICE_E6: u64 = 5_000_000_000;

pub fn key(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).expect("in range")
}

pub struct World {
    /// Kept so that the chain lives as long as the test.
    _anvil: Anvil,
    pub chain: Chain,
    pub addresses: Addresses,
    pub creator: SenderHandle,
    pub creator_key: PrivateKeySigner,
}

impl World {
    /// Each transaction is mined at once.
    pub async fn instant() -> Self {
        Self::start(None).await
    }

    /// One block a second, as in development worlds.
    pub async fn ticking() -> Self {
        Self::start(Some(1)).await
    }

    async fn start(block_time: Option<u64>) -> Self {
        let anvil = Anvil::spawn(&AnvilOptions { block_time, ..AnvilOptions::new(anvil_bin()) }).await.expect("anvil");
        let chain = anvil.chain();
        let creator_key = key(1);
        fund_eth(&chain, creator_key.address(), 100 * ETHER).await.expect("a development chain");
        let market = MarketParams { stake_min: 10_000_000, ready_within: 45, grace: 34, drop_after: 40 };
        let addresses = deploy(&chain, &creator_key, market).await.expect("deploys");
        let creator = Sender::spawn(chain.clone(), creator_key.clone(), 1);
        Self { _anvil: anvil, chain, addresses, creator, creator_key }
    }

    /// A funded account with a sender.
    pub async fn account(&self, n: u8) -> SenderHandle {
        fund_eth(&self.chain, key(n).address(), ETHER).await.expect("a development chain");
        Sender::spawn(self.chain.clone(), key(n), 1)
    }

    pub async fn mint(&self, to: Address, amount: u128) {
        let tx = Tx::call(self.addresses.usdc, usdc::calls::mint(to, amount), "mint");
        self.creator.send_and_wait(tx).await.expect("mints");
    }

    /// A staked provider with one offer; its id.
    pub async fn provider(&self, provider: &SenderHandle) -> u64 {
        self.mint(provider.address(), 10_000_000).await;
        let Addresses { usdc, market: at, .. } = self.addresses;
        let offer = Offer {
            provider: Address::ZERO,
            priceE6: PRICE_E6,
            capacity: 4,
            used: 0,
            minTerm: 30,
            maxTerm: 600,
            memoryMiB: 512,
            milliCpu: 1_000,
            usePolicy: B256::ZERO,
            endpoint: "http://127.0.0.1:1".into(),
            abuseContact: "abuse@example.org".into(),
        };
        let calls = [
            Tx::call(usdc, usdc::calls::approve(at, 10_000_000), "approve"),
            Tx::call(at, market::calls::register(10_000_000), "register"),
            Tx::call(at, market::calls::post_offer(&offer), "postOffer"),
        ];
        for call in calls {
            provider.send_and_wait(call).await.expect("a provider");
        }
        u64::try_from(self.chain.market(at).offers().await.expect("offers").len()).expect("few")
    }

    pub fn stewards() -> Vec<PrivateKeySigner> {
        let mut keys: Vec<_> = (11..=13).map(key).collect();
        keys.sort_by_key(PrivateKeySigner::address);
        keys
    }

    pub async fn birth_terms(&self) -> Birth {
        let now = self.chain.head().await.expect("head").timestamp;
        Birth {
            creator: self.creator_key.address(),
            token: self.addresses.usdc,
            market: self.addresses.market,
            beneficiary: key(20).address(),
            stewards: Self::stewards().iter().map(PrivateKeySigner::address).collect(),
            threshold: 2,
            codeHash: B256::repeat_byte(0xc0),
            manifest: B256::repeat_byte(0x3a),
            mandateUntil: now + 10_000,
            policy: Policy {
                dayLimit: 50_000_000,
                priceE6Max: 2 * PRICE_E6,
                termMax: 600,
                prepayMax: 40,
                gasDayMax: ETHER,
                gasTarget: ETHER / 10,
                starveFloor: 1_000,
            },
            timers: Timers {
                day: 20,
                heartbeatEvery: 3,
                fence: 8,
                answerTime: 12,
                handoverNotice: 3,
                restoreTimeout: 20,
                silence: 26,
                starveTimeout: 15,
                activateWithin: 90,
                refundWindow: 6,
            },
            options: Default::default(),
        }
    }

    /// An agent whose node key is `node`, hosted by `provider`; its treasury and the first lease.
    pub async fn give_birth(&self, provider: &SenderHandle, node: Address) -> (TreasuryClient, u64) {
        self.give_birth_with(provider, node, Default::default()).await
    }

    /// The same with these options.
    pub async fn give_birth_with(
        &self,
        provider: &SenderHandle,
        node: Address,
        options: Options,
    ) -> (TreasuryClient, u64) {
        let offer = self.provider(provider).await;
        let birth = Birth { options, ..self.birth_terms().await };
        let address = treasury::predict(&self.chain, &self.addresses, &birth).await.expect("predicts");
        self.mint(address, SEED).await;
        let create = Tx::call(self.addresses.factory, treasury::calls::create(&birth), "create").with_value(ETHER);
        self.creator.send_and_wait(create).await.expect("creates");
        let treasury = self.chain.treasury(address);
        treasury.verify().await.expect("is a treasury");

        let rent = treasury::calls::birth_rent(offer, 300, 200_000);
        self.creator.send_and_wait(Tx::call(address, rent, "birthRent")).await.expect("rents");
        let lease = self.chain.market(self.addresses.market).lease_count().await.expect("count");
        let ready = market::calls::ready(lease, node, "http://127.0.0.1:2", B256::ZERO);
        provider.send_and_wait(Tx::call(self.addresses.market, ready, "ready")).await.expect("ready");
        let activate = Tx::call(address, treasury::calls::activate(lease), "activate");
        self.creator.send_and_wait(activate).await.expect("activates");
        (treasury, lease)
    }

    /// Stops or resumes mining; 0 stops.
    pub async fn set_block_time(&self, seconds: u64) {
        let _: Option<bool> = self.chain.request("evm_setIntervalMining", (seconds,)).await.expect("anvil");
    }

    pub async fn mine(&self, blocks: u64) {
        let _: Option<bool> = self.chain.request("anvil_mine", (U256::from(blocks),)).await.expect("anvil");
    }

    /// Replaces the newest `depth` blocks by empty ones; their transactions are lost.
    pub async fn reorg(&self, depth: u64) {
        let pairs: [(); 0] = [];
        let _: Option<bool> = self.chain.request("anvil_reorg", (depth, pairs)).await.expect("anvil");
    }

    /// Hashes of what waits in the node's pool for `from`, by nonce.
    pub async fn pool(&self, from: Address) -> Vec<B256> {
        #[derive(serde::Deserialize)]
        struct Content {
            pending: std::collections::BTreeMap<Address, std::collections::BTreeMap<String, Entry>>,
        }
        #[derive(serde::Deserialize)]
        struct Entry {
            hash: B256,
        }
        let content: serde_json::Value = self.chain.request("txpool_content", ()).await.expect("anvil");
        let content: Content = serde_json::from_value(content).expect("a pool");
        content.pending.get(&from).map(|txs| txs.values().map(|tx| tx.hash).collect()).unwrap_or_default()
    }

    /// Waits until the pool holds `count` transactions of `from`.
    pub async fn pool_of(&self, from: Address, count: usize) -> Vec<B256> {
        loop {
            let pool = self.pool(from).await;
            if pool.len() == count {
                return pool;
            }
            tokio::task::yield_now().await;
        }
    }

    pub async fn usdc_of(&self, account: Address) -> u128 {
        let balance = self.chain.usdc(self.addresses.usdc).balance(account).await.expect("balance");
        balance.try_into().expect("small")
    }

    pub fn mint_tx(&self, to: Address, amount: u128) -> Tx {
        Tx::call(self.addresses.usdc, usdc::calls::mint(to, amount), "mint")
    }
}

pub fn bytes32(n: u8) -> B256 {
    B256::repeat_byte(n)
}
