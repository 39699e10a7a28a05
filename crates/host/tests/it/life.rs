//! A whole lease on a real chain with a real sandbox: rented, fetched, started, announced, killed, adopted by the
//! next daemon, closed, destroyed. The tenant is a shell script that says hello.

use chain::alloy::eips::BlockId;
use chain::alloy::primitives::{Address, B256, U256};
use chain::alloy::signers::local::PrivateKeySigner;
use chain::alloy::sol_types::SolCall;
use chain::anvil::{Anvil, AnvilOptions};
use chain::bindings::{Addresses, LeaseMarket, LeaseStatus};
use chain::deploy::{MarketParams, deploy, fund_eth};
use chain::sender::{Sender, SenderHandle, Tx};
use chain::{Chain, LeaseView, usdc};
use host::HostConfig;
use host::config::OfferConfig;
use serde_json::Value;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::Blocks;
use store::unixfs::{Profile, import_path};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const ETHER: u128 = 1_000_000_000_000_000_000;
const STAKE: u128 = 10_000_000;
/// The node key that the script announces.
const NODE: Address = Address::repeat_byte(0x42);

pub fn key(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
}

pub fn anvil_bin() -> PathBuf {
    let bin = "../../contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil";
    let path = std::env::var_os("VIVARIUM_ANVIL").map(PathBuf::from);
    let path = path.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(bin));
    assert!(path.exists(), "no anvil at {}: run `npm ci` in contracts/ or set VIVARIUM_ANVIL", path.display());
    path
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

struct World {
    anvil: Anvil,
    chain: Chain,
    addresses: Addresses,
    tenant: SenderHandle,
    dir: tempfile::TempDir,
    store_url: String,
    code: B256,
    port: u16,
}

impl World {
    async fn start() -> Self {
        let anvil = Anvil::spawn(&AnvilOptions::new(anvil_bin())).await.unwrap();
        let chain = anvil.chain();
        for n in [1, 2, 3] {
            fund_eth(&chain, key(n).address(), 10 * ETHER).await.unwrap();
        }
        let market = MarketParams { stake_min: STAKE, ready_within: 45, grace: 34, drop_after: 40 };
        let addresses = deploy(&chain, &key(1), market).await.unwrap();
        let tenant = Sender::spawn(chain.clone(), key(3), 1);
        let dir = tempfile::tempdir().unwrap();
        let (store_url, code) = serve_code(dir.path()).await;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let world = Self { anvil, chain, addresses, tenant, dir, store_url, code, port };
        for n in [2, 3] {
            world.send(addresses.usdc, usdc::calls::mint(key(n).address(), 2 * STAKE)).await;
        }
        world
    }

    async fn send(&self, to: Address, data: chain::alloy::primitives::Bytes) {
        self.tenant.send_and_wait(Tx::call(to, data, "test")).await.unwrap();
    }

    fn config(&self) -> HostConfig {
        let key_file = self.dir.path().join("provider.key");
        std::fs::write(&key_file, key(2).to_bytes().to_string()).unwrap();
        HostConfig {
            data_dir: self.dir.path().join("host"),
            listen: ([127, 0, 0, 1], self.port).into(),
            public_url: format!("http://127.0.0.1:{}", self.port),
            rpc_urls: vec![self.anvil.url().to_owned()],
            chain_id: self.chain.chain_id(),
            market: self.addresses.market,
            usdc: self.addresses.usdc,
            key_file,
            store_urls: vec![self.store_url.clone()],
            offers: vec![OfferConfig {
                price_e6: 1_000_000_000,
                capacity: 2,
                min_term: 30,
                max_term: 600,
                memory_mib: 256,
                milli_cpu: 500,
            }],
            reprice: None,
            gift: None,
            stake_uusdc: STAKE,
            abuse_contact: "abuse@example.org".into(),
            threads: 1,
            withdraw_every_secs: 3,
            credit_secs: 90_000,
            final_blocks: 2,
            tenant_env: Default::default(),
        }
    }

    fn daemon(&self) -> (oneshot::Sender<()>, JoinHandle<anyhow::Result<()>>) {
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move { stopped.await.unwrap_or(()) };
        (stop, tokio::spawn(host::run(self.config(), shutdown)))
    }

    async fn lease(&self, id: u64) -> LeaseView {
        self.chain.market(self.addresses.market).lease(id).await.unwrap()
    }

    /// The first tenant in `/status`, once `wanted` likes it.
    async fn tenant_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let (http, url) = (net::Client::new(), format!("http://127.0.0.1:{}/status", self.port));
        until(what, || async {
            let status: Value = http.get_json(&url).await.ok()?;
            status["tenants"].get(0).filter(|t| wanted(t)).cloned()
        })
        .await
    }
}

/// A store that holds a directory with one program: the script. Its URL and the directory's digest.
async fn serve_code(dir: &Path) -> (String, B256) {
    let source = dir.join("source");
    std::fs::create_dir(&source).unwrap();
    let hello = format!(r#"{{\"hello\":{{\"lease\":1,\"node_key\":\"{NODE}\",\"public_url\":\"x\"}}}}"#);
    let script = format!("#!/bin/sh\necho $$ >> /lease/data/starts\necho \"{hello}\"\nwhile :; do sleep 1; done\n");
    std::fs::write(source.join("vivarium"), script).unwrap();
    let blocks = Blocks::open(dir.join("store")).unwrap();
    let put = &mut |cid, block: Vec<u8>| blocks.put(&cid, &block);
    let root = import_path(&source, Profile::V1_2025, put).unwrap().cid;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(store::serve(listener, blocks, std::future::pending()));
    (url, store::cid::digest(&root).into())
}

fn is_alive(pid: &Value) -> bool {
    Path::new(&format!("/proc/{}", pid.as_i64().unwrap())).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_from_rent_to_ashes() {
    let world = World::start().await;
    let (stop, daemon) = world.daemon();
    let market = world.chain.market(world.addresses.market);
    let offers = until("an offer", || async { market.offers().await.ok().filter(|o| !o.is_empty()) }).await;
    assert_eq!((offers.len(), offers[0].offer.provider, offers[0].staked), (1, key(2).address(), true));

    world.send(world.addresses.usdc, usdc::calls::approve(world.addresses.market, STAKE)).await;
    let rent = LeaseMarket::rentCall { offer: U256::from(1), term: 300, codeHash: world.code, prepay: 100_000 };
    world.send(world.addresses.market, rent.abi_encode().into()).await;
    let ready = until("ready", || async {
        let view = world.lease(1).await;
        (view.lease.status() == LeaseStatus::Ready).then_some(view.lease)
    })
    .await;
    assert_eq!(ready.nodeKey, NODE);
    // The key has its gas once the lease has earned something, and what it does with it is its own affair.
    let gas = || async { world.chain.eth_balance(NODE, BlockId::latest()).await.unwrap() };
    until("a gift of gas", || async { (gas().await == U256::from(ETHER / 50)).then_some(()) }).await;
    let _: Value = world.chain.request("anvil_setBalance", (NODE, U256::ZERO)).await.unwrap();

    // A vouch a second from now on, as a treasury would.
    let (vouching, market_at) = (world.tenant.clone(), world.addresses.market);
    let vouches = tokio::spawn(async move {
        let data = LeaseMarket::vouchCall { lease: U256::from(1) }.abi_encode();
        while vouching.send_and_wait(Tx::call(market_at, data.clone().into(), "vouch")).await.is_ok() {}
    });

    let before = world.tenant_status("a serving tenant", |t| t["state"] == "serving" && t["pid"].is_i64()).await;
    assert_eq!(before["url"], ready.endpoint);
    let code_file =
        world.dir.path().join("host/code").join(store::cid::dag_pb(world.code.0).to_string()).join("vivarium");
    assert_ne!(std::fs::metadata(code_file).unwrap().permissions().mode() & 0o111, 0);

    // kill -9 of the tenant: it comes back, with the same port and no second `ready`.
    let pid = i32::try_from(before["pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let again = world.tenant_status("a second start", |t| t["starts"] == 2 && t["pid"].is_i64()).await;
    assert_ne!(again["pid"], before["pid"]);
    assert_eq!(again["url"], before["url"]);

    // Rent comes in while it runs.
    let provider = key(2).address();
    let paid = || async { world.chain.usdc(world.addresses.usdc).balance(provider).await.ok() };
    until("a withdrawal", || async { paid().await.filter(|b| *b > U256::from(STAKE)) }).await;

    // The daemon ends, its tenant with it; the next one goes on with the same key, data and port.
    let lease_dir = world.dir.path().join("host/leases/1");
    let seal_key = std::fs::read(lease_dir.join("seal.key")).unwrap();
    stop.send(()).unwrap();
    daemon.await.unwrap().unwrap();
    assert!(!is_alive(&again["pid"]) && !is_alive(&again["sandbox_pid"]), "an orphan is left");
    let (stop, daemon) = world.daemon();
    let adopted = world.tenant_status("an adopted tenant", |t| t["state"] == "serving" && t["pid"].is_i64()).await;
    assert_eq!(adopted["url"], before["url"]);
    assert_eq!(std::fs::read(lease_dir.join("seal.key")).unwrap(), seal_key);
    assert_eq!(std::fs::read_to_string(lease_dir.join("data/starts")).unwrap().lines().count(), 3);
    assert_eq!(market.offers().await.unwrap().len(), 1, "a restart posts nothing twice");
    // It withdraws, so it has looked at what the lease earned: a lease has one gift, whoever asks.
    let so_far = paid().await.unwrap();
    until("a further withdrawal", || async { paid().await.filter(|b| *b > so_far) }).await;
    assert_eq!(gas().await, U256::ZERO, "a second gift in one lease");

    // Closed on chain: the process goes, then its key and data.
    let close = LeaseMarket::closeCall { lease: U256::from(1) };
    world.send(world.addresses.market, close.abi_encode().into()).await;
    until("the ashes", || async { (!lease_dir.exists()).then_some(()) }).await;
    assert!(!is_alive(&adopted["pid"]) && !is_alive(&adopted["sandbox_pid"]));
    // A vouch for an ended lease changes nothing, and says so: it would go on for ever.
    vouches.abort();
    stop.send(()).unwrap();
    daemon.await.unwrap().unwrap();
    world.anvil.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_succeed_says_why() {
    let world = World::start().await;
    let never = || std::future::pending::<()>();
    let refused = async |config: HostConfig, word: &str| {
        let error = format!("{:#}", host::run(config, never()).await.unwrap_err());
        assert!(error.contains(word), "{word}: {error}");
    };
    let good = world.config();
    refused(HostConfig { stake_uusdc: 1, ..good.clone() }, "at least 10000000").await;
    refused(HostConfig { stake_uusdc: 90_000_000, ..good.clone() }, "needs 90000000 for its stake").await;
    refused(HostConfig { chain_id: 5, ..good.clone() }, "no chain 5").await;
    refused(HostConfig { market: Address::repeat_byte(7), ..good.clone() }, "no lease market at").await;
    refused(HostConfig { market: good.usdc, ..good.clone() }, "no lease market at").await;
    refused(HostConfig { usdc: Address::repeat_byte(7), ..good.clone() }, "no token at").await;
    refused(HostConfig { key_file: "/nowhere".into(), ..good.clone() }, "/nowhere").await;
    refused(HostConfig { rpc_urls: vec!["http://127.0.0.1:1".into()], ..good.clone() }, "is it running?").await;
    let _taken = std::net::TcpListener::bind(good.listen).unwrap();
    refused(good, "is another daemon there?").await;
    world.anvil.stop().await.unwrap();
}
