//! A quorum names other stewards while the daemons run.

use crate::world::{World, key, sorted_stewards, until};
use chain::alloy::primitives::{U256, keccak256};
use chain::alloy::sol_types::SolValue;
use chain::orders::{Order, approval, domain, sign};
use chain::treasury::calls;

#[tokio::test(flavor = "multi_thread")]
async fn daemons_follow_the_quorum_to_other_stewards() {
    let world = World::start().await;
    let all = world.addresses_of_stewards();
    let (before, after) = (all[..2].to_vec(), all[1..].to_vec());
    let treasury = world
        .create_as(|birth| {
            (birth.stewards, birth.options.rescuers) = (before.clone(), before.clone());
            birth.options.delay = 20;
        })
        .await
        .unwrap();
    world.activate(treasury, key(7).address()).await;
    let watches = async |steward: usize| world.get(steward, "status").await["agents"].as_array().unwrap().len() == 1;
    let watched_by = async |daemons: [bool; 3]| {
        let is_so = [watches(0).await, watches(1).await, watches(2).await] == daemons;
        is_so.then_some(())
    };
    until("its stewards to watch it", || watched_by([true, true, false])).await;

    let client = world.chain.treasury(treasury);
    let domain = domain(world.chain.chain_id(), treasury);
    let argument = keccak256((after.clone(), U256::from(2)).abi_encode_params());
    let deadline = world.chain.head().await.unwrap().timestamp + 1_000;
    let order = Order::new("setStewards", argument.into(), client.state().await.unwrap().orderNonce, deadline);
    let signatures: Vec<_> = (11..=13).map(|n| sign(&order, &domain, &key(n)).unwrap()).collect();
    let approved = approval(&order, &domain, &signatures, &before, 2).unwrap();
    let name = || world.node(7, treasury, calls::set_stewards(after.clone(), 2, approved.clone()));
    name().await;
    world.wait_in_chain_time(20).await;
    name().await;
    until("the new stewards to watch it, and no others", || watched_by([false, true, true])).await;

    // The new quorum has not said that daemons may rescue. That nobody lives a daemon sees by its next look.
    world.wait_in_chain_time(60).await;
    let rescue = world.rescue_request(treasury, &sorted_stewards()[0], (1, 600, 1), 1).await;
    let sees_silence = async || {
        let (_, answer) = world.post(1, "sign-order", &rescue).await;
        (answer["error"]["code"] != "no_silence").then_some(())
    };
    until("the silence to be seen", sees_silence).await;
    world.refused(1, "sign-order", &rescue, "left_to_people").await;
    world.refused(0, "sign-order", &rescue, "not_watched").await;
    world.stop().await;
}
