//! Every scheme by the official JavaScript client against our seller, on a real chain. Named by triple:
//! client-server-facilitator; `rs` settles on anvil with the development contracts.

use crate::chain::{Chain, TREASURY};
use crate::market::{Fails, Market};

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy, ChannelPolicy, Fate, Kind, Schemes};
use pay::seller::offers::TransferMethod;
use serde_json::Value;
use std::path::PathBuf;
use tokio::process::Command;

pub fn clients() -> PathBuf {
    let clients = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients");
    let installed = clients.join("node_modules/@x402/fetch").is_dir();
    assert!(installed, "tests/clients/node_modules is missing: `cargo xtask test` installs it (npm ci)");
    clients
}

pub fn payer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&alloy::primitives::keccak256(b"a customer")).unwrap()
}

pub async fn fund(market: &Market, amount: u128) {
    market.chain().mint(market.token(), payer().address(), amount).await;
}

/// Runs the official client; the lines it printed.
pub async fn ts(market: &Market, calls: u32, mode: &str, scheme: &str, flags: &[&str]) -> Vec<Value> {
    let key = format!("0x{}", hex::encode(payer().to_bytes()));
    let out = Command::new("node")
        .current_dir(clients())
        .args(["schemes.mjs", &market.url, &key, &calls.to_string(), mode, scheme, &market.chain().url])
        .arg(market.token().to_string())
        .args(flags)
        .kill_on_drop(true)
        .output()
        .await
        .expect("node starts");
    let text = String::from_utf8(out.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wanted = usize::try_from(calls).unwrap() + usize::from(flags.contains(&"--refund"));
    assert_eq!(lines.len(), wanted, "{text}{}", String::from_utf8_lossy(&out.stderr));
    for line in lines.iter().filter(|line| line.get("call").is_some()) {
        assert_eq!(line["status"], 200, "{line}");
    }
    lines
}

/// Ledger, receipts and chain say the same sum, and the payer paid it and no more.
pub async fn agree(market: &Market, funded: u128) -> Usdc {
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    let treasury = market.chain().balance(market.token(), TREASURY).await;
    assert_eq!(treasury, receipts, "chain = receipts");
    let left = market.chain().balance(market.token(), payer().address()).await;
    let locked = market.chain().balance(market.token(), pay::scheme::channel::BATCH_SETTLEMENT).await;
    assert_eq!(left.saturating_add(locked).saturating_add(treasury), Usdc(funded));
    treasury
}

pub async fn agree_with_ledger(market: &Market, funded: u128) -> Usdc {
    let treasury = agree(market, funded).await;
    let totals = market.with(|desk| desk.book.channels().totals());
    assert_eq!((totals.charged, totals.claimed), (treasury, treasury), "ledger = chain");
    assert_eq!((totals.reserved, totals.unclaimed), (Usdc(0), Usdc(0)));
    treasury
}

#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_rs_batch_settlement() {
    let market = Market::open(&["batch-settlement", "exact"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    let lines = ts(&market, 30, "plain", "batch-settlement", &["--refund"]).await;
    let told: u128 = lines.iter().filter_map(|l| l["payment"]["extra"]["chargedAmount"].as_str()).map(parse).sum();
    let (asked, paid, corrected) = market.with(|desk| (desk.asked, desk.paid, desk.corrected));
    // 30 calls and the refund, each asked first.
    assert_eq!((asked, paid, corrected), (62, 31, 0), "the client never fell out of step");
    assert_eq!(lines[30]["refund"]["success"], true, "{}", lines[30]);
    market.claim_and_settle().await;
    let earned = agree_with_ledger(&market, 5_000_000).await;
    assert_eq!(earned, Usdc(told), "the client was told what it was charged");
    let locked = market.chain().balance(market.token(), pay::scheme::channel::BATCH_SETTLEMENT).await;
    assert_eq!(locked, Usdc(0), "the rest went back");
}

/// The head leaves before the charge is known, and the official client looks nowhere else. It stays in step for two round trips a call.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_rs_batch_settlement_streamed() {
    let calls = if std::env::var_os("VIVARIUM_DEEP").is_some() { 10_000 } else { 1_000 };
    let funded = 50_000_000;
    let market = Market::open(&["batch-settlement"], TransferMethod::Eip3009).await;
    fund(&market, funded).await;
    let lines = ts(&market, calls, "stream", "batch-settlement", &[]).await;
    let charged: u128 = lines.iter().map(|line| parse(line["charged"].as_str().unwrap())).sum();
    let (asked, corrected) = market.with(|desk| (desk.asked, desk.corrected));
    assert_eq!((asked, corrected), (2 * calls, 0), "two round trips a call, never out of step");
    let claims = market.claim_and_settle().await;
    assert_eq!(claims, 2, "one claim and one settlement for all of them");
    assert_eq!(agree_with_ledger(&market, funded).await, Usdc(charged), "ledger = receipts = chain");
    assert_eq!(market.with(|desk| desk.receipts.len()), usize::try_from(calls).unwrap());
}

/// A seller without room in its offers: correct all the same, by one more round trip a call.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_rs_batch_settlement_corrected() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    market.with(|desk| desk.carry = false);
    ts(&market, 5, "stream", "batch-settlement", &[]).await;
    assert_eq!(market.with(|desk| (desk.corrected, desk.receipts.len())), (4, 5));
    // A client without memory finds its channel on the chain and is told the rest.
    ts(&market, 3, "plain", "batch-settlement", &["--forget"]).await;
    assert_eq!(market.with(|desk| desk.receipts.len()), 8);
    assert_eq!(market.with(|desk| desk.transactions["deposit"]), 1, "one deposit in all");
    market.claim_and_settle().await;
    agree_with_ledger(&market, 5_000_000).await;
}

/// Whoever hangs up pays for what it got, and goes on with the same channel.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_rs_batch_settlement_hung_up() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    ts(&market, 4, "stream", "batch-settlement", &["--hang-up"]).await;
    market.claim_and_settle().await;
    agree_with_ledger(&market, 5_000_000).await;
}

/// A token without EIP-3009: the deposit goes by Permit2, which an EIP-2612 permission lets spend; the payer sends no
/// transaction.
#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_rs_batch_settlement_permit2() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Permit2).await;
    fund(&market, 5_000_000).await;
    ts(&market, 3, "stream", "batch-settlement", &[]).await;
    market.claim_and_settle().await;
    agree_with_ledger(&market, 5_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_rs_upto() {
    for mode in ["plain", "stream"] {
        let market = Market::open(&["upto"], TransferMethod::Permit2).await;
        fund(&market, 5_000_000).await;
        let lines = ts(&market, 3, mode, "upto", &[]).await;
        let paid: u128 = lines.iter().map(|line| parse(line["payment"]["amount"].as_str().unwrap())).sum();
        assert_eq!(agree(&market, 5_000_000).await, Usdc(paid));
        let most = crate::market::price_up(16).micro() * 3;
        assert!(paid < most, "metered: {paid} of at most {most}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ts_rs_rs_exact() {
    for (transfer, mode) in [
        (TransferMethod::Permit2, "plain"),
        (TransferMethod::Permit2, "stream"),
        (TransferMethod::Eip3009, "plain"),
        (TransferMethod::Eip3009, "stream"),
    ] {
        let market = Market::open(&["exact"], transfer).await;
        fund(&market, 5_000_000).await;
        ts(&market, 3, mode, "exact", &[]).await;
        assert_eq!(agree(&market, 5_000_000).await.micro(), crate::market::price_up(16).micro() * 3);
    }
}

fn parse(text: &str) -> u128 {
    text.parse().unwrap()
}

/// Runs the official Python client; the lines it printed.
async fn py(market: &Market, calls: u32, mode: &str, scheme: &str) -> Vec<Value> {
    let python = clients().join("../../.vivarium/python/bin/python");
    assert!(python.is_file(), ".vivarium/python is missing: `cargo xtask setup` makes it");
    let key = format!("0x{}", hex::encode(payer().to_bytes()));
    let out = Command::new(python)
        .current_dir(clients())
        .args(["schemes.py", &market.url, &key, &calls.to_string(), mode, scheme, &market.chain().url])
        .kill_on_drop(true)
        .output()
        .await
        .expect("python starts");
    let text = String::from_utf8(out.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), usize::try_from(calls).unwrap(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    for line in &lines {
        assert_eq!(line["status"], 200, "{line}");
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn py_rs_rs_exact() {
    for transfer in [TransferMethod::Eip3009, TransferMethod::Permit2] {
        let market = Market::open(&["exact"], transfer).await;
        fund(&market, 5_000_000).await;
        for mode in ["plain", "stream"] {
            py(&market, 3, mode, "exact").await;
        }
        assert_eq!(agree(&market, 5_000_000).await.micro(), crate::market::price_up(16).micro() * 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn py_rs_rs_upto() {
    let market = Market::open(&["upto"], TransferMethod::Permit2).await;
    fund(&market, 5_000_000).await;
    let mut paid = 0;
    for mode in ["plain", "stream"] {
        let lines = py(&market, 3, mode, "upto").await;
        paid += lines.iter().map(|line| parse(line["payment"]["amount"].as_str().unwrap())).sum::<u128>();
    }
    assert_eq!(agree(&market, 5_000_000).await, Usdc(paid));
    let most = crate::market::price_up(16).micro() * 6;
    assert!(paid < most, "metered: {paid} of at most {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn py_rs_rs_batch_settlement() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Eip3009).await;
    fund(&market, 5_000_000).await;
    py(&market, 10, "plain", "batch-settlement").await;
    // Another process, without memory: it finds its channel on the chain and is put right.
    py(&market, 10, "stream", "batch-settlement").await;
    let (deposits, receipts) = market.with(|desk| (desk.transactions["deposit"], desk.receipts.len()));
    assert!(deposits <= 5 && receipts == 20, "{deposits} deposits, {receipts} receipts");
    market.claim_and_settle().await;
    agree_with_ledger(&market, 5_000_000).await;
}

fn our_buyer(market: &Market) -> Buyer {
    let policy = BuyerPolicy {
        network: format!("eip155:{}", crate::chain::CHAIN_ID),
        asset: market.token(),
        pay_to: TREASURY,
        max_per_call: crate::market::price_up(16),
        max_total: Usdc(crate::market::price_up(16).micro() * 5),
    };
    Buyer::new(net::Client::new(), payer(), policy).with_chain(&market.chain().url).with_permit2()
}

fn question(text: &str) -> Value {
    serde_json::json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 16 })
}

/// Pays by Permit2 with a permission beside each payment; then, allowed once, without. Within its limits.
async fn by_permit2(scheme: &'static str) {
    let market = Market::open(&[scheme], TransferMethod::Permit2).await;
    fund(&market, 5_000_000).await;
    let (buyer, url) = (our_buyer(&market), format!("{}/v1/chat/completions", market.url));
    let mut spent = Usdc(0);
    for call in 0..4 {
        if call == 2 {
            approve_permit2(market.chain(), market.token()).await;
        }
        let paid = buyer.post_json(&url, &question(&format!("{call}"))).await.unwrap();
        assert_eq!(paid.status.as_u16(), 200, "{}", String::from_utf8_lossy(&paid.body));
        spent = spent.saturating_add(paid.spent);
    }
    assert_eq!(agree(&market, 5_000_000).await, spent, "the buyer knows what it paid");
    let ceilings = Usdc(crate::market::price_up(16).micro() * 4);
    assert_eq!(buyer.signed_total(), ceilings, "what was permitted counts");
    assert_eq!(spent < ceilings, scheme == "upto", "{spent} of {ceilings}");
    // One more is allowed in all, and then none.
    spent = spent.saturating_add(buyer.post_json(&url, &question("the fifth")).await.unwrap().spent);
    assert_eq!(buyer.look_at_charges().await, 0, "under few blocks nothing is believed");
    let error = buyer.post_json(&url, &question("the sixth")).await.unwrap_err();
    assert_eq!(error.kind, Kind::BudgetUsed, "{error}");
    market.chain().rpc("anvil_mine", serde_json::json!(["0xa"])).await;
    if scheme == "upto" {
        // What was permitted and not taken, by the chain's word, leaves room for one more.
        assert_eq!((buyer.look_at_charges().await, buyer.signed_total()), (5, spent));
        buyer.post_json(&url, &question("the sixth")).await.unwrap();
        assert_eq!(buyer.signed_total(), spent.saturating_add(crate::market::price_up(16)), "whole again, for now");
    } else {
        assert_eq!((buyer.look_at_charges().await, buyer.signed_total()), (0, spent));
    }
    // Without being told to, nothing is signed for Permit2.
    let policy = buyer.policy().clone();
    let plain = Buyer::new(net::Client::new(), payer(), policy).with_chain(&market.chain().url);
    let error = plain.post_json(&url, &question("a")).await.unwrap_err();
    assert_eq!((error.kind, plain.signed_total()), (Kind::WrongSeller, Usdc(0)), "{error}");
}

/// Our buyer with a permission (EIP-2612) beside each payment, then with an allowance; what it permits counts against its limits.
#[tokio::test(flavor = "multi_thread")]
async fn rs_rs_rs_upto() {
    by_permit2("upto").await;
}

/// The same for a token without EIP-3009.
#[tokio::test(flavor = "multi_thread")]
async fn rs_rs_rs_exact_permit2() {
    by_permit2("exact").await;
}

/// A token without EIP-3009: deposits by Permit2, with a permission (EIP-2612) beside each, then with an allowance. Topped up, asked about on the chain when the answer is lost, given back.
#[tokio::test(flavor = "multi_thread")]
async fn rs_rs_rs_batch_settlement_permit2() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Permit2).await;
    fund(&market, 5_000_000).await;
    let url = format!("{}/v1/chat/completions", market.url);
    let buyer = channel_buyer(&market, 1).with_permit2();
    let deposits = || market.with(|desk| desk.transactions.get("deposit").copied().unwrap_or_default());
    let mut asked = 0;
    while deposits() < 2 {
        asked += 1;
        let paid = buyer.post_json(&url, &question(&asked.to_string())).await.unwrap();
        assert_eq!(paid.status.as_u16(), 200, "{}", String::from_utf8_lossy(&paid.body));
    }
    assert!(asked > 10 && market.with(|desk| desk.receipts.len()) == asked, "vouchers between them: {asked} calls");
    assert_eq!(permissions(&market).await, 2);

    // A deposit goes in and nobody hears of it: the next call looks, and puts nothing in.
    let back = buyer.refund(&url).await.unwrap();
    assert_eq!(
        market.chain().balance(market.token(), payer().address()).await,
        Usdc(5_000_000 - 20_000).saturating_add(back)
    );
    market.with(|desk| desk.hangs_after_deposit = true);
    let lost = question("lost");
    tokio::select! {
        _ = buyer.post_json(&url, &lost) => panic!("the seller hangs"),
        () = async { while market.with(|desk| desk.hangs_after_deposit) { tokio::task::yield_now().await } } => {}
    }
    assert_eq!((deposits(), buyer.left_in_channels()), (3, Usdc::ZERO), "nobody said that it is in");
    buyer.post_json(&url, &question("found")).await.unwrap();
    assert_eq!((deposits(), market.with(|desk| desk.corrected)), (3, 0));

    // Two at once that both need a permission: the token takes one after the other.
    let two = channel_buyer(&market, 3).with_permit2();
    let (a, b) = (question("a"), question("b"));
    let (asked, paid) = market.with(|desk| (desk.asked, desk.paid));
    market.chain().rpc("evm_setAutomine", serde_json::json!([false])).await;
    let (a, b, ()) = tokio::join!(two.post_json(&url, &a), two.post_json(&url, &b), async {
        // Not mined before the other one has asked again, or paid.
        while market.with(|desk| desk.asked < asked + 4 && desk.paid < paid + 2) {
            tokio::task::yield_now().await;
        }
        market.chain().rpc("evm_setAutomine", serde_json::json!([true])).await;
        market.chain().rpc("evm_mine", serde_json::json!([])).await;
    });
    assert_eq!((a.unwrap().status.as_u16(), b.unwrap().status.as_u16()), (200, 200));
    let before = permissions(&market).await;
    assert_eq!(before, u128::from(deposits()), "one with each deposit");

    // Allowed once, nothing is signed beside a deposit.
    approve_permit2(market.chain(), market.token()).await;
    buyer.refund(&url).await.unwrap();
    two.refund(&url).await.unwrap();
    buyer.post_json(&url, &question("allowed")).await.unwrap();
    assert_eq!((u128::from(deposits()), permissions(&market).await), (before + 1, before));
    buyer.refund(&url).await.unwrap();
    market.claim_and_settle().await;
    agree_with_ledger(&market, 5_000_000).await;
    assert_eq!(market.chain().balance(market.token(), pay::scheme::channel::BATCH_SETTLEMENT).await, Usdc::ZERO);
}

/// Neither an allowance nor a permission that somebody hands in: nothing is signed, and what to do is said. Without
/// being told to, nothing is put in by Permit2 either.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_permit2_could_not_take_is_not_signed() {
    let market = Market::open(&["batch-settlement"], TransferMethod::Permit2).await;
    fund(&market, 5_000_000).await;
    let url = format!("{}/v1/chat/completions", market.url);
    market.with(|desk| desk.takes_permits = false);
    let only = channel_buyer(&market, 1).with_permit2();
    let Schemes::Channel(policy) = channels(1) else { panic!() };
    let or_exact = only.clone().with_channels(policy);
    for buyer in [&only, &or_exact] {
        let error = buyer.post_json(&url, &question("a")).await.unwrap_err();
        assert_eq!((error.kind, buyer.signed_total()), (Kind::NoAllowance, Usdc(0)), "{error}");
    }
    let plain = channel_buyer(&market, 1);
    assert_eq!(plain.post_json(&url, &question("a")).await.unwrap_err().kind, Kind::WrongSeller);
    approve_permit2(market.chain(), market.token()).await;
    assert_eq!(only.post_json(&url, &question("a")).await.unwrap().status.as_u16(), 200);
}

fn channels(slots: u8) -> Schemes {
    let (deposit, deposit_max) = (Usdc(10_000), Usdc(100_000));
    let withdraw_delay_secs_max = 86_400;
    Schemes::Channel(ChannelPolicy {
        deposit,
        deposit_calls: 1,
        deposit_max,
        withdraw_delay_secs_max,
        slots,
        lane: slots,
    })
}

fn channel_buyer(market: &Market, slots: u8) -> Buyer {
    let policy = BuyerPolicy { max_total: Usdc(1_000_000), ..our_buyer(market).policy().clone() };
    Buyer::new(net::Client::new(), payer(), policy).with_chain(&market.chain().url).with_schemes(channels(slots))
}

/// EIP-2612 permissions of the payer's that the token took.
async fn permissions(market: &Market) -> u128 {
    let nonces = crate::chain::call("nonces(address)", &[crate::chain::word(payer().address())]);
    market.chain().number(market.token(), &nonces).await
}

/// Lets Permit2 spend all of the payer's.
pub async fn approve_permit2(chain: &Chain, token: Address) {
    chain.rpc("anvil_setBalance", serde_json::json!([payer().address(), "0xde0b6b3a7640000"])).await;
    let all = [crate::chain::word(pay::scheme::permit2::PERMIT2), alloy::primitives::U256::MAX];
    let approve = crate::chain::call("approve(address,uint256)", &all);
    assert!(chain.send(payer().address(), token, &approve).await.1);
}

/// The chain tells what became of a payment by Permit2 whose answer never came: unspent until it has expired it is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_by_permit2_that_is_out_is_asked_about() {
    let market = Market::open(&["exact"], TransferMethod::Permit2).await;
    fund(&market, 5_000_000).await;
    let (buyer, url) = (our_buyer(&market), format!("{}/v1/chat/completions", market.url));
    for (fails, fate) in [(Fails::BeforeSettlement, Fate::Unknown), (Fails::AfterSettlement, Fate::Paid)] {
        market.with(|desk| desk.fails = Some(fails));
        let asked = question(&format!("{fails:?}"));
        let failed = buyer.post_json(&url, &asked).await.unwrap();
        assert_eq!(failed.status.as_u16(), 500);
        let body = asked.to_string().into_bytes();
        assert_eq!(buyer.ask_about(&url, &body).await, Some(fate), "{fails:?}");
    }
    market.chain().rpc("evm_increaseTime", serde_json::json!([3_600])).await;
    market.chain().rpc("evm_mine", serde_json::json!([])).await;
    let body = question("BeforeSettlement").to_string().into_bytes();
    assert_eq!(buyer.ask_about(&url, &body).await, Some(Fate::Unpaid));
}

/// What an `upto` payment permitted counts until it can no longer be taken, and then not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_was_never_used_leaves_its_room() {
    let market = Market::open(&["upto"], TransferMethod::Permit2).await;
    fund(&market, 5_000_000).await;
    let (ceiling, url) = (crate::market::price_up(16), format!("{}/v1/chat/completions", market.url));
    let policy = BuyerPolicy { max_total: ceiling, ..our_buyer(&market).policy().clone() };
    let chain = market.chain();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let clock: std::sync::Arc<std::sync::atomic::AtomicU64> = std::sync::Arc::new(now.into());
    let reader = clock.clone();
    let buyer = Buyer::new(net::Client::new(), payer(), policy)
        .with_chain(&chain.url)
        .with_permit2()
        .with_schemes(Schemes::Upto)
        .with_clock(std::sync::Arc::new(move || reader.load(std::sync::atomic::Ordering::Relaxed)));
    market.with(|desk| desk.fails = Some(Fails::BeforeSettlement));
    assert_eq!(buyer.post_json(&url, &question("in vain")).await.unwrap().status.as_u16(), 500);
    chain.rpc("anvil_mine", serde_json::json!(["0xa"])).await;
    assert_eq!((buyer.look_at_charges().await, buyer.signed_total()), (0, ceiling), "it may still be taken");
    chain.rpc("evm_increaseTime", serde_json::json!([3_600])).await;
    chain.rpc("evm_mine", serde_json::json!([])).await;
    clock.fetch_add(3_600, std::sync::atomic::Ordering::Relaxed);
    // The limit makes it look by itself.
    let paid = buyer.post_json(&url, &question("again")).await.unwrap();
    assert_eq!((paid.status.as_u16(), buyer.signed_total()), (200, ceiling), "{paid:?}");
}

/// Our buyer at the official Express middleware with the official facilitator, metered, topped up, claimed by it.
#[tokio::test(flavor = "multi_thread")]
async fn rs_ts_ts_batch_settlement() {
    crate::channels::official_server(TransferMethod::Eip3009).await;
}

/// Our buyer in a token without EIP-3009: deposits by Permit2, with a permission (EIP-2612) beside each.
#[tokio::test(flavor = "multi_thread")]
async fn rs_ts_ts_batch_settlement_permit2() {
    crate::channels::official_server(TransferMethod::Permit2).await;
}
