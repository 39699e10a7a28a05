//! An agent whose hosts are gone with all they had comes back on an empty one, from what the chain names and from
//! sources that lie and die; and the conversation goes on.

use crate::world::{self, World, program, signal};
use alloy::signers::local::PrivateKeySigner;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as Name, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chain::Chain;
use futures::stream;
use host::HostConfig;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use store::Blocks;
use tokio::runtime::Runtime;
use vivarium::world::deploy;
use vivarium::world::genesis::{ACCOUNT_WEI, PROVIDER_USDC};
use vivarium::world::ports::Ports;
use vivarium::world::wallet::Wallet;

/// Blocks that the dying gateway gives before it dies: the program alone has more.
const LIFE: u64 = 12;
/// Silence, a standby that does not answer either, a rescue, and a program and a model that are fetched anew.
const COMES_BACK: Duration = Duration::from_secs(400);

/// Gateways over the world's own blocks, and what they did to whoever asked.
struct Hostile {
    corrupt: String,
    dying: String,
    lies: Arc<AtomicU64>,
    cuts: Arc<AtomicU64>,
}

async fn hostile(blocks: &Blocks) -> Hostile {
    let (lies, cuts) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (lied, cut) = (lies.clone(), cuts.clone());
    // Every tenth block has a bit turned over.
    let corrupt = gateway(blocks, move |block, number| {
        let mut bytes = block.to_vec();
        if number % 10 == 9 {
            bytes[0] ^= 1;
            lied.fetch_add(1, Ordering::SeqCst);
        }
        bytes.into_response()
    });
    // Then half a block, and the connection breaks: so for ever.
    let dying = gateway(blocks, move |block, number| {
        if number < LIFE {
            return block.into_response();
        }
        cut.fetch_add(1, Ordering::SeqCst);
        let half = block.slice(..block.len() / 2);
        Body::from_stream(stream::iter([Ok(half), Err(io::Error::other("dead"))])).into_response()
    });
    Hostile { corrupt: serve(corrupt).await, dying: serve(dying).await, lies, cuts }
}

/// Answers each request for a block that is here as `answer` says: (block, how many were asked before).
fn gateway(blocks: &Blocks, answer: impl Fn(Bytes, u64) -> Response + Clone + Send + Sync + 'static) -> Router {
    let asked = Arc::new(AtomicU64::new(0));
    let route = get(move |State(blocks): State<Blocks>, Name(name): Name<String>| async move {
        let block = store::cid::parse(&name).and_then(|cid| blocks.get(&cid));
        block.map_or(StatusCode::NOT_FOUND.into_response(), |block| answer(block, asked.fetch_add(1, Ordering::SeqCst)))
    });
    Router::new().route("/ipfs/{cid}", route).with_state(blocks.clone())
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
    url
}

/// A provider daemon of the test's own.
struct Provider(Child);

impl Drop for Provider {
    fn drop(&mut self) {
        signal(self.0.id(), "TERM");
        let _ = self.0.wait();
    }
}

/// A third provider on an empty machine: money and a key of its own, another's configuration with nothing of what that
/// one has, and three places to ask for content, the honest one last.
async fn empty_host(world: &World, theirs: HostConfig, hostile: &Hostile) -> Provider {
    let file = world.world();
    let text = |value: &Value| value.as_str().expect("a word in world.json").to_owned();
    let chain = Chain::connect(&text(&file["rpc_url"]), file["chain_id"].as_u64().expect("a number")).expect("a chain");
    let creator = std::fs::read_to_string(world.data_dir().join("keys/creator.development-key")).expect("a key");
    let creator = creator.lines().find(|line| line.starts_with("0x")).expect("a line with the key");
    let creator: PrivateKeySigner = creator.trim().parse().expect("a key");
    let key = PrivateKeySigner::random();
    chain::deploy::fund_eth(&chain, key.address(), ACCOUNT_WEI).await.expect("ether");
    let usdc = text(&file["usdc"]).parse().expect("an address");
    deploy::mint(&Wallet::new(chain, creator), usdc, vec![(key.address(), PROVIDER_USDC)]).await.expect("test USDC");

    let machine = world.dir.path().join("empty");
    std::fs::create_dir(&machine).expect("an empty folder");
    let key_file = machine.join("provider.development-key");
    std::fs::write(&key_file, format!("{}\n", key.to_bytes())).expect("a key file");
    std::fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a private file");
    let port = Ports::choose(None, 1, 1).expect("free ports").providers[0];
    let mut offers = theirs.offers.clone();
    // The cheapest, so that the stewards choose it.
    offers.iter_mut().for_each(|offer| offer.price_e6 /= 2);
    let sources = [&hostile.corrupt, &hostile.dying].into_iter().chain(&theirs.store_urls).cloned().collect();
    let config = HostConfig {
        data_dir: machine.join("data"),
        listen: ([127, 0, 0, 1], port).into(),
        public_url: format!("http://127.0.0.1:{port}"),
        key_file,
        store_urls: sources,
        offers,
        reprice: None,
        ..theirs
    };
    let path = machine.join("config.toml");
    std::fs::write(&path, toml::to_string(&config).expect("TOML")).expect("written");
    let log = std::fs::File::create(machine.join("log")).expect("a log file");
    let child = Command::new(program())
        .args(["provider", "run", "--config"])
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("a provider starts");
    Provider(child)
}

/// The hosts and everything they had: daemons, tenants, files.
fn destroy_hosts(world: &World) {
    let file = world.world();
    for (index, provider) in file["providers"].as_array().expect("providers").iter().enumerate() {
        let pid = provider["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a running provider");
        world::stop_tree(pid, "KILL");
        let folder = world.data_dir().join(format!("provider-{}", index + 1));
        // Tenants end with their daemon, and may write until they have.
        while folder.exists() {
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
}

#[test]
fn an_agent_is_rebuilt_on_an_empty_host_from_the_chain_and_from_sources_that_lie_and_die() {
    let _turn = world::turn();
    let mut world = World::start(&["--day", "20s", "--lease", "6d", "--no-restart", "--chain-ahead=3600"]);
    world.until("birth", |w| w.file()?["agent"]["url"].as_str().map(str::to_owned));
    let begun = world.until("an answer that is remembered", |w| {
        w.ask(&["--remember", "--max-tokens", "16", "My name is Ada. Say hello."])
    });
    let conversation = begun["id"].as_str().expect("the id of the stored answer").to_owned();
    super::verify::an_agents_answer_is_made_again(&mut world);
    let secret = world.until("another one", |w| w.ask(&["--remember", "--max-tokens", "4", "My secret is 42."]));
    let secret = secret["id"].as_str().expect("its id").to_owned();
    assert_eq!(stored(&world), [conversation.clone(), secret.clone()]);
    let (ok, text) = world.run(&["conversations", "--delete", &secret]);
    assert!(ok && text.contains("destroyed"), "{text}");
    assert_eq!(stored(&world), std::slice::from_ref(&conversation));
    let seq = |w: &World| w.agent()?["checkpoint"]["seq"].as_u64();
    let before = world.until("a status", seq);
    // The first one after it may have been under way already.
    world.until("it is in a checkpoint that the chain names", |w| (seq(w)? > before + 1).then_some(()));
    let earned = |w: &World| w.agent()?["earned_uusdc"].as_str()?.parse::<u128>().ok();
    let paid = world.until("a ledger", |w| earned(w).filter(|sum| *sum > 0));
    let (epoch, home) = (world.epoch().expect("an epoch"), world.world()["agent"]["url"].clone());

    let runtime = Runtime::new().expect("a runtime");
    let blocks = Blocks::open(world.data_dir().join("store")).expect("the world's blocks");
    let pins = blocks.pins().expect("the world's pins");
    let reasons: BTreeSet<&str> = pins.iter().flat_map(|pin| &pin.reasons).map(String::as_str).collect();
    assert_eq!(
        reasons.into_iter().collect::<Vec<_>>(),
        ["checkpoint", "code", "log", "manifest", "weights"],
        "a garbage collection takes nothing of it: {pins:?}"
    );
    let hostile = runtime.block_on(hostile(&blocks));
    let theirs = std::fs::read_to_string(world.data_dir().join("provider-1/config.toml")).expect("a configuration");
    let theirs = toml::from_str(&theirs).expect("a configuration");
    destroy_hosts(&world);
    let _provider = runtime.block_on(empty_host(&world, theirs, &hostile));

    world.within(COMES_BACK, "a rescue onto the empty host", |w| {
        let now = w.file()?;
        (now["agent"]["epoch"].as_u64()? > epoch && now["agent"]["url"].is_string() && now["agent"]["url"] != home)
            .then_some(())
    });
    world.within(COMES_BACK, "selling again", |w| (w.agent()?["selling"] == true).then_some(()));
    let goes_on = world.until("the conversation goes on", |w| {
        w.ask(&["--conversation", &conversation, "--max-tokens", "16", "What is my name?"])
    });
    let goes_on = goes_on["id"].as_str().expect("an id").to_owned();
    assert!(world.ask(&["--conversation", &secret, "--max-tokens", "4", "What is my secret?"]).is_none());
    assert_eq!(stored(&world), [conversation, goes_on], "what was deleted stays so");
    assert!(earned(&world).expect("a ledger") >= paid, "income was lost");
    assert!(world.agent().is_some_and(|agent| agent["ledger_ok"] == true), "the books do not balance");
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    assert!(count(&hostile.lies) > 0, "no source lied");
    assert!(count(&hostile.cuts) > 0, "no source died");
    let empty = world.dir.path().join("empty");
    assert!(weights_below(&empty), "the weights lie on the host that had nothing");
}

/// The ids of all that the world's customer has stored, by its own archive.
fn stored(world: &World) -> Vec<String> {
    let (ok, text) = world.run(&["conversations"]);
    assert!(ok, "{text}");
    let archive: Value = serde_json::from_str(text.trim()).expect("an archive");
    let entries = archive["responses"].as_array().expect("entries");
    assert!(entries.iter().all(|entry| entry["messages"].as_array().is_some_and(|m| m.len() >= 2)), "{archive}");
    entries.iter().map(|entry| entry["id"].as_str().expect("an id").to_owned()).collect()
}

/// Whether a whole model was fetched below `dir`.
fn weights_below(dir: &Path) -> bool {
    let leases = std::fs::read_dir(dir.join("data/leases")).into_iter().flatten().flatten();
    leases.map(|lease| lease.path().join("data/model")).any(|model| {
        let mut files = std::fs::read_dir(model).into_iter().flatten().flatten();
        files.any(|file| file.path().extension().is_some_and(|extension| extension == "gguf"))
    })
}
