//! An agent buys: the real purse pays a seller by `exact`, with the signature of whoever its treasury says is operator.
//! The treasury is a stand-in that says just that.

use crate::chain::{RELAY, TREASURY, word};
use crate::market::{Fails, Market, price_up};
use alloy::primitives::{Address, U256, address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy, ChannelPolicy, Kind, Quote, Schemes};
use pay::seller::offers::TransferMethod;
use serde_json::{Value, json};

const SCHEMES: [&str; 3] = ["batch-settlement", "upto", "exact"];
const CAP: u128 = 1_000;
/// Answers every call with what is in its first slot: `purseSigner()` is the only one that a purse makes.
const STAND_IN: Address = address!("00000000000000000000000000000000000A6E47");
const ANSWERS_WITH_SLOT_0: &str = "0x5f545f5260205ff3";

fn key(name: &str) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(name)).unwrap()
}

/// Says who signs for the purse: the operator, or nobody while paused.
async fn signer(market: &Market, signer: Address) {
    let params = json!([STAND_IN, "0x0", signer.into_word()]);
    market.chain().rpc("anvil_setStorageAt", params).await;
}

async fn purse(market: &Market, holds: u128) -> Address {
    let chain = market.chain();
    chain.rpc("anvil_setCode", json!([STAND_IN, ANSWERS_WITH_SLOT_0])).await;
    signer(market, key("operator").address()).await;
    let purse = chain.deploy_with("Purse", &[word(STAND_IN), word(market.token()), U256::from(CAP)]).await;
    chain.mint(market.token(), purse, holds).await;
    purse
}

fn buyer(market: &Market, purse: Address, operator: &str) -> Buyer {
    let policy = BuyerPolicy {
        network: "eip155:31337".into(),
        asset: market.token(),
        pay_to: TREASURY,
        max_per_call: Usdc(200),
        max_total: Usdc::MAX,
    };
    Buyer::new(net::Client::new(), key(operator), policy).with_purse(purse).with_chain(&market.chain().url)
}

fn url(market: &Market) -> String {
    format!("{}/v1/chat/completions", market.url)
}

fn question(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 16 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purse_pays_by_exact_alone_whatever_else_is_offered() {
    let market = Market::open(&SCHEMES, TransferMethod::Eip3009).await;
    let purse = purse(&market, CAP).await;
    let channels = ChannelPolicy {
        deposit: Usdc(10_000),
        deposit_calls: 1,
        deposit_max: Usdc(100_000),
        withdraw_delay_secs_max: 86_400,
        slots: 1,
        lane: 0,
    };
    let buyer = buyer(&market, purse, "operator").with_schemes(Schemes::Channel(channels)).with_permit2();
    assert_eq!(buyer.address(), purse);
    let price = price_up(16);
    assert_eq!(buyer.quote(&url(&market), &question("a")).await.unwrap(), Quote::Price(price));
    assert_eq!((market.with(|desk| desk.paid), buyer.signed_total()), (0, Usdc::ZERO), "a price costs nothing");
    let paid = buyer.post_json(&url(&market), &question("a")).await.unwrap();
    assert_eq!((paid.status.as_u16(), paid.spent), (200, price));
    let chain = market.chain();
    assert_eq!(chain.balance(market.token(), TREASURY).await, price);
    assert_eq!(chain.balance(market.token(), purse).await, Usdc(CAP - price.micro()));
    assert_eq!(market.with(|desk| desk.transactions.clone()), [("contract", 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purse_pays_nothing_for_an_old_operator_while_paused_or_over_its_cap() {
    let market = Market::open(&SCHEMES, TransferMethod::Eip3009).await;
    let purse = purse(&market, CAP).await;
    let refused = async |operator: &str, text: &str| {
        let error = buyer(&market, purse, operator).post_json(&url(&market), &question(text)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Refused, "{text}: {error}");
    };
    refused("old operator", "by another key").await;
    signer(&market, Address::ZERO).await;
    refused("operator", "while paused").await;
    signer(&market, key("new operator").address()).await;
    refused("operator", "after a move").await;
    signer(&market, key("operator").address()).await;
    market.chain().mint(market.token(), purse, 1).await;
    refused("operator", "over the cap").await;
    let chain = market.chain();
    assert_eq!(chain.balance(market.token(), TREASURY).await, Usdc::ZERO, "nothing moved");
    // Anyone trims it, and it pays again.
    let trim = keccak256("trim()")[..4].to_vec();
    assert!(chain.send(RELAY, purse, &trim).await.1);
    let paid = buyer(&market, purse, "operator").post_json(&url(&market), &question("again")).await.unwrap();
    assert_eq!(paid.spent, price_up(16));
}

/// What is signed for one payee is of no use to another, nor for another amount or by another method of the token.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_policys_payee_is_paid_and_never_more_than_its_limit() {
    let market = Market::open(&SCHEMES, TransferMethod::Eip3009).await;
    let other = market.beside(Address::repeat_byte(0x66)).await;
    let purse = purse(&market, CAP).await;
    let buyer = buyer(&market, purse, "operator");
    let error = buyer.post_json(&url(&other), &question("a")).await.unwrap_err();
    assert_eq!(error.kind, Kind::WrongSeller, "{error}");
    let dear = json!({ "messages": [], "max_tokens": 200, "pay_to": "0x66", "max_uusdc_per_call": "1000000" });
    for asked in
        [buyer.quote(&url(&market), &dear).await.map(drop), buyer.post_json(&url(&market), &dear).await.map(drop)]
    {
        assert_eq!(asked.unwrap_err().kind, Kind::TooExpensive);
    }
    assert_eq!(buyer.signed_total(), Usdc::ZERO);
    assert_eq!(market.chain().balance(market.token(), purse).await, Usdc(CAP));
}

/// The record outlives the process: the same call after a restart is the same payment.
#[tokio::test(flavor = "multi_thread")]
async fn a_purse_that_does_not_know_whether_it_paid_pays_the_same_again() {
    let market = Market::open(&SCHEMES, TransferMethod::Eip3009).await;
    let purse = purse(&market, CAP).await;
    let dir = tempfile::tempdir().unwrap();
    let open = || buyer(&market, purse, "operator").with_record(&dir.path().join("0.record")).unwrap();
    market.with(|desk| desk.fails = Some(Fails::AfterSettlement));
    let answer = open().post_json(&url(&market), &question("a")).await.unwrap();
    assert_eq!((answer.status.as_u16(), open().unresolved()), (500, 1), "nobody said that it was taken");
    let again = open();
    let fates = again.ask_about_unknown().await;
    assert_eq!((fates.paid, again.unresolved()), (1, 0), "the chain says that it was");
    assert_eq!(again.signed_total(), price_up(16), "and nothing more was signed");
}
