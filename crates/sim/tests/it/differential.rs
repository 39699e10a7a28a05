//! The same calls against the contracts' bytecode and against the model that the agent is built on
//! (`economy::rules`, and the agent's own ledger): both must refuse the same, for the same reason, and end in the same
//! balances, escrow, accrued rent and day's spending.
//!
//! Births here have no options (`Terms::plain`), as the model has none: purse, payees, bought gas, duties, channels,
//! orders after a delay, silence in blocks and identity are not compared, though births of `vivarium` have some of them
//! (channels, `loosen` and others after a delay). Those are held by the contracts' own tests, and channels by `lives` too.
//!
//! A difference prints its seed, the last calls, and how to repeat it. `VIVARIUM_SEED=n` runs that one;
//! `VIVARIUM_DEEP=1` runs ten times as many.

mod bug;
mod pair;

use pair::Pair;
use std::collections::BTreeMap;

/// Sequences and calls in each: about 18 s of one core. (1,500 took 44 s on 28 November 2026.)
const SEQUENCES: u64 = 600;
const CALLS: u32 = 60;

/// Must be carried out somewhere in here: what never happens is not compared.
const REACHED: [&str; 34] = [
    "activate",
    "announce",
    "birthRent",
    "challenge",
    "clearBar",
    "close",
    "commit",
    "evict",
    "expire",
    "gift",
    "handover",
    "heartbeat",
    "hibernate",
    "market.rent",
    "market.topUp",
    "openRefunds",
    "pause",
    "postOffer",
    "ready",
    "reclaim",
    "refundExact",
    "register",
    "release",
    "rent",
    "reprice",
    "rescue",
    "resume",
    "settleExact",
    "takeover",
    "tighten",
    "topUp",
    "windDown",
    "withdraw",
    "withdrawal",
];

#[test]
fn contracts_and_model_agree() {
    if let Some(seed) = std::env::var_os("VIVARIUM_SEED") {
        let seed = seed.to_string_lossy().parse().expect("VIVARIUM_SEED is a number");
        println!("{}", run(seed).story());
        return;
    }
    let deep = std::env::var_os("VIVARIUM_DEEP").is_some();
    let sequences = if deep { 10 * SEQUENCES } else { SEQUENCES };
    let (mut done, mut refused) = (BTreeMap::new(), BTreeMap::new());
    let mut calls = 0;
    for seed in 0..sequences {
        let pair = run(seed);
        for (name, outcome) in &pair.tally {
            calls += 1;
            match outcome {
                Ok(()) => *done.entry(*name).or_insert(0u32) += 1,
                Err(why) => *refused.entry(why.name()).or_insert(0u32) += 1,
            }
        }
    }
    println!("{sequences} sequences, {calls} calls\ncarried out: {done:?}\nrefused: {refused:?}");
    for name in REACHED {
        assert!(done.contains_key(name), "{name} was never carried out: the sequences do not get there");
    }
    assert!(refused.len() >= 30, "only {} kinds of refusal were met: {refused:?}", refused.len());
}

/// A test that cannot fail shows nothing: each wrong model is told from the contracts, by the right difference, and with
/// how to repeat it.
#[test]
fn every_planted_bug_is_seen() {
    for (bug, difference) in bug::BUGS {
        let (seed, said) = bug::found(bug, SEQUENCES, CALLS).unwrap_or_else(|| panic!("{bug:?} is not seen"));
        println!("{bug:?}: sequence {seed}");
        assert!(said.contains(difference), "{bug:?} was seen by another difference:\n{said}");
        assert!(said.contains(&format!("repeat: VIVARIUM_SEED={seed} ")), "{said}");
    }
}

fn run(seed: u64) -> Pair {
    let mut pair = Pair::born(seed);
    for _ in 0..CALLS {
        pair.step();
    }
    pair.compare_everything();
    pair.end();
    pair
}
