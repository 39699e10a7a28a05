//! Who leads when moves, takeovers and processes cross: a successor that was down, and memories that come late.

use super::crashes::{delivered, found_in, open_call, service};
use super::tests::{block, node, records};
use super::*;
use crate::answers::Answers;
use crate::error::Kind;
use alloy::primitives::Address;
use chain::LeaseView;
use chain::bindings::Lease;
use pay::book::Service;
use std::net::SocketAddr;
use std::path::Path;

/// The leases of a move.
const OLD: u64 = 1;
const NEW: u64 = 2;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where nobody answers.
const NOWHERE: &str = "http://127.0.0.1:1";

/// On this lease, and what its loop would hear.
fn host(dir: &Path, lease: u64) -> (Node, mpsc::Receiver<Event>) {
    let (mut node, heard) = node(dir);
    let cx = Arc::get_mut(&mut node.cx).expect("its only owner");
    (cx.config.lease, cx.birth.timers.restoreTimeout) = (lease, 3_600);
    (node, heard)
}

fn lease_view(id: u64, url: &str, key: Address) -> LeaseView {
    LeaseView { id, lease: Lease { endpoint: url.to_owned(), nodeKey: key, ..Lease::default() }, accrued: 0 }
}

/// The old node of a move to `next`, which is mined in block 2. `next` finds the journal that it had before the last call.
fn moved_from(dir: &Path, next: &Node) -> (Node, mpsc::Receiver<Event>) {
    let (mut old, heard) = host(dir, OLD);
    old.on_chain(block(&old, 1, 1, (1, true))).unwrap();
    found_in(&next.journal_dir(), &old, records(&old));
    open_call(&mut old, 1);
    let now = old.now();
    old.live.as_mut().unwrap().record(now, &delivered(1)).unwrap();
    let mut news = block(&old, 2, 2, (2, false));
    news.state.operator = next.cx.me();
    news.active = Some(lease_view(NEW, NOWHERE, next.cx.me()));
    old.on_chain(news).unwrap();
    assert!(old.role == Role::Draining && old.live.as_ref().unwrap().sealed);
    old.live.as_ref().unwrap().journal.sync().unwrap();
    old.on_durable(records(&old)).unwrap();
    (old, heard)
}

/// The block in which this node sees that it is operator in epoch 2, after the one whose host answers at `url`.
fn moved_to(node: &Node, number: u64, url: &str) -> Box<News> {
    let mut news = block(node, number, u8::try_from(number).unwrap(), (2, true));
    (news.state.checkpointSeq, news.state.checkpointDigest) = (1, B256::repeat_byte(1));
    news.draining = Some(lease_view(OLD, url, Address::repeat_byte(0x66)));
    news
}

/// Its API answers while its loop hears. The URL.
async fn served(mut node: Node, mut heard: mpsc::Receiver<Event>, dir: &Path) -> String {
    let answers = Answers::open(&dir.join("answers")).unwrap();
    let app = crate::api::router(node.cx.clone(), node.shared.clone(), answers);
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    tokio::spawn(async move {
        while let Some(event) = heard.recv().await {
            node.on_event(event).unwrap();
        }
    });
    url
}

/// Hears what comes until it leads.
async fn leads(node: &mut Node, heard: &mut mpsc::Receiver<Event>) {
    while node.role != Role::Active {
        let event = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("it leads").unwrap();
        node.on_event(event).unwrap();
    }
}

#[tokio::test]
async fn a_successor_that_was_down_when_the_move_was_mined_has_what_left_meanwhile() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut next, mut heard) = host(dirs.1.path(), NEW);
    let (old, old_heard) = moved_from(dirs.0.path(), &next);
    let told = records(&old);
    let url = served(old, old_heard, dirs.0.path()).await;
    next.wake_from_disk().unwrap();
    let had = records(&next);
    assert!(had < told);
    next.on_chain(moved_to(&next, 3, &url)).unwrap();
    assert_eq!((next.role, records(&next)), (Role::Standby, had), "the old node is asked first");
    leads(&mut next, &mut heard).await;
    assert!(records(&next) > told && matches!(service(&next, 1), Service::Delivered(_)));
    // Another process of it: nobody has more than its own journal now.
    next.live.as_ref().unwrap().journal.sync().unwrap();
    drop(next);
    let (mut again, _heard) = host(dirs.1.path(), NEW);
    again.wake_from_disk().unwrap();
    again.on_chain(moved_to(&again, 4, &url)).unwrap();
    assert!(again.follower.is_none() && again.found == Found::Asked);
}

#[tokio::test]
async fn a_successor_that_has_less_than_was_acknowledged_waits_for_the_old_node() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut next, _heard) = host(dirs.1.path(), NEW);
    let (old, _old_heard) = moved_from(dirs.0.path(), &next);
    next.wake_from_disk().unwrap();
    next.on_chain(moved_to(&next, 3, NOWHERE)).unwrap();
    // Nothing is heard of it in time.
    next.turned_ms = Some(0);
    next.on_tick().unwrap();
    assert_eq!(next.found, Found::Asked);
    let had = records(&next);
    next.on_reached(Ok(restore::Reached { lsn: records(&old), recipient: "age1".into() })).unwrap();
    next.on_tick().unwrap();
    assert_eq!((next.role, next.found, records(&next)), (Role::Standby, Found::Behind, had));
    // It is there again.
    hears_the_rest(&mut next, &old);
    next.on_reached(Ok(restore::Reached { lsn: records(&old), recipient: "age1".into() })).unwrap();
    assert!(next.role == Role::Active && matches!(service(&next, 1), Service::Delivered(_)));
}

/// The last word of the old node, which then is compared with what was acknowledged.
fn hears_the_rest(next: &mut Node, old: &Node) {
    let journal = &old.live.as_ref().unwrap().journal;
    let (follower, (taken, mut is_taken)) = (next.follower.as_ref().unwrap().id, oneshot::channel());
    let rest = journal.export(records(next) + 1, journal.last_lsn()).unwrap();
    next.on_tail(Tail { records: rest, last: true, token: "token".into(), follower, taken }).unwrap();
    assert!(is_taken.try_recv().is_ok());
    assert_eq!((next.role, next.found, records(next)), (Role::Standby, Found::Asked, records(old)));
}

/// This node led already, shipped what it recorded, and its disk came back as it was before.
#[tokio::test]
async fn the_old_nodes_last_word_does_not_make_up_for_this_nodes_own_records() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut next, _heard) = host(dirs.1.path(), NEW);
    let (old, _old_heard) = moved_from(dirs.0.path(), &next);
    next.wake_from_disk().unwrap();
    next.on_chain(moved_to(&next, 3, NOWHERE)).unwrap();
    hears_the_rest(&mut next, &old);
    let own = restore::Reached { lsn: records(&old) + 1, recipient: "age1".into() };
    let refused = next.on_reached(Ok(own)).unwrap_err();
    assert_eq!((next.role, refused.kind), (Role::Standby, Kind::Corrupt), "{refused}");
}

/// It followed another operator once, and has nothing of the one before it.
#[tokio::test]
async fn a_successor_whose_journal_is_of_an_earlier_attempt_begins_anew() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut earlier, _earlier_heard) = host(dirs.0.path(), 7);
    earlier.on_chain(block(&earlier, 1, 1, (1, true))).unwrap();
    let (mut next, _heard) = host(dirs.1.path(), NEW);
    found_in(&next.journal_dir(), &earlier, records(&earlier));
    next.wake_from_disk().unwrap();
    next.on_chain(moved_to(&next, 3, NOWHERE)).unwrap();
    assert!(next.live.is_none() && next.follower.as_ref().is_some_and(|follower| follower.is_late));
    // What it begins with may be far behind what left.
    next.on_begun(next.followers, *memory(&next)).unwrap();
    assert_eq!((next.role, next.found, next.live.is_some()), (Role::Standby, Found::Unproven, true));
}

/// What the world holds of an agent that is just born.
fn memory(node: &Node) -> Box<Restored> {
    let state = genesis::fresh(&node.cx).encode();
    Box::new(Restored { lsn: 0, state, later: Vec::new(), until: 0, ring: KeyRing::default(), token: None })
}

/// A block after a takeover.
fn taken_over(node: &Node, number: u64, operator: (u64, bool)) -> Box<News> {
    let mut news = block(node, number, u8::try_from(number).unwrap(), operator);
    (news.state.checkpointSeq, news.state.restoring) = (1, operator.1);
    news
}

/// The takeover's block is taken back while the memory is on its way, and it is mined again in another epoch.
#[tokio::test]
async fn a_memory_that_comes_late_makes_nobody_lead() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = host(dir.path(), NEW);
    node.on_chain(taken_over(&node, 5, (2, true))).unwrap();
    assert!(node.restoring);
    node.on_chain(taken_over(&node, 6, (1, false))).unwrap();
    node.on_restored(2, Ok(memory(&node))).unwrap();
    assert_eq!((node.role, node.live.is_none()), (Role::Standby, true), "the chain names another");
    node.on_chain(taken_over(&node, 7, (3, true))).unwrap();
    node.on_restored(2, Ok(memory(&node))).unwrap();
    assert_eq!((node.role, node.live.is_none()), (Role::Standby, true), "that was asked for in another epoch");
    node.on_restored(3, Ok(memory(&node))).unwrap();
    assert_eq!(node.role, Role::Active);
}

/// Whoever is active keeps its journal, whatever else was asked for before.
#[tokio::test]
async fn a_second_memory_does_not_take_the_place_of_the_one_that_lives() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = host(dir.path(), NEW);
    node.on_chain(taken_over(&node, 5, (2, true))).unwrap();
    node.follow(OLD, NOWHERE.to_owned(), None, false);
    let follower = node.followers;
    // Of a follower that was ended: nothing.
    node.on_begun(follower - 1, *memory(&node)).unwrap();
    assert!(node.live.is_none());
    node.on_begun(follower, *memory(&node)).unwrap();
    let begun = node.live.as_mut().unwrap();
    let line = Recorded::Line { kind: "life".into(), text: "of the old node".into() };
    begun.record(1, &line).unwrap();
    node.on_restored(2, Ok(memory(&node))).unwrap();
    assert_eq!((node.role, records(&node)), (Role::Standby, 1), "the old node's journal has more");
    node.become_active(Begins::OnItsOwn).unwrap();
    let led = records(&node);
    node.on_restored(2, Ok(memory(&node))).unwrap();
    node.on_begun(follower, *memory(&node)).unwrap();
    assert_eq!((node.role, records(&node)), (Role::Active, led));
    assert!(node.journal_dir().exists());
}

/// Others may have led in between: its journal is not what it must go on from.
#[tokio::test]
async fn a_former_operator_that_is_named_in_a_later_epoch_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = host(dir.path(), OLD);
    node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
    node.on_chain(block(&node, 2, 2, (2, false))).unwrap();
    let ended = node.on_chain(block(&node, 3, 3, (3, true))).unwrap_err();
    assert_eq!((node.role, ended.kind), (Role::Draining, Kind::Retry), "{ended}");
}
