//! `vivarium proxy --withdraw`: a customer's money out of its channels when its agent is gone, on a development chain.

use super::facilitator::chain::{CHAIN_ID, Chain, RELAY, TREASURY};
use super::stub::{Does, code};
use super::world::program;
use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chain::bindings::{BatchSettlement, Birth, Standing, State as OnChain, Treasury};
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy, ChannelPolicy, Schemes};
use pay::scheme::channel::facilitator::deposit_call;
use pay::scheme::channel::server::{VoucherKind, verify};
use pay::scheme::channel::{BATCH_SETTLEMENT, ChannelDomain};
use pay::scheme::exact::Domain;
use pay::wire::{PAYMENT_REQUIRED, PAYMENT_RESPONSE, PaymentPayload, PaymentRequired, PaymentRequirements, Resource};
use pay::wire::{PAYMENT_SIGNATURE, SettlementResponse};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::process::Command;

const DELAY_SECS: u64 = 900;
const MINTED: u128 = 1_000_000;
/// Ceiling of a call.
const PRICE: u128 = 1_000;

fn customer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(b"a customer who leaves")).unwrap()
}

/// A STAND-IN for an agent that sells by channels: it puts deposits in, charges nothing, and then is gone.
struct Shop {
    chain: Arc<Chain>,
    offer: PaymentRequirements,
}

impl Shop {
    async fn open(chain: &Arc<Chain>) -> (String, tokio::task::JoinHandle<()>) {
        let extra = json!({
            "name": "USD Coin", "version": "2", "receiverAuthorizer": TREASURY, "withdrawDelay": DELAY_SECS,
        });
        let kind = ("batch-settlement", &*format!("eip155:{CHAIN_ID}"));
        let offer = PaymentRequirements::new(kind, Usdc(PRICE), (chain.usdc, TREASURY), 300, extra);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(Arc::new(Self { chain: chain.clone(), offer }));
        (url, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
    }
}

async fn answer(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> Response {
    let Some(payment) = headers.get(PAYMENT_SIGNATURE) else {
        let resource = Resource { url: "/".into(), description: "an answer".into(), mime_type: "text/plain".into() };
        let asks = PaymentRequired::new("Payment required", &resource, vec![shop.offer.clone()]);
        return (StatusCode::PAYMENT_REQUIRED, [(PAYMENT_REQUIRED, asks.to_header())]).into_response();
    };
    let payment = PaymentPayload::from_header(payment.to_str().unwrap()).unwrap();
    let (domain, token) = (ChannelDomain::new(CHAIN_ID), Domain::of(&shop.offer).unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let paid = verify(&domain, &token, &payment, &shop.offer, now).unwrap();
    if let VoucherKind::Deposit(deposit) = &paid.kind {
        let (_, done) = shop.chain.send(RELAY, BATCH_SETTLEMENT, &deposit_call(&paid.config, deposit)).await;
        assert!(done, "the deposit goes in");
    }
    let mut rest = serde_json::Map::new();
    rest.insert("extra".into(), json!({ "chargedAmount": "0", "channelState": { "chargedCumulativeAmount": "0" } }));
    let response = SettlementResponse {
        success: true,
        transaction: String::new(),
        network: shop.offer.network().to_owned(),
        payer: None,
        error_reason: None,
        amount: None,
        rest,
    };
    ([(PAYMENT_RESPONSE, response.to_header()), (header::CONTENT_TYPE, "text/plain".to_owned())], "so").into_response()
}

/// Pays two calls of the shop from a channel, by the record that `vivarium proxy` keeps; then the shop is gone.
async fn buys_and_is_left(chain: &Arc<Chain>, dir: &Path) -> Usdc {
    let (url, shop) = Shop::open(chain).await;
    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: chain.usdc,
        pay_to: TREASURY,
        max_per_call: Usdc(10 * PRICE),
        max_total: Usdc(MINTED),
    };
    let channels = ChannelPolicy {
        deposit: Usdc::ZERO,
        deposit_calls: 20,
        deposit_max: Usdc(MINTED),
        withdraw_delay_secs_max: 30 * 86_400,
        slots: 4,
        lane: 2,
    };
    let record = dir.join(format!("proxy-{}.record", customer().address()));
    let buyer = Buyer::new(net::Client::new(), customer(), policy)
        .with_schemes(Schemes::Channel(channels))
        .with_chain(&chain.url)
        .with_record(&record)
        .unwrap();
    for question in 0..2 {
        let paid = buyer.post_json(&format!("{url}/v1/x"), &json!({ "question": question })).await.unwrap();
        assert_eq!(paid.status.as_u16(), 200);
    }
    let left = buyer.left_in_channels();
    assert_eq!(left, Usdc(20 * PRICE), "one channel, filled once");
    shop.abort();
    left
}

/// The files of a world whose agent is gone: nothing answers where it was.
fn world(chain: &Chain, dir: &Path) {
    let key_file = dir.join("customer.key");
    std::fs::write(&key_file, format!("# a development key\n{}\n", customer().to_bytes())).unwrap();
    let nobody = Address::repeat_byte(1);
    let world = json!({
        "version": 1, "rpc_url": chain.url, "chain_id": CHAIN_ID, "usdc": chain.usdc, "treasury": TREASURY,
        "lease_market": nobody, "channel": BATCH_SETTLEMENT,
        "agent": { "url": null, "operator": null, "epoch": 1, "pid": null },
        "providers": [], "stewards": [],
        "customer": { "address": customer().address(), "key_file": key_file },
    });
    std::fs::write(dir.join("world.json"), world.to_string()).unwrap();
}

async fn withdraw(dir: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(["proxy", "--withdraw", "--data-dir"]).arg(dir).args(more).kill_on_drop(true);
    command.output().await.expect("it runs")
}

/// The channels that it tells of.
async fn told(dir: &Path) -> Vec<Value> {
    let out = withdraw(dir, &["--json"]).await;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(said["payer"], json!(customer().address()));
    said["channels"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_takes_its_money_out_when_the_agent_is_gone() {
    let (chain, dir) = (Arc::new(Chain::start().await), tempfile::tempdir().unwrap());
    chain.mint(chain.usdc, customer().address(), MINTED).await;
    let locked = buys_and_is_left(&chain, dir.path()).await;
    world(&chain, dir.path());
    let has = async || chain.balance(chain.usdc, customer().address()).await;
    assert_eq!(has().await.saturating_add(locked), Usdc(MINTED));

    // Nobody pays its gas.
    let out = withdraw(dir.path(), &[]).await;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("has 0.000000000000000000 ether and needs about"), "{said}");
    chain.rpc("anvil_setBalance", json!([customer().address(), "0xde0b6b3a7640000"])).await;

    let begun = told(dir.path()).await;
    assert_eq!(begun.len(), 1, "{begun:?}");
    let amount = json!(locked.micro().to_string());
    assert_eq!((&begun[0]["step"], &begun[0]["amount_uusdc"]), (&json!("begun"), &amount), "{begun:?}");
    assert!(begun[0]["transaction"].is_string() && begun[0]["receiver"] == json!(TREASURY), "{begun:?}");
    let ready_at = begun[0]["ready_at"].as_u64().unwrap();

    // Too early: nothing is sent, and it is told when.
    let waits = told(dir.path()).await;
    assert_eq!((&waits[0]["step"], waits[0]["ready_at"].as_u64()), (&json!("waits"), Some(ready_at)), "{waits:?}");
    assert!(waits[0]["transaction"].is_null());
    let out = withdraw(dir.path(), &[]).await;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains(&format!("at chain time {ready_at}, `vivarium proxy --withdraw` takes them out")), "{said}");

    chain.rpc("evm_increaseTime", json!([DELAY_SECS])).await;
    chain.rpc("evm_mine", json!([])).await;
    let done = told(dir.path()).await;
    assert_eq!((&done[0]["step"], &done[0]["amount_uusdc"]), (&json!("done"), &amount), "{done:?}");
    assert_eq!(has().await, Usdc(MINTED), "all of it is back");
    assert_eq!(chain.balance(chain.usdc, BATCH_SETTLEMENT).await, Usdc(0));

    assert_eq!(told(dir.path()).await, Vec::<Value>::new(), "nothing is left");
    let out = withdraw(dir.path(), &[]).await;
    assert!(String::from_utf8_lossy(&out.stdout).contains("nothing lies in the channels of"));
}

/// A STAND-IN for a treasury that ends: what it says, and what a refund does.
async fn ends(chain: &Chain, (wind_down_at, window): (u64, u32), refunds_open: bool, refund: Does) {
    let state = OnChain { stage: 3, windDownAt: wind_down_at, ..OnChain::default() };
    let standing = Standing { refundsOpen: refunds_open, ..Standing::default() };
    let mut birth = Birth::default();
    birth.timers.refundWindow = window;
    let treasury = code(&[
        (Treasury::stateCall::SELECTOR, Does::Returns(Treasury::stateCall::abi_encode_returns(&state))),
        (Treasury::standingCall::SELECTOR, Does::Returns(Treasury::standingCall::abi_encode_returns(&standing))),
        (Treasury::birthOfCall::SELECTOR, Does::Returns(Treasury::birthOfCall::abi_encode_returns(&birth))),
        (Treasury::refundChannelCall::SELECTOR, refund),
    ]);
    chain.rpc("anvil_setCode", json!([TREASURY, treasury])).await;
}

/// The refund phase is quicker than the contract's delay, and is taken while it is open; what only looks like one is not
/// believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_customer_is_refunded_by_a_treasury_that_ends() {
    let (chain, dir) = (Arc::new(Chain::start().await), tempfile::tempdir().unwrap());
    chain.mint(chain.usdc, customer().address(), MINTED).await;
    let locked = buys_and_is_left(&chain, dir.path()).await;
    world(&chain, dir.path());
    chain.rpc("anvil_setBalance", json!([customer().address(), "0xde0b6b3a7640000"])).await;
    let block = chain.rpc("eth_getBlockByNumber", json!(["latest", false])).await;
    let now = u64::from_str_radix(block["timestamp"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    let amount = json!(locked.micro().to_string());

    // It takes the call and gives nothing: the contract's own way is begun in the same run.
    ends(&chain, (now, 900), true, Does::Returns(Vec::new())).await;
    let begun = told(dir.path()).await;
    assert_eq!((begun.len(), &begun[0]["step"], &begun[0]["amount_uusdc"]), (1, &json!("begun"), &amount), "{begun:?}");
    assert!(
        begun[0]["ready_at"].as_u64().unwrap() >= now + DELAY_SECS && begun[0]["refunds_at"].is_null(),
        "{begun:?}"
    );

    // Its time for claims is not over: it is told when that will be, and nothing is sent.
    let refund = || Does::Calls(BATCH_SETTLEMENT, BatchSettlement::refundCall::SELECTOR);
    ends(&chain, (now, 900), false, refund()).await;
    let waits = told(dir.path()).await;
    assert_eq!((&waits[0]["step"], &waits[0]["refunds_at"]), (&json!("waits"), &json!(now + 300)), "{waits:?}");
    let out = withdraw(dir.path(), &[]).await;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains(&format!("from chain time {} on, `vivarium proxy --withdraw`", now + 300)), "{said}");

    chain.rpc("evm_increaseTime", json!([300])).await;
    chain.rpc("evm_mine", json!([])).await;
    let refunded = told(dir.path()).await;
    assert_eq!((&refunded[0]["step"], &refunded[0]["amount_uusdc"]), (&json!("refunded"), &amount), "{refunded:?}");
    assert!(refunded[0]["transaction"].is_string() && refunded[0]["ready_at"].is_null(), "{refunded:?}");
    assert_eq!(chain.balance(chain.usdc, customer().address()).await, Usdc(MINTED), "all of it is back");
    assert_eq!(told(dir.path()).await, Vec::<Value>::new(), "nothing is left");
}
