//! Lives while faults rain; and worlds with a bug planted, which the auditor must see.

use sim::lives::{Bug, DAYS, Fault, Lived, Pace, Setting, live};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

fn whole(seed: u64, faults: &[Fault]) -> Setting {
    Setting { seed, faults: faults.to_vec(), days: DAYS, pace: Pace::Whole, bug: None }
}

fn short(seed: u64, faults: &[Fault]) -> Setting {
    Setting { pace: Pace::Short, ..whole(seed, faults) }
}

/// Lives these, on all cores; what became of each, in their order.
fn live_all(settings: &[Setting]) -> Vec<Lived> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(settings.len());
    let next = AtomicU64::new(0);
    let mut lived: Vec<(u64, Lived)> = std::thread::scope(|scope| {
        let work = || {
            let mut lived = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(setting) = settings.get(usize::try_from(index).unwrap()) else { return lived };
                lived.push((index, live(setting).unwrap_or_else(|broken| panic!("{broken}"))));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a life broke something")).collect()
    });
    lived.sort_by_key(|(index, _)| *index);
    lived.into_iter().map(|(_, lived)| lived).collect()
}

/// Those of them that rained when these seeds were found.
fn older(faults: &[Fault]) -> Vec<Fault> {
    faults.iter().copied().filter(|fault| *fault < Fault::TornTail).collect()
}

/// Those of them that rained before agents slept.
fn sleepless(faults: &[Fault]) -> Vec<Fault> {
    faults.iter().copied().filter(|fault| *fault != Fault::Hunger).collect()
}

/// Fifty short lives with each fault alone. That it came is asked of the fifty together.
#[test]
fn short_lives_with_each_fault_break_nothing() {
    for fault in Fault::ALL {
        let lived = live_all(&(1..=50).map(|seed| short(seed, &[fault])).collect::<Vec<_>>());
        let came: u64 = lived.iter().flat_map(|lived| &lived.faults).map(|(_, times)| times).sum();
        assert!(came > 0, "{fault:?} never came");
    }
}

/// Where a crash at a named point of a real process (`journal::crash::POINTS`) happens in a simulated life.
enum Simulated {
    /// In this moment.
    At(&'static str),
    /// In `pay`'s own seeded worlds of the book (`crates/pay/src/book/tests/seeds.rs`), which have each step of a payment.
    InTheBook,
    /// Nowhere: what it is about has a stand-in here. Real processes are killed there.
    Never,
}

const SIMULATED: &[(&str, Simulated)] = &[
    ("journal.append", Simulated::At("before syncing its records")),
    ("journal.synced", Simulated::At("after syncing its records")),
    ("pay.reserved", Simulated::InTheBook),
    ("pay.settle_sent", Simulated::InTheBook),
    ("pay.served", Simulated::InTheBook),
    ("pay.settled", Simulated::InTheBook),
    ("pay.kept", Simulated::InTheBook),
    ("pay.exact_refund_sent", Simulated::At("after sending refundExact")),
    ("pay.permit2_sent", Simulated::InTheBook),
    ("pay.call_reserved", Simulated::InTheBook),
    ("pay.deposit_sent", Simulated::InTheBook),
    ("pay.claim_sent", Simulated::At("after sending claimAndSettle")),
    ("pay.refund_sent", Simulated::At("after sending refundChannel")),
    ("checkpoint.sealed", Simulated::Never),
    ("checkpoint.stored", Simulated::Never),
    ("checkpoint.acked", Simulated::At("before sending commit")),
    ("checkpoint.committed", Simulated::At("before hearing of commit")),
    ("rent.sent", Simulated::At("after sending rent")),
    ("topup.sent", Simulated::At("before hearing of topUp")),
    ("handover.announced", Simulated::At("after sending announce")),
    ("handover.sent", Simulated::At("after sending handover")),
    ("handover.mined", Simulated::At("before hearing of handover")),
    ("takeover.challenged", Simulated::Never),
    ("takeover.sent", Simulated::Never),
    ("restore.loaded", Simulated::Never),
    ("hibernate.sent", Simulated::At("after sending hibernate")),
    ("winddown.sent", Simulated::At("after sending windDown")),
    ("close.sent", Simulated::At("after sending close")),
];

/// Fifty short lives with crashes and each other fault: a process dies at many moments under each of them, and at every
/// named point that a simulated life has.
#[test]
fn crashes_while_each_fault_rains_break_nothing() {
    let mut met: BTreeMap<String, u64> = BTreeMap::new();
    let others: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| *fault != Fault::Crash).collect();
    let mut pairs = 0;
    for fault in &others {
        let lived = live_all(&(1..=50).map(|seed| short(seed, &[Fault::Crash, *fault])).collect::<Vec<_>>());
        let came = |lived: &&Lived| lived.faults.iter().any(|(came, times)| came == fault && *times > 0);
        let mut moments: BTreeMap<&String, u64> = BTreeMap::new();
        for (moment, times) in lived.iter().filter(came).flat_map(|lived| &lived.crashes) {
            *moments.entry(moment).or_default() += times;
            *met.entry(moment.clone()).or_default() += times;
        }
        assert!(moments.len() >= 25, "{} met crashes at {moments:?} only", fault.name());
        pairs += moments.len();
    }
    let crashes: u64 = met.values().sum();
    println!(
        "fault and crash: {} lives, {crashes} crashes, {pairs} of {} pairs of another fault and a moment",
        others.len() * 50,
        others.len() * met.len()
    );
    let named: Vec<&str> = SIMULATED.iter().map(|(name, _)| *name).collect();
    let registered: Vec<&str> = journal::crash::POINTS.iter().map(|point| point.name).collect();
    assert_eq!(named, registered, "say of a new crash point where lives have it");
    for (name, simulated) in SIMULATED {
        if let Simulated::At(moment) = simulated {
            assert!(met.contains_key(*moment), "{name}: no process died {moment}");
        }
    }
}

/// Agents that nobody pays lie down; a patron funds them, stewards wake them, and they sell to the end.
#[test]
fn the_hungry_sleep_and_are_woken() {
    let mut all = Vec::new();
    for faults in [&[Fault::Hunger][..], &[Fault::Hunger, Fault::Crash, Fault::Reorg]] {
        let lived = live_all(&(1..=50).map(|seed| short(seed, faults)).collect::<Vec<_>>());
        let slept = |lived: &&Lived| lived.faults.iter().any(|(came, times)| *came == Fault::Hunger && *times > 0);
        let woke = lived.iter().filter(slept).filter(|lived| lived.takeovers > 0);
        let sold = woke.clone().filter(|lived| lived.calls > 0);
        all.push((lived.iter().filter(slept).count(), woke.count(), sold.count()));
    }
    println!("of fifty so many slept, woke and sold: {all:?}");
    assert!(all.iter().all(|(slept, woke, sold)| *slept >= 30 && *woke >= 20 && *sold >= 20), "{all:?}");
}

/// Long enough for two moves, with everything that can go wrong. `VIVARIUM_DEEP=1`: three hundred.
#[test]
fn whole_lives_with_all_faults_break_nothing() {
    let seeds = if std::env::var_os("VIVARIUM_DEEP").is_some() { 1..=300 } else { 1..=4 };
    live_all(&seeds.map(|seed| whole(seed, &Fault::ALL)).collect::<Vec<_>>());
}

/// A lease ends while the token is frozen: its rest waits at the market, in the ledger as on chain, and comes. The
/// auditor once looked before a node behind a bad endpoint could know.
#[test]
fn what_a_frozen_token_left_at_the_market_is_in_the_books_all_along() {
    let lived = live_all(&(1..=16).map(|seed| whole(seed, &older(&Fault::ALL))).collect::<Vec<_>>());
    assert!(lived.iter().any(|lived| lived.owed_blocks > 0), "other seeds, please");
}

/// Lives of the million that broke something once. A refund was taken back with its block while gas rose, so that its
/// transaction waited in the pool; what it takes out was served meanwhile, and could not be claimed (the first three). Blocks
/// without a log of ours were taken back, and what had been read of a channel there was taken for newer than what came.
/// Of the later ones: a standby that was late never challenged (55,126), a channel refund was sent twice after a crash or a
/// branch (15,411, 67,579), and four times the simulator itself was wrong.
#[test]
fn what_very_many_lives_found_stays_mended() {
    let found = [5_303, 5_416, 15_411, 30_167, 55_126, 67_579, 120_210];
    live_all(&found.map(|seed| short(seed, &sleepless(&Fault::some_of(seed)))));
    // A channel refund of the process before was mined, settled, and taken back with its block (the first eight).
    let found = [278_641, 375_814, 488_173, 563_682, 674_829, 691_215, 772_495, 779_260, 415_518, 759_802];
    live_all(&found.map(|seed| short(seed, &sleepless(&Fault::some_of(seed)))));
    // What was restored was tried again ever more seldom while the time for it ran out.
    live_all(&[short(30_660, &Fault::some_of(30_660))]);
    live_all(&[3_237, 9_462, 9_582, 12_321, 36_258].map(|seed| short(seed, &older(&Fault::some_of(seed)))));
}

/// One shard of very many short lives, for `cargo xtask test --deep`: `VIVARIUM_LIVES=FROM..TO`. Says how many they were
/// and in how many each fault met each moment of a crash, as `xtask` adds it up.
#[test]
fn very_many_short_lives_break_nothing() {
    let Some(range) = std::env::var_os("VIVARIUM_LIVES") else { return };
    let range = range.to_str().and_then(|range| range.split_once(".."));
    let (from, to) = range.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?))).expect("FROM..TO");
    let (mut lives, mut blocks, mut moves, mut takeovers) = (0u64, 0, 0, 0);
    let mut met: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    // In batches, so that a shard of any size needs the memory of one.
    let seeds: Vec<u64> = (from..to).collect();
    for batch in seeds.chunks(1_000) {
        for lived in live_all(&batch.iter().map(|seed| short(*seed, &Fault::some_of(*seed))).collect::<Vec<_>>()) {
            lives += 1;
            (blocks, moves, takeovers) = (blocks + lived.blocks, moves + lived.moves, takeovers + lived.takeovers);
            for (moment, _) in &lived.crashes {
                for (fault, _) in &lived.faults {
                    *met.entry(fault.name()).or_default().entry(moment.clone()).or_default() += 1;
                }
            }
        }
    }
    let cpu_ms = cpu_ms();
    let said = serde_json::json!({
        "lives": lives,
        "blocks": blocks,
        "moves": moves,
        "takeovers": takeovers,
        "cpu_ms": cpu_ms,
        "met": met,
    });
    println!("lives: {said}");
}

/// Of this process so far. Only said, never compared.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10
}

#[test]
fn a_calm_life_moves_serves_and_is_the_same_twice() {
    let (first, again) = (live(&whole(1, &[])), live(&whole(1, &[])));
    assert_eq!(first, again);
    let lived = first.unwrap_or_else(|broken| panic!("{broken}"));
    assert!(lived.moves >= 2 && lived.calls > 50 && lived.takeovers == 0, "{lived:?}");
    assert_ne!(lived.digest, live(&whole(2, &[])).expect("calm").digest);
}

/// Customers who ask for nothing have their deposits back all the same, before it is closed.
#[test]
fn a_calm_end_leaves_nothing_in_channels() {
    for lived in live_all(&(1..=8).map(|seed| short(seed, &[])).collect::<Vec<_>>()) {
        assert!(lived.channel_calls > 0, "other seeds, please: {lived:?}");
        assert_eq!(lived.left_in_channels, 0, "{lived:?}");
    }
}

#[test]
fn every_planted_bug_breaks_its_invariant_and_is_told() {
    for (bug, invariant) in Bug::ALL {
        // A move needs more of a life.
        let (days, faults) = match bug {
            Bug::HurriedMove => (DAYS, vec![Fault::Unserved]),
            Bug::ShutGate => (DAYS, vec![Fault::Unserved, Fault::LateHandover]),
            Bug::ForgottenOffice => (DAYS, vec![Fault::Unserved, Fault::UndoneMove]),
            _ => (3, vec![Fault::Unserved]),
        };
        let planted = Setting { bug: Some(bug), days, ..whole(3, &faults) };
        let broken = live(&planted).expect_err("nobody noticed");
        assert!(broken.what.starts_with(&format!("{invariant}:")), "{bug:?}: {broken}");
        let told = broken.to_string();
        let faults: Vec<&str> = faults.into_iter().map(Fault::name).collect();
        let repeat = format!("repeat: vivarium sim --from 3 --seeds 1 --faults {} --days {days}", faults.join(","));
        assert!(told.ends_with(&repeat), "{told}");
        assert!(broken.story.len() > 5, "{told}");
    }
}
