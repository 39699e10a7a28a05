//! `vivarium proxy --withdraw`: a customer's money out of its channels when its agent is gone, on a development chain.

use super::facilitator::chain::{CHAIN_ID, Chain, RELAY, TREASURY};
use super::stub::code;
use super::world::program;
use alloy::primitives::{Address, B256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use chain::bindings::{Addresses, Birth, Offer, Policy, Standing, State as OnChain, Timers, Treasury};
use chain::deploy::{MarketParams, deploy};
use chain::{market, treasury, usdc};
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
/// How long the agent of the real contracts may live, and how long it ends.
const MANDATE_SECS: u64 = 300;
const REFUND_WINDOW_SECS: u32 = 900;

fn customer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(b"a customer who leaves")).unwrap()
}

/// A STAND-IN for an agent that sells by channels: it puts deposits in, and charges nothing.
pub struct Shop {
    chain: Arc<Chain>,
    offer: PaymentRequirements,
}

/// Who sold, and the token that it took.
#[derive(Clone, Copy)]
pub struct Agent {
    pub treasury: Address,
    pub token: Address,
}

impl Agent {
    /// At an address without code.
    fn nobody(chain: &Chain) -> Self {
        Self { treasury: TREASURY, token: chain.usdc }
    }
}

impl Shop {
    /// Takes deposits by Permit2 in the tests' token without EIP-3009.
    pub async fn open(chain: &Arc<Chain>, agent: Agent) -> (String, tokio::task::JoinHandle<()>) {
        let mut extra = json!({
            "name": "USD Coin", "version": "2", "receiverAuthorizer": agent.treasury, "withdrawDelay": DELAY_SECS,
        });
        if agent.token == chain.permit_token {
            (extra["name"], extra["version"]) = ("Test Dollar".into(), "1".into());
            extra["assetTransferMethod"] = "permit2".into();
        }
        let kind = ("batch-settlement", &*format!("eip155:{CHAIN_ID}"));
        let offer = PaymentRequirements::new(kind, Usdc(PRICE), (agent.token, agent.treasury), 300, extra);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(Arc::new(Self { chain: chain.clone(), offer }));
        (url, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
    }
}

async fn answer(State(shop): State<Arc<Shop>>, uri: Uri, headers: HeaderMap) -> Response {
    if uri.path() == "/v1/models" {
        return axum::Json(json!({ "data": [{ "id": "m" }] })).into_response();
    }
    let Some(payment) = headers.get(PAYMENT_SIGNATURE) else {
        let resource = Resource { url: "/".into(), description: "an answer".into(), mime_type: "text/plain".into() };
        let mut asks = PaymentRequired::new("Payment required", &resource, vec![shop.offer.clone()]);
        asks.extensions = Some(json!({ "eip2612GasSponsoring": { "info": { "version": "1" } } }));
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
async fn buys_and_is_left(chain: &Arc<Chain>, agent: Agent, dir: &Path) -> Usdc {
    chain.mint(agent.token, customer().address(), MINTED).await;
    let (url, shop) = Shop::open(chain, agent).await;
    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: agent.token,
        pay_to: agent.treasury,
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
fn world(chain: &Chain, agent: Agent, dir: &Path) {
    let key_file = dir.join("customer.key");
    std::fs::write(&key_file, format!("# a development key\n{}\n", customer().to_bytes())).unwrap();
    let nobody = Address::repeat_byte(1);
    let world = json!({
        "version": 1, "rpc_url": chain.url, "chain_id": CHAIN_ID, "usdc": agent.token, "treasury": agent.treasury,
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
    let gone = Agent::nobody(&chain);
    let locked = buys_and_is_left(&chain, gone, dir.path()).await;
    world(&chain, gone, dir.path());
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

/// A receiver that says it refunds, takes the call and gives nothing: the contract's own way is begun in the same run.
/// So it is where one says that it refunds and does not take the call.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_a_refund_is_not_believed() {
    for (refund, stage) in [(Some(Vec::new()), 3), (None, 3), (Some(Vec::new()), 1)] {
        let (chain, dir) = (Arc::new(Chain::start().await), tempfile::tempdir().unwrap());
        let gone = Agent::nobody(&chain);
        let locked = buys_and_is_left(&chain, gone, dir.path()).await;
        world(&chain, gone, dir.path());
        chain.rpc("anvil_setBalance", json!([customer().address(), "0xde0b6b3a7640000"])).await;
        ends(&chain, stage, refund).await;
        let now = now(&chain).await;
        let begun = told(dir.path()).await;
        let amount = json!(locked.micro().to_string());
        assert_eq!(
            (begun.len(), &begun[0]["step"], &begun[0]["amount_uusdc"]),
            (1, &json!("begun"), &amount),
            "{begun:?}"
        );
        assert!(begun[0]["ready_at"].as_u64().unwrap() >= now + DELAY_SECS, "{begun:?}");
        assert!(begun[0]["refunds_at"].is_null(), "{begun:?}");
    }
}

async fn now(chain: &Chain) -> u64 {
    let block = chain.rpc("eth_getBlockByNumber", json!(["latest", false])).await;
    u64::from_str_radix(block["timestamp"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// A STAND-IN for a treasury whose stewards opened refunds: what it says of itself, and what a refund does; `None`: it
/// reverts.
async fn ends(chain: &Chain, stage: u8, refund: Option<Vec<u8>>) {
    let state = OnChain { stage, ..OnChain::default() };
    let standing = Standing { refundsOpen: true, ..Standing::default() };
    let birth = Birth::default();
    let mut says = vec![
        (Treasury::stateCall::SELECTOR, Treasury::stateCall::abi_encode_returns(&state)),
        (Treasury::standingCall::SELECTOR, Treasury::standingCall::abi_encode_returns(&standing)),
        (Treasury::birthOfCall::SELECTOR, Treasury::birthOfCall::abi_encode_returns(&birth)),
    ];
    says.extend(refund.map(|refund| (Treasury::refundChannelCall::SELECTOR, refund)));
    chain.rpc("anvil_setCode", json!([TREASURY, code(&says)])).await;
}

/// The contracts themselves: the mandate is over and anybody winds the treasury down. Its first third is for claims,
/// and then the customer's money comes at once, sooner than by the channel contract's delay.
#[tokio::test(flavor = "multi_thread")]
async fn a_customer_is_refunded_by_a_treasury_that_ends() {
    let (chain, dir) = (Arc::new(Chain::start().await), tempfile::tempdir().unwrap());
    let agent = lives(&chain).await;
    let locked = buys_and_is_left(&chain, agent, dir.path()).await;
    world(&chain, agent, dir.path());
    chain.rpc("anvil_setBalance", json!([customer().address(), "0xde0b6b3a7640000"])).await;
    let amount = json!(locked.micro().to_string());

    // It lives, and says so: the contract's own way is begun.
    let begun = told(dir.path()).await;
    assert_eq!((&begun[0]["step"], &begun[0]["amount_uusdc"]), (&json!("begun"), &amount), "{begun:?}");
    assert!(begun[0]["refunds_at"].is_null(), "{begun:?}");

    // It ends. Its time for claims is not over: it is told when that will be, and nothing is sent.
    passes(&chain, MANDATE_SECS + 1).await;
    assert!(chain.send(RELAY, agent.treasury, &treasury::calls::wind_down()).await.1, "anybody may end it");
    let ended_at = now(&chain).await;
    let refunds_at = ended_at + u64::from(REFUND_WINDOW_SECS) / 3;
    let waits = told(dir.path()).await;
    assert_eq!((&waits[0]["step"], &waits[0]["refunds_at"]), (&json!("waits"), &json!(refunds_at)), "{waits:?}");
    let out = withdraw(dir.path(), &[]).await;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains(&format!("from chain time {refunds_at} on, `vivarium proxy --withdraw`")), "{said}");
    assert_eq!(chain.balance(agent.token, customer().address()).await.saturating_add(locked), Usdc(MINTED));

    passes(&chain, refunds_at - now(&chain).await).await;
    let refunded = told(dir.path()).await;
    assert_eq!((&refunded[0]["step"], &refunded[0]["amount_uusdc"]), (&json!("refunded"), &amount), "{refunded:?}");
    assert!(refunded[0]["transaction"].is_string() && refunded[0]["ready_at"].is_null(), "{refunded:?}");
    assert_eq!(chain.balance(agent.token, customer().address()).await, Usdc(MINTED), "all of it is back");
    assert_eq!(told(dir.path()).await, Vec::<Value>::new(), "nothing is left");
}

async fn passes(chain: &Chain, secs: u64) {
    chain.rpc("evm_increaseTime", json!([secs])).await;
    chain.rpc("evm_mine", json!([])).await;
}

/// An agent of the real contracts on its first host, without a process. Its mandate ends before a channel's delay
/// would.
async fn lives(chain: &Chain) -> Agent {
    let on = ::chain::Chain::connect(&chain.url, CHAIN_ID).unwrap();
    let [creator, provider, node] =
        ["a creator", "a provider", "a node"].map(|name| PrivateKeySigner::from_bytes(&keccak256(name)).unwrap());
    for account in [&creator, &provider, &node] {
        chain.rpc("anvil_setBalance", json!([account.address(), "0x8ac7230489e80000"])).await;
    }
    let (creator, provider, node) = (creator, provider.address(), node.address());
    let terms = MarketParams { stake_min: MINTED, ready_within: 45, grace: 34, drop_after: 40_000 };
    let Addresses { usdc, market: at, factory } = deploy(&on, &creator, terms).await.unwrap();
    let send = async |from: Address, to: Address, data: alloy::primitives::Bytes| {
        assert!(chain.send(from, to, &data).await.1, "{from} to {to}: {}", hex::encode(&data[..4]));
    };
    let offer = Offer {
        provider: Address::ZERO,
        priceE6: 3_000_000_000,
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
    chain.mint(usdc, provider, MINTED).await;
    send(provider, usdc, usdc::calls::approve(at, MINTED)).await;
    send(provider, at, market::calls::register(MINTED)).await;
    send(provider, at, market::calls::post_offer(&offer)).await;

    let mut birth = Birth {
        creator: creator.address(),
        token: usdc,
        market: at,
        beneficiary: creator.address(),
        stewards: vec![Address::repeat_byte(0x51), Address::repeat_byte(0x52)],
        threshold: 2,
        codeHash: B256::repeat_byte(0xc0),
        manifest: B256::repeat_byte(0x3a),
        mandateUntil: now(chain).await + MANDATE_SECS,
        policy: Policy {
            dayLimit: 50_000_000,
            priceE6Max: 5_000_000_000,
            termMax: 600,
            prepayMax: 40,
            gasDayMax: 1,
            gasTarget: 1,
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
            refundWindow: REFUND_WINDOW_SECS,
        },
        ..Birth::default()
    };
    birth.options.channels = BATCH_SETTLEMENT;
    birth.options.withdrawDelay = u32::try_from(DELAY_SECS).unwrap();
    let addresses = Addresses { usdc, market: at, factory };
    let treasury = treasury::predict(&on, &addresses, &birth).await.unwrap();
    send(creator.address(), factory, treasury::calls::create(&birth)).await;
    chain.mint(usdc, treasury, 20_000_000).await;
    send(creator.address(), treasury, treasury::calls::birth_rent(1, 600, 100_000)).await;
    send(provider, at, market::calls::ready(1, node, "http://127.0.0.1:2", B256::ZERO)).await;
    send(creator.address(), treasury, treasury::calls::activate(1)).await;
    Agent { treasury, token: usdc }
}
