//! An issuer freezes a treasury and its host goes away: daemons tell each other, and end what nobody else can.

use crate::world::{World, key, until};
use chain::alloy::sol;
use chain::alloy::sol_types::SolCall;
use chain::orders::{Alarm, domain, sign};
use chain::{Stage, sender::Tx};
use serde_json::json;

sol! {
    function setFrozen(address account, bool frozen) external;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_agent_that_is_silent_is_ended_and_every_daemon_hears_of_it() {
    let world = World::start().await;
    let (treasury, _) = world.give_birth(key(7).address()).await;
    world.stewards().await;
    let peers = world.addresses_of_stewards();

    // A stranger's word is no peer's, and a word that no daemon has is none.
    let say = |signer, alarm: &str| {
        let message = Alarm { alarm: alarm.into(), at: 9 };
        let signature = sign(&message, &domain(world.chain.chain_id(), treasury), &key(signer)).unwrap();
        json!({ "treasury": treasury, "alarm": alarm, "at": 9, "signature": signature })
    };
    world.refused(0, "alarm", &say(9, "silent"), "bad_request").await;
    world.refused(0, "alarm", &say(12, "pay me"), "bad_request").await;

    let freeze = setFrozenCall { account: treasury, frozen: true }.abi_encode();
    world.second_provider.send_and_wait(Tx::call(world.addresses.usdc, freeze.into(), "freeze")).await.unwrap();
    world.wait_in_chain_time(60).await;
    for steward in 0..3 {
        until("both peers' alarms", || async {
            let status = world.get(steward, "status").await;
            let heard = status["agents"][0]["peer_alarms"].as_array()?;
            let from = |peer: usize| heard.iter().any(|a| a["steward"] == json!(peers[peer]) && a["alarm"] == "silent");
            (0..3).all(|peer| peer == steward || from(peer)).then_some(())
        })
        .await;
    }

    // The first call posts a notice; once the silence lasted another one ends it.
    let state = || async { world.chain.treasury(treasury).state().await.unwrap() };
    until("the end", || async {
        world.wait_in_chain_time(10).await;
        (state().await.stage() >= Stage::WindingDown).then_some(())
    })
    .await;
    world.stop().await;
}
