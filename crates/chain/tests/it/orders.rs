//! Orders of stewards, as the contract checks them.

use chain::{
    Outcome, Tx,
    alloy::primitives::U256,
    orders::{Ack, Order, approval, collect, domain, sign},
    treasury::calls,
};

use crate::world::{World, bytes32, key};

#[tokio::test]
async fn two_of_three_pause_and_resume_and_one_alone_does_not() {
    let world = World::instant().await;
    let provider = world.account(2).await;
    let (treasury, _) = world.give_birth(&provider, key(3).address()).await;
    let stewards = World::stewards();
    let addresses: Vec<_> = stewards.iter().map(|s| s.address()).collect();
    let domain = domain(world.chain.chain_id(), treasury.address);
    let now = world.chain.head().await.expect("head").timestamp;

    let order = Order::new("pause", U256::ZERO, U256::ZERO, now + 600);
    let signatures: Vec<_> = stewards.iter().rev().map(|s| sign(&order, &domain, s).expect("signs")).collect();

    let alone = approval(&order, &domain, &signatures[..1], &addresses, 1).expect("one valid signature");
    let refused = world.creator.submit(Tx::call(treasury.address, calls::pause(alone), "pause")).await;
    assert!(matches!(&refused, Outcome::Reverted { revert, .. } if revert.name == "BadQuorum"), "{refused:?}");

    let two = approval(&order, &domain, &signatures[..2], &addresses, 2).expect("two valid signatures");
    let pause = Tx::call(treasury.address, calls::pause(two), "pause");
    world.creator.send_and_wait(pause.clone()).await.expect("anyone may relay it");
    let state = treasury.state().await.expect("state");
    assert_eq!((state.paused, state.orderNonce), (true, U256::from(1)));

    // The order is used up.
    assert!(world.creator.send_and_wait(pause).await.is_err());
    let order = Order::new("resume", U256::ZERO, state.orderNonce, now + 600);
    let signatures: Vec<_> = stewards.iter().map(|s| sign(&order, &domain, s).expect("signs")).collect();
    let all = approval(&order, &domain, &signatures, &addresses, 2).expect("a quorum");
    world.creator.send_and_wait(Tx::call(treasury.address, calls::resume(all), "resume")).await.expect("resumes");
    assert!(!treasury.state().await.expect("state").paused);
}

#[tokio::test]
async fn a_checkpoint_is_committed_with_the_stewards_acknowledgements() {
    let world = World::instant().await;
    let provider = world.account(2).await;
    let (treasury, _) = world.give_birth(&provider, key(3).address()).await;
    let node = chain::Sender::spawn(world.chain.clone(), key(3), 1);
    let stewards = World::stewards();
    let addresses: Vec<_> = stewards.iter().map(|s| s.address()).collect();
    let domain = domain(world.chain.chain_id(), treasury.address);

    let ack = Ack { epoch: 1, seq: 1, digest: bytes32(5), prev: bytes32(0) };
    let signatures: Vec<_> = stewards.iter().map(|s| sign(&ack, &domain, s).expect("signs")).collect();
    let acks = collect(&ack, &domain, &signatures, &addresses, 2).expect("a quorum");
    let commit = calls::commit(1, bytes32(5), bytes32(0), acks.clone());
    node.send_and_wait(Tx::call(treasury.address, commit, "commit")).await.expect("commits");
    let state = treasury.state().await.expect("state");
    assert_eq!((state.checkpointSeq, state.checkpointDigest), (1, bytes32(5)));

    // The same acknowledgements speak for no other checkpoint.
    let other = calls::commit(2, bytes32(6), bytes32(5), acks);
    let refused = node.submit(Tx::call(treasury.address, other, "commit")).await;
    assert!(matches!(&refused, Outcome::Reverted { revert, .. } if revert.name == "BadQuorum"), "{refused:?}");
}
