//! A small year: 200 agents, 60 days.

use sim::darwin::report::{Summary, csv, html};
use sim::darwin::{Setting, life::SEED};

const SMALL: Setting = Setting { agents: 200, days: 60, seed: 7 };

#[test]
fn a_small_year_is_told_and_the_same_seed_gives_the_same_bytes() {
    let (first, again) = (SMALL.run(), SMALL.run());
    let tell = |towns: &[_]| (html(&Summary::new(SMALL, towns)), csv(&SMALL, towns));
    assert_eq!(tell(&first), tell(&again));
    assert_ne!(first, Setting { seed: 8, ..SMALL }.run());

    let summary = Summary::new(SMALL, &first);
    println!("{}", summary.text());
    assert_eq!(summary.all.born, 200);
    // Towns know nothing of each other: the first is the same in a larger run.
    assert_eq!(first[0], Setting { agents: 10_000, ..SMALL }.town(0));
    let (page, table) = tell(&first);
    assert_eq!(table.lines().count(), 201);
    assert!(page.contains("<svg") && !page.contains("http"), "one file that fetches nothing");
}

#[test]
fn money_is_neither_made_nor_lost_and_selection_works() {
    let towns = SMALL.run();
    for record in towns.iter().flat_map(|town| &town.records) {
        assert_eq!(SEED + record.earned, record.left + record.rent, "{record:?}");
    }
    let summary = Summary::new(SMALL, &towns);
    let [worst, .., best] = &summary.by_skill[..] else { panic!("tenths") };
    assert!(worst.margin_permille_median < best.margin_permille_median, "{summary:?}");
    assert!(summary.moves > 200, "leases are renewed: {} moves", summary.moves);
}

/// `VIVARIUM_DEEP=1`: a year of a thousand, told on standard output.
#[test]
fn a_year_has_survivors_and_every_kind_of_death() {
    if std::env::var_os("VIVARIUM_DEEP").is_none() {
        return;
    }
    let year = Setting { agents: 1_000, days: 365, seed: 1 };
    let summary = Summary::new(year, &year.run());
    println!("{}\n{summary:#?}", summary.text());
    assert!((100..900).contains(&summary.all.alive), "{} of 1,000 live", summary.all.alive);
}

#[test]
fn a_month_of_one_agent_has_its_moves() {
    let one = Setting { agents: 1, days: 30, seed: 3 };
    let [town] = &one.run()[..] else { panic!("one town") };
    assert_eq!((town.records.len(), town.alive.len()), (1, 30));
}
