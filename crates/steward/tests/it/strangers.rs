//! What one hostile stranger, creator or steward does to daemons that others need.

use crate::world::{TERMS, World, key, sorted_stewards, until};
use chain::alloy::primitives::{Address, Bytes};
use chain::deploy::deploy;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_be_read_hides_no_other() {
    let world = World::start().await;
    // Born under the same stewards, with a market and a token of its creator's own.
    let theirs = deploy(&world.chain, &key(9), TERMS).await.unwrap();
    let hostile = world.create_as(|birth| (birth.token, birth.market) = (theirs.usdc, theirs.market)).await.unwrap();
    let (treasury, _) = world.give_birth(key(7).address()).await;
    let agents = async |steward: usize| -> Vec<Value> {
        world.get(steward, "status").await["agents"].as_array().unwrap().clone()
    };
    for steward in 0..3 {
        until("both to be watched", || async { (agents(steward).await.len() == 2).then_some(()) }).await;
    }
    // From here on the token refuses whatever it is asked, and takes all the gas that it is given.
    let _: Value = world.chain.request("anvil_setCode", (theirs.usdc, Bytes::from_static(&[0xfe]))).await.unwrap();
    world.wait_in_chain_time(30).await;
    let trouble_of = async |steward: usize, agent: Address| {
        let all = agents(steward).await;
        let said = all.iter().find(|said| said["treasury"] == json!(agent)).unwrap();
        said["trouble"].as_str().map(str::to_owned)
    };
    for steward in 0..3 {
        until("the trouble to be said", || trouble_of(steward, hostile)).await;
        assert_eq!(trouble_of(steward, treasury).await, None);
    }
    let rescued = || async {
        world.wait_in_chain_time(4).await;
        let state = world.chain.treasury(treasury).state().await.unwrap();
        (!state.standbyLease.is_zero()).then_some(())
    };
    until("the other one to be rescued", rescued).await;

    // It is watched again once it can be read.
    let code: Bytes = world.chain.request("eth_getCode", (world.addresses.usdc, "latest")).await.unwrap();
    let _: Value = world.chain.request("anvil_setCode", (theirs.usdc, code)).await.unwrap();
    until("the trouble to be over", || async {
        world.wait_in_chain_time(30).await;
        trouble_of(0, hostile).await.is_none().then_some(())
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_signs_for_who_may_rescue_and_what_it_would_order_itself() {
    let world = World::start().await;
    // A fourth rescuer has no daemon, and all must sign: the silence lasts, and each order is asked for by hand.
    let made = world.create_as(|birth| {
        birth.options.rescuers.push(key(9).address());
        birth.options.rescuers.sort();
        birth.options.rescueThreshold = 4;
    });
    let treasury = made.await.unwrap();
    world.activate(treasury, key(7).address()).await;
    // Offers 2 and 3, the second one at the cap.
    for price_e6 in [4_000_000_000, 5_000_000_000] {
        world.offer(&world.second_provider, price_e6).await;
    }
    world.stewards().await;
    world.wait_in_chain_time(30).await;
    // 40 s at 4,000 micro-USDC.
    let terms = (2, 600, 160_000);
    let ask = |signer: u8, terms| {
        let signer = key(signer);
        let world = &world;
        async move { world.rescue_request(treasury, &signer, terms, 0).await }
    };
    until("the silence to be seen", || async {
        let (_, answer) = world.post(0, "sign-order", &ask(9, terms).await).await;
        (answer["error"]["code"] != "no_silence").then_some(())
    })
    .await;
    world.refused(0, "sign-order", &ask(8, terms).await, "bad_request").await;
    let mut altered = ask(9, terms).await;
    altered.prepay_uusdc += 1;
    world.refused(0, "sign-order", &altered, "bad_request").await;
    // A rescuer that has an offer of its own, at the cap; or wants the order its own way.
    world.refused(0, "sign-order", &ask(9, (3, 600, 200_000)).await, "bad_offer").await;
    world.refused(0, "sign-order", &ask(9, (1, 600, 120_000)).await, "bad_offer").await;
    for terms in [(2, 600, 0), (2, 600, 143_999), (2, 600, 160_001), (2, 30, 160_000)] {
        world.refused(0, "sign-order", &ask(9, terms).await, "bad_terms").await;
    }
    let signed = world.accepted(0, "sign-order", &ask(9, terms).await).await;
    assert_eq!(signed["signer"], json!(sorted_stewards()[0].address()));
    world.stop().await;
}
