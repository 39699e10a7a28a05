//! `vivarium facilitator`, named by its URL in the official server. Named by triple; `rs` settles.

#[path = "../../../pay/tests/it/chain.rs"]
#[allow(dead_code, reason = "the whole of it serves the tests of `pay`")]
pub mod chain;

use self::chain::{CHAIN_ID, Chain, TREASURY};
use super::world::program;
use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// anvil's development account 2.
const KEY: &str = "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a";
/// Of a call.
const PRICE: u128 = 1_234;

fn customer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(b"a customer")).unwrap()
}

fn clients() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients")
}

/// A process and what its first line says; ends with the test.
async fn started(command: &mut Command) -> (Child, Value) {
    let mut process =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("a first line");
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (process, serde_json::from_str(&line).unwrap())
}

async fn facilitator(chain: &Chain, dir: &Path) -> (Child, String) {
    facilitator_at(&chain.url, chain.usdc, dir).await
}

async fn facilitator_at(rpc: &str, token: Address, dir: &Path) -> (Child, String) {
    let key = dir.join("facilitator.key");
    std::fs::write(&key, format!("# a development key\n{KEY}\n")).unwrap();
    let mut command = Command::new(program());
    command
        .args(["facilitator", "--json", "--listen", "127.0.0.1:0", "--ether", "3", "--wait", "100"])
        .args(["--rpc", rpc, "--chain-id", &CHAIN_ID.to_string(), "--token", &token.to_string()])
        .arg("--key")
        .arg(key)
        .arg("--journal")
        .arg(dir.join("journal"));
    let (process, line) = started(&mut command).await;
    (process, line["url"].as_str().unwrap().to_owned())
}

/// The official Express middleware with the official facilitator client, pointed at `url`.
async fn shop(chain: &Chain, url: &str, scheme: &str) -> (Child, String) {
    let mut command = Command::new("node");
    command
        .current_dir(clients())
        .args(["server.mjs", &TREASURY.to_string(), &chain.usdc.to_string(), &CHAIN_ID.to_string()])
        .args([&PRICE.to_string(), url, scheme]);
    let (process, line) = started(&mut command).await;
    (process, line["url"].as_str().unwrap().to_owned())
}

/// The official client; the lines it printed.
async fn ts(chain: &Chain, shop: &str, calls: usize, scheme: &str) -> Vec<Value> {
    let key = format!("0x{}", hex::encode(customer().to_bytes()));
    let out = Command::new("node")
        .current_dir(clients())
        .args(["schemes.mjs", shop, &key, &calls.to_string(), "plain", scheme, &chain.url])
        .arg(chain.usdc.to_string())
        .kill_on_drop(true)
        .output()
        .await
        .expect("node starts");
    let text = String::from_utf8(out.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), calls, "{text}{}", String::from_utf8_lossy(&out.stderr));
    lines
}

async fn credit(url: &str, account: Address) -> u128 {
    let told: Value = net::Client::new().get_json(&format!("{url}/credit/{account}")).await.unwrap();
    told["credit_uusdc"].as_str().unwrap().parse().unwrap()
}

/// Buys one lot for the shop's payee, as anybody may.
async fn buy_credit(chain: &Chain, url: &str) {
    let owner: PrivateKeySigner = KEY.parse().unwrap();
    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: chain.usdc,
        pay_to: owner.address(),
        max_per_call: Usdc(1_000_000),
        max_total: Usdc(1_000_000),
    };
    let buyer = Buyer::new(net::Client::new(), customer(), policy);
    let bought = buyer.post_json(&format!("{url}/credit/{TREASURY}"), &json!({})).await.unwrap();
    assert_eq!((bought.status.as_u16(), bought.spent), (200, Usdc(1_000_000)));
    assert_eq!(credit(url, TREASURY).await, 1_000_000);
}

/// The official server by our facilitator's URL: refused without credit, settled with it, for a fee not below the gas; the same after kill -9.
#[tokio::test(flavor = "multi_thread")]
async fn ts_ts_rs_exact() {
    let (chain, dir) = (Chain::start().await, tempfile::tempdir().unwrap());
    chain.mint(chain.usdc, customer().address(), 5_000_000).await;
    let (mut process, url) = facilitator(&chain, dir.path()).await;
    let (server, at) = shop(&chain, &url, "exact").await;
    let refused = ts(&chain, &at, 1, "exact").await;
    assert_eq!(refused[0]["status"], 402, "no credit, no gas: {}", refused[0]);
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(0));

    buy_credit(&chain, &url).await;
    let owner = KEY.parse::<PrivateKeySigner>().unwrap().address();
    let ether = async || {
        u128::from_str_radix(
            chain.rpc("eth_getBalance", json!([owner, "latest"])).await.as_str().unwrap().trim_start_matches("0x"),
            16,
        )
        .unwrap()
    };
    let before = ether().await;
    for line in ts(&chain, &at, 3, "exact").await {
        assert_eq!((&line["status"], &line["payment"]["success"]), (&json!(200), &json!(true)), "{line}");
    }
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(3 * PRICE));
    // 3 USDC an ether.
    let (gas, fees) = ((before - ether().await) * 3 / 1_000_000_000_000, 1_000_000 - credit(&url, TREASURY).await);
    assert!(fees >= gas && fees > 0, "fees of {fees} for gas of {gas} micro-USDC");

    // Credit is on disk.
    let left = credit(&url, TREASURY).await;
    process.kill().await.unwrap();
    let (_process, url) = facilitator(&chain, dir.path()).await;
    assert_eq!(credit(&url, TREASURY).await, left);
    drop(server);
    let (_server, at) = shop(&chain, &url, "exact").await;
    assert_eq!(ts(&chain, &at, 1, "exact").await[0]["status"], 200);
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(4 * PRICE));
}

/// The facilitator that the witness names settles half of what was permitted.
#[tokio::test(flavor = "multi_thread")]
async fn ts_ts_rs_upto() {
    let (chain, dir) = (Chain::start().await, tempfile::tempdir().unwrap());
    chain.mint(chain.usdc, customer().address(), 5_000_000).await;
    // This token has no EIP-2612: Permit2 is allowed once, as a customer with gas does it.
    let approve = chain::call(
        "approve(address,uint256)",
        &[chain::word(pay::scheme::permit2::PERMIT2), alloy::primitives::U256::MAX],
    );
    chain.rpc("anvil_setBalance", json!([customer().address(), "0xde0b6b3a7640000"])).await;
    assert!(chain.send(customer().address(), chain.usdc, &approve).await.1);
    let (_process, url) = facilitator(&chain, dir.path()).await;
    buy_credit(&chain, &url).await;
    let (_server, at) = shop(&chain, &url, "upto").await;
    for line in ts(&chain, &at, 2, "upto").await {
        assert_eq!((&line["status"], &line["payment"]["success"]), (&json!(200), &json!(true)), "{line}");
    }
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(2 * (PRICE / 2)));
}

/// One authorisation, asked for by many at once and again after kill -9: one transfer, one fee, one answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorisation_is_settled_once_and_batches_are_settled_together() {
    use pay::facilitator::api::Asked;
    use pay::scheme::exact::client::sign;
    use pay::wire::PaymentRequirements;
    let (chain, dir) = (Chain::start().await, tempfile::tempdir().unwrap());
    chain.mint(chain.usdc, customer().address(), 5_000_000).await;
    let (mut process, url) = facilitator(&chain, dir.path()).await;
    buy_credit(&chain, &url).await;
    let extra = json!({ "name": "USD Coin", "version": "2" });
    let network = format!("eip155:{CHAIN_ID}");
    let requirements = PaymentRequirements::new(("exact", &network), Usdc(PRICE), (chain.usdc, TREASURY), 300, extra);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let bodies: Vec<Value> = (1..=5)
        .map(|nonce| {
            let payment = sign(&customer(), &requirements, now, [nonce; 32].into()).unwrap();
            Asked { payment, requirements: requirements.clone() }.to_body()
        })
        .collect();
    let http = net::Client::new();
    let settle =
        async |url: &str, body: &Value| -> Value { http.call_json(&format!("{url}/settle"), body).await.unwrap() };
    // Five authorisations, each asked for twice, all at once.
    let asked = bodies.iter().chain(&bodies).map(|body| settle(&url, body));
    let answers = futures::future::join_all(asked).await;
    for (first, second) in answers.iter().zip(&answers[5..]) {
        assert_eq!(first["success"], true, "{first}");
        assert_eq!(first, second);
    }
    let transactions: std::collections::BTreeSet<&str> =
        answers.iter().map(|answer| answer["transaction"].as_str().unwrap()).collect();
    assert!(transactions.len() < 5, "some shared a transaction: {transactions:?}");
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(5 * PRICE));
    let left = credit(&url, TREASURY).await;
    process.kill().await.unwrap();
    let (_process, url) = facilitator(&chain, dir.path()).await;
    let again = settle(&url, &bodies[0]).await;
    assert_eq!(again, answers[0], "the same answer");
    assert_eq!((credit(&url, TREASURY).await, chain.balance(chain.usdc, TREASURY).await), (left, Usdc(5 * PRICE)));
    // What is not asked for in words that it knows.
    let wrong = settle(&url, &json!({ "x402Version": 2 })).await;
    assert_eq!((&wrong["success"], &wrong["errorReason"]), (&json!(false), &json!("invalid_payload")));
}

/// Whoever takes a Permit2 permission back while the facilitator's transaction is on its way has paid nothing, however
/// its nonce looks: the payee hears that, and has its fee back. The same after kill -9; and what somebody else sent
/// meanwhile is paid.
#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_that_paid_nothing_is_unpaid() {
    use alloy::primitives::U256;
    use pay::facilitator::api::{Asked, Desk};
    use pay::scheme::permit2::PERMIT2;
    use pay::wire::PaymentRequirements;
    let (chain, dir) = (Chain::start().await, tempfile::tempdir().unwrap());
    let payer = customer().address();
    chain.mint(chain.usdc, payer, 5_000_000).await;
    chain.rpc("anvil_setBalance", json!([payer, "0xde0b6b3a7640000"])).await;
    let approve = chain::call("approve(address,uint256)", &[chain::word(PERMIT2), U256::MAX]);
    assert!(chain.send(payer, chain.usdc, &approve).await.1);
    let (mut process, mut url) = facilitator(&chain, dir.path()).await;
    buy_credit(&chain, &url).await;

    let owner = KEY.parse::<PrivateKeySigner>().unwrap().address();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let asked = |scheme: &str, nonce: u8| {
        let network = format!("eip155:{CHAIN_ID}");
        let extra = json!({ "assetTransferMethod": "permit2", "facilitatorAddress": owner });
        let requirements =
            PaymentRequirements::new((scheme, &network), Usdc(PRICE), (chain.usdc, TREASURY), 300, extra);
        let payment = pay::scheme::upto::client::sign(&customer(), &requirements, now, [nonce; 32]).unwrap();
        Asked { payment, requirements }
    };
    let http = net::Client::new();
    let settle = |url: &str, asked: &Asked| {
        let (http, url, body) = (http.clone(), format!("{url}/settle"), asked.to_body());
        tokio::spawn(async move { http.call_json::<Value>(&url, &body).await })
    };
    let makes_no_blocks = async || chain.rpc("evm_setAutomine", json!([false])).await;
    // Sent, and waiting in the pool for a block.
    let on_its_way = async || {
        while chain.rpc("txpool_status", json!([])).await["pending"] == "0x0" {
            tokio::task::yield_now().await;
        }
    };
    let send = async |from: Address, to: Address, data: Vec<u8>| {
        // First in its block.
        let gas_price = "0x174876e800";
        let data = format!("0x{}", hex::encode(data));
        let tx = json!([{ "from": from, "to": to, "data": data, "gas": "0x493e0", "gasPrice": gas_price }]);
        let hash = chain.rpc("eth_sendTransaction", tx).await;
        chain.rpc("evm_mine", json!([])).await;
        assert_eq!(chain.rpc("eth_getTransactionReceipt", json!([hash])).await["status"], "0x1");
        hash
    };
    let take_back = |nonce: u8| {
        let nonce = U256::from_be_bytes([nonce; 32]);
        let words = [nonce >> 8, U256::ONE << (nonce & U256::from(0xff))];
        send(payer, PERMIT2, chain::call("invalidateUnorderedNonces(uint256,uint256)", &words))
    };

    for (scheme, nonce) in [("exact", 1), ("upto", 2)] {
        makes_no_blocks().await;
        let answer = settle(&url, &asked(scheme, nonce));
        on_its_way().await;
        take_back(nonce).await;
        let told = answer.await.unwrap().unwrap();
        assert_eq!((&told["success"], &told["errorReason"]), (&json!(false), &json!("invalid_transaction_state")));
        assert_eq!((credit(&url, TREASURY).await, chain.balance(chain.usdc, TREASURY).await), (1_000_000, Usdc(0)));
    }

    // It dies, its transaction is lost, and the nonce is spent: by a withdrawal, then by a settlement that another
    // sent.
    for (nonce, is_paid) in [(3, false), (4, true)] {
        let asked = asked("exact", nonce);
        makes_no_blocks().await;
        let answer = settle(&url, &asked);
        on_its_way().await;
        process.kill().await.unwrap();
        assert!(answer.await.unwrap().is_err(), "nobody answers");
        chain.rpc("anvil_dropAllTransactions", json!([])).await;
        let by_another = if is_paid {
            let desk = Desk { chain_id: CHAIN_ID, tokens: vec![chain.usdc], facilitator: owner };
            let call = desk.check(&asked, now, 0).unwrap().call;
            send(chain::RELAY, call.to, call.data.to_vec()).await
        } else {
            take_back(nonce).await
        };
        chain.rpc("evm_setAutomine", json!([true])).await;
        (process, url) = facilitator(&chain, dir.path()).await;
        let told = settle(&url, &asked).await.unwrap().unwrap();
        assert_eq!(told["success"], is_paid, "{told}");
        assert_eq!(told["transaction"] == by_another, is_paid, "{told}");
        let paid = if is_paid { Usdc(PRICE) } else { Usdc(0) };
        assert_eq!(chain.balance(chain.usdc, TREASURY).await, paid);
        assert_eq!(credit(&url, TREASURY).await == 1_000_000, !is_paid, "a fee for what was paid");
    }
}

/// What it says when it cannot help: there is no credit, the transaction is not mined yet, the chain does not answer.
/// Nothing of that is a refusal of the payment, and the same may be asked again.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_settling_is_named() {
    use pay::facilitator::api::Asked;
    use pay::scheme::exact::client::sign;
    use pay::wire::PaymentRequirements;
    let (chain, dir) = (Chain::start().await, tempfile::tempdir().unwrap());
    chain.mint(chain.usdc, customer().address(), 5_000_000).await;
    let counting = Counting::start(&chain).await;
    let (_process, url) = facilitator_at(&counting.url, chain.usdc, dir.path()).await;
    let extra = json!({ "name": "USD Coin", "version": "2" });
    let network = format!("eip155:{CHAIN_ID}");
    let requirements = PaymentRequirements::new(("exact", &network), Usdc(PRICE), (chain.usdc, TREASURY), 300, extra);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let payment = sign(&customer(), &requirements, now, [1; 32].into()).unwrap();
    let body = Asked { payment, requirements }.to_body();
    let http = net::Client::new().with_deadline(std::time::Duration::from_secs(60));
    let ask = async |what: &str| -> Value { http.call_json(&format!("{url}/{what}"), &body).await.expect("an answer") };
    for (what, reason) in [("verify", "invalidReason"), ("settle", "errorReason")] {
        let told = ask(what).await;
        assert_eq!(told[reason], "facilitator_credit_required", "{told}");
    }
    buy_credit(&chain, &url).await;

    chain.rpc("evm_setAutomine", json!([false])).await;
    let told = ask("settle").await;
    assert_eq!((&told["success"], &told["errorReason"]), (&json!(false), &json!("settlement_pending")), "{told}");
    chain.rpc("evm_setAutomine", json!([true])).await;
    chain.rpc("evm_mine", json!([])).await;
    let told = ask("settle").await;
    assert_eq!(told["success"], true, "asked again it is settled, once: {told}");
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(PRICE));

    counting.stop();
    for (what, reason) in [("verify", "invalidReason"), ("settle", "errorReason")] {
        let told = ask(what).await;
        assert_eq!(told[reason], "unexpected_verify_error", "{told}");
    }
}

/// A payment counts on a chain that is longer than what its endpoint gives out logs of at once; and those that were mined
/// while nobody looked, longer ago than that, are found by whoever is started then.
#[tokio::test(flavor = "multi_thread")]
async fn payments_are_found_at_endpoints_that_bound_their_logs() {
    use pay::facilitator::api::Asked;
    use pay::wire::PaymentRequirements;
    let (chain, dir) = (Chain::start().await, tempfile::tempdir().unwrap());
    let payer = customer().address();
    chain.mint(chain.usdc, payer, 5_000_000).await;
    chain.rpc("anvil_setBalance", json!([payer, "0xde0b6b3a7640000"])).await;
    let permit2 = chain::word(pay::scheme::permit2::PERMIT2);
    let approve = chain::call("approve(address,uint256)", &[permit2, alloy::primitives::U256::MAX]);
    assert!(chain.send(payer, chain.usdc, &approve).await.1);
    let counting = Counting::start(&chain).await;
    let (mut process, url) = facilitator_at(&counting.url, chain.usdc, dir.path()).await;
    buy_credit(&chain, &url).await;
    // anvil takes long for many at once.
    let more_than_a_piece = async || {
        for _ in 0..=LOG_BLOCKS_MAX / 100 {
            chain.rpc("anvil_mine", json!(["0x64"])).await;
        }
    };
    more_than_a_piece().await;

    let asked = async |method: &str, nonce: u8| {
        let network = format!("eip155:{CHAIN_ID}");
        let extra = json!({ "name": "USD Coin", "version": "2", "assetTransferMethod": method });
        let offer = PaymentRequirements::new(("exact", &network), Usdc(PRICE), (chain.usdc, TREASURY), 10_000, extra);
        // Each block is a second, and they were made in less.
        let now = height(&chain.rpc("eth_getBlockByNumber", json!(["latest", false])).await["timestamp"]);
        let payment = match method {
            "permit2" => pay::scheme::upto::client::sign(&customer(), &offer, now, [nonce; 32]),
            _ => pay::scheme::exact::client::sign(&customer(), &offer, now, [nonce; 32].into()),
        };
        Asked { payment: payment.unwrap(), requirements: offer }.to_body()
    };
    let http = net::Client::new().with_deadline(std::time::Duration::from_secs(60));
    let settle = |url: &str, body: &Value| {
        let (http, url, body) = (http.clone(), format!("{url}/settle"), body.clone());
        tokio::spawn(async move { http.call_json::<Value>(&url, &body).await })
    };
    let told = settle(&url, &asked("eip3009", 1).await).await.unwrap().unwrap();
    assert_eq!(told["success"], true, "{told}");

    // Both are on their way when it dies.
    let bodies = [asked("eip3009", 2).await, asked("permit2", 3).await];
    chain.rpc("evm_setAutomine", json!([false])).await;
    let answers = [settle(&url, &bodies[0]), settle(&url, &bodies[1])];
    while chain.rpc("txpool_status", json!([])).await["pending"] != "0x2" {
        tokio::task::yield_now().await;
    }
    process.kill().await.unwrap();
    for answer in answers {
        assert!(answer.await.unwrap().is_err(), "nobody answers");
    }
    more_than_a_piece().await;
    chain.rpc("evm_setAutomine", json!([true])).await;
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(3 * PRICE));
    let (_process, url) = facilitator_at(&counting.url, chain.usdc, dir.path()).await;
    let told = [settle(&url, &bodies[0]), settle(&url, &bodies[1])];
    let told = futures::future::join_all(told).await.into_iter().map(|told| told.unwrap().unwrap());
    let told: Vec<Value> = told.collect();
    assert!(told.iter().all(|told| told["success"] == true), "{told:?}");
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(3 * PRICE));
}

/// What public endpoints give out logs of at once.
const LOG_BLOCKS_MAX: u64 = 1_000;

/// As public endpoints have it: the refusal of a question for logs of too many blocks.
fn too_many_blocks(request: &Value, newest: u64) -> Option<Value> {
    let number = |name: &str| {
        let text = request["params"][0][name].as_str()?.strip_prefix("0x")?;
        u64::from_str_radix(text, 16).ok()
    };
    let (from, to) = (number("fromBlock").unwrap_or(newest), number("toBlock").unwrap_or(newest));
    let error = json!({ "code": -32_602, "message": "query exceeds max block range 1000" });
    (to.saturating_sub(from) >= LOG_BLOCKS_MAX)
        .then(|| json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }))
}

fn height(told: &Value) -> u64 {
    u64::from_str_radix(told.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// A chain endpoint that counts what it is asked, and gives out logs as public ones do.
struct Counting {
    url: String,
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
    is_stopped: Arc<AtomicBool>,
}

impl Counting {
    async fn start(of: &Chain) -> Self {
        let asked: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (counts, to, http, stops) = (asked.clone(), of.url.clone(), net::Client::new(), is_stopped.clone());
        let forward = move |axum::Json(request): axum::Json<Value>| {
            let (counts, to, http, stops) = (counts.clone(), to.clone(), http.clone(), stops.clone());
            async move {
                if stops.load(Ordering::Relaxed) {
                    return Err(axum::http::StatusCode::BAD_GATEWAY);
                }
                let method = request["method"].as_str().unwrap_or_default().to_owned();
                let is_logs = method == "eth_getLogs";
                *counts.lock().unwrap().entry(method).or_default() += 1;
                if is_logs {
                    let newest = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": [] });
                    let newest: Value = http.call_json(&to, &newest).await.unwrap();
                    if let Some(refusal) = too_many_blocks(&request, height(&newest["result"])) {
                        return Ok(axum::Json(refusal));
                    }
                }
                let answer: Value = http.call_json(&to, &request).await.unwrap();
                Ok(axum::Json(answer))
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new().route("/", axum::routing::post(forward));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, asked, is_stopped }
    }

    /// From now on it answers nothing.
    fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    fn asked(&self, method: &str) -> u32 {
        self.asked.lock().unwrap().get(method).copied().unwrap_or_default()
    }
}

/// Rows wait while gas is dear, ask for its price once a look, and share one transaction when it is cheap; one that fails
/// leaves the others alone. And nobody waits longer than the policy says, however dear gas is.
#[tokio::test(flavor = "multi_thread")]
async fn rows_wait_for_cheap_gas_and_not_for_ever() {
    use ::chain::{Outcome, Sender};
    use node::batches::{Batches, Ether};
    use pay::facilitator::batch::{BatchPolicy, TRANSFER_GAS};
    use pay::facilitator::multicall::Call;
    use pay::scheme::exact::{client::sign, facilitator::transfer_call, server::verify};
    use pay::wire::PaymentRequirements;
    const EACH: u128 = 100_000_000;
    const DEAR: u64 = 8_000_000_000;
    const CHEAP: u64 = 1_000_000_000;
    let chain = Chain::start().await;
    chain.mint(chain.usdc, customer().address(), 3 * EACH).await;
    let extra = json!({ "name": "USD Coin", "version": "2" });
    let network = format!("eip155:{CHAIN_ID}");
    let offer = PaymentRequirements::new(("exact", &network), Usdc(EACH), (chain.usdc, TREASURY), 300, extra);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let row = |payer: &PrivateKeySigner, nonce: u8| {
        let payment = sign(payer, &offer, now, [nonce; 32].into()).unwrap();
        let terms = verify(&payment, &offer, now).unwrap().settlement();
        Call { to: chain.usdc, data: transfer_call(&terms, TREASURY).into() }
    };
    let poor = PrivateKeySigner::from_bytes(&keccak256(b"a customer without money")).unwrap();
    let base_fee = async |wei: u64| {
        chain.rpc("anvil_setNextBlockBaseFeePerGas", json!([format!("{wei:#x}")])).await;
    };

    let counting = Counting::start(&chain).await;
    let endpoint = ::chain::Chain::connect(&counting.url, CHAIN_ID).unwrap();
    let sender = Sender::spawn(endpoint.clone(), KEY.parse().unwrap(), 1);
    // Nothing but cheap gas makes them due: a hundredth of the sum, at 3,000 USDC an ether.
    let patient =
        BatchPolicy { gas: TRANSFER_GAS, fee_ppm_max: 10_000, sum_max: Usdc::MAX, wait_ms_max: u64::MAX, rows_max: 50 };
    let ether = Ether::Said(Usdc(3_000_000_000));
    base_fee(DEAR).await;
    let batches = Batches::start(endpoint.clone(), sender.clone(), ether, patient);
    let send = |payer: &PrivateKeySigner, nonce| batches.send(row(payer, nonce), Usdc(EACH));
    let begun = std::time::Instant::now();
    // All are queued before anybody looks at what was asked: they are polled first.
    let fall = async {
        while counting.asked("eth_gasPrice") < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(counting.asked("eth_sendRawTransaction"), 0, "sent while gas is dear");
        base_fee(CHEAP).await;
    };
    let (first, bad, second, ()) = tokio::join!(send(&customer(), 1), send(&poor, 2), send(&customer(), 3), fall);
    let Outcome::Done { tx_hash, .. } = first else { panic!("{first:?}") };
    for outcome in [bad, second] {
        assert!(matches!(outcome, Outcome::Done { tx_hash: same, .. } if same == tx_hash), "{outcome:?}");
    }
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(2 * EACH));
    let looks = 1 + begun.elapsed().as_secs() / 2;
    assert!(u64::from(counting.asked("eth_gasPrice")) <= looks, "the price was asked for more often than once a look");

    // As dear as before, and little patience.
    base_fee(DEAR).await;
    let hasty = Batches::start(endpoint, sender, ether, BatchPolicy { wait_ms_max: 200, ..patient });
    let Outcome::Done { tx_hash, .. } = hasty.send(row(&customer(), 4), Usdc(EACH)).await else { panic!("not sent") };
    let receipt = chain.rpc("eth_getTransactionReceipt", json!([tx_hash])).await;
    let paid = receipt["effectiveGasPrice"].as_str().unwrap().trim_start_matches("0x");
    assert!(u64::from_str_radix(paid, 16).unwrap() >= DEAR, "it waited for cheaper gas: {receipt}");
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(3 * EACH));
}
