//! Senders against a node that drops, reorganises and refuses.

use chain::{
    Outcome, Sender,
    alloy::{
        eips::BlockId,
        primitives::{Address, B256},
    },
    deploy::fund_eth,
    outbox::Id,
    sender::{Options, SenderHandle},
};
use futures::FutureExt;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use crate::stand_in;
use crate::world::{ETHER, World, key};

const PAYEE: Address = Address::repeat_byte(0x55);

fn done(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done { .. })
}

#[tokio::test]
async fn many_at_once_share_blocks_in_the_order_of_submission() {
    let world = World::ticking().await;
    let before = world.chain.nonce(world.creator.address(), BlockId::latest()).await.expect("nonce");
    let pending: Vec<_> = (0..40u8).map(|_| world.creator.submit(world.mint_tx(PAYEE, 1))).collect();
    let mut blocks = BTreeSet::new();
    for outcome in pending {
        let Outcome::Done { block, .. } = outcome.await else { panic!("a mint fails") };
        blocks.insert(block);
    }
    assert_eq!(world.usdc_of(PAYEE).await, 40);
    let after = world.chain.nonce(world.creator.address(), BlockId::latest()).await.expect("nonce");
    assert_eq!(after - before, 40);
    assert!(blocks.len() < 40, "several a block: {blocks:?}");
}

#[tokio::test]
async fn two_keys_and_two_senders_of_one_key_get_along() {
    let world = World::ticking().await;
    let other = world.account(40).await;
    let twin = Sender::spawn(world.chain.clone(), world.creator_key.clone(), 1);
    let senders: [(&SenderHandle, u128); 3] = [(&world.creator, 1), (&other, 10), (&twin, 100)];
    let mut pending = Vec::new();
    for _ in 0..4 {
        for (sender, amount) in senders {
            pending.push(sender.submit(world.mint_tx(PAYEE, amount)));
        }
    }
    for outcome in pending {
        let outcome = outcome.await;
        assert!(done(&outcome), "{outcome:?}");
    }
    assert_eq!(world.usdc_of(PAYEE).await, 444);
}

#[tokio::test]
async fn a_dropped_transaction_is_sent_again_and_the_gap_closes() {
    let world = World::ticking().await;
    world.set_block_time(0).await;
    let pending: Vec<_> = (0..3u8).map(|_| world.creator.submit(world.mint_tx(PAYEE, 1))).collect();
    let pool = world.pool_of(world.creator.address(), 3).await;
    let _: Option<B256> = world.chain.request("anvil_dropTransaction", (pool[1],)).await.expect("anvil");
    world.set_block_time(1).await;
    for outcome in pending {
        let outcome = outcome.await;
        assert!(done(&outcome), "{outcome:?}");
    }
    assert_eq!(world.usdc_of(PAYEE).await, 3);
}

#[tokio::test]
async fn what_a_reorg_loses_is_mined_again() {
    let world = World::ticking().await;
    let patient = world.account(41).await;
    drop(patient);
    let patient = Sender::spawn(world.chain.clone(), key(41), 4);
    let outcome = patient.submit(world.mint_tx(PAYEE, 5));
    while world.usdc_of(PAYEE).await == 0 {
        tokio::task::yield_now().await;
    }
    world.reorg(1).await;
    assert_eq!(world.usdc_of(PAYEE).await, 0, "the reorg took it back");
    let outcome = outcome.await;
    assert!(done(&outcome), "{outcome:?}");
    assert_eq!(world.usdc_of(PAYEE).await, 5);
}

/// Sends with the key `n`, and keeps its state where the test finds it.
fn keeping(world: &World, n: u8, kept: &Arc<Mutex<Option<Vec<u8>>>>, options: Options) -> SenderHandle {
    let kept = Arc::clone(kept);
    let persist = Box::new(move |bytes: &[u8]| *kept.lock().expect("no panic") = Some(bytes.to_vec()));
    let options = Options { persist: Some(persist), ..options };
    Sender::spawn_with(world.chain.clone(), key(n), options).expect("its own state")
}

#[tokio::test]
async fn a_restart_with_the_kept_state_neither_loses_nor_doubles() {
    let world = World::ticking().await;
    fund_eth(&world.chain, key(42).address(), ETHER).await.expect("a development chain");
    let kept = Arc::default();
    let start = |state| keeping(&world, 42, &kept, Options { state, ..Options::new(1) });
    world.set_block_time(0).await;
    let first = start(None);
    let lost = [1u64, 2].map(|id| first.submit_as(Id::from(id), world.mint_tx(PAYEE, 1)));
    world.pool_of(key(42).address(), 2).await;
    // The process dies; what was on its way is mined while nobody looks.
    drop(first);
    for outcome in lost {
        assert!(matches!(outcome.await, Outcome::Unknown { .. }), "nobody can answer any more");
    }
    world.set_block_time(1).await;
    while world.usdc_of(PAYEE).await < 2 {
        tokio::task::yield_now().await;
    }
    let state = kept.lock().expect("no panic").take();
    assert!(state.is_some(), "kept before it was sent");
    let second = start(state);
    for id in [1u64, 2, 3] {
        let outcome = second.submit_as(Id::from(id), world.mint_tx(PAYEE, 1)).await;
        assert!(done(&outcome), "{id}: {outcome:?}");
    }
    assert_eq!(world.usdc_of(PAYEE).await, 3);
}

#[tokio::test]
async fn what_the_run_before_left_is_over_before_the_chain_is_asked_about_it() {
    let world = World::ticking().await;
    fund_eth(&world.chain, key(44).address(), ETHER).await.expect("a development chain");
    let kept = Arc::default();
    let start = |state| keeping(&world, 44, &kept, Options { state, rests: true, ..Options::new(1) });
    world.set_block_time(0).await;
    let first = start(None);
    assert_eq!(first.left_over().await, 0, "nothing was before it");
    drop(first.submit(world.mint_tx(PAYEE, 1)));
    world.pool_of(key(44).address(), 1).await;
    drop(first);
    let state = kept.lock().expect("no panic").take();
    world.chain.request::<_, Value>("anvil_dropAllTransactions", ()).await.expect("a development chain");
    world.set_block_time(1).await;
    let second = start(state);
    let mut left_over = Box::pin(second.left_over());
    // Others send and hear the end of it meanwhile.
    world.mint(Address::repeat_byte(0x66), 1).await;
    world.mint(Address::repeat_byte(0x66), 1).await;
    assert_eq!(world.usdc_of(PAYEE).await, 0, "its owner has not said that it goes on");
    assert!(left_over.as_mut().now_or_never().is_none(), "it may still be mined");
    second.go_on();
    let block = left_over.await;
    assert!(block > 0);
    assert_eq!(world.usdc_of(PAYEE).await, 1, "a name that nobody knows any more is not sent twice");
    // It is over, and may be taken back with its block: whoever starts next must know how far the chain has to be.
    drop(second);
    let state = kept.lock().expect("no panic").take();
    assert_eq!(start(state).left_over().await, block);
}

#[tokio::test]
async fn a_receipt_counts_when_every_endpoint_has_it() {
    let world = World::ticking().await;
    fund_eth(&world.chain, key(45).address(), ETHER).await.expect("a development chain");
    let (asked, tells) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let witness = {
        let (chain, asked, tells) = (world.chain.clone(), asked.clone(), tells.clone());
        stand_in::endpoint(move |request| {
            assert_eq!(request["method"], "eth_getTransactionReceipt", "a witness is asked for nothing else");
            asked.fetch_add(1, Ordering::SeqCst);
            let (chain, tells) = (chain.clone(), tells.load(Ordering::SeqCst));
            async move {
                let receipt: Value = match tells {
                    true => chain.request("eth_getTransactionReceipt", request["params"].clone()).await.expect("anvil"),
                    false => Value::Null,
                };
                json!({ "result": receipt })
            }
        })
        .await
    };
    let options = Options { witnesses: vec![witness], ..Options::new(1) };
    let sender = Sender::spawn_with(world.chain.clone(), key(45), options).expect("no state");
    let mut outcome = Box::pin(sender.submit(world.mint_tx(PAYEE, 1)));
    while asked.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.usdc_of(PAYEE).await, 1, "it was mined long ago");
    assert!(outcome.as_mut().now_or_never().is_none(), "one endpoint says so");
    tells.store(true, Ordering::SeqCst);
    let outcome = outcome.await;
    assert!(done(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn without_money_nothing_is_sent_and_that_is_said() {
    let world = World::ticking().await;
    let poor = Sender::spawn(world.chain.clone(), key(43), 1);
    let outcome = poor.submit(world.mint_tx(PAYEE, 1)).await;
    assert!(matches!(&outcome, Outcome::NeverSent { reason } if reason.contains("pay")), "{outcome:?}");
    fund_eth(&world.chain, key(43).address(), ETHER).await.expect("a development chain");
    let outcome = poor.submit(world.mint_tx(PAYEE, 1)).await;
    assert!(done(&outcome), "{outcome:?}");
}
