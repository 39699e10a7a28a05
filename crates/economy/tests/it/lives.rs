//! The lives that the agent must live well.

use crate::life::{Faults, Life, Setting};
use economy::{Note, Stage, StandbyGone, StopWhy, Usdc};

const REAL: Setting = Setting {
    day: 86_400,
    term_days: 30,
    block_secs: 300,
    seed_uusdc: 100_000_000,
    starve_floor: 1_000_000,
    calls_permille: 1_000,
    call_uusdc: 10_000,
    hosts: 3,
    ready_secs: 900,
    hibernates: false,
    faults: NONE,
};

/// A world of 20-second days with three-day leases.
const FAST: Setting =
    Setting { day: 20, term_days: 3, block_secs: 1, calls_permille: 800, call_uusdc: 200_000, ready_secs: 6, ..REAL };

const NONE: Faults = Faults {
    tx_fails: 0,
    answer_lost: 0,
    standby_dies: 0,
    never_ready: 0,
    reorg: 0,
    restart: 0,
    takeover: 0,
    gift: 0,
    unserved: 0,
};

fn live(seed: u64, setting: Setting, days: u64) -> Life {
    let mut life = Life::born(seed, setting);
    for _ in 0..life.days(days) {
        life.block();
    }
    life.restart();
    life
}

#[test]
fn ten_weeks_of_calm_are_a_leapfrog_of_two_hosts() {
    for hosts in [2, 4] {
        let life = live(1, Setting { hosts, ..REAL }, 70);
        let gone = life.noted(|n| matches!(n, Note::StandbyGone { .. }));
        // The first move at 18 days, then one about every nine; only the first standby is replaced.
        assert!((6..=8).contains(&life.moves), "{} moves\n{}", life.moves, life.story());
        assert_eq!(gone, 1, "{}", life.story());
        assert_eq!(life.noted(|n| matches!(n, Note::StandbyGone { why: StandbyGone::TooOld { .. }, .. })), 1);
        assert_eq!(life.world.stage, Stage::Alive);
    }
}

#[test]
fn a_world_in_fast_motion_keeps_moving() {
    for hosts in [2, 3] {
        for ready_secs in [2, 6, 10] {
            let life = live(7, Setting { hosts, ready_secs, ..FAST }, 90);
            assert!(life.moves >= 40, "{} moves in 1,800 s\n{}", life.moves, life.story());
        }
    }
}

#[test]
fn lives_with_everything_at_once() {
    for seed in 1..=6 {
        let faults = Faults {
            tx_fails: 50,
            answer_lost: 20,
            standby_dies: 1,
            never_ready: 60,
            reorg: 5,
            restart: 1,
            takeover: 0,
            gift: 2,
            unserved: 3,
        };
        // Fewer and dearer calls: the model copies its world at each block for the reorgs.
        let setting = Setting { hosts: 4, calls_permille: 100, call_uusdc: 100_000, faults, ..REAL };
        let life = live(seed, setting, 35);
        assert!(life.moves >= 1, "seed {seed}: {} moves\n{}", life.moves, life.story());
    }
}

#[test]
fn fast_lives_with_faults() {
    for seed in 1..=10 {
        let faults = Faults { tx_fails: 20, reorg: 5, restart: 1, gift: 2, unserved: 3, ..NONE };
        let life = live(seed, Setting { hosts: 4, ready_secs: 4, faults, ..FAST }, 40);
        assert!(life.moves >= 10, "seed {seed}: {} moves\n{}", life.moves, life.story());
    }
}

#[test]
fn dead_standbys_are_replaced() {
    let faults = Faults { standby_dies: 3, never_ready: 200, ..NONE };
    let life = live(3, Setting { hosts: 4, faults, ..REAL }, 40);
    assert!(life.noted(|n| matches!(n, Note::StandbyGone { why: StandbyGone::Silent { .. }, .. })) > 0);
    assert!(life.noted(|n| matches!(n, Note::StandbyGone { why: StandbyGone::NeverReady, .. })) > 0);
    assert!(life.moves >= 2, "{}", life.story());
}

#[test]
fn a_takeover_goes_on_from_the_last_checkpoint_with_balanced_books() {
    for seed in 1..=5 {
        let faults = Faults { takeover: 1, ..NONE };
        let life = live(seed, Setting { hosts: 4, faults, ..REAL }, 30);
        assert!(life.takeovers > 0, "seed {seed}");
        assert_eq!(life.world.stage, Stage::Alive);
        assert!(!life.world.restoring);
    }
}

/// Blocks until `stage`, at most `days`.
fn until(life: &mut Life, stage: Stage, days: u64) {
    for _ in 0..life.days(days) {
        if life.world.stage == stage {
            return;
        }
        life.block();
    }
    panic!("not {stage:?} after {days} days\n{}", life.story());
}

#[test]
fn without_customers_it_starves_in_order_and_closes() {
    for (setting, days) in [(REAL, 90), (FAST, 120)] {
        // The second floor lies under what the end needs: it stops selling first and winds down later.
        for (seed_uusdc, starve_floor) in [(8_000_000, 1_000_000), (30_000_000, 100_000)] {
            let mut life = Life::born(5, Setting { calls_permille: 0, seed_uusdc, starve_floor, ..setting });
            until(&mut life, Stage::Closed, days);
            life.restart();
            let alarms: Vec<String> = life
                .notes
                .iter()
                .filter_map(|(_, n)| match n {
                    Note::Runway { level, .. } => Some(format!("{level:?}")),
                    Note::Ending { why } => Some(format!("{why:?}")),
                    _ => None,
                })
                .collect();
            let order = ["Under7Days", "Under3Days", "Frugal", "Final", "Hunger"];
            let first = order.iter().position(|o| alarms.first().is_some_and(|a| a == o)).expect("an alarm");
            assert_eq!(alarms, order[first..], "{}", life.story());
            assert_eq!(life.agent.ledger().rent_unpaid().0, 0);
            assert_eq!(life.world.escrow(), 0, "nothing is stranded");
            assert_eq!(life.agent.ledger().balance(), i128::try_from(life.world.balance).expect("small"));
        }
    }
}

#[test]
fn whoever_paid_and_got_nothing_is_paid_back_before_the_end() {
    for seed in 1..=5 {
        // Income covers part of the rent, and one call in fifty fails after payment.
        let faults = Faults { unserved: 20, tx_fails: 20, ..NONE };
        let mut life = Life::born(seed, Setting { calls_permille: 100, seed_uusdc: 15_000_000, faults, ..REAL });
        until(&mut life, Stage::Closed, 120);
        let refunded: u128 = life.world.payments.values().map(|(_, back)| back).sum();
        assert!(refunded > 0);
        assert_eq!(life.agent.ledger().refunds().0, refunded);
        assert_eq!(life.agent.ledger().customers().0, 0, "seed {seed}: nothing is owed any more\n{}", life.story());
    }
}

#[test]
fn a_gift_in_the_last_hour_calls_the_end_off() {
    let mut life = Life::born(5, Setting { calls_permille: 0, seed_uusdc: 8_000_000, ..REAL });
    while life.agent.ending().is_none() {
        life.block();
    }
    assert!(!life.serving);
    life.world.transfer_in(50_000_000);
    life.gifts += 50_000_000;
    for _ in 0..life.days(3) {
        life.block();
    }
    assert_eq!((life.world.stage, life.agent.ending()), (Stage::Alive, None), "{}", life.story());
    assert!(life.serving && life.world.standby != 0);
}

#[test]
fn instead_of_winding_down_it_lies_down_and_wakes_to_what_it_knew() {
    for (setting, days) in [(REAL, 90), (FAST, 120)] {
        for faults in [NONE, Faults { tx_fails: 200, reorg: 20, restart: 5, ..NONE }] {
            let poor = Setting { calls_permille: 0, seed_uusdc: 8_000_000, hibernates: true, faults, ..setting };
            let mut life = Life::born(5, poor);
            let asleep = |life: &mut Life| {
                for _ in 0..life.days(days) {
                    if life.world.asleep {
                        return;
                    }
                    life.block();
                }
                panic!("it is awake\n{}", life.story());
            };
            asleep(&mut life);
            let (funds, floor) = (life.world.funds(), life.world.limits.starve_floor.0);
            assert_eq!((life.world.stage, life.world.escrow()), (Stage::Alive, 0), "no host is paid");
            for _ in 0..life.days(5) {
                life.block();
            }
            assert_eq!(life.world.balance, funds, "a sleeper spends nothing");

            // What stewards wait for, on the host that they take.
            let price_e6 = life.world.offers[0].price_e6;
            let wakes_at =
                economy::wakes_at(Usdc(floor), Usdc::rent_up(price_e6, life.world.limits.prepay_max.into())).0;
            assert!(funds < wakes_at / 2 + wakes_at / 10, "{funds} of {wakes_at}: it would be woken at once");
            life.world.transfer_in(wakes_at - funds);
            life.gifts += wakes_at - funds;
            life.wake();
            for _ in 0..life.days(2) {
                life.block();
            }
            assert_eq!((life.world.asleep, life.agent.ending()), (false, None), "{}", life.story());
            assert!(life.serving, "{}", life.story());
            assert_eq!(life.noted(|n| matches!(n, Note::EndingCalledOff { .. })), 1, "{}", life.story());

            // Nobody pays again: it lies down a second time, and its mandate ends it.
            asleep(&mut life);
            assert_eq!(life.world.stage, Stage::Alive);
        }
    }
}

#[test]
fn a_sleep_is_no_way_around_a_debt_a_pause_or_a_stop() {
    let poor = Setting { calls_permille: 0, seed_uusdc: 8_000_000, hibernates: true, ..REAL };
    // The mandate is nearly over: there is nothing to wait for.
    let mut life = Life::born(5, poor);
    while life.agent.ending().is_none() {
        life.block();
    }
    life.world.mandate_until = life.world.now + 80_000;
    until(&mut life, Stage::Closed, 90);
    assert_eq!(life.noted(|n| matches!(n, Note::Hibernates { .. })), 0, "{}", life.story());
    // The quorum stops it in the end.
    let mut life = Life::born(5, poor);
    while life.agent.ending().is_none() {
        life.block();
    }
    life.world.stage = Stage::Stopped;
    until(&mut life, Stage::Closed, 90);
    assert!(!life.world.asleep, "{}", life.story());
}

#[test]
fn a_pause_holds_the_money_and_a_resume_goes_on() {
    let mut life = Life::born(9, REAL);
    for round in 0..20 {
        for _ in 0..life.days(1) {
            life.block();
        }
        life.world.paused = round % 2 == 0;
        // Escrow lasts a day at least: a longer pause loses the hosts, as is said wherever one can pause.
        for _ in 0..life.days(1) / 2 {
            life.block();
        }
        assert!(life.serving, "a pause is about money: serving goes on");
        life.world.paused = false;
    }
    assert!(life.moves >= 2, "{}", life.story());
    assert_eq!(life.noted(|n| matches!(n, Note::Paused)), 10);
}

#[test]
fn a_quorum_s_stop_and_the_mandate_s_end_close_it_too() {
    let mut life = Life::born(2, REAL);
    for _ in 0..life.days(4) {
        life.block();
    }
    life.world.stage = Stage::Stopped;
    until(&mut life, Stage::Closed, 5);
    assert_eq!(life.noted(|n| matches!(n, Note::Ending { why: StopWhy::Stopped })), 1);

    let mut life = Life::born(2, REAL);
    life.world.mandate_until = life.world.now + 4 * 86_400;
    until(&mut life, Stage::Closed, 9);
    assert_eq!(life.noted(|n| matches!(n, Note::Ending { why: StopWhy::MandateOver })), 1);
    assert!(life.world.wind_down_at > life.world.mandate_until);
}

#[test]
fn a_challenge_is_answered_at_once() {
    let mut life = Life::born(2, REAL);
    for _ in 0..10 {
        life.block();
    }
    life.world.challenged_at = life.world.now;
    for _ in 0..4 {
        life.block();
    }
    assert_eq!(life.world.challenged_at, 0);
}
