//! One agent from birth to a settled payment, with typed calls only.

use chain::{
    LeaseStatus, Outcome, Stage, Tx,
    alloy::{
        dyn_abi::Eip712Domain,
        eips::BlockId,
        primitives::{Address, B256, U256},
        signers::SignerSync,
        sol,
        sol_types::SolStruct,
    },
    bindings::{MarketEvent, TreasuryEvent},
    logs::{Event, LogCore, LogItem, LogReader, Sources},
    treasury::calls::{self, ExactAuthorization},
};

use crate::world::{SEED, World, bytes32, key};

sol! {
    struct TransferWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// What a customer signs, for `value` micro-USDC to the treasury.
async fn authorization(world: &World, to: Address, value: u128, nonce: B256) -> ExactAuthorization {
    let payer = key(30);
    let usdc = world.chain.usdc(world.addresses.usdc);
    let signing = usdc.signing().await.expect("the token's domain");
    let id = U256::from(world.chain.chain_id());
    let (name, version) = (signing.name.into(), signing.version.into());
    let domain = Eip712Domain::new(Some(name), Some(version), Some(id), Some(usdc.address), None);
    let now = world.chain.head().await.expect("head").timestamp;
    let message = TransferWithAuthorization {
        from: payer.address(),
        to,
        value: U256::from(value),
        validAfter: U256::ZERO,
        validBefore: U256::from(now + 60),
        nonce,
    };
    let signature = payer.sign_hash_sync(&message.eip712_signing_hash(&domain)).expect("signs");
    ExactAuthorization {
        payer: payer.address(),
        value: message.value,
        valid_after: message.validAfter,
        valid_before: message.validBefore,
        nonce,
        signature: signature.as_bytes().into(),
    }
}

#[tokio::test]
async fn birth_heartbeat_payment_refund() {
    let world = World::instant().await;
    let first_block = world.chain.head().await.expect("head").number + 1;
    let provider = world.account(2).await;
    let node_key = key(3);
    let (treasury, lease) = world.give_birth(&provider, node_key.address()).await;
    let at = treasury.address;

    // Activation paid the node's first gas; nobody else did.
    let node = chain::Sender::spawn(world.chain.clone(), node_key, 1);
    let beat = Tx::call(at, calls::heartbeat(bytes32(1), bytes32(2), false), "heartbeat");
    node.send_and_wait(beat).await.expect("the operator's heartbeat");
    let relay = world.account(4).await;
    node.send_and_wait(Tx::call(at, calls::set_relay(relay.address()), "setRelay")).await.expect("names the relay");

    world.mint(key(30).address(), 5_000).await;
    let paid = authorization(&world, at, 1_234, bytes32(9)).await;
    relay.send_and_wait(Tx::call(at, calls::settle_exact(&paid), "settle")).await.expect("settles");
    assert!(world.chain.usdc(world.addresses.usdc).authorization_state(paid.payer, paid.nonce).await.expect("read"));
    let refund = Tx::call(at, calls::refund_exact(paid.payer, paid.nonce, 234), "refund");
    node.send_and_wait(refund).await.expect("refunds");
    let recorded = treasury.recorded(paid.payer, paid.nonce).await.expect("read");
    assert_eq!(recorded, (U256::from(1_234), U256::from(234)));

    let birth = treasury.birth().await.expect("read");
    assert_eq!((birth.creator, birth.threshold), (Address::ZERO, 2));

    // One snapshot, one block.
    let snapshot = treasury.snapshot(world.addresses.market).await.expect("snapshot");
    assert_eq!((snapshot.state.stage(), snapshot.state.epoch), (Stage::Alive, 1));
    assert_eq!((snapshot.state.operator, snapshot.state.relay), (node.address(), relay.address()));
    let active = snapshot.active.expect("the birth lease");
    assert_eq!((active.id, active.lease.status(), active.lease.escrow), (lease, LeaseStatus::Ready, 200_000));
    assert_eq!((snapshot.standby, snapshot.draining), (None, None));
    assert_eq!((snapshot.offers.len(), snapshot.offers[0].staked, snapshot.offers[0].offer.used), (1, true, 1));
    let operator_wei = world.chain.eth_balance(node.address(), BlockId::hash(snapshot.head.hash)).await.expect("wei");
    assert_eq!(snapshot.operator_wei, operator_wei);
    assert!(snapshot.relay_wei > U256::ZERO);
    assert_eq!(snapshot.state.balance, U256::from(SEED - 200_000 + 1_234 - 234));

    // The log tells the same story up to the same block, and its transfers are the balance.
    let sources = Sources { treasury: at, market: world.addresses.market, usdc: world.addresses.usdc };
    let mut reader = LogReader::new(vec![world.chain.clone()], LogCore::new(sources, first_block));
    let items = reader.poll(snapshot.head).await.expect("logs");
    let (mut names, mut balance) = (Vec::new(), 0i128);
    for item in items {
        let LogItem::Emitted(log) = item else { panic!("no reorg here: {item:?}") };
        match log.event {
            Event::Treasury(TreasuryEvent::Born(_)) => names.push("born"),
            Event::Treasury(TreasuryEvent::Activated(e)) => {
                assert_eq!(e.operator, node.address());
                names.push("activated");
            }
            Event::Treasury(TreasuryEvent::Heartbeat(e)) => {
                assert_eq!((e.epoch, e.instance), (1, bytes32(1)));
                names.push("heartbeat");
            }
            Event::Treasury(TreasuryEvent::ExactSettled(e)) => {
                assert_eq!((e.payer, e.amount), (paid.payer, U256::from(1_234)));
                names.push("settled");
            }
            Event::Treasury(TreasuryEvent::ExactRefunded(_)) => names.push("refunded"),
            Event::Market(MarketEvent::LeaseReady(_)) => names.push("ready"),
            Event::Transfer { to, amount, .. } if to == at => balance += i128::try_from(amount).expect("small"),
            Event::Transfer { amount, .. } => balance -= i128::try_from(amount).expect("small"),
            _ => {}
        }
    }
    assert_eq!(names, ["born", "ready", "activated", "heartbeat", "settled", "refunded"]);
    assert_eq!(U256::try_from(balance).expect("positive"), snapshot.state.balance);
}

#[tokio::test]
async fn the_creator_and_strangers_are_refused_by_name() {
    let world = World::instant().await;
    let provider = world.account(2).await;
    let (treasury, _) = world.give_birth(&provider, key(3).address()).await;
    let beat = || Tx::call(treasury.address, calls::heartbeat(B256::ZERO, B256::ZERO, false), "heartbeat");

    // Refused in the estimate: nothing was sent, no gas was used.
    let before = world.chain.nonce(world.creator.address(), BlockId::latest()).await.expect("nonce");
    let Outcome::Reverted { tx_hash: None, revert } = world.creator.submit(beat()).await else {
        panic!("the creator has no rights");
    };
    assert_eq!(revert.name, "NotOperator");
    assert_eq!(world.chain.nonce(world.creator.address(), BlockId::latest()).await.expect("nonce"), before);

    // Refused in a block, because the gas was given and nothing was tried before.
    let sent = Tx { gas: Some(200_000), ..beat() };
    let Outcome::Reverted { tx_hash: Some(_), revert } = world.creator.submit(sent).await else {
        panic!("the creator has no rights");
    };
    assert_eq!(revert.name, "NotOperator");

    let error = world.creator.send_and_wait(beat()).await.expect_err("refused");
    assert_eq!(error.to_string(), "heartbeat: NotOperator");
}
