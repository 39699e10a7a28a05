//! A node that dies at any record, and starts again from those before it.

use super::tests::{block, node, node_on, records, whole_block};
use super::*;
use crate::{paid_call, stand_in};
use alloy::primitives::{Address, U256};
use alloy::rpc::types::{Block, Transaction};
use chain::bindings::Treasury;
use chain::logs::ChainLog;
use economy::Usdc;
use pay::BookInput;
use pay::book::{AbortWhy, Service, Totals};
use serde_json::{Value, json};

const PAYER: [u8; 20] = [0xC1; 20];
const PRICE: u128 = paid_call::PRICE.0;

/// What a process finds in `dir` that has the records of `node` up to `last`.
pub(super) fn found_in(dir: &std::path::Path, node: &Node, last: u64) -> State {
    let here = &node.live.as_ref().unwrap().journal;
    here.sync().unwrap();
    let mut journal = journal::Journal::create(dir, journal::Options::default(), Box::new(|_| ())).unwrap();
    journal.import(&here.export(1, last).unwrap()).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let (state, _) = Live::replay(dir, || genesis::fresh(&node.cx), Box::new(|_| ())).unwrap().unwrap();
    state
}

fn request(nonce: u8) -> RequestId {
    paid_call::request(PAYER, nonce)
}

/// A call under this nonce that is being served, and whose payment is on its way to the chain.
pub(super) fn open_call(node: &mut Node, nonce: u8) {
    let now = node.now();
    let live = node.live.as_mut().unwrap();
    for input in [paid_call::reserved(PAYER, nonce, now, now + 900), BookInput::SettleSent { request: request(nonce) }]
    {
        live.record(now, &Recorded::Book(input)).unwrap();
    }
}

pub(super) fn delivered(nonce: u8) -> Recorded {
    let delivery = paid_call::delivery(0, 1_000);
    Recorded::Book(BookInput::Delivered { request: request(nonce), delivery, amount: paid_call::PRICE })
}

/// What the treasury tells in block `number`, in this order.
fn told(node: &Node, number: u64, events: Vec<TreasuryEvent>) -> Vec<LogItem> {
    let log = |(index, event)| {
        LogItem::Emitted(ChainLog {
            block: number,
            block_hash: B256::repeat_byte(2),
            index,
            tx: B256::repeat_byte(8),
            address: node.cx.config.treasury,
            event: ChainEvent::Treasury(event),
            data: alloy::primitives::LogData::default(),
        })
    };
    (0..).zip(events).map(log).collect()
}

fn came_in(nonce: u8) -> TreasuryEvent {
    let (payer, nonce) = (Address::from(PAYER), B256::repeat_byte(nonce));
    TreasuryEvent::ExactSettled(Treasury::ExactSettled { payer, nonce, amount: U256::from(PRICE) })
}

fn went_back(nonce: u8) -> TreasuryEvent {
    let (payer, nonce) = (Address::from(PAYER), B256::repeat_byte(nonce));
    TreasuryEvent::ExactRefunded(Treasury::ExactRefunded { payer, nonce, amount: U256::from(PRICE) })
}

/// What a person would compare: the book of payments, and of the ledger the treasury and what customers are owed.
fn books(state: &State) -> (Totals, i128, i128) {
    let ledger = state.agent.ledger();
    (state.book.totals(), ledger.balance(), ledger.of(economy::Account::Customers))
}

/// What a start records when the chain has the blocks up to `height` of those that were read.
fn takes_back(state: &mut State, lsn: u64, height: u64) {
    for (lsn, gone) in (lsn + 1..).zip(state.take_back_above(height)) {
        state.apply(lsn, 0, &gone);
    }
}

/// What it records then of what the chain tells of the blocks above `height`.
fn reads(state: &mut State, node: &Node, lsn: u64, height: u64, logs: &[LogItem]) {
    let is_new = |item: &&LogItem| item.log().is_some_and(|log| log.block > height);
    let logs: Vec<LogItem> = logs.iter().filter(is_new).cloned().collect();
    let money = money_events::translate(&logs, &BTreeSet::new(), &node.cx, state.leases(), &state.book);
    for (lsn, recorded) in (lsn + 1_000..).zip(money.records()) {
        state.apply(lsn, 0, &recorded);
    }
}

/// The height of the last block that it is known to have read.
fn newest_read(state: &State) -> u64 {
    state.read_blocks().next().map_or(0, |(number, _)| number)
}

#[tokio::test]
async fn a_crash_at_any_record_of_a_block_ends_in_the_books_of_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = node(dir.path());
    // It is born in this block, and then reads it.
    for _ in 0..2 {
        node.on_chain(whole_block(&node, 1)).unwrap();
    }
    open_call(&mut node, 1);
    open_call(&mut node, 2);
    let aborted = Recorded::Book(BookInput::Aborted { request: request(2), why: AbortWhy::Engine });
    for end in [delivered(1), aborted] {
        let now = node.now();
        node.live.as_mut().unwrap().record(now, &end).unwrap();
    }
    let (first, without) = (records(&node), books(&node.live.as_ref().unwrap().state));
    let mut news = whole_block(&node, 2);
    let logs = told(&node, 2, vec![came_in(1), came_in(2), went_back(2)]);
    (news.logs, news.state.balance) = (Some(logs.clone()), U256::from(PRICE));
    node.on_chain(news).unwrap();
    let with = books(&node.live.as_ref().unwrap().state);
    assert_eq!((with.0.earned, with.0.refunded, with.1), (Usdc(PRICE), Usdc(PRICE), 900));
    for last in first..=records(&node) {
        let dir = tempfile::tempdir().unwrap();
        let state = found_in(&dir.path().join("journal"), &node, last);
        let mut gone = state.clone();
        takes_back(&mut gone, last, 1);
        assert_eq!(books(&gone), without, "the block never was, and the journal ends with record {last}");
        // It stands: what follows the newest block that is known to have been read is read again.
        let mut stands = state;
        let read = newest_read(&stands);
        takes_back(&mut stands, last, read);
        reads(&mut stands, &node, last, read, &logs);
        assert_eq!(books(&stands), with, "the block stands, and the journal ends with record {last}");
    }
}

/// The watcher of a process knows the chain from the block on with which it began. A branch may begin below that.
#[tokio::test]
async fn a_branch_below_the_block_that_a_process_began_with_is_noticed_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    // Another second block than the one that was read.
    let url = stand_in::endpoint(async |asked: Value| {
        let number = asked["params"][0].as_str().unwrap_or_default().to_owned();
        let mut block = serde_json::to_value(Block::<Transaction>::default()).unwrap();
        let fork = if number == "0x1" { 1 } else { 9 };
        (block["number"], block["hash"]) = (json!(number), json!(B256::repeat_byte(fork)));
        Ok(block)
    });
    let (mut node, mut heard) = node_on(&url.await, dir.path());
    for _ in 0..2 {
        node.on_chain(whole_block(&node, 1)).unwrap();
    }
    open_call(&mut node, 1);
    let now = node.now();
    node.live.as_mut().unwrap().record(now, &delivered(1)).unwrap();
    let without = books(&node.live.as_ref().unwrap().state);
    let mut news = whole_block(&node, 2);
    (news.logs, news.state.balance) = (Some(told(&node, 2, vec![came_in(1)])), U256::from(PRICE));
    node.on_chain(news).unwrap();
    assert_ne!(books(&node.live.as_ref().unwrap().state), without);
    let logs_from = node.logs_from.subscribe();
    node.on_event(Event::ReadAnew("a reorg below block 2".into())).unwrap();
    while *logs_from.borrow() != Some(ReadAfter { height: 1, hash: Some(B256::repeat_byte(1)) }) {
        let event = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await.expect("it is told").unwrap();
        node.on_event(event).unwrap();
    }
    assert_eq!(books(&node.live.as_ref().unwrap().state), without);
}

// ---- dust ----

/// Gifts of one micro-USDC in block `number`, each of another sender.
fn dust(node: &Node, number: u64, count: u64) -> Vec<LogItem> {
    let treasury = node.cx.config.treasury;
    let gift = |index| {
        let from = Address::from_word(B256::from(U256::from(number * 100_000 + index)));
        LogItem::Emitted(ChainLog {
            block: number,
            block_hash: B256::from(U256::from(number)),
            index,
            tx: B256::from(U256::from(index / 1_000)),
            address: node.cx.birth.token,
            event: ChainEvent::Transfer { from, to: treasury, amount: 1 },
            data: alloy::primitives::LogData::default(),
        })
    };
    (0..count).map(gift).collect()
}

/// A look at block `number`, which brings these events, and by which the treasury holds `balance` micro-USDC.
fn look(node: &mut Node, number: u64, logs: Vec<LogItem>, balance: u64) {
    let mut news = whole_block(node, number);
    (news.logs, news.state.balance) = (Some(logs), U256::from(balance));
    node.on_chain(news).unwrap();
    let agent = &node.live.as_ref().unwrap().state.agent;
    assert_eq!((agent.ledger().balance(), agent.books_balance()), (i128::from(balance), true));
}

/// On a roll-up it costs a stranger a few cents. A record has a length that the journal takes, and a node that cannot record
/// what it read ends, and so does each after it.
#[tokio::test]
async fn dust_in_any_amount_is_recorded_little_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = node(dir.path());
    for _ in 0..2 {
        node.on_chain(whole_block(&node, 1)).unwrap();
    }
    let before = records(&node);
    let mut logs = dust(&node, 2, 60_000);
    logs.extend((3..=62).flat_map(|number| dust(&node, number, 1_000)));
    look(&mut node, 62, logs, 120_000);
    // The last of them is taken back, newest first, and another one takes its place.
    let gone = dust(&node, 62, 1_000).into_iter().rev().map(|item| match item {
        LogItem::Emitted(log) => LogItem::Reverted(log),
        other => other,
    });
    let logs = gone.chain([LogItem::TakenBack { from: 62 }]).chain(dust(&node, 62, 20)).collect();
    look(&mut node, 63, logs, 119_020);
    let journal = &node.live.as_ref().unwrap().journal;
    journal.sync().unwrap();
    let new = journal::read_export(&journal.export(before + 1, journal.last_lsn()).unwrap()).unwrap();
    let longest = new.iter().map(|record| record.payload.len()).max();
    assert!(longest < Some(64 << 10) && new.len() < 50, "{} records, the longest of {longest:?} bytes", new.len());
}

/// More events than the ledger can take back, and one block that tells more than one record holds.
#[tokio::test]
async fn a_crash_between_the_records_of_a_look_ends_in_the_books_of_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = node(dir.path());
    for _ in 0..2 {
        node.on_chain(whole_block(&node, 1)).unwrap();
    }
    let (first, without) = (records(&node), books(&node.live.as_ref().unwrap().state));
    let mut logs: Vec<LogItem> = (2..=19).flat_map(|number| dust(&node, number, 40)).collect();
    logs.extend(told(&node, 20, (1..=150).map(came_in).collect()));
    logs.extend(told(&node, 21, vec![went_back(1), went_back(2)]));
    logs.extend((22..=41).flat_map(|number| dust(&node, number, 40)));
    let balance = 38 * 40 + 148 * u64::try_from(PRICE).unwrap();
    look(&mut node, 41, logs.clone(), balance);
    let with = books(&node.live.as_ref().unwrap().state);
    let (mut read, mut then) = (1, without);
    for last in first..=records(&node) {
        let dir = tempfile::tempdir().unwrap();
        let mut state = found_in(&dir.path().join("journal"), &node, last);
        if newest_read(&state) > read {
            (read, then) = (newest_read(&state), books(&state));
        }
        takes_back(&mut state, last, read);
        assert_eq!(books(&state), then, "block {read} was read, and the journal ends with record {last}");
        reads(&mut state, &node, last, read, &logs);
        assert_eq!(books(&state), with, "the blocks stand, and the journal ends with record {last}");
    }
    assert!(records(&node) - first > 10, "in several records");
}

// ---- in the middle of a handover ----

/// When the move below begins, chain seconds.
pub(super) const MOVES_AT: u64 = 10_000_000;
/// Between two of its blocks.
const BLOCK_SECS: u64 = 2;

/// On lease 1, which is about to end.
pub(super) fn mover(dir: &std::path::Path) -> Node {
    let (mut node, _) = node(dir);
    let timers = &mut Arc::get_mut(&mut node.cx).expect("its only owner").birth.timers;
    (timers.handoverNotice, timers.silence, timers.restoreTimeout) = (600, 21_600, 3_600);
    node
}

pub(super) fn lease(id: u64, provider: u8, (start, end): (u64, u64)) -> economy::LeaseView {
    economy::LeaseView {
        id,
        offer: id,
        provider: [provider; 20],
        price_e6: 10_000_000,
        start,
        end,
        ready_by: start,
        ready: true,
        escrow_left: Usdc(2_000_000),
    }
}

/// A block of the move: `announced_at` is when, if it is, lease 2 was announced.
fn seen(number: u64, announced_at: Option<u64>, is_challenged: bool) -> Recorded {
    Recorded::Life(Input::Block(Box::new(view(number, announced_at, is_challenged))))
}

/// What the life sees in it.
pub(super) fn view(number: u64, announced_at: Option<u64>, is_challenged: bool) -> economy::View {
    let at = MOVES_AT + number * BLOCK_SECS;
    let day = 86_400;
    economy::View {
        number,
        timestamp: at,
        stage: economy::Stage::Alive,
        paused: false,
        restoring: false,
        epoch: 1,
        operator_is_me: true,
        active: Some(lease(1, 0xA1, (MOVES_AT - 29 * day, MOVES_AT + day))),
        standby: Some(lease(2, 0xA2, (MOVES_AT - day, MOVES_AT + 29 * day))),
        draining: None,
        announced: announced_at.map_or(0, |_| 2),
        announced_at: announced_at.unwrap_or(0),
        checkpoint_seq: 1,
        last_heartbeat: at,
        challenged_at: if is_challenged { at } else { 0 },
        balance: Usdc(100_000_000),
        escrow: Usdc(4_000_000),
        purse: Usdc::ZERO,
        spent_in_day: Usdc::ZERO,
        operator_gas_wei: u128::MAX,
        relay_gas_wei: u128::MAX,
        treasury_gas_wei: u128::MAX,
        mandate_until: MOVES_AT + 365 * day,
        wind_down_at: 0,
        limits: economy::Limits {
            day_limit: Usdc(20_000_000),
            price_e6_max: 20_000_000,
            term_max: 2_592_000,
            prepay_max: 172_800,
            gas_day_max_wei: 5_000_000_000_000_000,
            gas_target_wei: 1_000_000_000_000_000,
            starve_floor: Usdc(1_000_000),
        },
        offers: Vec::new(),
    }
}

/// The records of a move up to a heartbeat that is asked for while the handover is on its way. The successor follows.
fn moves(node: &mut Node) {
    let mut news = block(node, 1, 1, (1, true));
    news.head.timestamp = MOVES_AT;
    node.on_chain(news).unwrap();
    let live = node.live.as_mut().unwrap();
    let answered = Recorded::Life(Input::StandbyAnswered { lease: 2, ready: true });
    let announced = Some(MOVES_AT - 1_000);
    for record in [seen(2, None, false), answered, seen(3, None, false), seen(4, announced, false)] {
        live.record(MOVES_AT + 2 * BLOCK_SECS, &record).unwrap();
    }
    live.record(MOVES_AT + 5 * BLOCK_SECS, &seen(5, announced, true)).unwrap();
}

/// Tasks of the life that leave `live` when all of it is on this disk.
fn leaves(live: &mut Live) -> Vec<OutputId> {
    live.durable = live.journal.last_lsn();
    let effects = std::iter::from_fn(|| live.release());
    let tasks = effects.filter_map(|effect| match effect {
        Effect::Life(id, output) => output.task().map(|_| id),
        Effect::Book(_) | Effect::Reply(_) => None,
    });
    tasks.collect()
}

/// The process dies at each record and starts again while the handover may be mined.
#[tokio::test]
async fn what_waited_for_the_successors_disk_before_a_restart_waits_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = mover(dir.path());
    moves(&mut node);
    let agent = &node.live.as_ref().unwrap().state.agent;
    let (handover, valid_until) = agent.handover().expect("a handover is on its way");
    let beat = agent.unfinished().into_iter().find(|(id, _)| *id > handover).expect("a heartbeat after it").0;
    let mut held = 0;
    for last in handover.lsn - 1..=records(&node) {
        let dir = tempfile::tempdir().unwrap();
        drop(found_in(&dir.path().join("journal"), &node, last));
        let mut again = mover(dir.path());
        again.wake_from_disk().unwrap();
        let mut news = block(&again, 6, 6, (1, true));
        news.head.timestamp = valid_until;
        again.on_chain(news).unwrap();
        assert!(again.acts(), "it leads, whatever waits");
        let live = again.live.as_mut().unwrap();
        let (is_handing_over, has_beat) = (last >= handover.lsn, last >= beat.lsn);
        live.when_durable(live.journal.last_lsn(), || ());
        if is_handing_over {
            assert_eq!(leaves(live), vec![], "nobody follows this process yet, which found {last} records");
            live.followed_to(live.journal.last_lsn());
        }
        let expected: Vec<OutputId> = has_beat.then_some(beat).into_iter().collect();
        assert_eq!(leaves(live), expected, "the successor has it all; {last} records were found");
        held += expected.len();
    }
    assert!(held > 0, "no heartbeat was held");
}

/// A handover that cannot be mined any more holds nothing back.
#[tokio::test]
async fn a_restart_after_a_handovers_time_waits_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = mover(dir.path());
    moves(&mut node);
    let live = node.live.as_mut().unwrap();
    let (handover, valid_until) = live.state.agent.handover().unwrap();
    leaves(live);
    let all = live.unfinished(valid_until + 1);
    assert!(all.iter().any(|(id, _)| *id > handover), "{all:?}");
    assert!(leaves(live).is_empty());
}

/// It was mined, and the successor went on with what it had. What that one may not have must not leave, however long it takes.
#[tokio::test]
async fn what_is_held_when_a_handover_is_mined_leaves_with_the_successors_word_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = mover(dir.path());
    moves(&mut node);
    let live = node.live.as_mut().unwrap();
    let (_, valid_until) = live.state.agent.handover().unwrap();
    leaves(live);
    live.followed_to(live.durable);
    live.hand_over(valid_until);
    let line = Recorded::Line { kind: "late".into(), text: "an answer".into() };
    let last = live.record(valid_until, &line).unwrap();
    let (reply, mut answer) = oneshot::channel();
    live.when_durable(last, move || reply.send(()).unwrap());
    node.on_durable(last).unwrap();
    let mut news = block(&node, 9, 9, (2, false));
    news.head.timestamp = valid_until + 1;
    node.on_chain(news).unwrap();
    assert_eq!((node.role, answer.try_recv().is_ok()), (Role::Draining, false), "the successor may not know of it");
    node.live.as_mut().unwrap().followed_to(last);
    node.let_go().unwrap();
    answer.try_recv().expect("the successor has it");
}

/// Its disk came back older than it was, or it is another node's.
#[tokio::test]
async fn a_follower_that_has_more_than_this_journal_has_to_begin_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = mover(dir.path());
    node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
    node.successor = Some(("token".into(), node.cx.keys.exchange.recipient()));
    let mut asks = |after, token: &str| {
        let (reply, mut answer) = oneshot::channel();
        let live = node.live.as_mut().unwrap();
        live.durable = live.journal.last_lsn();
        let last = live.durable;
        node.on_peer(PeerAsk::Tail { after: last + after, token: token.into(), reply }).unwrap();
        // Nothing is told of a part that there is not yet.
        answer.try_recv().ok().map(|part| part.map(|part| part.last_lsn).map_err(|e| e.kind))
    };
    assert_eq!(asks(0, "token"), None);
    let refused = Some(Err(crate::error::Kind::Superseded));
    assert_eq!((asks(1, "token"), asks(0, "another")), (refused, refused));
}

// ---- between the cut of a move and the last report ----

/// As a follower of `old` is when it has heard its last word, and the chain names it in epoch 2.
fn successor(dir: &std::path::Path, old: &Node) -> Node {
    let mut next = mover(dir);
    found_in(&next.journal_dir(), old, records(old));
    next.wake_from_disk().unwrap();
    (next.found, next.last_word, next.granted_token) = (Found::Nothing, true, Some("token".into()));
    next.on_chain(block(&next, 10, 10, (2, true))).unwrap();
    next
}

/// Another process in the same folder, which the chain names in this epoch.
fn started_again(dir: &std::path::Path, node: Node, epoch: u64) -> Node {
    node.live.as_ref().unwrap().journal.sync().unwrap();
    drop(node);
    let mut again = mover(dir);
    again.wake_from_disk().unwrap();
    again.on_chain(block(&again, 11, 11, (epoch, true))).unwrap();
    again
}

pub(super) fn service(node: &Node, nonce: u8) -> Service {
    node.live.as_ref().unwrap().state.book.entry(&request(nonce)).unwrap().service.clone()
}

/// Three streams: two of the old node's that were open at the cut, and one of the successor's own.
#[tokio::test]
async fn a_successor_that_is_started_again_waits_on_for_what_the_old_node_still_serves() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut old = mover(dirs.0.path());
    old.on_chain(block(&old, 1, 1, (1, true))).unwrap();
    open_call(&mut old, 1);
    open_call(&mut old, 2);
    let mut next = successor(dirs.1.path(), &old);
    open_call(&mut next, 3);
    let mut next = started_again(dirs.1.path(), next, 2);
    assert_eq!(next.role, Role::Active);
    let is_open = |node: &Node, nonce| matches!(service(node, nonce), Service::Serving { .. });
    assert!(is_open(&next, 1) && is_open(&next, 2), "the old node still serves them");
    assert_eq!(service(&next, 3), Service::Aborted { why: AbortWhy::Crashed }, "its own process is gone");

    let report = delivered(1).encode();
    let refused = next.take_report("another", &report).unwrap_err();
    assert_eq!(refused.kind, crate::error::Kind::Superseded);
    // Said twice, because the first word may be lost.
    for _ in 0..2 {
        next.take_report("token", &report).unwrap();
    }
    assert!(matches!(service(&next, 1), Service::Delivered(_)));
    let awaited = BTreeSet::from([request(1), request(2)]);
    next.on_late_is_over(&awaited).unwrap();
    assert_eq!(service(&next, 2), Service::Aborted { why: AbortWhy::Crashed }, "nobody said how it ended");
    assert!(matches!(service(&next, 1), Service::Delivered(_)), "closed once");
    // Nothing is waited for any more.
    open_call(&mut next, 4);
    let next = started_again(dirs.1.path(), next, 2);
    assert!(!is_open(&next, 4));
}

/// Once the journal is closed, what the successor has not heard is nowhere else.
#[test]
fn a_former_operator_that_is_started_again_reports_what_ended_after_the_cut() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let process = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // Nobody answers there yet, and with its runtime the process is gone.
    process().block_on(async {
        let mut old = mover(dir.path());
        old.on_chain(block(&old, 1, 1, (1, true))).unwrap();
        open_call(&mut old, 1);
        old.on_chain(block(&old, 2, 2, (2, false))).unwrap();
        old.drain();
        assert!(old.live.as_ref().unwrap().sealed);
        old.shared.moved_to(Some(url));
        old.successor = Some(("token".into(), old.cx.keys.exchange.recipient()));
        let Recorded::Book(end) = delivered(1) else { unreachable!("a delivery") };
        old.book(end).unwrap();
        old.live.as_ref().unwrap().journal.sync().unwrap();
    });
    process().block_on(async {
        let (said, mut heard) = mpsc::channel(1);
        let hear = |headers: http::HeaderMap, body: bytes::Bytes| async move {
            said.send((headers[http::header::AUTHORIZATION].clone(), body)).await.unwrap();
        };
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let app = axum::Router::new().route("/peer/delivered", axum::routing::post(hear));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut old = mover(dir.path());
        old.wake_from_disk().unwrap();
        let (token, body) = heard.recv().await.unwrap();
        assert_eq!((token.to_str().unwrap(), &body[..]), ("Bearer token", &delivered(1).encode()[..]));
        // The succession is taken back: then it is this node's own to charge, once.
        old.on_chain(block(&old, 3, 3, (1, true))).unwrap();
        assert!(matches!(service(&old, 1), Service::Delivered(_)));
        let old = started_again(dir.path(), old, 1);
        assert!(old.late.is_empty());
    });
}

/// Its payment is mined after the block that names a successor, while the last streams end here.
#[tokio::test]
async fn a_receipt_that_is_signed_after_the_cut_names_the_epoch_of_its_signer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = node(dir.path());
    node.on_chain(block(&node, 1, 1, (1, true))).unwrap();
    open_call(&mut node, 1);
    let stream = node.shared.enter();
    node.on_chain(block(&node, 2, 2, (2, false))).unwrap();
    assert_eq!(node.role, Role::Draining);
    let now = node.now();
    node.live.as_mut().unwrap().record(now, &delivered(1)).unwrap();
    let paid = Settlement::Paid { amount: PRICE, tx: B256::repeat_byte(8), block: 2, recorded: true };
    node.on_settled(request(1), paid).unwrap();
    node.on_durable(records(&node)).unwrap();
    let receipts = &node.live.as_ref().unwrap().state.receipts;
    let signed = pay::receipt::SignedReceipt::from_json(&receipts[&request(1).to_string()].json).unwrap();
    assert_eq!(signed.receipt.epoch, 1);
    drop(stream);
}
