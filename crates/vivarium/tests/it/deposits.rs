//! `vivarium ask` and `vivarium proxy` in a token without EIP-3009: their channels are filled through Permit2, and the
//! customer sends no transaction.

use super::facilitator::chain::{CHAIN_ID, Chain, TREASURY, call, word};
use super::leaving::{Agent, Shop};
use super::stub::code;
use super::world::program;
use alloy::primitives::{Address, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use chain::bindings::{Lease, LeaseMarket, State as OnChain, Treasury};
use pay::Usdc;
use pay::scheme::channel::BATCH_SETTLEMENT;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const MARKET: Address = Address::repeat_byte(0x72);
const MINTED: u128 = 10_000_000;

fn customer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(b"a customer without ether")).unwrap()
}

/// The files of a world, and STAND-INS for the contracts that lead to its agent.
async fn world(chain: &Chain, agent: Agent, url: &str, dir: &Path) {
    let state = OnChain { stage: 1, operator: TREASURY, activeLease: U256::from(1), ..OnChain::default() };
    let treasury = code(&[(Treasury::stateCall::SELECTOR, Treasury::stateCall::abi_encode_returns(&state))]);
    chain.rpc("anvil_setCode", json!([agent.treasury, treasury])).await;
    let lease = LeaseMarket::leaseOfCall::abi_encode_returns(&Lease { endpoint: url.to_owned(), ..Lease::default() });
    chain.rpc("anvil_setCode", json!([MARKET, code(&[(LeaseMarket::leaseOfCall::SELECTOR, lease)])])).await;
    let key_file = dir.join("customer.key");
    std::fs::write(&key_file, format!("# a development key\n{}\n", customer().to_bytes())).unwrap();
    let world = json!({
        "version": 1, "rpc_url": chain.url, "chain_id": CHAIN_ID, "usdc": agent.token, "treasury": agent.treasury,
        "lease_market": MARKET, "channel": BATCH_SETTLEMENT,
        "agent": { "url": url, "operator": TREASURY, "epoch": 1, "pid": null },
        "providers": [], "stewards": [],
        "customer": { "address": customer().address(), "key_file": key_file },
    });
    std::fs::write(dir.join("world.json"), world.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_eip3009_fills_channels_through_permit2() {
    let (chain, dir) = (Arc::new(Chain::start().await), tempfile::tempdir().unwrap());
    let agent = Agent { treasury: TREASURY, token: chain.permit_token };
    chain.mint(agent.token, customer().address(), MINTED).await;
    let (url, _shop) = Shop::open(&chain, agent).await;
    world(&chain, agent, &url, dir.path()).await;
    let permissions = async || chain.number(agent.token, &call("nonces(address)", &[word(customer().address())])).await;
    let lies_in = async || chain.balance(agent.token, BATCH_SETTLEMENT).await;

    // Chosen by itself, and by name.
    for (deposits, scheme) in [(1, None), (1, Some("batch-settlement"))] {
        let mut ask = Command::new(program());
        ask.args(["ask", "--json", "--max-tokens", "8", "--data-dir"]).arg(dir.path());
        ask.args(scheme.map(|scheme| ["--scheme", scheme]).into_iter().flatten());
        let out = ask.arg(format!("What is {scheme:?}?")).kill_on_drop(true).output().await.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let said: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(said["scheme"], "batch-settlement", "{said}");
        assert_eq!(permissions().await, deposits, "beside the deposit, not beside vouchers");
    }
    let by_ask = lies_in().await;
    assert!(by_ask > Usdc::ZERO);

    let mut proxy = Command::new(program());
    proxy.args(["proxy", "--json", "--listen", "127.0.0.1:0", "--budget", "1/day", "--data-dir"]).arg(dir.path());
    let mut proxy = proxy.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let line = BufReader::new(proxy.stdout.take().unwrap()).lines().next_line().await.unwrap().expect("one line");
    let hello: Value = serde_json::from_str(&line).unwrap();
    let url = format!("{}/chat/completions", hello["base_url"].as_str().unwrap());
    for text in ["one", "two"] {
        let question = json!({ "model": "m", "messages": [{ "role": "user", "content": text }] });
        let bought = net::Client::new().post_json(&url, &question).await.unwrap();
        assert_eq!((bought.status.as_u16(), permissions().await), (200, 2), "a channel of its own, filled once");
    }
    assert!(lies_in().await > by_ask);
    proxy.kill().await.unwrap();
    assert_eq!(
        chain.rpc("eth_getBalance", json!([customer().address(), "latest"])).await,
        "0x0",
        "nor has it any ether"
    );
}
