//! The example is a program that works, not only one that compiles.

use crate::shop::{CHAIN_ID, Shop, TOKEN, TREASURY, wall};
use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use pay::Usdc;

#[path = "../../examples/buy.rs"]
#[allow(dead_code)]
mod buy;

#[tokio::test]
async fn a_few_lines_pay_the_agent_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let key = PrivateKeySigner::from_bytes(&keccak256(b"a program")).unwrap();
    let buyer = buy::client(key, (CHAIN_ID, TOKEN, TREASURY), &dir.path().join("buy.record")).unwrap();
    let shop = Shop::open(400_000).await;
    let (text, spent) = buy::ask(&buyer, &shop.url, "m", "ping").await.unwrap();
    assert_eq!((text.as_str(), spent), ("You said: ping", Usdc(400_000)));
    // Another payee, a dearer call, and a third one over the host's day are refused before anything is signed.
    let imposter = Shop::open_with(10, Address::repeat_byte(0x66), wall).await;
    buy::ask(&buyer, &imposter.url, "m", "ping").await.unwrap_err();
    buy::ask(&buyer, &shop.url, "m", "again").await.unwrap();
    buy::ask(&buyer, &shop.url, "m", "over the day's limit for this host").await.unwrap_err();
    shop.with(|shelf| shelf.price = Usdc(500_001));
    buy::ask(&buyer, &shop.url, "m", "too dear").await.unwrap_err();
    assert_eq!((shop.earned(), imposter.nonces().len()), (800_000, 0));
}
