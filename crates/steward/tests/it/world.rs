//! A chain, a store, an agent without a process, and three steward daemons.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chain::alloy::primitives::{Address, B256, Bytes, U256};
use chain::alloy::signers::local::PrivateKeySigner;
use chain::anvil::{Anvil, AnvilOptions};
use chain::bindings::{Addresses, Birth, Offer, Options, Policy, Timers};
use chain::deploy::{MarketParams, deploy, fund_eth};
use chain::orders::{Order, domain, rescue_argument, sign};
use chain::sender::{Sender, SenderHandle, Tx};
use chain::treasury::calls;
use chain::{Chain, market, treasury, usdc};
use serde::Serialize;
use serde_json::Value;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use steward::StewardConfig;
use steward::config::Peer;
use steward::desk::OrderRequest;
use store::checkpoint::{Checkpoint, SegmentHeader, Share, ShareRequest, VERSION};
use store::cid::Cid;
use store::seal::{self, Identity};
use store::{Blocks, StoreClient};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const ETHER: u128 = 1_000_000_000_000_000_000;
const STAKE: u128 = 10_000_000;
pub const TERMS: MarketParams = MarketParams { stake_min: STAKE, ready_within: 45, grace: 34, drop_after: 4000 };
const SNAPSHOT: &[u8] = b"a sealed snapshot";
/// Keys by number.
const CREATOR: u8 = 1;
const PROVIDERS: [u8; 2] = [2, 3];
const STEWARDS: [u8; 3] = [11, 12, 13];

pub fn key(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
}

fn anvil_bin() -> PathBuf {
    let bin = "../../contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil";
    let path = std::env::var_os("VIVARIUM_ANVIL").map(PathBuf::from);
    let path = path.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(bin));
    assert!(path.exists(), "no anvil at {}: run `npm ci` in contracts/ or set VIVARIUM_ANVIL", path.display());
    path
}

/// An endpoint that passes everything on, and while `lies` is set gives every block another hash.
async fn liar(honest: String, lies: Arc<AtomicBool>) -> String {
    let answer = move |request: axum::Json<Value>| async move {
        let answer = net::Client::new().post_json(&honest, &request.0).await.unwrap();
        let mut answer: Value = answer.json().await.unwrap();
        let one_by_one = match &mut answer {
            Value::Array(batch) => batch.iter_mut().collect(),
            one => vec![one],
        };
        for block in one_by_one.into_iter().filter_map(|one| one.get_mut("result")) {
            if lies.load(Ordering::SeqCst) && block.get("parentHash").is_some() {
                block["hash"] = B256::repeat_byte(0xbb).to_string().into();
            }
        }
        axum::Json(answer)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// Asks again until there is an answer; a test that waits for longer than a minute has failed.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let patience = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    patience.await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub fn open_share(answer: &Value, exchange: &Identity) -> seal::Share {
    let sealed = BASE64_STANDARD.decode(answer["sealed_share_base64"].as_str().unwrap()).unwrap();
    seal::Share::from_bytes(&seal::open(&sealed, exchange, 4096).unwrap()).unwrap()
}

struct Daemon {
    url: String,
    config: StewardConfig,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

pub struct World {
    anvil: Anvil,
    pub chain: Chain,
    pub addresses: Addresses,
    creator: SenderHandle,
    first_provider: SenderHandle,
    pub second_provider: SenderHandle,
    store: StoreClient,
    http: net::Client,
    daemons: Vec<Daemon>,
    /// While set, the third steward's second endpoint tells of other blocks than the chain's.
    pub lies: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

impl World {
    /// Transactions are mined at once; chain time moves when the test says so.
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// The same with daemons that look at the agent's host.
    pub async fn start_probing() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(probe: bool) -> Self {
        let options = AnvilOptions { block_time: None, ..AnvilOptions::new(anvil_bin()) };
        let anvil = Anvil::spawn(&options).await.unwrap();
        let chain = anvil.chain();
        for n in [1, 2, 3, 7, 8, 9, 11, 12, 13] {
            fund_eth(&chain, key(n).address(), 10 * ETHER).await.unwrap();
        }
        let addresses = deploy(&chain, &key(CREATOR), TERMS).await.unwrap();
        let [creator, first_provider, second_provider] =
            [CREATOR, PROVIDERS[0], PROVIDERS[1]].map(|n| Sender::spawn(chain.clone(), key(n), 1));
        let dir = tempfile::tempdir().unwrap();
        let blocks = Blocks::open(dir.path().join("store")).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let store_url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(store::serve(listener, blocks, std::future::pending()));
        let http = net::Client::new();
        let store = StoreClient::new(http.clone(), vec![store_url.clone()]);
        let ports = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let urls = ports.map(|p| format!("http://{}", p.local_addr().unwrap()));
        let mut world = Self {
            anvil,
            chain,
            addresses,
            creator,
            first_provider,
            second_provider,
            store,
            http,
            daemons: vec![],
            lies: Arc::default(),
            _dir: dir,
        };
        world.put(SNAPSHOT).await;
        let honest = world.anvil.url().to_owned();
        // The same node twice, by two names: what two endpoints have to agree on is exercised too.
        let by_name = honest.replace("127.0.0.1", "localhost");
        let liar = liar(honest.clone(), world.lies.clone()).await;
        for (place, second) in [by_name.clone(), by_name, liar].into_iter().enumerate() {
            world.start_daemon(place, &urls, &store_url, vec![honest.clone(), second], probe);
        }
        world
    }

    fn start_daemon(&mut self, place: usize, urls: &[String; 3], store_url: &str, rpc_urls: Vec<String>, probe: bool) {
        let dir = self._dir.path().join(format!("steward{place}"));
        std::fs::create_dir(&dir).unwrap();
        let keys = sorted_stewards();
        let (order_key_file, share_key_file) = (dir.join("order.key"), dir.join("share.key"));
        std::fs::write(&order_key_file, keys[place].to_bytes().to_string()).unwrap();
        std::fs::write(&share_key_file, Identity::generate().to_secret_string().as_str()).unwrap();
        let others = (0..3).filter(|other| *other != place);
        let config = StewardConfig {
            data_dir: dir,
            listen: urls[place].trim_start_matches("http://").parse().unwrap(),
            rpc_urls,
            chain_id: self.chain.chain_id(),
            treasuries: vec![],
            factory: Some(self.addresses.factory),
            order_key_file,
            share_key_file,
            peers: others.map(|o| Peer { address: keys[o].address(), url: urls[o].clone() }).collect(),
            store_urls: vec![store_url.to_owned()],
            probe,
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(steward::run(config.clone(), async move { stopped.await.unwrap_or(()) }));
        self.daemons.push(Daemon { url: urls[place].clone(), config, stop, task });
    }

    pub async fn stop(self) {
        for daemon in self.daemons {
            daemon.stop.send(()).unwrap();
            daemon.task.await.unwrap().unwrap();
        }
        self.anvil.stop().await.unwrap();
    }

    pub fn addresses_of_stewards(&self) -> Vec<Address> {
        sorted_stewards().iter().map(PrivateKeySigner::address).collect()
    }

    /// Each steward's `/status`, once all of them watch the agent.
    pub async fn stewards(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for daemon in &self.daemons {
            let url = format!("{}/status", daemon.url);
            let status = until("a watching steward", || async {
                let status: Value = self.http.get_json(&url).await.ok()?;
                status["agents"].get(0).is_some_and(|a| a["alive"] == true).then_some(status)
            });
            all.push(status.await);
        }
        all
    }

    /// The shares that a steward gave away, by its own record.
    pub fn released(&self, steward: usize, treasury: Address) -> Vec<Value> {
        let agents = self.daemons[steward].config.data_dir.join("agents");
        let text = std::fs::read_to_string(agents.join(treasury.to_string()).join("released.jsonl"));
        text.unwrap_or_default().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The evictions that a steward proposed, by its own record.
    pub fn proposed(&self, steward: usize, treasury: Address) -> Vec<Value> {
        let agents = self.daemons[steward].config.data_dir.join("agents");
        let text = std::fs::read_to_string(agents.join(treasury.to_string()).join("proposals.jsonl"));
        text.unwrap_or_default().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn first_provider(&self) -> Address {
        self.first_provider.address()
    }

    pub async fn put(&self, bytes: &[u8]) -> Cid {
        self.store.put_bytes(bytes).await.unwrap()
    }

    pub async fn post(&self, steward: usize, route: &str, body: &impl Serialize) -> (u16, Value) {
        let url = format!("{}/{route}", self.daemons[steward].url);
        let answer = self.http.post_json(&url, body).await.unwrap();
        (answer.status.as_u16(), answer.json().await.unwrap())
    }

    pub async fn get(&self, steward: usize, route: &str) -> Value {
        self.http.get_json(&format!("{}/{route}", self.daemons[steward].url)).await.unwrap()
    }

    pub async fn accepted(&self, steward: usize, route: &str, body: &impl Serialize) -> Value {
        let (status, answer) = self.post(steward, route, body).await;
        assert_eq!(status, 200, "{route}: {answer}");
        answer
    }

    #[track_caller]
    pub fn refused(&self, steward: usize, route: &str, body: &impl Serialize, code: &str) -> impl Future<Output = ()> {
        let (caller, code, route) = (std::panic::Location::caller(), code.to_owned(), route.to_owned());
        let body = serde_json::to_value(body).unwrap();
        async move {
            let (mut status, mut answer) = self.post(steward, &route, &body).await;
            // Its endpoints may tell of different blocks for a moment: then it says nothing, and is asked again.
            for _ in 0..50 {
                if answer["error"]["code"] != "no_view" || code == "no_view" {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                (status, answer) = self.post(steward, &route, &body).await;
            }
            assert_eq!(answer["error"]["code"], code, "{caller}: {route} {status} {answer}");
            assert!(status >= 400 && answer["error"]["request_id"].is_string());
        }
    }

    async fn send(&self, from: &SenderHandle, to: Address, data: Bytes) {
        from.send_and_wait(Tx::call(to, data, "test")).await.unwrap();
    }

    /// A transaction of a node's key.
    pub async fn node(&self, n: u8, to: Address, data: Bytes) {
        self.send(&Sender::spawn(self.chain.clone(), key(n), 1), to, data).await;
    }

    /// Lets `seconds` of chain time pass in one block.
    pub async fn wait_in_chain_time(&self, seconds: u64) {
        let _: Value = self.chain.request("evm_increaseTime", (seconds,)).await.unwrap();
        let _: Value = self.chain.request("anvil_mine", (U256::from(1),)).await.unwrap();
    }

    pub async fn offer(&self, provider: &SenderHandle, price_e6: u64) {
        let Addresses { usdc, market: at, .. } = self.addresses;
        let offer = Offer {
            provider: Address::ZERO,
            priceE6: price_e6,
            capacity: 1,
            used: 0,
            minTerm: 30,
            maxTerm: 900,
            memoryMiB: 512,
            milliCpu: 1_000,
            usePolicy: B256::ZERO,
            endpoint: "http://127.0.0.1:1".into(),
            abuseContact: "abuse@example.org".into(),
        };
        self.send(&self.creator, usdc, usdc::calls::mint(provider.address(), STAKE)).await;
        self.send(provider, usdc, usdc::calls::approve(at, STAKE)).await;
        self.send(provider, at, market::calls::register(STAKE)).await;
        self.send(provider, at, market::calls::post_offer(&offer)).await;
    }

    /// An agent on the first (cheaper) provider, operated by `node`; its treasury and lease.
    pub async fn give_birth(&self, node: Address) -> (Address, u64) {
        self.give_birth_at(node, "http://127.0.0.1:2").await
    }

    /// The same where its node serves at `endpoint`.
    pub async fn give_birth_at(&self, node: Address, endpoint: &str) -> (Address, u64) {
        self.offer(&self.first_provider, 3_000_000_000).await;
        self.offer(&self.second_provider, 4_000_000_000).await;
        let birth = self.birth().await;
        let address = treasury::predict(&self.chain, &self.addresses, &birth).await.unwrap();
        self.send(&self.creator, self.addresses.usdc, usdc::calls::mint(address, 20_000_000)).await;
        let create = Tx::call(self.addresses.factory, calls::create(&birth), "create").with_value(ETHER);
        self.creator.send_and_wait(create).await.unwrap();
        self.send(&self.creator, address, calls::birth_rent(1, 600, 100_000)).await;
        let ready = market::calls::ready(1, node, endpoint, B256::ZERO);
        self.send(&self.first_provider, self.addresses.market, ready).await;
        self.send(&self.creator, address, calls::activate(1)).await;
        (address, 1)
    }

    /// An unborn agent under a quorum of its own choice; its treasury, or the contract's refusal.
    pub async fn create(&self, stewards: Vec<Address>, threshold: u8) -> Result<Address, chain::Error> {
        self.create_as(|birth| (birth.stewards, birth.threshold) = (stewards, threshold)).await
    }

    /// [`create`](Self::create) of a birth that is changed first.
    pub async fn create_as(&self, change: impl FnOnce(&mut Birth)) -> Result<Address, chain::Error> {
        let mut birth = self.birth().await;
        change(&mut birth);
        let address = treasury::predict(&self.chain, &self.addresses, &birth).await?;
        self.creator.send_and_wait(Tx::call(self.addresses.factory, calls::create(&birth), "create")).await?;
        Ok(address)
    }

    /// The agent's first host, so that it lives.
    pub async fn activate(&self, address: Address, node: Address) {
        self.offer(&self.first_provider, 3_000_000_000).await;
        self.send(&self.creator, self.addresses.usdc, usdc::calls::mint(address, 20_000_000)).await;
        self.send(&self.creator, address, calls::birth_rent(1, 600, 100_000)).await;
        let ready = market::calls::ready(1, node, "http://127.0.0.1:2", B256::ZERO);
        self.send(&self.first_provider, self.addresses.market, ready).await;
        self.send(&self.creator, address, calls::activate(1)).await;
    }

    /// Where a daemon keeps what its operator signs, and the key to sign with.
    pub fn config(&self, steward: usize) -> StewardConfig {
        self.daemons[steward].config.clone()
    }

    pub fn url(&self, steward: usize) -> &str {
        &self.daemons[steward].url
    }

    async fn birth(&self) -> Birth {
        Birth {
            creator: key(CREATOR).address(),
            token: self.addresses.usdc,
            market: self.addresses.market,
            beneficiary: key(20).address(),
            stewards: self.addresses_of_stewards(),
            threshold: 2,
            codeHash: B256::repeat_byte(0xc0),
            manifest: B256::repeat_byte(0x3a),
            mandateUntil: self.chain.head().await.unwrap().timestamp + 10_000,
            policy: Policy {
                dayLimit: 50_000_000,
                priceE6Max: 5_000_000_000,
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
            options: Options { rescuers: self.addresses_of_stewards(), rescueThreshold: 2, ..Options::default() },
        }
    }

    /// The first checkpoint with shares of `secret` for all stewards, changed, then signed by key `signer`.
    pub fn checkpoint(
        &self,
        treasury: Address,
        stewards: &[Value],
        secret: &[u8],
        signer: u8,
        change: &dyn Fn(&mut Checkpoint),
    ) -> Checkpoint {
        let shares = stewards.iter().zip(seal::split(secret, 2, 3).unwrap()).map(|(steward, share)| {
            let share_recipient = steward["share_recipient"].as_str().unwrap().to_owned();
            let recipient = seal::Recipient::parse(&share_recipient).unwrap();
            let sealed = BASE64_STANDARD.encode(seal::seal(share.as_bytes(), &[recipient]).unwrap());
            Share { steward: steward["steward"].as_str().unwrap().parse().unwrap(), share_recipient, sealed }
        });
        let mut checkpoint = Checkpoint {
            version: VERSION,
            agent: treasury,
            chain_id: self.chain.chain_id(),
            epoch: 1,
            seq: 1,
            prev: None,
            lsn: 10,
            snapshot: store::cid::of_raw(SNAPSHOT),
            snapshot_bytes: u64::try_from(SNAPSHOT.len()).unwrap(),
            snapshot_lsn: 10,
            segments: None,
            segments_bytes: 0,
            chapter: Identity::generate().recipient().to_string(),
            // Any object that the store has.
            keys: store::cid::of_raw(SNAPSHOT),
            recipient: Identity::parse(std::str::from_utf8(secret).unwrap()).unwrap().recipient().to_string(),
            key_hash: seal::key_hash(secret),
            threshold: 2,
            shares: shares.collect(),
            conversations: vec![],
            log: store::cid::of_raw(SNAPSHOT),
            log_seq: 0,
            created_at: 1,
            signature: String::new(),
        };
        change(&mut checkpoint);
        checkpoint.sign(&key(signer)).unwrap();
        checkpoint
    }

    /// A header of ten records from `first`, signed by key `signer`.
    pub fn segment(
        &self,
        treasury: Address,
        signer: u8,
        (epoch, index, first_lsn): (u64, u64, u64),
        cid: Cid,
        prev: Option<Cid>,
    ) -> SegmentHeader {
        let mut header = SegmentHeader {
            agent: treasury,
            chain_id: self.chain.chain_id(),
            epoch,
            index,
            first_lsn,
            last_lsn: first_lsn + 9,
            prev,
            cid,
            recipient: String::new(),
            bytes: 14,
            signature: String::new(),
        };
        header.sign(&key(signer)).unwrap();
        header
    }

    /// What `signer` asks a daemon to sign: a rescue on these terms (offer, seconds, micro-USDC), good for a few minutes.
    pub async fn rescue_request(
        &self,
        treasury: Address,
        signer: &PrivateKeySigner,
        (offer, term, prepay_uusdc): (u64, u32, u128),
        nonce: u64,
    ) -> OrderRequest {
        let deadline = self.chain.head().await.unwrap().timestamp + 300;
        let argument = rescue_argument(offer, term, prepay_uusdc);
        let order = Order::new("rescue", argument, U256::from(nonce), deadline);
        let signature = sign(&order, &domain(self.chain.chain_id(), treasury), signer).unwrap();
        OrderRequest { treasury, action: "rescue".into(), offer, term, prepay_uusdc, nonce, deadline, signature }
    }

    pub fn share_request(
        &self,
        treasury: Address,
        epoch: u64,
        lease: u64,
        signer: u8,
        exchange: &Identity,
    ) -> ShareRequest {
        let mut request = ShareRequest {
            treasury,
            chain_id: self.chain.chain_id(),
            epoch,
            lease,
            recipient: exchange.recipient().to_string(),
            signature: String::new(),
        };
        request.sign(&key(signer)).unwrap();
        request
    }
}

/// In the order of the treasury's list: ascending.
pub fn sorted_stewards() -> Vec<PrivateKeySigner> {
    let mut keys: Vec<_> = STEWARDS.map(key).into();
    keys.sort_by_key(PrivateKeySigner::address);
    keys
}
