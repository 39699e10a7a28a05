//! Against the official packages, unmodified, run by node. Named by triple: client-server-facilitator; `standin`
//! settles without a chain (the whole triple with a chain is the end-to-end life of `vivarium`).

use crate::shop::{CHAIN_ID, Shop, TOKEN, TREASURY, wall};
use alloy::primitives::keccak256;
use alloy::signers::local::PrivateKeySigner;
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

fn clients() -> PathBuf {
    let clients = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients");
    let installed = clients.join("node_modules/@x402/fetch").is_dir();
    assert!(
        installed,
        "tests/clients/node_modules is missing: `cargo xtask test` installs it (npm ci in tests/clients)"
    );
    clients
}

/// Runs the official client; the lines it printed.
async fn ts_client(shop: &Shop, calls: u32, mode: &str, more: &[&str]) -> Vec<Value> {
    let token = TOKEN.to_string();
    let out = Command::new("node")
        .current_dir(clients())
        .args(["exact.mjs", &shop.url, &key("js"), &calls.to_string(), mode, "--asset", &token])
        .args(more)
        .kill_on_drop(true)
        .output()
        .await
        .expect("node starts");
    let lines = String::from_utf8(out.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), usize::try_from(calls).unwrap(), "{}", String::from_utf8_lossy(&out.stderr));
    lines
}

fn key(name: &str) -> String {
    keccak256(name).to_string()
}

fn signer(name: &str) -> PrivateKeySigner {
    key(name).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_standin_exact() {
    let shop = Shop::open(1_234).await;
    for mode in ["plain", "stream"] {
        for answer in ts_client(&shop, 2, mode, &["--prompt", "ping"]).await {
            assert_eq!(answer["status"], 200, "{answer}");
            assert!(answer["text"].as_str().unwrap().starts_with("You said: ping"), "{answer}");
            assert_eq!(answer["payment"]["success"], true, "{answer}");
            assert_eq!(answer["payment"]["payer"], json!(signer("js").address().to_string()), "{answer}");
            assert_eq!(answer["payment"]["network"], "eip155:31337", "{answer}");
            assert_eq!(answer["x402"].is_object(), mode == "stream", "{answer}");
        }
    }
    assert_eq!(shop.earned(), 4 * 1_234);
    assert_eq!(shop.nonces().len(), 4);
    assert_eq!(shop.with(|shelf| shelf.asked), 8, "asked, then paid: two round trips a call");
}

/// The official client signs a fresh nonce for a question whose answer it lost.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_standin_exact_lost_answer() {
    let shop = Shop::open(500).await;
    shop.with(|shelf| shelf.confirmed = false);
    let answers = ts_client(&shop, 3, "plain", &["--same"]).await;
    assert!(
        answers.iter().all(|answer| answer["status"] == 200 && answer["text"] == answers[0]["text"]),
        "{answers:?}"
    );
    assert_eq!((shop.earned(), shop.nonces().len()), (500, 3), "three authorisations, one charge");
    shop.with(|shelf| shelf.confirmed = true);
    ts_client(&shop, 2, "plain", &["--same", "--prompt", "another"]).await;
    assert_eq!(shop.earned(), 1_500, "a client that has its answer pays for the next one");
}

/// Refusals reach the official client as a 402 that names the reason.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_standin_exact_refused() {
    let shop = Shop::open_with(500, TREASURY, || wall() + 100_000).await;
    let [answer] = &ts_client(&shop, 1, "plain", &[]).await[..] else { panic!("one call") };
    assert_eq!(answer["status"], 402);
    let body: Value = serde_json::from_str(answer["text"].as_str().unwrap()).unwrap();
    assert_eq!(body["error"]["code"], "invalid_exact_evm_payload_authorization_valid_before");
    assert_eq!(shop.earned(), 0);
}

/// The program that `vivarium up` prints.
#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_example_pays() {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let installed = examples.join("node_modules/@x402/fetch").is_dir();
    assert!(installed, "examples/node_modules is missing: `cargo xtask test` installs it (npm ci in examples)");
    // The limit that the example names: 5 test USDC a call.
    let limit = 5_000_000;
    let shop = Shop::open(limit).await;
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("customer.key");
    std::fs::write(&key_file, format!("# a development key\n{}\n", key("js"))).unwrap();
    let world =
        json!({ "usdc": TOKEN.to_string(), "agent": { "url": shop.url }, "customer": { "key_file": key_file } });
    std::fs::write(dir.path().join("world.json"), world.to_string()).unwrap();
    let token = TOKEN.to_string();
    let by_arguments = [shop.url.as_str(), key_file.to_str().unwrap(), token.as_str(), "ping"];
    for (world, arguments) in [(Some(dir.path()), &["ping"][..]), (None, &by_arguments[..])] {
        let mut program = Command::new("node");
        program.current_dir(&examples).arg("pay.mjs").args(arguments).env_remove("VIVARIUM_WORLD").kill_on_drop(true);
        program.envs(world.map(|dir| ("VIVARIUM_WORLD", dir)));
        let out = program.output().await.expect("node starts");
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(said.contains("You said: ping") && said.contains("paid by 0x"), "{out:?}");
    }
    // The same question again, answered: paid again. One unit more is over the example's limit.
    assert_eq!(shop.earned(), 2 * limit);
    shop.with(|shelf| shelf.price = Usdc(limit + 1));
    let mut program = Command::new("node");
    let out = program.current_dir(&examples).arg("pay.mjs").args(by_arguments).output().await.expect("node starts");
    assert!(!out.status.success() && shop.earned() == 2 * limit, "{out:?}");
}

/// Our buyer at the official Express middleware.
#[tokio::test(flavor = "multi_thread")]
async fn rs_ts_standin_exact() {
    let mut server = Command::new("node")
        .current_dir(clients())
        .args(["server.mjs", &TREASURY.to_string(), &TOKEN.to_string(), &CHAIN_ID.to_string(), "1234"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node starts");
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let hello: Value = serde_json::from_str(&lines.next_line().await.unwrap().expect("a first line")).unwrap();
    let url = format!("{}/v1/infer", hello["url"].as_str().unwrap());

    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: TOKEN,
        pay_to: TREASURY,
        max_per_call: Usdc(2_000),
        max_total: Usdc(10_000),
    };
    let buyer = Buyer::new(net::Client::new(), signer("rs"), policy);
    let paid = buyer.post_json(&url, &json!({ "prompt": "hi" })).await.unwrap();
    assert_eq!(paid.status, 200);
    assert_eq!(serde_json::from_slice::<Value>(&paid.body).unwrap(), json!({ "ok": true, "echo": { "prompt": "hi" } }));
    let settlement = paid.payment.unwrap();
    assert!(settlement.success);
    assert_eq!(settlement.payer, Some(signer("rs").address().to_string()));
    assert_eq!((paid.spent, buyer.signed_total(), buyer.unresolved()), (Usdc(1_234), Usdc(1_234), 0));
    let settled: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!(settled["settled"], "1234");
    server.kill().await.unwrap();
}
