use super::*;

pub(crate) const T0: u64 = 10_000;

fn who(n: u8) -> Address {
    Address::repeat_byte(n)
}

fn agent() -> Address {
    who(0xaa)
}

pub(crate) fn lease(id: u64, provider: u8) -> LeaseView {
    LeaseView { id, offer: id, provider: who(provider), ready: true, ready_by: T0, start: T0 - 500, end: T0 + 5000 }
}

/// An agent in good health at [`T0`], on provider 1 with a standby on provider 2, seen by the first steward.
pub(crate) fn healthy() -> TreasuryView {
    TreasuryView {
        treasury: agent(),
        alive: true,
        has_code: true,
        restoring: false,
        operator: Some(who(0x77)),
        epoch: 1,
        order_nonce: 5,
        last_heartbeat: T0,
        challenged_at: 0,
        taken_over_at: 0,
        timers: Timers { heartbeat_every: 3, fence: 8, answer_time: 12, restore_timeout: 20, silence: 26 },
        policy: Policy { price_e6_max: 100, term_max: 600, prepay_max: 40, starve_floor_uusdc: 100 },
        active: Some(lease(1, 1)),
        standby: Some(lease(2, 2)),
        asleep: false,
        balance_uusdc: 1_000_000,
        spendable_uusdc: 1_000_000,
        barred: vec![],
        my_place: 0,
        may_challenge: true,
        may_rescue: true,
        checkpoint_seq: 1,
        endable_at: None,
        closable_at: None,
    }
}

fn alone() -> TreasuryView {
    TreasuryView { standby: None, ..healthy() }
}

fn offer(id: u64, provider: u8, price_e6: u64) -> OfferView {
    OfferView { id, provider: who(provider), price_e6, free: 1, min_term: 60, max_term: 500, staked: true }
}

fn offers() -> Vec<OfferView> {
    vec![offer(1, 1, 10), offer(2, 2, 50), offer(3, 3, 40)]
}

fn see(watch: &mut Watch, now: u64, view: &TreasuryView) -> Vec<Output> {
    see_with(watch, now, view, offers())
}

fn see_with(watch: &mut Watch, now: u64, view: &TreasuryView, offers: Vec<OfferView>) -> Vec<Output> {
    let mut out = Vec::new();
    let (treasuries, offers) = (vec![view.clone()], BTreeMap::from([(view.treasury, offers)]));
    let block = BlockView { number: now, timestamp: now, treasuries, offers, ..BlockView::default() };
    watch.handle(Input::Block(block), &mut out);
    out.retain(|o| !matches!(o, Output::Alarm { .. } | Output::AllClear { .. }));
    out
}

/// The first chain second in `T0..T0 + 200` at which `view` makes a fresh watch act, and what it does.
fn first_act(view: &TreasuryView) -> Option<(u64, Output)> {
    let mut watch = Watch::new();
    (T0..T0 + 200).find_map(|now| see(&mut watch, now, view).into_iter().next().map(|o| (now - T0, o)))
}

fn order(output: &Output) -> &Rescue {
    match output {
        Output::Rescue { order, .. } => order,
        other => panic!("{other:?}"),
    }
}

/// What a treasury or a market of a stranger's making may say ends no daemon.
#[test]
fn times_beyond_all_clocks_are_no_overflow() {
    let far = u64::MAX;
    let timers = Timers { heartbeat_every: far, fence: far, answer_time: far, restore_timeout: far, silence: far };
    let standby = LeaseView { ready_by: far, start: far, end: far, ..lease(2, 2) };
    let beyond = TreasuryView { timers, standby: Some(standby), last_heartbeat: far, taken_over_at: far, ..healthy() };
    for (operator, challenged_at) in [(beyond.operator, 0), (None, far), (None, 0)] {
        for (endable_at, my_place) in [(Some(far), 0), (Some(far), far), (None, far)] {
            let view = TreasuryView { operator, challenged_at, endable_at, my_place, ..beyond.clone() };
            let mut watch = Watch::new();
            for now in [T0, far - 1, far] {
                see(&mut watch, now, &view);
            }
            watch.handle(Input::Failed { treasury: agent() }, &mut vec![]);
        }
    }
    let ending = TreasuryView { alive: false, closable_at: Some(far), ..healthy() };
    assert_eq!(see(&mut Watch::new(), T0, &ending), []);
    let mut dear = offer(3, 3, far);
    (dear.min_term, dear.max_term) = (0, far);
    let mut rich = TreasuryView { balance_uusdc: u128::MAX, spendable_uusdc: u128::MAX, ..alone() };
    let limits = Policy { price_e6_max: far, term_max: far, prepay_max: far, starve_floor_uusdc: u128::MAX };
    (rich.policy, rich.asleep, rich.operator) = (limits, true, None);
    see_with(&mut Watch::new(), far, &rich, vec![dear]);
}

#[test]
fn a_beating_agent_is_left_alone() {
    let mut watch = Watch::new();
    for now in T0..T0 + 500 {
        assert_eq!(see(&mut watch, now, &TreasuryView { last_heartbeat: now - 3, ..healthy() }), []);
    }
    assert_eq!(watch.alarms().count(), 0);
}

#[test]
fn a_treasury_that_nobody_closes_is_closed_by_a_steward_once() {
    let mut watch = Watch::new();
    let ended = TreasuryView { alive: false, closable_at: Some(T0), ..healthy() };
    let patience = 3 * ended.timers.heartbeat_every * (1 + ended.my_place);
    assert_eq!(see(&mut watch, T0 + patience, &ended), []);
    assert_eq!(see(&mut watch, T0 + patience + 1, &ended), [Output::Close { treasury: ended.treasury }]);
    assert_eq!(see(&mut watch, T0 + patience + 2, &ended), []);
}

#[test]
fn a_starved_agent_without_a_host_is_wound_down_in_turn_and_then_closed() {
    let starved = TreasuryView { standby: None, endable_at: Some(T0 + 40), ..healthy() };
    let wind_down = Output::WindDown { treasury: agent() };
    for my_place in 0..3 {
        let mut watch = Watch::new();
        let view = TreasuryView { my_place, ..starved.clone() };
        let due = T0 + 40 + 3 * view.timers.heartbeat_every * (1 + my_place);
        assert!(!see(&mut watch, due, &view).contains(&wind_down));
        assert!(see(&mut watch, due + 1, &view).contains(&wind_down));
        assert!(!see(&mut watch, due + 2, &view).contains(&wind_down), "once in {RETRY_SECS} s");
        // What has begun to end is closed, not wound down again.
        let ending = TreasuryView { alive: false, closable_at: Some(due), ..view };
        assert_eq!(see(&mut watch, due + 60, &ending), [Output::Close { treasury: agent() }]);
    }
}

#[test]
fn an_overdue_operator_is_challenged_after_the_standbys_own_chance() {
    // 8 + (8 - 3) = 13 s without a beat, 4 s for the standby's node, then the first steward; 4 s for each place.
    assert_eq!(first_act(&healthy()), Some((18, Output::Challenge { treasury: agent() })));
    let (at, _) = first_act(&TreasuryView { my_place: 2, ..healthy() }).unwrap();
    assert_eq!(at, 26);
}

#[test]
fn a_challenge_is_sent_once_and_again_only_if_it_did_not_arrive() {
    let mut watch = Watch::new();
    assert_eq!(see(&mut watch, T0 + 19, &healthy()).len(), 1);
    assert_eq!(see(&mut watch, T0 + 19, &healthy()), [], "a doubled block");
    assert_eq!(see(&mut watch, T0 + 20, &healthy()), []);
    assert_eq!(see(&mut watch, T0 + 31, &healthy()).len(), 1);
    let challenged = TreasuryView { challenged_at: T0 + 31, ..healthy() };
    assert_eq!(see(&mut watch, T0 + 50, &challenged), []);
}

/// Between one `wanted` and the next, over four days of blocks every 8 s in which nothing comes of it.
fn gaps(wanted: &Output, view: impl Fn(u64) -> TreasuryView) -> Vec<u64> {
    let (mut watch, mut last, mut gaps) = (Watch::new(), None, Vec::new());
    for now in (T0..T0 + 4 * 86_400).step_by(8) {
        if see(&mut watch, now, &view(now)).contains(wanted) {
            gaps.extend(last.replace(now).map(|last| now - last));
            watch.handle(Input::Failed { treasury: agent() }, &mut vec![]);
        }
    }
    gaps
}

#[test]
fn what_changes_nothing_is_done_more_and_more_seldom() {
    // A token that freezes and thaws by turns has each call post a notice or take it back.
    let stuck = |now| TreasuryView { endable_at: Some(T0), last_heartbeat: now, ..alone() };
    let doubled: Vec<u64> = (0..14).map(|n| 8 << n).chain([86_400; 2]).collect();
    assert_eq!(gaps(&Output::WindDown { treasury: agent() }, stuck), doubled);
    // A market says that a standby is ready, and refuses its challenge.
    let ready = LeaseView { end: u64::MAX, ..lease(2, 2) };
    let silent = |_| TreasuryView { standby: Some(ready.clone()), ..healthy() };
    assert_eq!(gaps(&Output::Challenge { treasury: agent() }, silent), doubled);
    // One that arrived, and was answered, is no such try.
    let mut watch = Watch::new();
    for round in 0..9 {
        let beat = T0 + 100 * round;
        let late = TreasuryView { last_heartbeat: beat, ..healthy() };
        assert_eq!(see(&mut watch, beat + 18, &late), [Output::Challenge { treasury: agent() }], "round {round}");
        see(&mut watch, beat + 20, &TreasuryView { challenged_at: beat + 18, ..late });
    }
}

#[test]
fn without_a_ready_standby_there_is_no_challenge() {
    let (_, act) = first_act(&alone()).unwrap();
    assert!(matches!(act, Output::Rescue { .. }));
    let requested = LeaseView { ready: false, ready_by: T0 + 1000, ..lease(2, 2) };
    assert_eq!(first_act(&TreasuryView { standby: Some(requested), ..healthy() }), None);
}

#[test]
fn silence_without_a_standby_is_rescued_on_the_cheapest_other_provider() {
    let (at, act) = first_act(&alone()).unwrap();
    assert_eq!(at, 27);
    // Provider 1 is cheaper, but it is the dead host's. 40 s of rent at 40e-6 is 0.0016, rounded up to 1.
    let expected = Rescue { offer: 3, term: 500, prepay_uusdc: 1, nonce: 5, deadline: T0 + 27 + ORDER_SECS };
    assert_eq!(order(&act), &expected);
    let (at, _) = first_act(&TreasuryView { my_place: 2, ..alone() }).unwrap();
    assert_eq!(at, 27 + 2 * STEP_SECS);
}

#[test]
fn what_birth_left_to_people_is_prepared_and_not_signed() {
    let view = TreasuryView { may_rescue: false, ..alone() };
    let mut watch = Watch::new();
    let said: Vec<Output> = (T0..T0 + 200).flat_map(|now| see(&mut watch, now, &view)).collect();
    match &said[..] {
        [Output::Prepared { order, .. }] => assert_eq!((order.offer, order.nonce), (3, 5)),
        other => panic!("told once, and nothing else: {other:?}"),
    }
}

#[test]
fn an_agent_that_nobody_can_be_rented_for_is_told_of_once_and_rescued_when_that_changes() {
    let mut watch = Watch::new();
    let poor = TreasuryView { spendable_uusdc: 0, ..alone() };
    let said: Vec<Output> = (T0..T0 + 200).flat_map(|now| see(&mut watch, now, &poor)).collect();
    assert_eq!(said, [Output::NoHost { treasury: agent(), why: NoHost::NoMoney }]);
    assert_eq!(watch.without_hosts().collect::<Vec<_>>(), [(agent(), NoHost::NoMoney)]);
    // Every offer is too dear by now: another reason, and so is another word.
    let mut cheap = poor.clone();
    cheap.policy.price_e6_max = 0;
    let said: Vec<Output> = (T0 + 200..T0 + 300).flat_map(|now| see(&mut watch, now, &cheap)).collect();
    assert_eq!(said, [Output::NoHost { treasury: agent(), why: NoHost::NoOffer }]);
    // Somebody funds it.
    let said = see(&mut watch, T0 + 300, &alone());
    assert!(matches!(said[..], [Output::Rescue { .. }]), "{said:?}");
    assert_eq!(watch.without_hosts().count(), 0);
}

#[test]
fn a_sleeper_is_left_alone_until_it_is_funded_and_then_woken_in_turn() {
    // On offer 1 at 10e-6 a rescue prepays 40 s, a micro-USDC: 2 x 100 and four times that.
    let asleep = TreasuryView { operator: None, asleep: true, balance_uusdc: 203, active: None, ..alone() };
    let funded = TreasuryView { balance_uusdc: 204, ..asleep.clone() };
    for my_place in 0..3 {
        let mut watch = Watch::new();
        let view = TreasuryView { my_place, ..asleep.clone() };
        let said: Vec<Output> = (T0..T0 + 200).flat_map(|now| see(&mut watch, now, &view)).collect();
        assert_eq!(said, [Output::NoHost { treasury: agent(), why: NoHost::Asleep }]);
        assert_eq!(watch.alarms().collect::<Vec<_>>(), [(agent(), Alarm::Asleep)]);
        let view = TreasuryView { my_place, ..funded.clone() };
        let woken: Vec<(u64, Output)> = (T0 + 200..T0 + 210)
            .flat_map(|now| see(&mut watch, now, &view).into_iter().map(move |output| (now, output)))
            .collect();
        let [(at, woken)] = &woken[..] else { panic!("one order: {woken:?}") };
        assert_eq!((*at, order(woken).offer), (T0 + 200 + my_place * STEP_SECS, 1));
    }
    // A dearer host needs more, and nobody needs it who did not choose to sleep.
    assert!(funded.is_funded_for(&offer(1, 1, 10)) && !funded.is_funded_for(&offer(2, 2, 50_000)));
    let evicted = TreasuryView { asleep: false, ..asleep };
    assert!(evicted.is_funded_for(&offer(2, 2, 50_000)));
    assert_eq!((evicted.alarm(T0), evicted.rescue_due(T0)), (Some(Alarm::NoOperator), Ok(Alarm::NoOperator)));
}

#[test]
fn a_daemon_that_is_no_steward_on_chain_does_not_challenge() {
    let late = TreasuryView { may_challenge: false, ..healthy() };
    let mut watch = Watch::new();
    for now in T0..T0 + 200 {
        assert_eq!(see(&mut watch, now, &late), [], "a ready standby, and nobody to call");
    }
}

#[test]
fn a_ready_standby_has_its_chance_before_a_rescue() {
    assert_eq!(healthy().rescue_due(T0 + 27), Err(NotDue::StandbyReady));
    // Challenged at 19, answered by nobody until 31, restored by nobody until 51.
    let challenged = TreasuryView { challenged_at: T0 + 19, ..healthy() };
    assert_eq!(challenged.rescue_due(T0 + 51), Err(NotDue::StandbyReady));
    assert_eq!(challenged.rescue_due(T0 + 52), Ok(Alarm::Silent));
    let ended = TreasuryView { standby: Some(LeaseView { end: T0 + 20, ..lease(2, 2) }), ..healthy() };
    assert_eq!(ended.rescue_due(T0 + 27), Ok(Alarm::Silent));
    let coming =
        TreasuryView { standby: Some(LeaseView { ready: false, ready_by: T0 + 30, ..lease(2, 2) }), ..healthy() };
    assert_eq!(coming.rescue_due(T0 + 30), Err(NotDue::StandbyComing));
    assert_eq!(coming.rescue_due(T0 + 31), Ok(Alarm::Silent));
}

#[test]
fn each_reason_for_a_rescue_is_the_contracts() {
    let beating = TreasuryView { last_heartbeat: T0 + 100, ..alone() };
    assert_eq!(beating.rescue_due(T0 + 100), Err(NotDue::NoSilence));
    assert_eq!(alone().rescue_due(T0 + 26), Err(NotDue::NoSilence));
    assert_eq!(alone().rescue_due(T0 + 27), Ok(Alarm::Silent));
    let evicted = TreasuryView { operator: None, active: None, ..beating.clone() };
    assert_eq!(evicted.rescue_due(T0 + 100), Ok(Alarm::NoOperator));
    let stuck = TreasuryView { restoring: true, taken_over_at: T0 + 80, ..beating };
    assert_eq!(stuck.rescue_due(T0 + 100), Err(NotDue::NoSilence));
    assert_eq!(stuck.rescue_due(T0 + 101), Ok(Alarm::Stuck));
    assert_eq!(TreasuryView { alive: false, ..alone() }.rescue_due(T0 + 500), Err(NotDue::NotAlive));
    let revoked = TreasuryView { operator: None, active: None, has_code: false, ..alone() };
    assert_eq!(revoked.rescue_due(T0 + 500), Err(NotDue::NoCode));
}

#[test]
fn offers_that_the_treasury_would_refuse_are_not_chosen() {
    let view = TreasuryView { barred: vec![who(4)], ..alone() };
    let good = offer(9, 3, 40);
    assert!(view.allows(&good));
    for bad in [
        offer(9, 4, 40),
        offer(9, 3, 101),
        OfferView { staked: false, ..good.clone() },
        OfferView { free: 0, ..good.clone() },
        OfferView { min_term: 601, ..good.clone() },
    ] {
        assert!(!view.allows(&bad), "{bad:?}");
    }
    // The failed standby's place becomes free in the same transaction.
    let full = OfferView { free: 0, ..offer(2, 2, 40) };
    assert!(healthy().allows(&full));
    let mut watch = Watch::new();
    let said = see_with(&mut watch, T0 + 60, &view, vec![offer(1, 4, 10)]);
    assert_eq!(said, [Output::NoHost { treasury: agent(), why: NoHost::NoOffer }], "no offer, no order");
}

#[test]
fn the_silent_hosts_own_provider_is_taken_when_there_is_no_other() {
    let (own, other) = (offer(1, 1, 10), offer(3, 3, 40));
    let dear = OfferView { price_e6: 101, ..other.clone() };
    for (offers, chosen) in [(vec![own.clone(), other], 3), (vec![own.clone(), dear.clone()], 1), (vec![own], 1)] {
        let out = see_with(&mut Watch::new(), T0 + 27, &alone(), offers.clone());
        assert_eq!(order(&out[0]).offer, chosen);
        // What one steward proposes the others sign, and nothing else.
        let taken: Vec<u64> = offers.iter().filter(|o| alone().may_take(o, &offers)).map(|o| o.id).collect();
        assert_eq!(taken, [chosen]);
    }
}

#[test]
fn the_prepayment_is_what_the_treasury_can_still_spend() {
    let dear = vec![OfferView { price_e6: 1_000_000, ..offer(3, 3, 0) }];
    let rich = TreasuryView { policy: Policy { price_e6_max: 2_000_000, ..alone().policy }, ..alone() };
    let prepay = |spendable_uusdc| {
        let view = TreasuryView { spendable_uusdc, ..rich.clone() };
        let out = see_with(&mut Watch::new(), T0 + 60, &view, dear.clone());
        out.first().filter(|o| !matches!(o, Output::NoHost { .. })).map(|o| order(o).prepay_uusdc)
    };
    assert_eq!(prepay(1_000), Some(40));
    assert_eq!(prepay(7), Some(7));
    assert_eq!(prepay(0), None);
}

#[test]
fn a_provider_that_did_not_get_ready_is_not_the_next_choice() {
    let mut watch = Watch::new();
    assert_eq!(order(&see(&mut watch, T0 + 27, &alone())[0]).offer, 3);
    let coming = LeaseView { offer: 3, ready: false, ready_by: T0 + 70, ..lease(7, 3) };
    let rescued = TreasuryView { standby: Some(coming), order_nonce: 6, ..healthy() };
    assert_eq!(see(&mut watch, T0 + 29, &rescued), []);
    assert_eq!(see(&mut watch, T0 + 70, &rescued), []);
    let next = see(&mut watch, T0 + 71, &rescued);
    assert_eq!((order(&next[0]).offer, order(&next[0]).nonce), (2, 6));
}

#[test]
fn a_peers_order_is_signed_if_it_is_what_this_steward_would_order() {
    let mut dear = offer(3, 3, 4_000_000);
    dear.max_term = 500;
    let (mut view, offers) = (alone(), vec![dear.clone(), offer(4, 4, 5_000_000), offer(5, 5, 6_000_000)]);
    view.policy.price_e6_max = 10_000_000;
    let nobody = Disappointed::new();
    let agreed = |view: &TreasuryView, id, known: &Disappointed| view.agreed_offer(id, &offers, known).map(|o| o.id);
    // The cheapest, and where that one failed the next one, too; never one that only its owner would choose.
    let failed = Disappointed::from([(who(3), 1)]);
    assert_eq!([3, 4, 5].map(|id| agreed(&view, id, &nobody)), [Some(3), None, None]);
    assert_eq!([3, 4, 5].map(|id| agreed(&view, id, &failed)), [Some(3), Some(4), None]);
    view.barred = vec![who(3)];
    assert_eq!([3, 4, 5].map(|id| agreed(&view, id, &nobody)), [None, Some(4), None]);

    let own = Rescue { offer: 3, term: 500, prepay_uusdc: 160, nonce: 5, deadline: T0 + 600 };
    let asks = |term, prepay_uusdc| Rescue { term, prepay_uusdc, ..own.clone() };
    for (asked, spendable_uusdc, agrees) in [
        (own.clone(), 1_000, true),
        (asks(500, 0), 1_000, false),
        (asks(500, 143), 1_000, false),
        (asks(500, 144), 1_000, true),
        (asks(500, 161), 1_000, false),
        (asks(499, 160), 1_000, false),
        (asks(600, 160), 1_000, false),
        // As much as there is; the peer saw a little more or less of it.
        (asks(500, 90), 100, true),
        (asks(500, 110), 100, true),
        (asks(500, 89), 100, false),
        (asks(500, 0), 0, false),
    ] {
        let view = TreasuryView { spendable_uusdc, ..view.clone() };
        assert_eq!(view.agrees_to(&asked, &dear), agrees, "{asked:?} of {spendable_uusdc}");
    }
}

#[test]
fn a_failed_attempt_is_repeated_a_little_later() {
    let mut watch = Watch::new();
    assert_eq!(see(&mut watch, T0 + 27, &alone()).len(), 1);
    assert_eq!(see(&mut watch, T0 + 28, &alone()), []);
    watch.handle(Input::Failed { treasury: agent() }, &mut vec![]);
    watch.handle(Input::Failed { treasury: agent() }, &mut vec![]);
    assert_eq!(see(&mut watch, T0 + 35, &alone()), []);
    assert_eq!(see(&mut watch, T0 + 36, &alone()).len(), 1);
}

#[test]
fn alarms_are_said_once_and_taken_back() {
    let mut watch = Watch::new();
    let mut said = Vec::new();
    for (now, beat) in [(T0, T0), (T0 + 15, T0), (T0 + 16, T0), (T0 + 27, T0), (T0 + 28, T0 + 28), (T0 + 29, T0 + 28)] {
        let view = TreasuryView { last_heartbeat: beat, my_place: 9, ..alone() };
        let mut out = Vec::new();
        let block = BlockView { number: now, timestamp: now, treasuries: vec![view], ..BlockView::default() };
        watch.handle(Input::Block(block), &mut out);
        said.extend(out);
    }
    let treasury = agent();
    assert_eq!(
        said,
        [
            Output::Alarm { treasury, alarm: Alarm::Overdue },
            Output::Alarm { treasury, alarm: Alarm::Silent },
            Output::AllClear { treasury }
        ]
    );
}

#[test]
fn an_agent_that_cannot_be_read_is_remembered_and_offers_of_another_market_are_not_taken() {
    let (mut watch, mut out) = (Watch::new(), Vec::new());
    see(&mut watch, T0 + 27, &TreasuryView { my_place: 9, ..alone() });
    let (one, other) = (agent(), who(0xbb));
    let block = |now, treasuries: Vec<TreasuryView>| BlockView {
        number: now,
        timestamp: now,
        unread: [one, other].into_iter().filter(|a| treasuries.iter().all(|t| t.treasury != *a)).collect(),
        treasuries,
        // The other one's market is of its creator's making, and has the cheapest offer of all.
        offers: BTreeMap::from([(one, offers()), (other, vec![offer(77, 9, 1)])]),
    };
    watch.handle(Input::Block(block(T0 + 28, vec![])), &mut out);
    assert_eq!((&out[..], watch.alarms().collect::<Vec<_>>()), (&[][..], vec![(one, Alarm::Silent)]));
    let both = vec![alone(), TreasuryView { treasury: other, ..alone() }];
    watch.handle(Input::Block(block(T0 + 29, both)), &mut out);
    let ordered: Vec<(Address, u64)> = out
        .iter()
        .filter_map(|output| match output {
            Output::Rescue { treasury, order } => Some((*treasury, order.offer)),
            _ => None,
        })
        .collect();
    assert_eq!(ordered, [(one, 3), (other, 77)]);
}

/// Three stewards' machines over one made-up chain on which providers fail, transactions get lost and blocks
/// come twice; signatures are given by the same rule that the daemons use.
#[test]
fn whatever_fails_the_agent_gets_a_new_host_and_never_two_orders_for_one_silence() {
    for seed in 0..200u64 {
        let mut dice = seed;
        let mut roll = |sides: u64| {
            dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = dice;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) % 1_000_003 % sides
        };
        let mut watches: Vec<Watch> = (0..3).map(|_| Watch::new()).collect();
        let mut view = if roll(2) == 0 { healthy() } else { alone() };
        let mut rescues = 0;
        let mut saved_at = None;
        for now in T0..T0 + 900 {
            // The standby takes over after an unanswered challenge, unless its host is dead too.
            let answered = view.challenged_at != 0 && now > view.challenged_at + view.timers.answer_time;
            let ready = view.standby.as_ref().is_some_and(|s| s.ready && s.id != 2);
            if ready || (answered && view.standby.as_ref().is_some_and(|s| s.ready) && seed % 3 == 0) {
                saved_at = Some(now);
                break;
            }
            // A rescued lease gets ready in time, or never.
            if let Some(standby) = view.standby.as_mut().filter(|s| !s.ready && now + 20 > s.ready_by) {
                standby.ready = roll(40) == 0 && now <= standby.ready_by;
                standby.start = now;
            }
            for place in 0..3u64 {
                let index = usize::try_from(place).unwrap();
                if roll(10) == 0 {
                    watches[index] = Watch::new(); // killed and started again
                }
                for _ in 0..=roll(2) {
                    let mine = TreasuryView { my_place: place, ..view.clone() };
                    for output in see(&mut watches[index], now, &mine) {
                        let lost = roll(3) == 0;
                        if lost {
                            watches[index].handle(Input::Failed { treasury: agent() }, &mut vec![]);
                            continue;
                        }
                        match output {
                            Output::Challenge { .. } if view.challenged_at == 0 => view.challenged_at = now,
                            Output::Rescue { order, .. } if order.nonce == view.order_nonce => {
                                // One other daemon has to agree, by what it remembers itself.
                                let agree = |watch: &Watch| {
                                    let known = watch.disappointed().remove(&agent()).unwrap_or_default();
                                    let offers = offers();
                                    let offer = view.agreed_offer(order.offer, &offers, &known);
                                    offer.is_some_and(|offer| view.agrees_to(&order, offer))
                                };
                                if !watches.iter().enumerate().any(|(other, watch)| other != index && agree(watch)) {
                                    watches[index].handle(Input::Failed { treasury: agent() }, &mut vec![]);
                                    continue;
                                }
                                view.rescue_due(now).expect("an order while no rescue was due");
                                let offer = offers().into_iter().find(|o| o.id == order.offer).unwrap();
                                assert!(view.may_take(&offer, &offers()), "seed {seed}: a bad offer");
                                view.order_nonce += 1;
                                rescues += 1;
                                let provider = offer.provider;
                                let coming =
                                    LeaseView { ready: false, ready_by: now + 45, start: 0, ..lease(100 + rescues, 1) };
                                view.standby = Some(LeaseView { offer: order.offer, provider, ..coming });
                            }
                            _ => {} // reverts on chain: challenged already, or the nonce is used up
                        }
                    }
                }
            }
        }
        assert!(saved_at.is_some(), "seed {seed}: nobody saved it, {rescues} rescues");
    }
}
