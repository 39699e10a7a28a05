use super::*;
use crate::watch::tests::{T0, healthy, lease};

const OFFICE: (u64, u64) = (3, 7);

/// Beats at `now`, on provider 1, with a standby on provider 2.
fn beating(now: u64) -> TreasuryView {
    let (active, standby) = (Some(lease(OFFICE.1, 1)), Some(lease(8, 2)));
    TreasuryView { epoch: OFFICE.0, last_heartbeat: now, active, standby, ..healthy() }
}

/// One finding every ten seconds; when something changed, and to what.
fn told(findings: &[Finding]) -> Vec<(u64, Change)> {
    let (mut suspicion, mut said) = (Suspicion::default(), Vec::new());
    for (now, finding) in (T0..).step_by(10).zip(findings) {
        said.extend(suspicion.hear(&beating(now), now, OFFICE, *finding).map(|change| (now - T0, change)));
    }
    said
}

fn proposal(fault: Fault, times: u32, keep: u64) -> Change {
    let (epoch, lease) = OFFICE;
    Change::Propose(Proposal { epoch, lease, provider: Address::repeat_byte(1), fault, times, since: T0, keep })
}

#[test]
fn a_host_that_serves_nobody_is_proposed_for_eviction_after_the_length_of_a_silence() {
    // The fourth look is the first one 26 s after the first.
    assert_eq!(told(&[Finding::Bad(Fault::Unserved); 6]), [(30, proposal(Fault::Unserved, 4, 8))]);
}

#[test]
fn one_good_look_begins_it_anew_and_takes_a_proposal_back() {
    let (bad, good) = (Finding::Bad(Fault::Unserved), Finding::Good);
    assert_eq!(told(&[bad, bad, bad, good, bad, bad, bad]), []);
    assert_eq!(told(&[bad, bad, bad, bad, good]), [(30, proposal(Fault::Unserved, 4, 8)), (40, Change::Withdraw)]);
}

#[test]
fn a_thief_is_proposed_at_the_third_look_and_nobody_is_kept() {
    assert_eq!(told(&[Finding::Bad(Fault::WrongPayee); 4]), [(20, proposal(Fault::WrongPayee, 3, 0))]);
    assert_eq!(told(&[Finding::Bad(Fault::WrongRecord); 3]), [(20, proposal(Fault::WrongRecord, 3, 8))]);
    // Not in a row.
    let (payee, unserved) = (Finding::Bad(Fault::WrongPayee), Finding::Bad(Fault::Unserved));
    assert_eq!(told(&[payee, payee, unserved, payee, payee, unserved]), []);
}

#[test]
fn bad_checkpoints_are_held_against_it_whatever_looks_find() {
    let (bad, good) = (Finding::Bad(Fault::BadCheckpoint), Finding::Good);
    let said = told(&[bad, good, bad, good, Finding::Bad(Fault::Unserved), bad, good]);
    assert_eq!(said, [(50, proposal(Fault::BadCheckpoint, 3, 8))]);
}

#[test]
fn who_is_silent_or_restores_is_nobodys_liar() {
    let views: [fn(&mut TreasuryView); 5] = [
        |view| view.last_heartbeat -= 14,
        |view| view.restoring = true,
        |view| view.operator = None,
        |view| view.active = None,
        |view| view.alive = false,
    ];
    for change in views {
        let mut suspicion = Suspicion::default();
        for now in (T0..T0 + 200).step_by(10) {
            let mut view = beating(now);
            change(&mut view);
            assert_eq!(suspicion.hear(&view, now, OFFICE, Finding::Bad(Fault::WrongPayee)), None);
        }
    }
}

#[test]
fn another_office_begins_with_nothing_against_it() {
    let mut suspicion = Suspicion::default();
    let bad = Finding::Bad(Fault::WrongPayee);
    for now in [T0, T0 + 10, T0 + 20] {
        suspicion.hear(&beating(now), now, OFFICE, bad);
    }
    assert!(suspicion.proposed().is_some());
    let next = TreasuryView { epoch: 4, active: Some(lease(8, 2)), standby: None, ..beating(T0 + 30) };
    assert_eq!(suspicion.see(&next), Some(Change::Withdraw));
    // What was on its way concerned the one before.
    for now in [T0 + 30, T0 + 31, T0 + 32] {
        assert_eq!(suspicion.hear(&next, now, OFFICE, bad), None);
    }
}

#[test]
fn a_standby_of_the_same_owner_is_not_kept() {
    let mut suspicion = Suspicion::default();
    let mut said = None;
    for now in (T0..T0 + 40).step_by(10) {
        let view = TreasuryView { standby: Some(lease(8, 1)), ..beating(now) };
        said = said.or(suspicion.hear(&view, now, OFFICE, Finding::Bad(Fault::Unserved)));
    }
    assert_eq!(said, Some(proposal(Fault::Unserved, 4, 0)));
}
