//! Our seller with somebody else's facilitator: the official one, unmodified, in a process of its own. Named by triple.

use crate::chain::CHAIN_ID;
use crate::market::Market;
use crate::schemes::{agree, agree_with_ledger, clients, fund, ts};
use pay::facilitator::remote::Remote;
use pay::seller::offers::TransferMethod;
use serde_json::Value;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// anvil's development account 2: it pays this facilitator's gas.
const KEY: &str = "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a";

async fn facilitator(market: &Market, manner: &str) -> (Child, String) {
    let mut process = Command::new("node")
        .current_dir(clients())
        .args(["facilitator.mjs", &market.chain().url, &CHAIN_ID.to_string(), KEY, manner])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node starts");
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let line: Value = serde_json::from_str(&lines.next_line().await.unwrap().expect("a first line")).unwrap();
    (process, line["url"].as_str().unwrap().to_owned())
}

/// For as long as it lives; `patience` to its answer.
async fn with(market: &Market, manner: &str, patience: Duration) -> (Child, Arc<Remote>) {
    let (process, url) = facilitator(market, manner).await;
    let remote = Arc::new(Remote::new(&url, &net::Client::new()).with_patience(patience));
    *market.inner.another.lock().unwrap() = Some(remote.clone());
    (process, remote)
}

fn sent(market: &Market, what: &str) -> u32 {
    market.with(|desk| desk.transactions.get(what).copied().unwrap_or_default())
}

/// The external facilitator settles; when it is gone, the seller settles itself and leaves it alone.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_ts_exact() {
    let market = Market::open(&["exact"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    let (mut process, remote) = with(&market, "", Duration::from_secs(30)).await;
    ts(&market, 3, "plain", "exact", &[]).await;
    assert_eq!((sent(&market, "exact by another"), sent(&market, "exact")), (3, 0));
    process.kill().await.unwrap();
    ts(&market, 3, "plain", "exact", &[]).await;
    assert_eq!((sent(&market, "exact by another"), sent(&market, "exact")), (3, 3));
    assert!(!remote.is_healthy());
    agree(&market, 5_000_000).await;
}

/// No answer is no refusal: the chain is asked, and what was settled is not settled again.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_ts_exact_without_an_answer() {
    let market = Market::open(&["exact"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    let (_late, _) = with(&market, "late", Duration::from_secs(3)).await;
    ts(&market, 1, "plain", "exact", &[]).await;
    assert_eq!((sent(&market, "exact by another"), sent(&market, "exact")), (1, 0), "it had settled");
    let (_deaf, _) = with(&market, "deaf", Duration::from_millis(300)).await;
    ts(&market, 1, "plain", "exact", &[]).await;
    assert_eq!((sent(&market, "exact by another"), sent(&market, "exact")), (1, 1), "it had not");
    agree(&market, 5_000_000).await;
}

/// Deposits too; vouchers never need it.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_ts_batch_settlement() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    let (_process, _) = with(&market, "", Duration::from_secs(30)).await;
    ts(&market, 4, "plain", "batch-settlement", &[]).await;
    assert_eq!((sent(&market, "deposit by another"), sent(&market, "deposit")), (1, 0));
    market.claim_and_settle().await;
    agree_with_ledger(&market, 5_000_000).await;
}
