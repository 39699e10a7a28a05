use super::*;
use crate::cid;

fn block(number: u8) -> Cid {
    cid::of_raw(&[number])
}

/// Tells the machine one thing and returns its orders.
fn tell(machine: &mut Schedule, now_ms: u64, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    machine.handle(now_ms, input, &mut out);
    out
}

fn asks(orders: &[Output]) -> Vec<(usize, Cid)> {
    let ask = |o: &Output| match o {
        Output::Ask { source, cid } => Some((*source, *cid)),
        _ => None,
    };
    orders.iter().filter_map(ask).collect()
}

#[test]
fn work_is_spread_over_the_sources_and_taken_up_by_whoever_is_free() {
    let mut machine = Schedule::new(2);
    let orders = tell(&mut machine, 0, Input::Want((0..10).map(block).collect()));
    let first = asks(&orders);
    assert_eq!(first.len(), 2 * AT_ONCE_PER_SOURCE);
    assert_eq!(first[0], (0, block(0)), "the order of the file is kept");
    assert_eq!(first[1], (1, block(1)));
    let next = asks(&tell(&mut machine, 10, Input::Arrived { source: 1, cid: block(1) }));
    assert_eq!(next, [(1, block(8))]);
}

#[test]
fn a_liar_is_dropped_and_all_it_was_asked_goes_to_others() {
    let mut machine = Schedule::new(2);
    tell(&mut machine, 0, Input::Want((0..4).map(block).collect()));
    let orders = tell(&mut machine, 5, Input::Lied { source: 1, cid: block(1), why: "other bytes".into() });
    assert!(orders.contains(&Output::Drop { source: 1, why: "other bytes".into() }));
    assert!(orders.contains(&Output::Cancel { source: 1, cid: block(3) }));
    let mut moved: Vec<Cid> = asks(&orders)
        .into_iter()
        .map(|(source, cid)| {
            assert_eq!(source, 0);
            cid
        })
        .collect();
    moved.sort();
    let mut expected = vec![block(1), block(3)];
    expected.sort();
    assert_eq!(moved, expected);
}

#[test]
fn a_stalled_block_is_asked_elsewhere_and_the_loser_is_cancelled() {
    let mut machine = Schedule::new(2);
    assert_eq!(asks(&tell(&mut machine, 0, Input::Want(vec![block(1)]))), [(0, block(1))]);
    assert_eq!(asks(&tell(&mut machine, OVERTAKE_MS_FIRST - 1, Input::Tick)), []);
    assert_eq!(asks(&tell(&mut machine, OVERTAKE_MS_FIRST, Input::Tick)), [(1, block(1))]);
    let orders = tell(&mut machine, OVERTAKE_MS_FIRST + 10, Input::Arrived { source: 1, cid: block(1) });
    assert_eq!(orders, [Output::Cancel { source: 0, cid: block(1) }]);
    assert!(machine.is_done());
}

#[test]
fn who_lacks_a_block_is_not_asked_for_it_again_and_when_all_do_it_is_missing() {
    let mut machine = Schedule::new(2);
    tell(&mut machine, 0, Input::Want(vec![block(1)]));
    assert_eq!(asks(&tell(&mut machine, 1, Input::Lacks { source: 0, cid: block(1) })), [(1, block(1))]);
    let orders = tell(&mut machine, 2, Input::Lacks { source: 1, cid: block(1) });
    assert_eq!(orders, [Output::Stuck { cid: block(1), missing: true }]);
}

#[test]
fn a_source_that_keeps_failing_rests_and_is_then_given_up() {
    let mut machine = Schedule::new(1);
    let mut orders = tell(&mut machine, 0, Input::Want(vec![block(1)]));
    let mut now = 0;
    for _ in 0..FAILURES_MAX {
        assert_eq!(asks(&orders), [(0, block(1))]);
        let failed = tell(&mut machine, now, Input::Failed { source: 0, cid: block(1), why: "refused".into() });
        if failed.contains(&Output::Drop { source: 0, why: "refused".into() }) {
            assert!(
                failed.contains(&Output::Stuck { cid: block(1), missing: false }),
                "it may have had it: {failed:?}"
            );
            return;
        }
        assert_eq!(asks(&failed), [], "it rests first");
        now += 10_000;
        orders = tell(&mut machine, now, Input::Tick);
    }
    panic!("never given up");
}

#[test]
fn nothing_is_asked_of_nobody() {
    let mut machine = Schedule::new(0);
    let orders = tell(&mut machine, 0, Input::Want(vec![block(1)]));
    assert_eq!(orders, [Output::Stuck { cid: block(1), missing: false }]);
}
