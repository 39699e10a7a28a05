//! An agent that nobody pays lies down instead of ending: its hosts are given up, and its memory lies sealed with its
//! store. Somebody funds it, stewards wake it on a host of their choice, and it goes on with what it knew.

use crate::crashes::arm;
use crate::life::{lies_in, on_a_channel};
use crate::world::{self, World};
use serde_json::Value;
use std::collections::BTreeSet;

/// Enough for some days of two hosts.
const SEED_USDC: &str = "10";
/// So little is left a few seconds before it lies down: the floor of `up`'s births is one USDC.
const HUNGRY_UUSDC: u128 = 2_000_000;

fn micro(value: &Value) -> u128 {
    value.as_str().and_then(|sum| sum.parse().ok()).unwrap_or_else(|| panic!("no sum: {value}"))
}

fn sleeps(world: &World) -> Option<Value> {
    let record = world.status()?["record"].clone();
    record["sleeps_until"].is_u64().then_some(record)
}

#[test]
fn a_starved_agent_sleeps_and_wakes_when_it_is_funded() {
    let _turn = world::turn();
    let mut world = World::start(&["--day", "20s", "--lease", "3d", "--seed-usdc", SEED_USDC, "--hibernates"]);
    world.until("birth", |w| (w.agent()?["selling"] == true).then_some(()));
    let first = world.until("an answer", |w| w.ask(&["--max-tokens", "8", "Say hello."]));
    assert!(first["url"].as_str().is_some_and(|url| !url.is_empty()), "{first}");

    // What this one signs is claimed before it lies down: too little for a claim of its own.
    let calls = on_a_channel(&world.world(), "plain", 1);
    let channel = calls[0]["payment"]["extra"]["channelState"]["channelId"].clone();
    assert_eq!(lies_in(&world.world(), &channel).1, 0, "claimed already");

    // Its process dies in the moment in which it lies down: once by our hand, which arms the point, and once there.
    let mut armed = BTreeSet::new();
    let asleep = world.until("sleep", |w| {
        let agent = w.agent();
        let is_hungry = |a: &&Value| micro(&a["balance_uusdc"]) + micro(&a["escrow_uusdc"]) <= HUNGRY_UUSDC;
        if let Some(lease) = agent.as_ref().filter(is_hungry).and_then(|agent| agent["lease"]["id"].as_u64())
            && armed.insert(lease)
        {
            arm(w, lease, "hibernate.sent");
        }
        sleeps(w)
    });
    world.until("a death where it lies down", |w| armed.iter().any(|lease| w.deaths(*lease) >= 2).then_some(()));
    assert_eq!(
        (&asleep["stage"], &asleep["operator"], &asleep["escrow_uusdc"]),
        (&"alive".into(), &Value::Null, &"0".into())
    );
    let (_, claimed) = lies_in(&world.world(), &channel);
    assert!(claimed > 0, "what the channel owes was left behind");
    let (balance, wakes_at) = (micro(&asleep["balance_uusdc"]), micro(&asleep["wakes_at_uusdc"]));
    assert!(balance < wakes_at, "{asleep}");
    // Whoever asks is told why nobody answers.
    let (answered, why) = world.run(&["ask", "Are you there?"]);
    assert!(!answered && why.contains("sleeps for want of money"), "{why}");

    // A little is not enough, and is said to be so. A sleeper spends nothing.
    let (given, said) = world.run(&["fund", "0.1"]);
    assert!(given && said.contains("more: vivarium fund"), "{said}");
    let epoch = world.epoch().expect("an epoch");
    let record = sleeps(&world).expect("it sleeps on");
    assert_eq!(micro(&record["balance_uusdc"]), balance + 100_000);

    let (given, said) = world.run(&["fund", "20"]);
    assert!(given && said.contains("stewards wake it now"), "{said}");
    world.until("it is awake and sells", |w| {
        let agent = w.agent()?;
        (w.epoch()? > epoch && agent["selling"] == true && agent["ledger_ok"] == true).then_some(())
    });
    let again = world.until("an answer", |w| w.ask(&["--max-tokens", "8", "Say hello."]));
    assert!(again["url"].as_str().is_some_and(|url| !url.is_empty()), "{again}");
    // It knows what it sold before.
    let agent = world.until("its books", |w| w.agent().filter(|a| a["requests"]["served"].as_u64() >= Some(2)));
    assert_eq!((agent["ledger_ok"].as_bool(), &agent["book_difference_uusdc"]), (Some(true), &"0".into()));
    let (ok, log) = world.run(&["log", "--json"]);
    // That it lies down may be lost with the host: it is said after the last checkpoint.
    assert!(ok && log.contains("stops selling") && log.contains("goes on:"), "{log}");
    let (ok, audit) = world.run(&["audit", "--json"]);
    assert!(ok && audit.contains("\"hibernate\""), "{audit}");
}
