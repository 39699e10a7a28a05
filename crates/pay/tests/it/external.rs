//! With somebody else's facilitator: the official one, unmodified, in a process of its own. Our seller with the official
//! client, and our buyer at the official server. Named by triple.

use crate::chain::{CHAIN_ID, Chain, TREASURY};
use crate::market::Market;
use crate::schemes::{agree, agree_with_ledger, approve_permit2, clients, fund, payer, ts};
use http::HeaderMap;
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy, Schemes};
use pay::facilitator::remote::Remote;
use pay::seller::offers::TransferMethod;
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// anvil's development account 2: it pays this facilitator's gas.
const KEY: &str = "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a";

async fn facilitator(chain: &Chain, manner: &str) -> (Child, String) {
    started(&["facilitator.mjs", &chain.url, &CHAIN_ID.to_string(), KEY, manner]).await
}

/// What this price buys at the official server, which settles by this facilitator.
const PRICE: u128 = 1_234;

async fn official_shop(chain: &Chain, facilitator: &str, scheme: &str) -> (Child, String) {
    let token = if scheme == "upto" { chain.permit_token } else { chain.usdc };
    let (payee, token, price) = (TREASURY.to_string(), token.to_string(), PRICE.to_string());
    started(&["server.mjs", &payee, &token, &CHAIN_ID.to_string(), &price, facilitator, scheme]).await
}

/// The program, and its URL.
async fn started(arguments: &[&str]) -> (Child, String) {
    let mut process = Command::new("node")
        .current_dir(clients())
        .args(arguments)
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
    let (process, url) = facilitator(market.chain(), manner).await;
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

/// Streams, each settled by the other.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_ts_exact_streamed() {
    let market = Market::open(&["exact"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    let (_process, _) = with(&market, "", Duration::from_secs(30)).await;
    for line in ts(&market, 3, "stream", "exact", &[]).await {
        assert!(line["text"].as_str().is_some_and(|text| text.contains("data: ")), "{line}");
    }
    assert_eq!((sent(&market, "exact by another"), sent(&market, "exact")), (3, 0));
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

/// The deposit by the other, the stream by its voucher.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_ts_batch_settlement_streamed() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    let (_process, _) = with(&market, "", Duration::from_secs(30)).await;
    ts(&market, 4, "stream", "batch-settlement", &[]).await;
    assert_eq!((sent(&market, "deposit by another"), sent(&market, "deposit")), (1, 0));
    market.claim_and_settle().await;
    agree_with_ledger(&market, 5_000_000).await;
}

fn buyer(chain: &Chain, scheme: &str) -> Buyer {
    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: if scheme == "upto" { chain.permit_token } else { chain.usdc },
        pay_to: TREASURY,
        max_per_call: Usdc(PRICE),
        max_total: Usdc(3 * PRICE),
    };
    Buyer::new(net::Client::new(), payer(), policy).with_chain(&chain.url)
}

/// Our buyer at the official Express middleware with the official facilitator: what it says it paid is on the chain.
#[tokio::test(flavor = "multi_thread")]
async fn rs_ts_ts_exact() {
    let chain = Chain::start().await;
    chain.mint(chain.usdc, payer().address(), 5_000_000).await;
    let (_facilitator, at) = facilitator(&chain, "").await;
    let (_server, url) = official_shop(&chain, &at, "exact").await;
    let (buyer, url) = (buyer(&chain, "exact"), format!("{url}/v1/infer"));
    for turn in 1..=3 {
        let paid = buyer.post_json(&url, &json!({ "turn": turn })).await.unwrap();
        assert_eq!((paid.status.as_u16(), paid.spent), (200, Usdc(PRICE)));
        assert!(paid.payment.is_some_and(|payment| payment.success && payment.transaction.len() == 66));
        assert_eq!(chain.balance(chain.usdc, TREASURY).await, Usdc(turn * PRICE));
    }
    assert_eq!((buyer.signed_total(), buyer.unresolved()), (Usdc(3 * PRICE), 0));
}

/// Our buyer by `upto`, with a permission (EIP-2612) beside each payment, then with an allowance: half of what it permits moves, and that counts once the chain tells it.
#[tokio::test(flavor = "multi_thread")]
async fn rs_ts_ts_upto() {
    let chain = Chain::start().await;
    chain.mint(chain.permit_token, payer().address(), 5_000_000).await;
    let (_facilitator, at) = facilitator(&chain, "").await;
    let (_server, url) = official_shop(&chain, &at, "upto").await;
    let buyer = buyer(&chain, "upto").with_schemes(Schemes::Upto).with_permit2();
    let url = format!("{url}/v1/infer");
    for turn in 1..=3 {
        if turn == 3 {
            approve_permit2(&chain, chain.permit_token).await;
        }
        let paid = buyer.post_json(&url, &json!({ "turn": turn })).await.unwrap();
        assert_eq!((paid.status.as_u16(), paid.spent), (200, Usdc(PRICE / 2)));
        assert!(paid.payment.is_some_and(|payment| payment.success && payment.transaction.len() == 66));
        assert_eq!(chain.balance(chain.permit_token, TREASURY).await, Usdc(turn * PRICE / 2));
    }
    assert_eq!((buyer.signed_total(), buyer.unresolved()), (Usdc(3 * PRICE), 0), "ceilings, until the chain is asked");
    chain.rpc("anvil_mine", json!(["0xa"])).await;
    assert_eq!((buyer.look_at_charges().await, buyer.signed_total()), (3, Usdc(3 * PRICE / 2)));
}

/// The same for a stream, which that middleware keeps until it has settled.
#[tokio::test(flavor = "multi_thread")]
async fn rs_ts_ts_exact_streamed() {
    let chain = Chain::start().await;
    chain.mint(chain.usdc, payer().address(), 5_000_000).await;
    let (_facilitator, at) = facilitator(&chain, "").await;
    let (_server, url) = official_shop(&chain, &at, "exact").await;
    let (buyer, url) = (buyer(&chain, "exact"), format!("{url}/v1/infer"));
    let asked = json!({ "stream": true });
    let mut answer = buyer.post_stream(&url, HeaderMap::new(), &asked).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.spent, answer.scheme), (200, Usdc(PRICE), Some("exact")));
    assert!(answer.payment.as_ref().is_some_and(|payment| payment.success), "the head says so");
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    assert_eq!(String::from_utf8(text).unwrap(), "data: {\"ok\":true}\n\ndata: [DONE]\n\n");
    assert_eq!((chain.balance(chain.usdc, TREASURY).await, buyer.unresolved()), (Usdc(PRICE), 0));
}
