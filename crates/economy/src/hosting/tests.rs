use super::*;
use crate::policy::{Genesis, Limits, Policy, Wishes};
use crate::timers::Timers;
use crate::{Input, Outcome, Output, OutputId};
use expect_test::{Expect, expect};

pub const NOW: u64 = 1_000_000;

pub fn agent() -> Agent {
    let timers = Timers::real();
    let wishes = Wishes {
        term: 30 * 86_400,
        prepay_secs: 2 * 86_400,
        margin_pct: 20,
        min_call: Usdc(1),
        max_call: Usdc(1_000_000),
        block_secs: 2,
    };
    Agent::new(Genesis { chain_id: 1, treasury: [1; 20], timers, policy: Policy::new(wishes, &timers) })
}

pub fn limits() -> Limits {
    Limits {
        day_limit: Usdc(20_000_000),
        price_e6_max: 20_000_000,
        term_max: 30 * 86_400,
        prepay_max: 2 * 86_400,
        gas_day_max_wei: 0,
        gas_target_wei: 0,
        starve_floor: Usdc(1_000_000),
    }
}

/// An offer of the provider with the same number.
fn offer(id: u8, price_e6: u64, served: u32, failed: u32) -> OfferView {
    let (min_term, max_term) = (86_400, 30 * 86_400);
    OfferView { id: id.into(), provider: [id; 20], price_e6, free: 1, min_term, max_term, served, failed }
}

fn lease(id: u64, provider: u8, start: u64) -> LeaseView {
    LeaseView {
        id,
        offer: provider.into(),
        provider: [provider; 20],
        price_e6: 10_000_000,
        start,
        end: start + 30 * 86_400,
        ready_by: start,
        ready: true,
        escrow_left: Usdc(1_728_000),
    }
}

pub fn view(offers: Vec<OfferView>) -> View {
    View {
        number: 1,
        timestamp: NOW,
        stage: Stage::Alive,
        paused: false,
        restoring: false,
        epoch: 1,
        operator_is_me: true,
        active: Some(lease(1, 1, NOW)),
        standby: None,
        draining: None,
        announced: 0,
        announced_at: 0,
        checkpoint_seq: 1,
        last_heartbeat: NOW,
        challenged_at: 0,
        balance: Usdc(90_000_000),
        escrow: Usdc(1_728_000),
        purse: Usdc::ZERO,
        spent_in_day: Usdc::ZERO,
        operator_gas_wei: 0,
        relay_gas_wei: 0,
        treasury_gas_wei: 0,
        mandate_until: u64::MAX,
        wind_down_at: 0,
        limits: limits(),
        offers,
    }
}

/// What the agent asks of hosts on seeing `view`, and why.
fn check(agent: &mut Agent, view: View, expected: Expect) {
    let mut lines = Vec::new();
    for output in agent.step(view.timestamp, view.number, Input::Block(Box::new(view))) {
        match output {
            Output::Note(note) if ["host", "move"].contains(&note.kind()) => lines.push(note.to_string()),
            Output::Rent { .. } | Output::Release { .. } | Output::Announce { .. } | Output::Handover { .. } => {
                lines.push(format!("{output:?}"));
            }
            _ => {}
        }
    }
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn the_cheapest_per_served_token_of_another_owner_is_chosen_and_said_why() {
    // The active host's own offer is cheapest; the second failed half of its calls; the third costs a little more.
    let offers = vec![offer(1, 5_000_000, 90, 0), offer(2, 9_000_000, 10, 10), offer(3, 10_700_000, 10, 0)];
    check(
        &mut agent(),
        view(offers),
        expect![[r#"
            Rent { offer: 3, term: 2592000, prepay: Usdc(1848960) }
            chose offer 3 of 0x0303..0303 at $0.92/day: cheapest per served token of 2, other owner than the active host"#]],
    );
}

#[test]
fn a_faster_host_may_cost_more() {
    let mut agent = agent();
    agent.hosting.measured([2; 20], 40_000);
    agent.hosting.measured([3; 20], 20_000);
    check(
        &mut agent,
        view(vec![offer(2, 15_000_000, 1, 0), offer(3, 10_000_000, 1, 0)]),
        expect![[r#"
            Rent { offer: 2, term: 2592000, prepay: Usdc(2592000) }
            chose offer 2 of 0x0202..0202 at $1.30/day: cheapest per served token of 2, other owner than the active host"#]],
    );
}

#[test]
fn without_a_fitting_offer_the_reason_is_told_once() {
    let mut agent = agent();
    let full = OfferView { free: 0, ..offer(2, 1, 0, 0) };
    let dear = offer(3, 20_000_001, 0, 0);
    let short = OfferView { max_term: 86_400, ..offer(4, 1, 0, 0) };
    let none = expect!["rents no standby: no offer fits in term, price cap and room"];
    check(&mut agent, view(vec![full.clone(), dear.clone(), short.clone()]), none);
    check(&mut agent, view(vec![full, dear, short]), expect![""]);
    check(
        &mut agent,
        view(vec![offer(1, 1, 0, 0)]),
        expect!["rents no standby: only the active host's owner offers, and two leases never share an owner"],
    );
}

#[test]
fn limits_leave_the_active_host_its_rent_first() {
    let offers = vec![offer(2, 10_000_000, 0, 0)];
    let poor = View { balance: Usdc(800_000), ..view(offers.clone()) };
    check(&mut agent(), poor, expect!["rents no standby: the treasury must first cover the active host"]);
    let spent = View { spent_in_day: Usdc(19_500_000), ..view(offers.clone()) };
    check(&mut agent(), spent, expect!["rents no standby: the day limit leaves no room"]);
    // Half of the prepayment is enough to begin with.
    let half = View { spent_in_day: Usdc(19_000_000), ..view(offers) };
    check(
        &mut agent(),
        half,
        expect![[r#"
            Rent { offer: 2, term: 2592000, prepay: Usdc(1000000) }
            chose offer 2 of 0x0202..0202 at $0.86/day: cheapest per served token of 1, other owner than the active host, no record yet"#]],
    );
}

#[test]
fn a_standby_that_is_silent_after_a_gap_of_our_own_is_not_blamed() {
    let mut agent = agent();
    let offers = vec![offer(2, 10_000_000, 0, 0), offer(3, 10_000_000, 0, 0)];
    let with_standby = |timestamp: u64| {
        let standby = Some(lease(2, 2, NOW));
        View { timestamp, last_heartbeat: timestamp, standby, ..view(offers.clone()) }
    };
    check(&mut agent, with_standby(NOW), expect!["standby on lease 2 is ready after 0 s"]);
    // This node saw no block for a day.
    check(&mut agent, with_standby(NOW + 86_400), expect![""]);
    for hour in 1..=7 {
        check(&mut agent, with_standby(NOW + 86_400 + hour * 3_600), expect![""]);
    }
    check(
        &mut agent,
        with_standby(NOW + 86_400 + 8 * 3_600),
        expect![[r#"
        Release { lease: 2 }
        releases the standby on lease 2: it has not answered for 28800 s"#]],
    );
}

#[test]
fn break_even_is_told_for_the_hosts_there_are_and_the_cheapest_that_fit() {
    let mut agent = agent();
    assert_eq!(agent.break_even(3), vec![]);
    let full = OfferView { free: 0, ..offer(6, 1, 0, 0) };
    let offers = vec![offer(2, 9_000_000, 0, 0), offer(3, 30_000_000, 0, 0), offer(4, 8_000_000, 0, 0), full];
    agent.step(NOW, 1, Input::Block(Box::new(view(offers))));
    let overhead = agent.genesis.policy.overhead_e6;
    let told: Vec<(Option<u64>, u64)> = agent.break_even(3).iter().map(|b| (b.offer, b.calls_a_day)).collect();
    // A micro-USDC a call. Two hosts each: the missing standby counts, and the offer over the cap does not.
    let day = |price_e6: u64| u64::try_from(Usdc::rent_up(2 * price_e6 + overhead, 86_400).0).unwrap();
    assert_eq!(told, [(None, day(10_000_000)), (Some(4), day(8_000_000)), (Some(2), day(9_000_000))]);
}

/// A relay that the treasury does not know yet gets nothing from the first refuel: the next one is not hours away. One that
/// never helps costs little.
#[test]
fn a_refuel_that_did_not_help_is_asked_for_again_soon_and_then_ever_more_seldom() {
    let mut agent = agent();
    let limits = Limits { gas_target_wei: 100, ..limits() };
    let (mut asked, mut lsn) = (Vec::new(), 0);
    for second in (0..20_000).step_by(2) {
        lsn += 1;
        let now = NOW + second;
        let look = View { timestamp: now, number: second, operator_gas_wei: 100, limits, ..view(vec![]) };
        let outputs = agent.step(now, lsn, Input::Block(Box::new(look)));
        let Some(index) = outputs.iter().position(|output| *output == Output::Refuel) else { continue };
        asked.push(second);
        let id = OutputId { lsn, index: u32::try_from(index).unwrap() };
        lsn += 1;
        agent.step(now, lsn, Input::Done { id, outcome: Outcome::Done { block: second } });
    }
    assert_eq!(asked[..5], [0, 30, 90, 210, 450]);
    assert!(asked.len() < 12, "{asked:?}");
}

/// A quorum lowers the price cap, and later raises it: the next choice keeps to it, and the log says what changed.
#[test]
fn limits_that_stewards_change_hold_from_the_next_view_on() {
    let mut agent = agent();
    let mut chosen = |number: u64, limits: Limits| {
        let look = View { number, limits, ..view(vec![offer(2, 9_000_000, 0, 0), offer(3, 12_000_000, 0, 0)]) };
        let outputs = agent.step(NOW, number, Input::Block(Box::new(look)));
        let told = outputs.iter().find_map(|output| match output {
            Output::Note(note @ Note::LimitsChanged { .. }) => Some(note.to_string()),
            _ => None,
        });
        let rented = outputs.iter().enumerate().find_map(|(index, output)| match output {
            Output::Rent { offer, term, prepay } => Some((index, (*offer, *term, prepay.0))),
            _ => None,
        });
        if let Some((index, _)) = rented {
            let id = OutputId { lsn: number, index: u32::try_from(index).unwrap() };
            agent.flights.done(id, Outcome::Failed { reason: "full".into() }, NOW - 100, agent.patience(), &mut vec![]);
        }
        (rented.map(|(_, rented)| rented), told)
    };
    let whole = (Some((2, 30 * 86_400, 1_555_200)), None);
    assert_eq!(chosen(1, limits()), whole);
    let cheap = Limits { price_e6_max: 8_999_999, ..limits() };
    let told = "the stewards changed its limits: price x 1e6 a second 20000000 -> 8999999";
    assert_eq!(chosen(2, cheap), (None, Some(told.to_owned())));
    let short = Limits { term_max: 86_400, prepay_max: 43_200, ..limits() };
    let told = "the stewards changed its limits: price x 1e6 a second 8999999 -> 20000000, term in seconds 2592000 -> \
                86400, prepaid seconds 172800 -> 43200";
    assert_eq!(chosen(3, short), (Some((2, 86_400, 388_800)), Some(told.to_owned())));
    assert_eq!(chosen(4, Limits { day_limit: Usdc(1), ..limits() }).0, None, "the day limit");
    assert_eq!(chosen(5, limits()).0, whole.0, "as before");
}

/// What was restored is committed within `restore_timeout`, whatever refuses it for a while.
#[test]
fn a_restored_memory_that_is_refused_is_tried_again_in_time() {
    let tries_within = |restoring: bool| {
        let mut agent = agent();
        let (mut tries, mut lsn) = (Vec::new(), 0);
        for second in (0..3_600).step_by(2) {
            let now = NOW + second;
            lsn += 1;
            // A first one is due at once when there is none.
            let look = View {
                restoring,
                checkpoint_seq: u64::from(restoring),
                timestamp: now,
                number: second,
                ..view(vec![])
            };
            let outputs = agent.step(now, lsn, Input::Block(Box::new(look)));
            let Some(index) = outputs.iter().position(|output| *output == Output::Checkpoint) else { continue };
            tries.push(second);
            let id = OutputId { lsn, index: u32::try_from(index).unwrap() };
            lsn += 1;
            agent.step(now, lsn, Input::Done { id, outcome: Outcome::Failed { reason: "refused".into() } });
        }
        tries
    };
    assert_eq!(tries_within(true), [0, 4, 12, 28, 60, 124, 252, 508, 1_020, 1_620, 2_220, 2_820, 3_420]);
    assert_eq!(tries_within(false), [0, 4, 12, 28, 60, 124, 252, 508, 1_020, 1_920, 2_820]);
}

/// An announced move is made to a standby that is there and able now, not to one that was before.
#[test]
fn nothing_is_handed_over_to_a_standby_that_died_or_is_not_able() {
    let notice = u64::from(Timers::real().handover_notice);
    let moving = |second: u64| View {
        number: second / 2,
        timestamp: NOW + second,
        active: Some(LeaseView { end: NOW + 300_000, ..lease(1, 1, NOW - 600_000) }),
        standby: Some(lease(2, 2, NOW - 86_400)),
        announced: if second > 0 { 2 } else { 0 },
        announced_at: if second > 0 { NOW } else { 0 },
        ..view(vec![])
    };
    // The seconds in which it asks for a move or a handover, when its standby says this in each.
    let asked = |says: &dyn Fn(u64) -> Option<bool>| {
        let (mut agent, mut asked, mut lsn) = (agent(), Vec::new(), 0);
        for second in (0..2 * notice).step_by(2) {
            lsn += 2;
            let mut outputs = agent.step(NOW + second, lsn, Input::Block(Box::new(moving(second))));
            if let Some(ready) = says(second) {
                outputs.extend(agent.step(NOW + second, lsn + 1, Input::StandbyAnswered { lease: 2, ready }));
            }
            for output in outputs {
                match output {
                    Output::Announce { .. } => asked.push(("announce", second)),
                    Output::Handover { .. } => asked.push(("handover", second)),
                    _ => {}
                }
            }
        }
        asked
    };
    let (announce, waits) = (("announce", 0), notice + CHECKPOINT_BLOCKS * 2);
    assert_eq!(asked(&|_| Some(true)), [announce, ("handover", waits)]);
    // Its host dies in the middle of the notice, and comes back; it never comes back.
    let back = waits + 60;
    assert_eq!(asked(&|second| (second < 300 || second >= back).then_some(true)), [announce, ("handover", back)]);
    assert_eq!(asked(&|second| (second < 300).then_some(true)), [announce]);
    // It cannot have the memory yet.
    assert_eq!(asked(&|second| Some(second == 0 || second >= back)), [announce, ("handover", back)]);
    assert_eq!(asked(&|_| None), []);
}
