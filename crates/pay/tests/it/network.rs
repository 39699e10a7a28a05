//! Payments over a simulated network (turmoil) and real HTTP: between our buyer and a seller links are cut, held up and
//! repaired, answers are lost, and the seller's process dies and comes back with its book.
//!
//! Whatever happens: every question is answered in the end, and paid once.

use crate::fuzz::changes::{Chance, runs};
use crate::shop::{CHAIN_ID, Inner, TOKEN, TREASURY, Trouble};
use crate::simulated::{Port, client};
use alloy::primitives::keccak256;
use alloy::signers::local::PrivateKeySigner;
use pay::Usdc;
use pay::buyer::{Buyer, BuyerPolicy};
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Lives of an ordinary run, and of `cargo xtask test --deep`.
const LIVES: u64 = 60;
const LIVES_DEEP: u64 = 10_000;
const PRICE: u128 = 1_000;
const QUESTIONS: u8 = 5;
/// The customer asks again after so long without an answer.
const PATIENCE: Duration = Duration::from_millis(700);
/// A stretch of weather lasts at most so long, milliseconds.
const STRETCH_MS: u64 = 1_500;
/// The simulated clock of both sides, seconds. It stands: what an authorisation's end does is another test's matter.
const NOW: u64 = 1_800_000_000;

/// What one life saw.
#[derive(Default)]
struct Lived {
    attempts: u64,
    cuts: u64,
    holds: u64,
    deaths: u64,
    troubles: u64,
}

fn live(seed: u64) -> Lived {
    let mut chance = Chance(seed);
    let mut lived = Lived::default();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(600))
        .tick_duration(Duration::from_millis(5))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(40))
        .build();
    // The book outlives the process, as by its journal.
    let (shop, routes) = Inner::with_routes(PRICE, TREASURY, || NOW);
    for _ in 0..chance.below(4) {
        let trouble = [Trouble::LoseAnswer, Trouble::BreakBody, Trouble::Fail, Trouble::InFlight];
        let which = chance.below(4);
        shop.state.lock().unwrap().troubles.push_back(trouble[which].clone());
        lived.troubles += 1;
    }
    sim.host("shop", move || {
        let routes = routes.clone();
        async move {
            let listener = turmoil::net::TcpListener::bind(("0.0.0.0", 80)).await?;
            Ok(axum::serve(Port(listener), routes).await?)
        }
    });

    let policy = BuyerPolicy {
        network: format!("eip155:{CHAIN_ID}"),
        asset: TOKEN,
        pay_to: TREASURY,
        max_per_call: Usdc(PRICE),
        max_total: Usdc(PRICE * 100),
    };
    let signer = PrivateKeySigner::from_bytes(&keccak256(seed.to_be_bytes())).unwrap();
    let buyer = Buyer::new(client().with_deadline(PATIENCE), signer, policy).with_clock(Arc::new(|| NOW));
    let attempts = Arc::new(Mutex::new(0));
    let counted = attempts.clone();
    sim.client("customer", async move {
        for question in 0..QUESTIONS {
            let body = json!({ "messages": [{ "role": "user", "content": format!("question {question}") }] });
            loop {
                *counted.lock().unwrap() += 1;
                let answered = buyer.post_json("http://shop/v1/chat/completions", &body).await;
                if let Ok(paid) = answered.as_ref().map_err(ToString::to_string)
                    && paid.status.is_success()
                {
                    let text = String::from_utf8_lossy(&paid.body).into_owned();
                    assert!(text.contains(&format!("You said: question {question}")), "{text}");
                    break;
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        Ok(())
    });

    let mut until = Duration::ZERO;
    let mut is_down = false;
    while !sim.step().unwrap_or_else(|e| panic!("seed {seed}: {e}")) {
        if sim.elapsed() < until {
            continue;
        }
        // What was is over: links are whole again and the process runs, before anything else begins.
        sim.repair("customer", "shop");
        sim.release("customer", "shop");
        if std::mem::take(&mut is_down) {
            sim.bounce("shop");
        }
        until = sim.elapsed() + Duration::from_millis(20 + chance.draw() % STRETCH_MS);
        match chance.below(8) {
            0 => {
                sim.partition("customer", "shop");
                lived.cuts += 1;
            }
            1 => {
                sim.partition_oneway("shop", "customer");
                lived.cuts += 1;
            }
            2 => {
                sim.hold("customer", "shop");
                lived.holds += 1;
            }
            3 => {
                sim.crash("shop");
                is_down = true;
                lived.deaths += 1;
            }
            _ => {}
        }
    }
    lived.attempts = *attempts.lock().unwrap();
    let shelf = shop.state.lock().unwrap();
    assert!(shelf.book.totals().is_balanced(), "seed {seed}");
    let earned = shelf.book.totals().earned.micro();
    assert_eq!(earned, PRICE * u128::from(QUESTIONS), "seed {seed}: every question is paid once");
    lived
}

#[test]
fn whatever_the_network_does_every_question_is_answered_and_paid_once() {
    let seeds = 0..runs(LIVES, LIVES_DEEP);
    let (mut lives, mut all) = (0, Lived::default());
    for seed in seeds {
        let lived = live(seed);
        lives += 1;
        all.attempts += lived.attempts;
        all.cuts += lived.cuts;
        all.holds += lived.holds;
        all.deaths += lived.deaths;
        all.troubles += lived.troubles;
    }
    println!(
        "{lives} lives over a simulated network: {} attempts for {} questions, {} cuts, {} holds, {} deaths, {} troubles",
        all.attempts,
        lives * u64::from(QUESTIONS),
        all.cuts,
        all.holds,
        all.deaths,
        all.troubles
    );
    assert!(all.cuts > 0 && all.holds > 0 && all.deaths > 0 && all.attempts > lives * u64::from(QUESTIONS));
}
