//! A host that is paid and lies: daemons look at it, propose that it be evicted, and people do it.

use crate::world::{World, key, until};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chain::alloy::primitives::{Address, B256, U256};
use chain::orders::{Order, approval, domain, sign};
use chain::treasury::calls;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use store::seal::Identity;

/// Number of the node's key.
const NODE: u8 = 7;

/// What the host answers to whoever asks for its terms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Host {
    Honest,
    ServesNobody,
    /// Has customers pay this one.
    Steals(Address),
}

/// A STAND-IN for a node: the two routes that a steward looks at.
async fn host(treasury: Arc<Mutex<Address>>, does: Arc<Mutex<Host>>) -> String {
    let agent = treasury.clone();
    let status = move || async move {
        let agent = *agent.lock().unwrap();
        Json(json!({ "agent": agent, "operator": key(NODE).address(), "epoch": 1 }))
    };
    let terms = move || async move {
        let payee = match *does.lock().unwrap() {
            Host::ServesNobody => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
            Host::Honest => *treasury.lock().unwrap(),
            Host::Steals(thief) => thief,
        };
        let offers = json!({ "x402Version": 2, "accepts": [{ "payTo": payee, "extra": { "name": "USD Coin" } }] });
        let header = BASE64_STANDARD.encode(offers.to_string());
        (StatusCode::PAYMENT_REQUIRED, [("payment-required", header)], "").into_response()
    };
    let router = Router::new().route("/status", get(status)).route("/v1/chat/completions", get(terms));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// Ten blocks with a heartbeat before them, seen by every daemon; what each says of the agent.
async fn beat(world: &World, treasury: Address) -> Vec<Value> {
    world.node(NODE, treasury, calls::heartbeat(B256::repeat_byte(1), B256::ZERO, false)).await;
    let _: Value = world.chain.request("anvil_mine", (U256::from(10),)).await.unwrap();
    let head = world.chain.head().await.unwrap().number;
    let seen = || async {
        let all = world.stewards().await;
        all.iter().all(|s| s["block"]["number"].as_u64() >= Some(head)).then_some(all)
    };
    let all = until("all daemons to see the head", seen).await;
    all.into_iter().map(|status| status["agents"][0].clone()).collect()
}

/// Beats until all daemons say that of the agent.
async fn beats_until(world: &World, treasury: Address, what: &str, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
    until(what, || async {
        let said = beat(world, treasury).await;
        said.iter().all(&holds).then_some(said)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lies_is_proposed_for_eviction_and_the_quorum_does_it() {
    let world = World::start_probing().await;
    let (agent, does) = (Arc::new(Mutex::new(Address::ZERO)), Arc::new(Mutex::new(Host::Honest)));
    let url = host(agent.clone(), does.clone()).await;
    let (treasury, lease) = world.give_birth_at(key(NODE).address(), &url).await;
    *agent.lock().unwrap() = treasury;
    let state = || async { world.chain.treasury(treasury).state().await.unwrap() };
    beats_until(&world, treasury, "a look", |said| said["probe"] == "as on chain").await;

    *does.lock().unwrap() = Host::ServesNobody;
    let said = beats_until(&world, treasury, "a proposal", |said| !said["proposal"].is_null()).await;
    for said in &said {
        let proposal = &said["proposal"];
        assert_eq!(
            (&proposal["why"], &proposal["evict"], &proposal["keep"]),
            (&json!("unserved"), &json!(lease), &json!(0))
        );
        assert_eq!(proposal["provider"], json!(world.first_provider()));
        assert_eq!(said["probe"], "offers nothing: status 503");
    }
    let heard = |said: &Value| {
        said["peer_alarms"].as_array().is_some_and(|all| all.iter().filter(|a| a["alarm"] == "unserved").count() == 2)
    };
    beats_until(&world, treasury, "what the peers found", heard).await;
    let kept = world.proposed(0, treasury);
    assert_eq!((kept.len(), &kept[0]["fault"], &kept[0]["lease"]), (1, &json!("unserved"), &json!(lease)));
    // A proposal and nothing else: no daemon signs or sends anything for it.
    let now = state().await;
    assert_eq!((now.operator, now.orderNonce), (key(NODE).address(), U256::ZERO));
    let order = json!({ "treasury": treasury, "action": "evict", "offer": 0, "term": 0, "prepay_uusdc": 0, "nonce": 0, "deadline": u64::MAX });
    world.refused(1, "sign-order", &order, "not_for_daemons").await;

    *does.lock().unwrap() = Host::Honest;
    beats_until(&world, treasury, "it is taken back", |said| said["proposal"].is_null()).await;
    *does.lock().unwrap() = Host::Steals(key(9).address());
    let said = beats_until(&world, treasury, "a thief's proposal", |said| !said["proposal"].is_null()).await;
    assert!(said.iter().all(|said| said["proposal"]["why"] == "wrong_payee"), "{said:?}");

    // Two people read it and order it; then the daemons find it a host of somebody else by themselves.
    let deadline = world.chain.head().await.unwrap().timestamp + 1_000;
    let order = Order::new("evict", U256::ZERO, state().await.orderNonce, deadline);
    let domain = domain(world.chain.chain_id(), treasury);
    let signatures: Vec<_> = [11, 12].map(|n| sign(&order, &domain, &key(n)).unwrap()).into();
    let approved = approval(&order, &domain, &signatures, &world.addresses_of_stewards(), 2).unwrap();
    world.node(9, treasury, calls::evict(0, approved)).await;
    assert_eq!(state().await.operator, Address::ZERO);
    let rescued = until("a rescue", || async {
        let lease = state().await.standbyLease;
        world.wait_in_chain_time(4).await;
        (!lease.is_zero()).then(|| lease.to::<u64>())
    })
    .await;
    let rescued = world.chain.market(world.addresses.market).lease(rescued).await.unwrap();
    assert_eq!(rescued.lease.provider, world.second_provider.address());
    until("nothing is held against anybody", || async {
        let said = world.stewards().await;
        said.iter().all(|s| s["agents"][0]["proposal"].is_null()).then_some(())
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_that_cannot_be_what_they_say_are_held_against_whoever_signed_them() {
    let world = World::start().await;
    let (treasury, lease) = world.give_birth(key(NODE).address()).await;
    let stewards = world.stewards().await;
    let secret = Identity::generate().to_secret_string().as_bytes().to_vec();
    let offered = async |signer: u8, lsn: u64, code: &str| {
        let object = world.checkpoint(treasury, &stewards, &secret, signer, &|c| {
            (c.lsn, c.snapshot_lsn, c.conversations) = (lsn, lsn, vec![c.log]);
        });
        world.put(&object.to_bytes()).await;
        let ask = json!({ "treasury": treasury, "seq": 1, "digest": B256::from(object.digest()) });
        // However often one is asked about, it is one.
        for _ in 0..2 {
            world.refused(0, "ack", &ask, code).await;
        }
        beat(&world, treasury).await[0]["proposal"].clone()
    };
    // Anybody can sign anything.
    for lsn in 11..15 {
        assert_eq!(offered(9, lsn, "wrong_operator").await, Value::Null);
    }
    for lsn in 21..23 {
        assert_eq!(offered(NODE, lsn, "bad_object").await, Value::Null);
    }
    offered(NODE, 23, "bad_object").await;
    let proposal = until("a proposal", || async {
        let found = beat(&world, treasury).await[0]["proposal"].clone();
        (!found.is_null()).then_some(found)
    })
    .await;
    assert_eq!((&proposal["why"], &proposal["evict"]), (&json!("bad_checkpoint"), &json!(lease)), "{proposal}");
    world.stop().await;
}
