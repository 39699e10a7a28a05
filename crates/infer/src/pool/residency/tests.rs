use super::*;

const POLICY: Policy = Policy { bytes_max: 100, idle_ms: 60_000, stay_ms: 5_000, waiting_max: 2 };
const PATIENCE: u64 = 15_000;

fn three(bytes: [u64; 3]) -> Residency {
    Residency::new(POLICY, bytes)
}

/// Loads it, at once.
fn load(pool: &mut Residency, now_ms: u64, model: usize) -> Vec<usize> {
    let said = pool.asked(now_ms, model, PATIENCE, false);
    let Said::Load { leaving } = said else { panic!("{said:?}") };
    leaving.iter().for_each(|other| pool.gone(*other));
    pool.loaded(now_ms, model, None);
    leaving
}

fn used(pool: &mut Residency, now_ms: u64, model: usize) {
    assert_eq!(pool.asked(now_ms, model, 0, false), Said::Ready);
    pool.begins(now_ms, model);
    pool.ends(now_ms, model);
}

fn later(said: Said) -> (u64, Why) {
    let Said::Later(Later { after_ms, why }) = said else { panic!("{said:?}") };
    (after_ms, why)
}

#[test]
fn the_model_that_was_used_the_longest_time_ago_leaves_and_no_more_than_must() {
    let mut pool = three([40, 40, 60]);
    assert_eq!(load(&mut pool, 0, 0), [0usize; 0]);
    assert_eq!(load(&mut pool, 1_000, 1), [0usize; 0], "both fit");
    used(&mut pool, 9_000, 0);
    assert_eq!(load(&mut pool, 10_000, 2), [1], "the one that was used before the other");
    assert_eq!(pool.asked(10_000, 0, 0, false), Said::Ready);
    assert_eq!([0, 1, 2].map(|model| pool.reading(model).unloads), [0, 1, 0]);
    // Each keeps its place for a while after its use, for whoever was told a price.
    assert_eq!(pool.asked(10_000, 1, PATIENCE, false), Said::Wait(Some(4_000)));
    assert_eq!(later(pool.asked(10_000, 1, 3_999, false)), (4_000, Why::NoRoom));
    assert_eq!(load(&mut pool, 14_000, 1), [0]);
    pool.measured(2, 70);
    assert_eq!(load(&mut pool, 30_000, 0), [2], "grown, it makes room enough alone");
}

#[test]
fn no_model_leaves_under_a_running_request() {
    let mut pool = three([60, 60, 101]);
    load(&mut pool, 0, 0);
    pool.begins(0, 0);
    assert_eq!(pool.asked(30_000, 1, PATIENCE, false), Said::Wait(None));
    assert_eq!(later(pool.asked(30_000, 1, 0, true)), (ROOM_LATER_MS, Why::NoRoom));
    assert_eq!(pool.tidy(1_000_000), (vec![], None), "nor because it is old");
    pool.ends(1_000_000, 0);
    assert_eq!(load(&mut pool, 1_005_000, 1), [0]);
    assert_eq!(later(pool.asked(0, 2, PATIENCE, false)).1, Why::TooBig { bytes: 101, bytes_max: 100 });
}

#[test]
fn a_load_is_begun_once_and_waited_for_as_long_as_it_took_the_last_time() {
    let mut pool = three([60, 60, 60]);
    let load = Said::Load { leaving: vec![] };
    assert_eq!(pool.asked(0, 0, PATIENCE, false), load);
    pool.waits(0);
    // Nobody knows how long it takes: whoever has patience waits.
    assert_eq!(pool.asked(0, 0, PATIENCE, false), Said::Wait(None));
    pool.waits(0);
    assert_eq!(later(pool.asked(4_000, 0, PATIENCE, false)), (4_000, Why::QueueFull), "a third one");
    assert_eq!(pool.asked(4_000, 0, PATIENCE, true), Said::Wait(None), "one of the two");
    assert_eq!(later(pool.asked(15_000, 0, 0, true)), (15_000, Why::Loading), "as long again as until now");
    pool.loaded(20_000, 0, Some(70));
    pool.waits_no_more(0);
    pool.waits_no_more(0);
    let reading = Reading { is_loaded: true, bytes: 70, loads: 1, load_ms: 20_000, ..Reading::default() };
    assert_eq!(pool.reading(0), reading);

    assert_eq!(pool.asked(30_000, 1, PATIENCE, false), Said::Load { leaving: vec![0] });
    assert!(pool.some_leave());
    pool.gone(0);
    pool.loaded(31_000, 1, None);
    assert_eq!(pool.asked(40_000, 0, PATIENCE, false), Said::Load { leaving: vec![1] });
    // Now it is known: 20 s, of which 1 and then 5 have gone.
    assert_eq!(later(pool.asked(41_000, 0, PATIENCE, false)), (19_000, Why::Loading), "no patience is so long");
    assert_eq!(pool.asked(45_000, 0, PATIENCE, false), Said::Wait(None));
}

#[test]
fn what_cannot_be_loaded_is_left_alone_for_a_while() {
    let mut pool = three([60, 60, 60]);
    assert!(matches!(pool.asked(0, 0, PATIENCE, false), Said::Load { .. }));
    pool.failed(1_000, 0, "no such file".into());
    let (after_ms, why) = later(pool.asked(3_000, 0, PATIENCE, true));
    assert_eq!((after_ms, why), (8_000, Why::Failed("no such file".into())));
    assert_eq!(load(&mut pool, 2_000, 1), [0usize; 0], "it takes no room");
    assert!(matches!(pool.asked(11_000, 0, PATIENCE, false), Said::Load { .. }));
}

#[test]
fn idle_models_leave_in_time_and_those_that_grew_at_once() {
    let mut pool = three([30, 30, 30]);
    (0..3).for_each(|model| assert_eq!(load(&mut pool, 0, model), [0usize; 0]));
    used(&mut pool, 10_000, 1);
    pool.begins(0, 2);
    assert_eq!(pool.tidy(59_999), (vec![], Some(60_000)));
    assert_eq!(pool.tidy(60_000), (vec![0], Some(70_000)));
    assert_eq!(pool.asked(60_000, 0, PATIENCE, false), Said::Wait(None), "its process is still there");
    pool.gone(0);
    assert_eq!(load(&mut pool, 60_000, 0), [0usize; 0]);
    pool.measured(2, 70);
    let oldest = (vec![1], Some(120_000));
    assert_eq!(pool.tidy(60_001), oldest, "what grew is in use; room for it and one other is left");
    pool.measured(2, 71);
    assert_eq!(pool.reading(2).bytes, 71);
    assert_eq!(pool.tidy(60_002), (vec![0], None));
}

#[test]
fn seconds_are_rounded_up_and_never_none() {
    let secs = |after_ms| Later { after_ms, why: Why::Loading }.after_secs_up();
    assert_eq!([0, 1, 1_000, 1_001].map(secs), [1, 1, 1, 2]);
}
