//! Several settlements in one transaction: what Multicall3 saves, and that one bad row leaves the others alone.

use crate::chain::{CHAIN_ID, Chain, RELAY, TREASURY};
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use pay::Usdc;
use pay::facilitator::batch::TRANSFER_GAS;
use pay::facilitator::multicall::{self, Call, MULTICALL3};
use pay::scheme::exact::client::sign;
use pay::scheme::exact::facilitator::transfer_call;
use pay::scheme::exact::server::verify;
use pay::wire::PaymentRequirements;
use serde_json::json;

async fn call_of(chain: &Chain, payer: &PrivateKeySigner, nonce: u64) -> Call {
    let extra = json!({ "name": "USD Coin", "version": "2" });
    let kind = ("exact", format!("eip155:{CHAIN_ID}"));
    let offer = PaymentRequirements::new((kind.0, &kind.1), Usdc(100), (chain.usdc, TREASURY), 300, extra);
    let now = crate::market::wall();
    let payment = sign(payer, &offer, now, B256::from(U256::from(nonce))).unwrap();
    let terms = verify(&payment, &offer, now).unwrap().settlement();
    Call { to: chain.usdc, data: transfer_call(&terms, TREASURY).into() }
}

async fn gas(chain: &Chain, to: Address, data: &[u8]) -> u64 {
    let (hash, done) = chain.send(RELAY, to, data).await;
    assert!(done);
    let receipt = chain.rpc("eth_getTransactionReceipt", json!([B256::from(hash)])).await;
    u64::from_str_radix(receipt["gasUsed"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_saves_gas_and_a_bad_row_spoils_nothing() {
    let chain = Chain::start().await;
    let payer = PrivateKeySigner::from_bytes(&keccak256("batches")).unwrap();
    chain.mint(chain.usdc, payer.address(), 1_000_000).await;
    chain.mint(chain.usdc, TREASURY, 1).await;
    let one = call_of(&chain, &payer, 1).await;
    let single = gas(&chain, one.to, &one.data).await;
    let mut batches = Vec::new();
    for rows in [2, 10] {
        let mut calls = Vec::new();
        for row in 0..rows {
            calls.push(call_of(&chain, &payer, 100 * rows + row).await);
        }
        batches.push(gas(&chain, MULTICALL3, &multicall::each(calls)).await);
    }
    let row = (batches[1] - batches[0]) / 8;
    let base = batches[0] - 2 * row;
    println!("alone {single}, a batch {base} and {row} a row");
    // The constants that decide are no lower than what is used, and at most a fifth above it.
    for (constant, used) in [(TRANSFER_GAS.single, single), (TRANSFER_GAS.row, row), (TRANSFER_GAS.of(10), batches[1])]
    {
        assert!((used..=used + used / 5).contains(&constant), "{constant} for {used}");
    }
    assert!(TRANSFER_GAS.batch >= base, "{TRANSFER_GAS:?} for {base}");
    assert!(TRANSFER_GAS.of(2) < 2 * TRANSFER_GAS.single && batches[0] < 2 * single, "two are cheaper together");

    let before = chain.balance(chain.usdc, TREASURY).await;
    let good = [call_of(&chain, &payer, 9_001).await, call_of(&chain, &payer, 9_002).await];
    let rows = vec![good[0].clone(), one, good[1].clone()];
    let answer = chain.simulate(RELAY, MULTICALL3, &multicall::each(rows.clone())).await.unwrap();
    assert_eq!(multicall::succeeded(&answer), Some(vec![true, false, true]));
    assert!(chain.simulate(RELAY, MULTICALL3, &multicall::all(rows.clone())).await.is_err());
    gas(&chain, MULTICALL3, &multicall::each(rows)).await;
    assert_eq!(chain.balance(chain.usdc, TREASURY).await, before.saturating_add(Usdc(200)));
}
