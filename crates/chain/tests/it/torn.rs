//! An endpoint that answers from the state of one block and the clock of another. STAND-IN: what anvil does for a moment
//! while it makes a block, here as often as the test wants.

use crate::stand_in;
use chain::alloy::primitives::{Address, U256};
use chain::{Chain, Kind};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Fails in its arithmetic so many times, then says 7; how often it was asked.
async fn endpoint(panics: u32) -> (Chain, Arc<AtomicU32>) {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let chain = stand_in::endpoint(move |_| {
        let is_torn = count.fetch_add(1, Ordering::SeqCst) < panics;
        async move {
            if is_torn {
                let data = format!("0x4e487b71{:064x}", 0x11);
                json!({ "error": { "code": 3, "message": "execution reverted", "data": data } })
            } else {
                json!({ "result": format!("0x{:064x}", 7) })
            }
        }
    });
    (chain.await, asked)
}

#[tokio::test]
async fn a_view_that_fails_in_its_arithmetic_is_asked_again_and_then_believed() {
    let (chain, asked) = endpoint(3).await;
    let balance = chain.usdc(Address::repeat_byte(1)).balance(Address::repeat_byte(2)).await.expect("it goes by");
    assert_eq!((balance, asked.load(Ordering::SeqCst)), (U256::from(7), 4));
    let (chain, asked) = endpoint(u32::MAX).await;
    let error = chain.usdc(Address::repeat_byte(1)).balance(Address::repeat_byte(2)).await.expect_err("it does not");
    assert!(matches!(&error.kind, Kind::Reverted(revert) if revert.name == "Panic"), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}
