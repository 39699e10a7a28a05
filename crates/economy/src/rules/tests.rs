use super::*;
use crate::input::Stage;
use crate::money::Address;
use crate::timers::Timers;
use std::collections::BTreeSet;

const DAY: u32 = 86_400;
const USDC: u128 = 1_000_000;
const CREATOR: Address = [1; 20];
const HOST: Address = [2; 20];
const OTHER: Address = [3; 20];
const NODE: Address = [4; 20];
const CUSTOMER: Address = [5; 20];

/// Alive on a host of 4 micro-USDC a second, with a day prepaid, 10 USDC and a day limit of 1.
fn alive() -> Treasury {
    let timers = Timers::real();
    let terms = Terms {
        creator: CREATOR,
        beneficiary: CREATOR,
        stewards: BTreeSet::new(),
        timers,
        day_limit: USDC,
        price_e6_max: 5_000_000,
        term_max: 30 * DAY,
        prepay_max: 2 * DAY,
        starve_floor: USDC,
        mandate_until: 365 * u64::from(DAY),
    };
    let market = MarketTerms {
        stake_min: USDC,
        ready_within: timers.ready_within,
        grace: timers.grace,
        drop_after: timers.drop_after,
    };
    let mut t = Treasury::new([9; 20], terms, 0, Token::default(), Market::new([8; 20], market));
    t.gift(CREATOR, 10 * USDC);
    t.token.mint(CUSTOMER, 10 * USDC);
    for provider in [HOST, OTHER] {
        t.token.mint(provider, USDC);
        t.market.register(&mut t.token, provider, USDC).expect("has it");
        let offer = Offer { provider, price_e6: 4_000_000, capacity: 2, used: 0, min_term: 3_600, max_term: 30 * DAY };
        t.market.post_offer(offer).expect("is staked");
    }
    t.birth_rent(0, CREATOR, (1, 10 * DAY, 4 * u128::from(DAY))).expect("within policy");
    t.market.ready(0, HOST, 1, NODE).expect("in time");
    t.activate(0, CREATOR, 1).expect("ready");
    t
}

#[test]
fn rent_accrues_to_the_last_heartbeat_and_its_grace() {
    let mut t = alive();
    let grace = u64::from(Timers::real().grace);
    t.heartbeat(1_000, NODE, false).expect("the operator");
    for (now, secs) in [(1_000, 1_000), (1_000 + grace, 1_000 + grace), (2_000 + grace, 1_000 + grace)] {
        let lease = t.market.lease(1).expect("rented");
        assert_eq!(t.market.accrued_up(now, lease), 4 * u128::from(secs));
    }
    assert_eq!(t.escrow(1_000), 4 * (u128::from(DAY) - 1_000));
}

#[test]
fn the_day_limit_counts_gross_and_for_a_whole_day() {
    let mut t = alive();
    let slot = u64::from(DAY) / 24;
    t.settle_exact(CUSTOMER, [1; 32], 3 * USDC).expect("has it");
    t.refund_exact(slot - 1, NODE, CUSTOMER, [1; 32], USDC).expect("within the limit");
    for now in [slot - 1, 24 * slot, 25 * slot - 1] {
        let refused = t.refund_exact(now, NODE, CUSTOMER, [1; 32], 1);
        assert_eq!(refused, Err(Refusal::OverDayLimit), "{now}");
    }
    t.refund_exact(25 * slot, NODE, CUSTOMER, [1; 32], USDC).expect("a new day");
}

#[test]
fn a_refused_call_changes_nothing() {
    let mut t = alive();
    let before = t.clone();
    assert_eq!(t.rent(5, NODE, (2, 10 * DAY, 2 * USDC)), Err(Refusal::OverDayLimit));
    assert_eq!(t.rent(5, NODE, (1, 10 * DAY, 0)), Err(Refusal::SameOwner));
    assert_eq!(t.rent(5, NODE, (2, 31 * DAY, 0)), Err(Refusal::OverTerm));
    assert_eq!(t.takeover(5, OTHER), Err(Refusal::NotNodeKey));
    assert_eq!(t, before);
}

#[test]
fn the_end_brings_everything_to_the_beneficiary() {
    let mut t = alive();
    let now = 366 * u64::from(DAY);
    t.wind_down(now, OTHER).expect("the mandate is over");
    t.close(now + u64::from(DAY)).expect("the window is over");
    let supply = t.token.supply();
    t.withdraw(CREATOR).expect("the beneficiary");
    assert_eq!((t.stage, t.balance(), t.market.held()), (Stage::Closed, 0, 2 * USDC));
    assert_eq!(t.token.supply(), supply);
}
