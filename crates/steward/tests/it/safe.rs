//! A real Safe (its published bytecode, 2 of 3) as the quorum: its owners sign an order's file apart from each other,
//! one of them through its daemon, and anybody submits it.

use crate::world::{World, key};
use chain::alloy::eips::BlockId;
use chain::alloy::primitives::{Address, B256, Bytes, U128, U256};
use chain::deploy::fund_eth;
use chain::orders::{Ack, digest, domain};
use chain::treasury::calls;
use serde_json::json;
use steward::orders::{Action, Limits, OrderFile, Quorum, hand_out};
use store::seal::Identity;

#[path = "../../../../tests/safe.rs"]
mod published;

/// A Safe of these owners. Key 3 pays.
async fn make_safe(world: &World, owners: Vec<Address>, threshold: u64) -> Address {
    published::make(&world.chain, &key(3), owners, threshold).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_owners_of_a_safe_pause_an_agent_by_files_and_a_daemon() {
    let world = World::start().await;
    let owners = world.addresses_of_stewards();
    let safe = make_safe(&world, owners.clone(), 2).await;
    let treasury = world.create(vec![safe], 1).await.unwrap();
    world.activate(treasury, key(7).address()).await;
    let state = || async { world.chain.treasury(treasury).state().await.unwrap() };

    // Daemons whose keys own the Safe watch its agent and acknowledge its checkpoints; the node puts their words
    // together.
    let secret = Identity::generate().to_secret_string().as_bytes().to_vec();
    let object = world.checkpoint(treasury, &world.stewards().await, &secret, 7, &|_| ());
    world.put(&object.to_bytes()).await;
    let ack = Ack { epoch: 1, seq: 1, digest: object.digest().into(), prev: B256::ZERO };
    let mut parts = Vec::new();
    for steward in [2, 0] {
        let wanted = json!({ "treasury": treasury, "seq": 1, "digest": ack.digest });
        let answer = world.accepted(steward, "ack", &wanted).await;
        parts.push(serde_json::from_value::<Bytes>(answer["signature"].clone()).unwrap());
    }
    let whole = world.chain.safe(safe).await.unwrap().unwrap();
    let signed = digest(&ack, &domain(world.chain.chain_id(), treasury));
    let acks = vec![whole.signature(world.chain.chain_id(), signed, &parts).unwrap()];
    world.node(7, treasury, calls::commit(1, ack.digest, B256::ZERO, acks)).await;
    assert_eq!(state().await.checkpointSeq, 1);

    // Prepared with the chain; signed without it, on two machines.
    let order = OrderFile::prepare(&world.chain, treasury, Action::Pause, 3_600).await.unwrap();
    let of_owner = |address: Address| (11..=13).map(key).find(|k| k.address() == address).unwrap();
    assert!(order.clone().sign(&key(9)).unwrap_err().to_string().contains("owns no Safe"));
    let mut first = order.clone();
    first.sign(&of_owner(owners[2])).unwrap();
    let refusal = first.submit(&world.chain, &key(2)).await.unwrap_err().to_string();
    assert!(refusal.contains("1 of the 3 owners of the Safe"), "{refusal}");
    assert!(!state().await.paused);

    // The other owner approves beside its daemon, which hands the signature out to whoever asks.
    let mut second = order.clone();
    second.sign(&of_owner(owners[0])).unwrap();
    assert_eq!(world.get(0, &format!("orders/{treasury}")).await, json!([]));
    hand_out(&world.config(0), &second).unwrap();
    let held: Vec<OrderFile> = serde_json::from_value(world.get(0, &format!("orders/{treasury}")).await).unwrap();
    assert_eq!(held, [second]);
    assert_eq!(world.get(1, &format!("orders/{treasury}")).await, json!([]), "{} signed nothing", world.url(1));
    for other in held {
        first.merge(other).unwrap();
    }
    first.submit(&world.chain, &key(2)).await.unwrap();
    assert!(state().await.paused);

    // Used up; and a daemon signs nothing that its operator did not.
    assert!(first.submit(&world.chain, &key(2)).await.is_err());
    let wanted = json!({ "treasury": treasury, "action": "resume", "offer": 0, "term": 0, "prepay_uusdc": 0, "nonce": 1, "deadline": 1 });
    world.refused(0, "sign-order", &wanted, "not_for_daemons").await;
    let mut resume = OrderFile::prepare(&world.chain, treasury, Action::Resume, 3_600).await.unwrap();
    for owner in &owners[1..] {
        resume.sign(&of_owner(*owner)).unwrap();
    }
    resume.submit(&world.chain, &key(2)).await.unwrap();
    assert!(!state().await.paused);
    world.stop().await;
}

/// Two of the three owners sign; anybody submits.
async fn ordered(world: &World, treasury: Address, action: Action) -> OrderFile {
    let mut order = OrderFile::prepare(&world.chain, treasury, action, 3_600).await.unwrap();
    for owner in [11, 13] {
        order.sign(&key(owner)).unwrap();
    }
    OrderFile::parse(&order.to_json()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safe_tightens_revokes_code_and_what_it_loosens_waits() {
    let world = World::start().await;
    let safe = make_safe(&world, world.addresses_of_stewards(), 2).await;
    let made = world.create_as(|birth| {
        (birth.stewards, birth.threshold) = (vec![safe], 1);
        (birth.options.delay, birth.options.ceilings) = (600, birth.policy.clone());
        (birth.options.rescuers, birth.options.rescueThreshold) = (Vec::new(), 0);
        birth.options.relayMax = 1_000_000_000_000_000;
    });
    let treasury = made.await.unwrap();
    world.activate(treasury, key(7).address()).await;
    let client = world.chain.treasury(treasury);
    let limits = || async { Limits::from(&client.birth().await.unwrap().policy) };
    let (before, anybody) = (limits().await, key(2));
    let day_limit = U128::from(1_000_000);

    // One limit lower, at once; the same as a tightening that raises another one is refused.
    let lower = Limits { day_limit, ..before };
    let greedy = Limits { price_e6_max: before.price_e6_max + 1, ..lower };
    let refused = ordered(&world, treasury, Action::Tighten { limits: greedy }).await;
    assert!(refused.submit(&world.chain, &anybody).await.is_err());
    let tighten = ordered(&world, treasury, Action::Tighten { limits: lower }).await;
    assert!(tighten.submit(&world.chain, &anybody).await.unwrap().in_force);
    assert_eq!(limits().await, lower);

    // Whoever relays it gets its gas back, as far as birth says so.
    fund_eth(&world.chain, treasury, 100_000_000_000_000_000).await.unwrap();
    let ether = || async { world.chain.eth_balance(treasury, BlockId::latest()).await.unwrap() };
    let full = ether().await;
    let again = ordered(&world, treasury, Action::Tighten { limits: lower }).await;
    assert!(again.submit(&world.chain, &anybody).await.unwrap().in_force);
    assert!(ether().await < full, "the relayer was not repaid");

    // Up again to the ceiling: queued, too early, and by the same file once the delay is over.
    let loosen = ordered(&world, treasury, Action::Loosen { limits: before }).await;
    assert!(!loosen.submit(&world.chain, &anybody).await.unwrap().in_force);
    let early = format!("{:#}", loosen.submit(&world.chain, &anybody).await.unwrap_err());
    assert!(early.contains("TooEarly"), "{early}");
    assert_eq!(limits().await, lower);

    let code = client.state().await.unwrap().codeHash;
    let revoke = ordered(&world, treasury, Action::RevokeCode { code }).await;
    assert!(revoke.submit(&world.chain, &anybody).await.unwrap().in_force);
    let state = client.state().await.unwrap();
    assert_eq!((state.codeHash, state.operator, state.activeLease), (B256::ZERO, Address::ZERO, U256::ZERO));
    // The revocation voided what waited: from the start again. New code is the only way on.
    assert!(!loosen_again(&world, treasury, before).await);
    let new = B256::repeat_byte(0xc1);
    let set = ordered(&world, treasury, Action::SetCode { code: new }).await;
    assert!(!set.submit(&world.chain, &anybody).await.unwrap().in_force);
    let quorum = Quorum { stewards: world.addresses_of_stewards(), threshold: 2 };
    let seat = ordered(&world, treasury, Action::SetStewards { quorum }).await;
    assert!(!seat.submit(&world.chain, &anybody).await.unwrap().in_force);
    world.wait_in_chain_time(600).await;
    assert!(set.submit(&world.chain, &anybody).await.unwrap().in_force);
    assert_eq!(client.state().await.unwrap().codeHash, new);
    assert!(seat.submit(&world.chain, &anybody).await.unwrap().in_force);
    assert_eq!(client.birth().await.unwrap().threshold, 2);
    world.stop().await;
}

async fn loosen_again(world: &World, treasury: Address, limits: Limits) -> bool {
    let loosen = ordered(world, treasury, Action::Loosen { limits }).await;
    loosen.submit(&world.chain, &key(2)).await.unwrap().in_force
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safe_beside_plain_keys_signs_as_one_of_them() {
    let world = World::start().await;
    let keys = world.addresses_of_stewards();
    let safe = make_safe(&world, keys[..2].to_vec(), 2).await;
    let mut stewards = vec![safe, keys[2]];
    stewards.sort();
    let treasury = world.create(stewards, 2).await.unwrap();
    world.activate(treasury, key(7).address()).await;
    let mut order = OrderFile::prepare(&world.chain, treasury, Action::Stop, 3_600).await.unwrap();
    let of = |address: Address| (11..=13).map(key).find(|k| k.address() == address).unwrap();
    for owner in &keys[..2] {
        order.sign(&of(*owner)).unwrap();
    }
    assert!(order.submit(&world.chain, &key(2)).await.unwrap_err().to_string().contains("1 of 2 stewards signed"));
    order.sign(&of(keys[2])).unwrap();
    order.submit(&world.chain, &key(2)).await.unwrap();
    assert_eq!(world.chain.treasury(treasury).state().await.unwrap().stage(), chain::Stage::Stopped);

    // A Safe that one owner commands is no quorum: refused at birth.
    let weak = make_safe(&world, keys[..2].to_vec(), 1).await;
    let refused = world.create(vec![weak], 1).await.unwrap_err();
    assert_eq!(refused.revert().map(|r| r.name.as_str()), Some("BadQuorum"), "{refused}");
    world.stop().await;
}
