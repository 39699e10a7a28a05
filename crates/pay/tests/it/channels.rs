//! Our buyer on channels: opened and topped up as they are used, put right after a lost record, never twice for one
//! call.

use crate::chain::{CHAIN_ID, RELAY, TREASURY};
use crate::market::{Fails, Market, wall};
use crate::schemes::clients;
use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use pay::Usdc;
use pay::book::channels::ClaimPolicy;
use pay::buyer::{Buyer, BuyerPolicy, ChannelPolicy, Fate, Fates, Kind, Schemes, SpendLimits};
use pay::scheme::channel::{BATCH_SETTLEMENT, facilitator};
use pay::seller::FRESH_ANSWER;
use pay::seller::offers::TransferMethod;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::Notify;

const CHANNELS: ChannelPolicy = ChannelPolicy {
    deposit: Usdc(10_000),
    deposit_calls: 1,
    deposit_max: Usdc(100_000),
    withdraw_delay_secs_max: 86_400,
    slots: 2,
    lane: 0,
};

fn signer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(b"our buyer")).unwrap()
}

fn buyer(asset: Address, pay_to: Address) -> Buyer {
    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset,
        pay_to,
        max_per_call: Usdc(5_000),
        max_total: Usdc(1_000_000),
    };
    Buyer::new(net::Client::new(), signer(), policy).with_channels(CHANNELS)
}

async fn open() -> Market {
    let market = Market::open(&["batch-settlement", "exact"], TransferMethod::Eip3009).await;
    market.chain().mint(market.token(), signer().address(), 1_000_000).await;
    market
}

fn question(text: &str, is_stream: bool) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 16, "stream": is_stream })
}

fn endpoint(market: &Market) -> String {
    format!("{}/v1/chat/completions", market.url)
}

fn transactions(market: &Market, what: &str) -> u32 {
    market.with(|desk| desk.transactions.get(what).copied().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_opened_used_and_topped_up() {
    let market = open().await;
    let buyer = buyer(market.token(), TREASURY);
    let mut spent = Usdc(0);
    for call in 0..150 {
        let paid = buyer.post_json(&endpoint(&market), &question(&call.to_string(), call % 2 == 0)).await.unwrap();
        assert_eq!(paid.status, 200);
        spent = spent.saturating_add(paid.spent);
    }
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    let deposits = transactions(&market, "deposit");
    assert!(deposits > 1 && deposits == receipts.micro().div_ceil(10_000) as u32, "{deposits} for {receipts}");
    assert_eq!(market.with(|desk| (desk.corrected, desk.receipts.len())), (0, 150));
    assert_eq!(transactions(&market, "exact"), 0);
    // The last call was no stream, so all was told.
    assert_eq!(spent, receipts);
    assert!(buyer.signed_total() >= receipts && buyer.unresolved() == 0);
    market.claim_and_settle().await;
    assert_eq!(market.chain().balance(market.token(), TREASURY).await, receipts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_record_costs_a_round_trip_and_no_money() {
    let market = open().await;
    for call in 0..4 {
        let buyer = buyer(market.token(), TREASURY);
        buyer.post_json(&endpoint(&market), &question(&call.to_string(), false)).await.unwrap();
    }
    assert_eq!((transactions(&market, "deposit"), market.with(|desk| desk.corrected)), (1, 3));
    market.claim_and_settle().await;
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    assert_eq!(market.chain().balance(market.token(), TREASURY).await, receipts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_pays_nothing_twice() {
    let market = open().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("buyer.record");
    let with_record = |path: &Path| buyer(market.token(), TREASURY).with_record(path).unwrap();
    {
        // Signed, on disk, sent and served; the process ends before it has read the answer.
        let first = with_record(&file);
        let answer = first.post_stream(&endpoint(&market), Default::default(), &question("a", false)).await.unwrap();
        assert!(answer.payment.as_ref().unwrap().success);
        std::fs::copy(&file, dir.path().join("crashed.record")).unwrap();
    }
    assert_eq!(market.with(|desk| desk.receipts.len()), 1);
    let second = with_record(&dir.path().join("crashed.record"));
    assert_eq!(second.unresolved(), 1);
    // The same call is the same payment: the stored answer, and no charge.
    second.post_json(&endpoint(&market), &question("a", false)).await.unwrap();
    assert_eq!((market.with(|desk| desk.receipts.len()), second.unresolved()), (1, 0));
    second.post_json(&endpoint(&market), &question("b", false)).await.unwrap();
    assert_eq!((market.with(|desk| desk.receipts.len()), transactions(&market, "deposit")), (2, 1));
    // What cannot be written is not paid.
    let broken = with_record(&dir.path().join("third.record"));
    std::fs::create_dir(dir.path().join("third.partial")).unwrap();
    let error = broken.post_json(&endpoint(&market), &question("c", false)).await.unwrap_err();
    assert_eq!((error.kind, market.with(|desk| desk.receipts.len())), (Kind::Usage, 2));
}

/// The seller saw the answer arrive whole; the customer's process ended before it had taken that down. The same question
/// is the same request, though its voucher has room for another one and the caller wants a fresh answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_arrived_before_a_crash_is_not_charged_again() {
    let market = open().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, crashed) = (dir.path().join("buyer.record"), dir.path().join("crashed.record"));
    let with_record = |path: &Path| buyer(market.token(), TREASURY).with_record(path).unwrap();
    let fresh = || http::HeaderMap::from_iter([(FRESH_ANSWER, http::HeaderValue::from_static("1"))]);
    let first = with_record(&file);
    let answer = first.post_stream(&endpoint(&market), fresh(), &question("a", true)).await.unwrap();
    std::fs::copy(&file, &crashed).unwrap();
    answer.collect(1 << 20).await.unwrap();
    assert_eq!((market.with(|desk| desk.receipts.len()), first.unresolved()), (1, 0));
    let second = with_record(&crashed);
    assert_eq!(second.unresolved(), 1);
    second.post_json_with(&endpoint(&market), fresh(), &question("a", true)).await.unwrap();
    assert_eq!((market.with(|desk| desk.receipts.len()), second.unresolved()), (1, 0));
    // Asked anew by a process that knows of its answer, it is another request.
    second.post_json_with(&endpoint(&market), fresh(), &question("a", true)).await.unwrap();
    assert_eq!(market.with(|desk| desk.receipts.len()), 2);
}

/// The process ended while an answer was out: the only channel pays the next question all the same, and what is out is
/// covered until its answer comes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_does_not_block_its_channel() {
    let market = open().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, crashed) = (dir.path().join("buyer.record"), dir.path().join("crashed.record"));
    let with_record = |path: &Path| {
        let only = Schemes::Channel(ChannelPolicy { slots: 1, ..CHANNELS });
        buyer(market.token(), TREASURY).with_schemes(only).with_record(path).unwrap()
    };
    let first = with_record(&file);
    let answer = first.post_stream(&endpoint(&market), Default::default(), &question("a", false)).await.unwrap();
    std::fs::copy(&file, &crashed).unwrap();
    // In the process that lives, the channel is in use.
    let error = first
        .clone()
        .with_patience(Duration::ZERO)
        .post_json(&endpoint(&market), &question("b", false))
        .await
        .unwrap_err();
    assert_eq!((error.kind, first.unresolved()), (Kind::Unreachable, 1), "{error}");
    drop(answer);

    let second = with_record(&crashed);
    second.post_json(&endpoint(&market), &question("b", false)).await.unwrap();
    assert_eq!((second.unresolved(), transactions(&market, "deposit")), (1, 1));
    // The question that was out is not charged again, even by a caller that wants a fresh answer.
    let fresh = http::HeaderMap::from_iter([(FRESH_ANSWER, http::HeaderValue::from_static("1"))]);
    second.post_json_with(&endpoint(&market), fresh, &question("a", false)).await.unwrap();
    assert_eq!((second.unresolved(), market.with(|desk| desk.receipts.len())), (0, 2));
    second.post_json(&endpoint(&market), &question("c", false)).await.unwrap();
    market.claim_and_settle().await;
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    assert_eq!(market.chain().balance(market.token(), TREASURY).await, receipts);
}

/// The chain is asked about authorisations: used with their transfer, cancelled, expired unused, or neither yet.
#[tokio::test(flavor = "multi_thread")]
async fn the_chain_tells_what_became_of_payments() {
    let market = Market::open(&["exact"], TransferMethod::Eip3009).await;
    let chain = market.chain();
    chain.mint(market.token(), signer().address(), 1_000_000).await;
    let buyer = buyer(market.token(), TREASURY).with_schemes(Schemes::Exact).with_chain(&chain.url);
    let ask = async |text: &str| buyer.post_json(&endpoint(&market), &question(text, false)).await;
    let fate = async |text: &str| {
        let body = question(text, false).to_string();
        buyer.ask_about(&endpoint(&market), body.as_bytes()).await
    };
    // The seller settles and fails to answer; and it fails before it settles.
    for (text, fails) in [("paid", Fails::AfterSettlement), ("out", Fails::BeforeSettlement)] {
        market.with(|desk| desk.fails = Some(fails));
        assert_eq!(ask(text).await.unwrap().status, 500);
    }
    assert_eq!((fate("paid").await, fate("out").await), (Some(Fate::Paid), Some(Fate::Unknown)));
    assert_eq!((buyer.unresolved(), transactions(&market, "exact")), (1, 1));
    // Cancelled by its payer: it can never be taken.
    market.with(|desk| desk.fails = Some(Fails::BeforeSettlement));
    assert_eq!(ask("cancelled").await.unwrap().status, 500);
    market.cancel_last(&signer()).await;
    assert_eq!(fate("cancelled").await, Some(Fate::Unpaid));
    // Its time passes.
    chain.rpc("evm_increaseTime", json!([3_600])).await;
    chain.rpc("evm_mine", json!([])).await;
    assert_eq!(buyer.ask_about_unknown().await, Fates { unpaid: 1, ..Fates::default() });
    assert_eq!((buyer.unresolved(), transactions(&market, "exact")), (0, 1));
    assert_eq!(fate("out").await, None);
    // What is known to be paid stays remembered: the same call is the same payment.
    assert_eq!(fate("paid").await, Some(Fate::Paid));
}

/// A development chain that was killed has lost its last blocks, and a refund may have emptied the channel.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_whose_deposit_is_gone_is_filled_again() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (open().await, open().await);
    assert_eq!(before.token(), after.token(), "the same contracts on another chain");
    let only = Schemes::Channel(ChannelPolicy { slots: 1, ..CHANNELS });
    let record = dir.path().join("buyer.record");
    let buyer = buyer(before.token(), TREASURY).with_schemes(only).with_record(&record).unwrap();
    for market in [&before, &after, &after] {
        buyer.post_json(&endpoint(market), &question("a", false)).await.unwrap();
    }
    assert_eq!((transactions(&before, "deposit"), transactions(&after, "deposit")), (1, 1));
    assert_eq!(buyer.unresolved(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_with_one_key_have_channels_of_their_own() {
    let market = open().await;
    for lane in [0, 1] {
        let only = Schemes::Channel(ChannelPolicy { lane, ..CHANNELS });
        let buyer = buyer(market.token(), TREASURY).with_schemes(only);
        buyer.post_json(&endpoint(&market), &question(&lane.to_string(), false)).await.unwrap();
    }
    assert_eq!((transactions(&market, "deposit"), market.with(|desk| desk.corrected)), (2, 0));
    // Nothing but a channel means nothing else.
    let exact = Market::open(&["exact"], TransferMethod::Eip3009).await;
    let only = buyer(exact.token(), TREASURY).with_schemes(Schemes::Channel(CHANNELS));
    let error = only.post_json(&endpoint(&exact), &question("x", false)).await.unwrap_err();
    assert_eq!((error.kind, only.signed_total()), (Kind::WrongSeller, Usdc(0)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_read_twice_is_one_deposit() {
    let market = open().await;
    let buyer = buyer(market.token(), TREASURY);
    let ask = async || buyer.post_stream(&endpoint(&market), Default::default(), &question("a", false)).await.unwrap();
    let (first, second) = (ask().await, ask().await);
    assert_eq!(market.with(|desk| desk.receipts.len()), 1);
    drop((first, second));
    // Past the first deposit: a buyer that counted it twice would sign more than there is.
    for call in 0..120 {
        buyer.post_json(&endpoint(&market), &question(&call.to_string(), false)).await.unwrap();
    }
    assert!(transactions(&market, "deposit") > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_strangers_get_no_channel() {
    let market = open().await;
    let one = crate::market::price_up(16);
    for limits in [
        SpendLimits { per_day: Some(one), ..SpendLimits::default() },
        SpendLimits { per_host_day: Some(one), ..SpendLimits::default() },
    ] {
        let buyer = buyer(market.token(), TREASURY).with_limits(limits);
        // A channel counts what its vouchers allow: the second call may take it over the limit.
        let mut refused = 0;
        for call in 0..3 {
            let body = question(&format!("{call} {limits:?}"), false);
            match buyer.post_json(&endpoint(&market), &body).await {
                Ok(_) => assert!(buyer.signed_total() <= one),
                Err(error) => {
                    assert_eq!(error.kind, Kind::BudgetUsed, "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused >= 1, "{limits:?}");
    }
    // Another payee, or a channel that another may claim from.
    let stranger = buyer(market.token(), Address::repeat_byte(0x66));
    let error = stranger.post_json(&endpoint(&market), &question("x", false)).await.unwrap_err();
    assert_eq!((error.kind, stranger.signed_total()), (Kind::WrongSeller, Usdc(0)));
    // Its earlier channel is found only by asking; a first deposit over the limit is not signed.
    let poor = ChannelPolicy { deposit_max: Usdc(9_999), ..CHANNELS };
    let only = buyer(market.token(), TREASURY).with_schemes(Schemes::Channel(poor));
    let error = only.post_json(&endpoint(&market), &question("y", false)).await;
    assert_eq!((error.unwrap_err().kind, only.signed_total()), (Kind::TooExpensive, Usdc(0)));
    let or_exact = buyer(market.token(), TREASURY).with_channels(poor);
    or_exact.post_json(&endpoint(&market), &question("y", false)).await.unwrap();
    assert_eq!(transactions(&market, "exact"), 1);
}

/// Each successor holds all that the refused voucher did, so four of them give a seller nothing that one did not.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_voucher_is_replaced_four_times_and_no_more() {
    let market = open().await;
    let buyer = buyer(market.token(), TREASURY).with_schemes(Schemes::Channel(CHANNELS));
    let first = buyer.post_json(&endpoint(&market), &question("a", false)).await.unwrap();
    let (signed, paid) = (buyer.signed_total(), market.with(|desk| desk.paid));
    market.with(|desk| desk.reprices = 4);
    let second = buyer.post_json(&endpoint(&market), &question("b", false)).await.unwrap();
    assert_eq!((second.status.as_u16(), market.with(|desk| desk.paid)), (200, paid + 5));
    market.with(|desk| desk.reprices = 5);
    let error = buyer.post_json(&endpoint(&market), &question("c", false)).await.unwrap_err();
    assert_eq!((error.kind, market.with(|desk| (desk.paid, desk.reprices))), (Kind::Refused, (paid + 10, 0)));
    let third = buyer.post_json(&endpoint(&market), &question("c", false)).await.unwrap();
    let spent = [first, second, third].iter().map(|answer| answer.spent.micro()).sum::<u128>();
    assert_eq!(market.with(|desk| desk.receipts.values().map(|usdc| usdc.micro()).sum::<u128>()), spent);
    assert!(buyer.signed_total() > signed && buyer.signed_total().micro() <= 1_000_000);
}

/// The offer has room for a call before this one, and asks for twice what a call costs: the limit is on a call.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_call_is_held_against_what_it_can_cost() {
    let market = open().await;
    let one = crate::market::price_up(16);
    let limited = |max_per_call: Usdc| {
        let policy = BuyerPolicy { max_per_call, ..buyer(market.token(), TREASURY).policy().clone() };
        Buyer::new(net::Client::new(), signer(), policy).with_schemes(Schemes::Channel(CHANNELS))
    };
    let error = limited(Usdc(one.micro() - 1)).post_json(&endpoint(&market), &question("a", false)).await.unwrap_err();
    assert_eq!(error.kind, Kind::TooExpensive);
    assert!(error.message.contains(&format!("a call costs up to {one}")), "{error}");
    let paid = limited(one).post_json(&endpoint(&market), &question("a", false)).await.unwrap();
    assert!(paid.status == 200 && paid.spent <= one, "{}", paid.spent);
    // A seller without such room says no more than its amount, and that counts.
    market.with(|desk| desk.carry = false);
    let error = limited(Usdc(one.micro() - 1)).post_json(&endpoint(&market), &question("b", false)).await.unwrap_err();
    assert_eq!(error.kind, Kind::TooExpensive);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_at_once_use_channels_of_their_own_then_exact() {
    let market = open().await;
    let buyer = buyer(market.token(), TREASURY);
    let url = endpoint(&market);
    let mut open = Vec::new();
    for call in 0..3 {
        open.push(buyer.post_stream(&url, Default::default(), &question(&call.to_string(), true)).await.unwrap());
    }
    assert_eq!((transactions(&market, "deposit"), transactions(&market, "exact")), (2, 1));
    for mut answer in open {
        while answer.chunk().await.unwrap().is_some() {}
    }
    assert_eq!(buyer.unresolved(), 0);
}

fn only(slots: u8) -> Schemes {
    Schemes::Channel(ChannelPolicy { slots, ..CHANNELS })
}

fn long_question(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 64, "stream": true })
}

/// Another program with the same key, or a call that its host left open: the seller holds the channel for that. The next
/// channel pays; with only one, the call waits until it is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_channel_is_no_refusal() {
    let market = open().await;
    let url = endpoint(&market);
    let other = buyer(market.token(), TREASURY).with_schemes(only(1));
    let goes_on = Arc::new(Notify::new());
    market.with(|desk| desk.held = Some(Arc::clone(&goes_on)));
    let mut held = other.post_stream(&url, Default::default(), &long_question("a")).await.unwrap();
    market.with(|desk| desk.held = None);

    let two = buyer(market.token(), TREASURY).with_schemes(only(2));
    assert_eq!(two.post_json(&url, &question("b", false)).await.unwrap().status, 200);
    assert_eq!((transactions(&market, "deposit"), transactions(&market, "exact")), (2, 0));

    let one = || buyer(market.token(), TREASURY).with_schemes(only(1));
    let error = one().with_patience(Duration::ZERO).post_json(&url, &question("c", false)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
    // Where `exact` will do, nobody waits.
    let or_exact = one().with_channels(ChannelPolicy { slots: 1, ..CHANNELS });
    or_exact.post_json(&url, &question("d", false)).await.unwrap();
    assert_eq!(transactions(&market, "exact"), 1);

    let before = market.with(|desk| desk.paid);
    let (call, asked) = (one(), question("c", false));
    let (paid, ()) = tokio::join!(call.post_json(&url, &asked), async {
        // It has been told that the channel is busy.
        while market.with(|desk| desk.paid) == before {
            tokio::task::yield_now().await;
        }
        goes_on.notify_one();
        while held.chunk().await.unwrap().is_some() {}
    });
    assert_eq!((paid.unwrap().status.as_u16(), call.unresolved()), (200, 0));
    assert_eq!(transactions(&market, "exact"), 1);
    market.claim_and_settle().await;
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    assert_eq!(market.chain().balance(market.token(), TREASURY).await, receipts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_a_channel_of_its_own_where_nothing_else_pays() {
    let market = open().await;
    let url = endpoint(&market);
    let buyer = buyer(market.token(), TREASURY).with_schemes(only(1));
    let mut held = buyer.post_stream(&url, Default::default(), &question("a", true)).await.unwrap();
    let asked = market.with(|desk| desk.asked);
    let question = question("b", false);
    let (paid, ()) = tokio::join!(buyer.post_json(&url, &question), async {
        while market.with(|desk| desk.asked) == asked {
            tokio::task::yield_now().await;
        }
        while held.chunk().await.unwrap().is_some() {}
        drop(held);
    });
    assert_eq!(paid.unwrap().status, 200);
    assert_eq!((transactions(&market, "deposit"), buyer.unresolved()), (1, 0));
}

/// A deposit went in and nobody heard of it. The chain is asked before more is put in.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_nobody_answered_for_is_found_on_the_chain() {
    let market = open().await;
    let url = endpoint(&market);
    let dir = tempfile::tempdir().unwrap();
    let record = |name: &str| dir.path().join(name);
    let with = |path: &Path| {
        let buyer = buyer(market.token(), TREASURY).with_schemes(only(1)).with_chain(&market.chain().url);
        buyer.with_record(path).unwrap()
    };
    // On disk is what was known when the payment left: signed, not answered.
    market.with(|desk| desk.hangs_after_deposit = true);
    let first = with(&record("a.record"));
    let asked = question("a", false);
    let hung = first.post_json(&url, &asked);
    tokio::select! {
        _ = hung => panic!("the seller hangs"),
        () = async {
            while transactions(&market, "deposit") == 0 || market.with(|desk| desk.hangs_after_deposit) {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    assert_eq!(first.left_in_channels(), Usdc::ZERO, "nobody said that it is in");
    first.post_json(&url, &question("b", false)).await.unwrap();
    assert_eq!((transactions(&market, "deposit"), market.with(|desk| desk.corrected)), (1, 0));
    // A buyer that knows nothing at all of it.
    let second = buyer(market.token(), TREASURY).with_schemes(only(2)).with_chain(&market.chain().url);
    second.post_json(&url, &question("c", false)).await.unwrap();
    assert_eq!(transactions(&market, "deposit"), 1);
    market.claim_and_settle().await;
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    assert_eq!(market.chain().balance(market.token(), TREASURY).await, receipts);
}

/// The first agent takes a deposit and falls silent; the question goes to a second one, which is paid from a channel of its
/// own. One key, one record, one budget.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_is_paid_from_a_channel_of_its_own() {
    const OTHER: Address = Address::repeat_byte(0x78);
    let first = open().await;
    let second = first.beside(OTHER).await;
    let dir = tempfile::tempdir().unwrap();
    let here = buyer(first.token(), TREASURY).with_schemes(only(1)).with_chain(&first.chain().url);
    let here = here.with_record(&dir.path().join("buyer.record")).unwrap();
    let there = here.for_seller(BuyerPolicy { pay_to: OTHER, ..here.policy().clone() }, Arc::new(wall));

    first.with(|desk| desk.hangs_after_deposit = true);
    let asked = question("a", false);
    let url = endpoint(&first);
    let hung = here.post_json(&url, &asked);
    tokio::select! {
        _ = hung => panic!("the seller hangs"),
        () = async {
            while transactions(&first, "deposit") == 0 || first.with(|desk| desk.hangs_after_deposit) {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    let body = serde_json::to_vec(&asked).unwrap();
    assert_eq!(here.ask_about(&url, &body).await, Some(Fate::Unknown));

    let paid = there.post_json(&endpoint(&second), &asked).await.unwrap();
    assert_eq!((paid.status.as_u16(), transactions(&second, "deposit"), transactions(&second, "exact")), (200, 1, 0));
    let signed = (here.signed_total(), here.unresolved());
    assert_eq!(signed, (there.signed_total(), 1), "one record for both, and the first payment is still out");
    // Back again, the first is shown the payment that it has: no new signature, no second deposit.
    here.post_json(&url, &asked).await.unwrap();
    assert_eq!((transactions(&first, "deposit"), transactions(&first, "exact")), (1, 0));
    assert_eq!((here.signed_total(), here.unresolved()), (signed.0, 0));
    // What one may still sign is what the other left.
    let day = SpendLimits { per_day: Some(here.signed_today()), per_host_day: None };
    let full = there.clone().with_limits(day).post_json(&endpoint(&second), &question("b", false)).await;
    assert_eq!(full.unwrap_err().kind, Kind::BudgetUsed);

    for (market, treasury) in [(&first, TREASURY), (&second, OTHER)] {
        market.claim_and_settle().await;
        let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
        assert!(!receipts.is_zero());
        assert_eq!(market.chain().balance(market.token(), treasury).await, receipts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_comes_back_and_a_later_call_deposits_again() {
    let market = open().await;
    let url = endpoint(&market);
    let buyer = buyer(market.token(), TREASURY).with_schemes(only(2)).with_chain(&market.chain().url);
    let mut held = buyer.post_stream(&url, Default::default(), &question("a", true)).await.unwrap();
    buyer.post_json(&url, &question("b", false)).await.unwrap();
    let of_customer = async || market.chain().balance(market.token(), signer().address()).await;
    assert_eq!((of_customer().await, transactions(&market, "deposit")), (Usdc(1_000_000 - 20_000), 2));
    // What a call is being paid from stays.
    let first = buyer.refund(&url).await.unwrap();
    assert_eq!(of_customer().await, Usdc(1_000_000 - 20_000).saturating_add(first));
    while held.chunk().await.unwrap().is_some() {}
    drop(held);
    let second = buyer.refund(&url).await.unwrap();
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    assert_eq!(first.saturating_add(second), Usdc(20_000).saturating_sub(receipts));
    assert_eq!(of_customer().await, Usdc(1_000_000).saturating_sub(receipts));
    assert_eq!((buyer.left_in_channels(), buyer.refund(&url).await.unwrap()), (Usdc::ZERO, Usdc::ZERO));
    buyer.post_json(&url, &question("c", false)).await.unwrap();
    assert_eq!(transactions(&market, "deposit"), 3);
    // From a stranger nothing is asked.
    let stranger = self::buyer(market.token(), Address::repeat_byte(0x66));
    assert_eq!(stranger.refund(&url).await.unwrap_err().kind, Kind::WrongSeller);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_day_has_no_room_for_comes_back_in_parts() {
    let market = open().await;
    let url = endpoint(&market);
    let buyer = buyer(market.token(), TREASURY).with_schemes(only(1)).with_chain(&market.chain().url);
    buyer.post_json(&url, &question("a", false)).await.unwrap();
    let of_customer = async || market.chain().balance(market.token(), signer().address()).await.micro();
    let (before, left) = (of_customer().await, buyer.left_in_channels().micro());
    market.with(|desk| desk.refund_room = Some(Usdc(left / 3)));
    let error = buyer.refund(&url).await.unwrap_err();
    assert_eq!((error.kind, of_customer().await - before), (Kind::Refused, left / 4), "{error}");
    assert_eq!(buyer.left_in_channels().micro(), left - left / 4, "what stays is known");
    // No part that is worth a transaction.
    market.with(|desk| desk.refund_room = Some(Usdc(left / 16)));
    let error = buyer.refund(&url).await.unwrap_err();
    assert!(error.kind == Kind::Refused && error.message.contains("refund_over_day_limit"), "{error}");
    assert_eq!((of_customer().await - before, transactions(&market, "refund")), (left / 4, 1));
    // The channel pays on, and another day the rest comes.
    buyer.post_json(&url, &question("b", false)).await.unwrap();
    market.with(|desk| desk.refund_room = None);
    buyer.refund(&url).await.unwrap();
    let receipts = market.with(|desk| desk.receipts.values().map(|usdc| usdc.micro()).sum::<u128>());
    assert_eq!((of_customer().await, buyer.left_in_channels()), (1_000_000 - receipts, Usdc::ZERO));
}

/// A payer leaves without us. What it owes is claimed before it can be gone, no voucher reaches into what is leaving, and
/// it gets all the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_payer_that_leaves_cannot_outrun_a_claim() {
    let market = open().await;
    let url = endpoint(&market);
    let chain = market.chain();
    let buyer = buyer(market.token(), TREASURY).with_schemes(only(1));
    buyer.post_json(&url, &question("a", false)).await.unwrap();
    buyer.post_json(&url, &question("b", false)).await.unwrap();
    let (id, config, deposited) = market.with(|desk| {
        let (id, channel) = desk.book.channels().channels().next().unwrap();
        (*id, channel.config.clone(), channel.chain.balance)
    });
    let receipts: Usdc = market.with(|desk| desk.receipts.values().copied().sum());
    chain.rpc("anvil_setBalance", json!([signer().address(), "0xde0b6b3a7640000"])).await;
    let leave = facilitator::initiate_withdraw_call(&config, deposited);
    assert!(chain.send(signer().address(), BATCH_SETTLEMENT, &leave).await.1);
    // Seen, the claim is due although little is owed, and the next voucher reaches into nothing.
    market.inner.see(&id, &config).await;
    let since = chain.channel(&id).await.withdrawal.unwrap().since;
    let patient = ClaimPolicy { channel_max: Usdc::MAX, all_max: Usdc::MAX, row_min: Usdc::MAX, rows_max: 50 };
    let due = |now| market.with(|desk| desk.book.channels().due_claims(&patient, now).len());
    assert_eq!(due(since), 1);
    let no_more = ChannelPolicy { slots: 1, deposit_max: Usdc(10_000), ..CHANNELS };
    let careful = buyer.clone().with_schemes(Schemes::Channel(no_more));
    assert_eq!(careful.post_json(&url, &question("c", false)).await.unwrap_err().kind, Kind::TooExpensive);
    market.claim_and_settle().await;
    let finalize = facilitator::finalize_withdraw_call(&config);
    assert!(!chain.send(RELAY, BATCH_SETTLEMENT, &finalize).await.1, "not before its time");
    chain.rpc("evm_increaseTime", json!([900])).await;
    assert!(chain.send(RELAY, BATCH_SETTLEMENT, &finalize).await.1);
    assert_eq!(chain.balance(market.token(), TREASURY).await, receipts);
    let back = chain.balance(market.token(), signer().address()).await;
    assert_eq!(back, Usdc(1_000_000).saturating_sub(receipts));
}

/// A deposit needs more money than one answer.
#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_deposit_pays_by_exact() {
    let market = Market::open(&["batch-settlement", "exact"], TransferMethod::Eip3009).await;
    market.chain().mint(market.token(), signer().address(), 500).await;
    let url = endpoint(&market);
    let poor = buyer(market.token(), TREASURY);
    assert_eq!(poor.post_json(&url, &question("a", false)).await.unwrap().status, 200);
    assert_eq!((transactions(&market, "deposit"), transactions(&market, "exact")), (0, 1));
    let only = buyer(market.token(), TREASURY).with_schemes(only(2));
    assert_eq!(only.post_json(&url, &question("b", false)).await.unwrap_err().kind, Kind::Refused);
}

/// anvil's development keys of accounts 0 ([`RELAY`]) and 2.
const FACILITATOR_KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const RECEIVER_KEY: &str = "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a";

pub async fn official_server(transfer: TransferMethod) {
    let chain = crate::chain::Chain::start().await;
    let (token, method) = match transfer {
        TransferMethod::Eip3009 => (chain.usdc, "eip3009"),
        TransferMethod::Permit2 => (chain.permit_token, "permit2"),
    };
    chain.mint(token, signer().address(), 1_000_000).await;
    assert_eq!(FACILITATOR_KEY.parse::<PrivateKeySigner>().unwrap().address(), RELAY);
    let receiver = RECEIVER_KEY.parse::<PrivateKeySigner>().unwrap().address();
    let mut server = Command::new("node")
        .current_dir(clients())
        .args(["batch-server.mjs", &chain.url, &CHAIN_ID.to_string(), &token.to_string()])
        .args([RECEIVER_KEY, FACILITATOR_KEY, "1000", method])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node starts");
    let mut said = BufReader::new(server.stdout.take().unwrap()).lines();
    let line: Value = serde_json::from_str(&said.next_line().await.unwrap().unwrap()).unwrap();
    let url = line["url"].as_str().unwrap().to_owned();
    let buyer = || buyer(token, receiver).with_chain(&chain.url).with_permit2();
    let paying = buyer();
    let mut spent = Usdc(0);
    for cost in [1_000, 400, 250, 0, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 7] {
        let paid = paying.post_json(&url, &json!({ "cost": cost, "turn": spent.micro().to_string() })).await.unwrap();
        assert_eq!((paid.status.as_u16(), paid.spent), (200, Usdc(cost)));
        spent = spent.saturating_add(paid.spent);
    }
    // A buyer that lost its record is put right by the official server too.
    let paid = buyer().post_json(&url, &json!({ "cost": 300 })).await.unwrap();
    spent = spent.saturating_add(paid.spent);
    server.stdin.as_mut().unwrap().write_all(b"claim\n").await.unwrap();
    let line = said.next_line().await.unwrap().unwrap();
    assert_eq!(chain.balance(token, receiver).await, spent, "{line}");
}
