//! `vivarium store arweave sell`, paid by real treasuries on a development chain, before a stand-in of an Arweave node.

#[path = "../../../chain/tests/it/world.rs"]
#[allow(dead_code, reason = "the whole of it serves the tests of `chain`")]
mod town;
#[path = "../../../../tests/weave.rs"]
#[allow(dead_code, reason = "the whole of it serves the tests of `store`")]
pub mod weave;

use super::world::program;
use chain::alloy::primitives::{Address, B256};
use chain::bindings::{Options, Payee};
use chain::treasury::{KIND_STORAGE, calls};
use chain::{SenderHandle, TreasuryClient, Tx};
use net::Client;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use store::checkpoint::{ArchiveRequest, Checkpoint, Quote, SegmentList, Share};
use store::cid::Cid;
use store::cli::arweave as cli;
use store::seal::{Identity, key_hash};
use store::{Blocks, StoreClient};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Barrier;
use town::{World, key};

pub const PAYEE: Address = Address::repeat_byte(0xA7);
/// Of the operators.
const FIRST: u8 = 5;
const SECOND: u8 = 6;

/// The stand-in's address, which takes what is sent to `weave`.
pub async fn gateway(weave: &weave::Shared) -> String {
    serve(weave::node(weave)).await
}

async fn serve(router: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// The key of an Arweave wallet that was made for tests.
pub fn wallet(dir: &Path) -> PathBuf {
    let reference = include_bytes!("../../../store/tests/reference/arweave.json");
    let reference: Value = serde_json::from_slice(reference).unwrap();
    let path = dir.join("wallet.json");
    std::fs::write(&path, reference["jwk"].to_string()).unwrap();
    path
}

/// An archivist that takes ten micro-USDC for a million winston, and 30 % on top. Ends with the test.
pub async fn archivist(dir: &Path, gateway: &str, (rpc, chain_id, token): (&str, u64, Address)) -> (Child, String) {
    let mut command = Command::new(program());
    command
        .args(["store", "--json", "--data-dir"])
        .arg(dir.join("archive"))
        .args(["arweave", "sell", "--listen", "127.0.0.1:0", "--gateway", gateway, "--ar", "10"])
        .args(["--reward-max", "1000000000000", "--confirmations", "2", "--payee", &PAYEE.to_string(), "--rpc", rpc])
        .args(["--chain-id", &chain_id.to_string(), "--token", &token.to_string(), "--key"])
        .arg(wallet(dir));
    let mut process =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
    let line = BufReader::new(process.stdout.take().unwrap()).lines().next_line().await.unwrap().expect("a line");
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["payee"], json!(PAYEE));
    (process, line["url"].as_str().unwrap().to_owned())
}

/// A chain with two agents, a store with what they remember, and a gateway.
struct Scene {
    town: World,
    agents: Vec<(TreasuryClient, SenderHandle)>,
    dir: tempfile::TempDir,
    store: Blocks,
    store_url: String,
    weave: weave::Shared,
    gateway: String,
    http: Client,
}

impl Scene {
    async fn open(agents: &[u8]) -> Self {
        let town = World::instant().await;
        let payees = vec![Payee { kind: KIND_STORAGE, payee: PAYEE, dayMax: 5_000_000 }];
        let options = Options { payees, ..Options::default() };
        let mut born = Vec::new();
        for operator in agents {
            let (provider, sender) = (town.account(operator + 100).await, town.account(*operator).await);
            let (treasury, _) = town.give_birth_with(&provider, sender.address(), options.clone()).await;
            born.push((treasury, sender));
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Blocks::open(dir.path().join("store")).unwrap();
        let store_url = serve(store::gateway::router(store.clone())).await;
        let weave = weave::Shared::default();
        let gateway = gateway(&weave).await;
        Self { town, agents: born, dir, store, store_url, weave, gateway, http: Client::new() }
    }

    async fn archivist(&self) -> (Child, String) {
        let chain = &self.town.chain;
        archivist(self.dir.path(), &self.gateway, (chain.url(), chain.chain_id(), self.town.addresses.usdc)).await
    }

    fn treasury(&self, agent: usize) -> Address {
        self.agents[agent].0.address
    }

    /// Has the treasury pay the archivist so much; the transaction, under one block.
    async fn pays(&self, agent: usize, micro: u128) -> B256 {
        let (treasury, operator) = &self.agents[agent];
        let call = calls::spend(KIND_STORAGE, PAYEE, micro);
        operator.send_and_wait(Tx::call(treasury.address, call, "spend")).await.expect("it pays").tx_hash
    }

    /// A checkpoint of an agent's in the store, with two segments after its snapshot, a key object and a page.
    async fn checkpoint(&self, agent: usize, seq: u64) -> Checkpoint {
        let client = StoreClient::new(self.http.clone(), vec![self.store_url.clone()]);
        let put = async |what: &str, bytes: usize| {
            let content: Vec<u8> =
                format!("{agent} {seq} {what} ").into_bytes().into_iter().cycle().take(bytes).collect();
            client.put_bytes(&content).await.unwrap()
        };
        let (memory, treasury) = (Identity::generate(), self.treasury(agent));
        let share = |byte: u8| Share {
            steward: Address::repeat_byte(byte),
            share_recipient: Identity::generate().recipient().to_string(),
            sealed: format!("c2VhbGVk{byte}"),
        };
        let segments = vec![put("segment", 40_000).await, put("another", 50_000).await];
        let list = SegmentList { agent: treasury, prev: None, segments };
        let mut checkpoint = Checkpoint {
            version: store::checkpoint::VERSION,
            agent: treasury,
            chain_id: self.town.chain.chain_id(),
            epoch: 1,
            seq,
            prev: (seq > 1).then_some(B256::repeat_byte(4)),
            lsn: 1000,
            snapshot: put("snapshot", 1_500_000).await,
            snapshot_bytes: 1_500_000,
            snapshot_lsn: 900,
            segments: Some(client.put_bytes(&list.to_bytes()).await.unwrap()),
            segments_bytes: 90_000,
            chapter: Identity::generate().recipient().to_string(),
            keys: put("keys", 5_000).await,
            recipient: memory.recipient().to_string(),
            key_hash: key_hash(memory.to_secret_string().as_bytes()),
            threshold: 2,
            shares: vec![share(1), share(2)],
            conversations: vec![put("page", 6_000).await],
            log: put("log", 700).await,
            log_seq: 12,
            created_at: 1_700_000_000,
            signature: String::new(),
        };
        checkpoint.sign(&key(FIRST)).unwrap();
        client.put_block(&checkpoint.cid(), &checkpoint.to_bytes()).await.unwrap();
        checkpoint
    }

    async fn quote(&self, url: &str, bytes: u64) -> Quote {
        let said: Value = self.http.get_json(&format!("{url}/price?bytes={bytes}")).await.unwrap();
        serde_json::from_value(said["quote"].clone()).unwrap()
    }

    fn request(
        &self,
        agent: usize,
        checkpoint: &Checkpoint,
        transaction: B256,
        quote: Quote,
        signer: u8,
    ) -> ArchiveRequest {
        let mut request = ArchiveRequest {
            treasury: self.treasury(agent),
            chain_id: self.town.chain.chain_id(),
            checkpoint: checkpoint.cid(),
            transaction,
            quote,
            sources: vec!["http://127.0.0.1:1".to_owned(), self.store_url.clone()],
            signature: String::new(),
        };
        request.sign(&key(signer)).unwrap();
        request
    }

    /// Status and body of an answer.
    async fn posts(&self, url: &str, request: &ArchiveRequest) -> (u16, Value) {
        self.posts_text(url, request.to_bytes()).await
    }

    async fn posts_text(&self, url: &str, body: Vec<u8>) -> (u16, Value) {
        let (method, headers) = (http::Method::POST, http::HeaderMap::new());
        let answer = self.http.send(method, &format!("{url}/items"), headers, body.into()).await.unwrap();
        (answer.status.as_u16(), serde_json::from_slice(&answer.bytes(1 << 16).await.unwrap()).unwrap_or_default())
    }

    async fn credit(&self, url: &str, agent: usize) -> u128 {
        let at = format!("{url}/credit/{}", self.treasury(agent));
        let said: Value = self.http.get_json(&at).await.unwrap();
        said["credit_uusdc"].as_str().unwrap().parse().unwrap()
    }

    /// What the archivist has fetched, and the checkpoints that it keeps.
    fn kept(&self) -> (usize, BTreeSet<Cid>) {
        let blocks = Blocks::open(self.dir.path().join("archive")).unwrap();
        (blocks.iter().count(), blocks.pins().unwrap().into_iter().map(|pin| pin.root).collect())
    }

    fn sent(&self) -> Vec<String> {
        self.weave.lock().unwrap().transactions.iter().map(|t| t.id.to_string()).collect()
    }
}

fn code(said: &(u16, Value)) -> (u16, Option<&str>, Option<&str>) {
    let error = &said.1["error"];
    (said.0, error["code"].as_str(), error["field"].as_str())
}

/// 10 winston a byte, 10 USDC an AR of 10^12 winston, 30 % on top: each rounded up.
fn price_of(bytes: u64) -> u128 {
    let cost = (u128::from(bytes) * 10 * 10_000_000).div_ceil(1_000_000_000_000);
    cost + (cost * 30).div_ceil(100)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_treasury_pays_once_and_its_memory_comes_back_from_arweave_without_its_keys() {
    let scene = Scene::open(&[FIRST, SECOND]).await;
    let (_process, url) = scene.archivist().await;
    let terms: Value = scene.http.get_json(&format!("{url}/terms")).await.unwrap();
    assert_eq!((&terms["payee"], &terms["chain_id"]), (&json!(PAYEE), &json!(scene.town.chain.chain_id())));
    for bad in ["bytes=0", "bytes=07", "bytes=x", "bytes=1&bytes=2", "byte=1", ""] {
        let answer = scene.http.get(&format!("{url}/price?{bad}")).await.unwrap();
        assert_eq!(answer.status.as_u16(), 400, "{bad}");
    }

    let bytes = 1_700_000;
    let quote = scene.quote(&url, bytes).await;
    assert_eq!(quote.amount_uusdc, price_of(bytes));
    let first = scene.checkpoint(0, 1).await;
    let paid = scene.pays(0, quote.amount_uusdc).await;
    let request = scene.request(0, &first, paid, quote, FIRST);
    assert_eq!(code(&scene.posts(&url, &request).await), (425, Some("too_early"), Some("transaction")));
    scene.town.mine(1).await;

    // Another's word spends nothing of it, nor does another form of the request.
    let stranger = scene.request(0, &first, paid, quote, SECOND);
    assert_eq!(code(&scene.posts(&url, &stranger).await), (403, Some("not_operator"), Some("signature")));
    let foreign = scene.request(1, &scene.checkpoint(1, 1).await, paid, quote, SECOND);
    assert_eq!(code(&scene.posts(&url, &foreign).await), (402, Some("unpaid"), Some("transaction")));
    let mut other = scene.request(0, &first, paid, quote, FIRST);
    other.checkpoint = scene.checkpoint(1, 2).await.cid();
    other.sign(&key(FIRST)).unwrap();
    assert_eq!(code(&scene.posts(&url, &other).await), (400, Some("bad_request"), Some("checkpoint")));
    let mut spaced = request.to_bytes();
    spaced.push(b' ');
    assert_eq!(scene.posts_text(&url, spaced).await.0, 400);
    assert_eq!(scene.sent(), [""; 0]);

    let said = scene.posts(&url, &request).await;
    assert_eq!(said.0, 200, "{said:?}");
    let transaction = said.1["transaction"].as_str().unwrap().to_owned();
    assert_eq!((scene.sent(), scene.credit(&url, 0).await), (vec![transaction.clone()], 0));
    // Asked again it says the same, and nothing more is charged or sent.
    assert_eq!(scene.posts(&url, &request).await, said);
    assert_eq!((scene.sent().len(), scene.credit(&url, 0).await), (1, 0));
    let item: Value = scene.http.get_json(&format!("{url}/items/{}", first.cid())).await.unwrap();
    assert_eq!((&item["transaction"], &item["outcome"]), (&json!(transaction), &json!("unknown")));

    // The same payment again, for another checkpoint.
    let second = scene.checkpoint(0, 2).await;
    let replayed = scene.request(0, &second, paid, quote, FIRST);
    let kept = scene.kept();
    assert_eq!(kept.1, BTreeSet::from([first.cid()]));
    assert_eq!(code(&scene.posts(&url, &replayed).await), (402, Some("unpaid"), None));
    // Nor is it for a price that another named.
    let forged = Quote { amount_uusdc: 0, ..quote };
    let forged = scene.request(0, &second, paid, forged, FIRST);
    assert_eq!(code(&scene.posts(&url, &forged).await), (402, Some("unpaid"), None));
    assert_eq!(scene.kept(), kept, "nothing is fetched that is not paid for");
    // Too little, and then more than enough: the rest is for the third one.
    for (amount, expected) in [(quote.amount_uusdc - 1, 402), (quote.amount_uusdc + 1, 200)] {
        let paid = scene.pays(0, amount).await;
        scene.town.mine(1).await;
        let said = scene.posts(&url, &scene.request(0, &second, paid, quote, FIRST)).await;
        assert_eq!(said.0, expected, "{said:?}");
    }
    assert_eq!(scene.credit(&url, 0).await, quote.amount_uusdc);
    let third = scene.checkpoint(0, 3).await;
    assert_eq!(scene.posts(&url, &scene.request(0, &third, paid, quote, FIRST)).await.0, 200);
    assert_eq!((scene.sent().len(), scene.credit(&url, 0).await), (3, 0));

    // A price that the archivist never named is not its price, and a copy is never longer than what was paid for.
    let paid = scene.pays(0, quote.amount_uusdc).await;
    scene.town.mine(1).await;
    let fourth = scene.checkpoint(0, 4).await;
    let cheap = Quote { amount_uusdc: 1, ..quote };
    let small = scene.quote(&url, 1_000_000).await;
    assert_eq!(code(&scene.posts(&url, &scene.request(0, &fourth, paid, small, FIRST)).await).2, Some("quote"));
    let said = scene.posts(&url, &scene.request(0, &fourth, paid, cheap, FIRST)).await;
    assert_eq!((said.0, &said.1["price_uusdc"]), (200, &json!(price_of(bytes).to_string())), "{said:?}");

    let there = tempfile::tempdir().unwrap();
    let got = cli::get(there.path(), &transaction, vec![scene.gateway.clone()], 1 << 24, |_| {}).await.unwrap();
    assert_eq!(got.roots, [first.cid().to_string()]);
    let blocks = Blocks::open(there.path()).unwrap();
    assert_eq!(blocks.get(&first.cid()).unwrap(), first.to_bytes());
    assert_eq!(store::unixfs::read_file(&blocks, &first.snapshot, 1_500_000).unwrap().len(), 1_500_000);
    let list = SegmentList::from_bytes(&blocks.get(&first.segments.unwrap()).unwrap()).unwrap();
    assert!(list.segments.iter().all(|segment| blocks.get(segment).is_ok()));
    let secret: Vec<Cid> = [first.keys, first.log].into_iter().chain(first.conversations).collect();
    assert!(secret.iter().all(|cid| scene.store.has(cid) && !blocks.has(cid)), "no keys, no pages, and nothing else");
    assert_eq!(blocks.iter().count(), 1 + 3 + 1 + 2, "list, snapshot of two chunks, checkpoint, segments");
}

/// A store whose readers get a checkpoint once all of `roots` have been asked for.
async fn store_of_all_at_once(blocks: &Blocks, roots: [Cid; 2]) -> String {
    let (barrier, waiting) = (Arc::new(Barrier::new(roots.len())), Arc::new(Mutex::new(roots.to_vec())));
    let hold = move |request: axum::extract::Request, next: axum::middleware::Next| {
        let mut waiting = waiting.lock().unwrap();
        let first = waiting.iter().position(|root| request.uri().path().contains(&root.to_string()));
        let barrier = first.map(|at| waiting.swap_remove(at)).map(|_| barrier.clone());
        async move {
            if let Some(barrier) = barrier {
                barrier.wait().await;
            }
            next.run(request).await
        }
    };
    serve(store::gateway::router(blocks.clone()).layer(axum::middleware::from_fn(hold))).await
}

/// Two copies at once for the price of one: one is made, and of the other nothing is kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_took_the_credit_for_is_not_kept() {
    let mut scene = Scene::open(&[FIRST]).await;
    let (_process, url) = scene.archivist().await;
    let (first, second) = (scene.checkpoint(0, 1).await, scene.checkpoint(0, 2).await);
    scene.store_url = store_of_all_at_once(&scene.store, [first.cid(), second.cid()]).await;
    let quote = scene.quote(&url, 1_700_000).await;
    let paid = scene.pays(0, quote.amount_uusdc).await;
    scene.town.mine(1).await;
    let [one, other] = [&first, &second].map(|checkpoint| scene.request(0, checkpoint, paid, quote, FIRST));
    let (one, other) = tokio::join!(scene.posts(&url, &one), scene.posts(&url, &other));
    let made = if one.0 == 200 { first.cid() } else { second.cid() };
    let mut codes = [code(&one), code(&other)];
    codes.sort_unstable();
    assert_eq!(codes, [(200, None, None), (402, Some("unpaid"), None)]);
    assert_eq!(scene.kept().1, BTreeSet::from([made]));
    assert_eq!((scene.sent().len(), scene.credit(&url, 0).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archivist_that_is_killed_after_it_charged_sends_the_same_transaction_and_charges_nothing_more() {
    let scene = Scene::open(&[FIRST]).await;
    let (mut process, url) = scene.archivist().await;
    let (checkpoint, quote) = (scene.checkpoint(0, 1).await, scene.quote(&url, 1_700_000).await);
    let paid = scene.pays(0, quote.amount_uusdc + 7).await;
    scene.town.mine(1).await;
    // The gateway takes the transaction and none of its chunks.
    scene.weave.lock().unwrap().posts_max = Some(1);
    let request = scene.request(0, &checkpoint, paid, quote, FIRST);
    assert_eq!(code(&scene.posts(&url, &request).await), (503, Some("archive"), None));
    assert_eq!(scene.credit(&url, 0).await, 7, "charged");
    let signed = scene.sent();
    assert_eq!(signed.len(), 1);
    process.kill().await.unwrap();

    scene.weave.lock().unwrap().posts_max = None;
    let (_process, url) = scene.archivist().await;
    assert_eq!(scene.credit(&url, 0).await, 7, "on disk");
    // It may be at work already, unasked.
    let said = loop {
        let said = scene.posts(&url, &request).await;
        if said.0 != 202 {
            break said;
        }
    };
    assert_eq!((said.0, &said.1["transaction"]), (200, &json!(signed[0])), "{said:?}");
    assert_eq!((scene.sent(), scene.credit(&url, 0).await), (signed, 7));
    let there = tempfile::tempdir().unwrap();
    let got = cli::get(there.path(), &scene.sent()[0], vec![scene.gateway.clone()], 1 << 24, |_| {}).await.unwrap();
    assert_eq!(got.roots, [checkpoint.cid().to_string()]);
}
