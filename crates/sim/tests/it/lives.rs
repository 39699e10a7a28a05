//! Lives while faults rain; and worlds with a bug planted, which the auditor must see.

use sim::lives::{Bug, DAYS, Fault, Setting, live};

/// Long enough for a move.
const SHORT: u64 = 5;

fn setting(seed: u64, faults: &[Fault]) -> Setting {
    Setting { seed, faults: faults.to_vec(), days: DAYS, bug: None }
}

/// One life in which it came, for each fault, and one with all of them; `VIVARIUM_DEEP=1`: fifty each.
#[test]
fn every_fault_is_lived_through() {
    let deep = std::env::var_os("VIVARIUM_DEEP").is_some();
    for faults in Fault::ALL.iter().map(|fault| vec![*fault]).chain([Fault::ALL.to_vec()]) {
        let days = if faults.len() == 1 && !deep { SHORT } else { DAYS };
        let mut came = 0;
        for seed in 1..=50 {
            let lived = live(&Setting { days, ..setting(seed, &faults) }).unwrap_or_else(|broken| panic!("{broken}"));
            came += lived.faults.iter().map(|(_, times)| times).sum::<u64>();
            println!("{faults:?} {seed}: {lived:?}");
            if came > 0 && !deep {
                break;
            }
        }
        assert!(came > 0, "{faults:?} never came");
    }
}

#[test]
fn a_calm_life_moves_serves_and_is_the_same_twice() {
    let (first, again) = (live(&setting(1, &[])), live(&setting(1, &[])));
    assert_eq!(first, again);
    let lived = first.unwrap_or_else(|broken| panic!("{broken}"));
    assert!(lived.moves >= 2 && lived.calls > 50 && lived.takeovers == 0, "{lived:?}");
    assert_ne!(lived.digest, live(&setting(2, &[])).expect("calm").digest);
}

#[test]
fn every_planted_bug_breaks_its_invariant_and_is_told() {
    for (bug, invariant) in Bug::ALL {
        let planted = Setting { bug: Some(bug), days: 3, ..setting(3, &[Fault::Unserved]) };
        let broken = live(&planted).expect_err("nobody noticed");
        assert!(broken.what.starts_with(&format!("{invariant}:")), "{bug:?}: {broken}");
        let told = broken.to_string();
        assert!(told.ends_with("repeat: vivarium sim --from 3 --seeds 1 --faults unserved --days 3"), "{told}");
        assert!(broken.story.len() > 5, "{told}");
    }
}
