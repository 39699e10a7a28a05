//! A node that dies at any record, and starts again from those before it.

use super::tests::{node, records, whole_block};
use super::*;
use alloy::primitives::{Address, U256};
use chain::bindings::Treasury;
use chain::logs::ChainLog;
use economy::Usdc;
use pay::book::{AbortWhy, Delivery, Finish, Reservation, Timing, Totals};
use pay::{BookInput, Settle, SettleExact, TransferMethod};

const PAYER: [u8; 20] = [0xC1; 20];
const PRICE: u128 = 900;

/// The state that a process finds whose disk has the records of `node` up to `last`.
fn found(node: &Node, last: u64) -> State {
    let dir = tempfile::tempdir().unwrap();
    let here = &node.live.as_ref().unwrap().journal;
    here.sync().unwrap();
    let mut journal = journal::Journal::create(dir.path(), journal::Options::default(), Box::new(|_| ())).unwrap();
    journal.import(&here.export(1, last).unwrap()).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let (state, _) = Live::replay(dir.path(), || genesis::fresh(&node.cx), Box::new(|_| ())).unwrap().unwrap();
    state
}

/// A call under this nonce whose payment is on its way to the chain.
fn call(node: &mut Node, nonce: u8, is_answered: bool) {
    let now = node.now();
    let settlement = SettleExact {
        payer: PAYER,
        value: Usdc(PRICE),
        valid_after: 0,
        valid_before: now + 900,
        nonce: [nonce; 32],
        signature: vec![5; 65],
        is_signed_by_key: true,
    };
    let request = RequestId::of_payment(TransferMethod::Eip3009, &PAYER, &[nonce; 32]);
    let reservation = Reservation {
        request,
        settlement: Settle::Exact(settlement),
        timing: Timing::AtOnce,
        route: "POST /v1/chat/completions".into(),
        body_digest: [nonce; 32],
        identifier: None,
        prompt_tokens: 11,
        max_tokens: 64,
        run: String::new(),
        at: now,
    };
    let delivery = Delivery {
        cached_tokens: 0,
        completion_tokens: 21,
        bytes: 84,
        output_digest: [9; 32],
        finish: Finish::Stop,
        at: now,
        confirmed: true,
    };
    let end = match is_answered {
        true => BookInput::Delivered { request, delivery, amount: Usdc(PRICE) },
        false => BookInput::Aborted { request, why: AbortWhy::Engine },
    };
    let live = node.live.as_mut().unwrap();
    for input in [BookInput::Reserved(reservation), BookInput::SettleSent { request }, end] {
        live.record(now, &Recorded::Book(input)).unwrap();
    }
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
    if let Some(gone) = state.take_back_above(height) {
        state.apply(lsn + 1, 0, &gone);
    }
}

#[tokio::test]
async fn a_crash_at_any_record_of_a_block_ends_in_the_books_of_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _heard) = node(dir.path());
    // It is born in this block, and then reads it.
    for _ in 0..2 {
        node.on_chain(whole_block(&node, 1)).unwrap();
    }
    call(&mut node, 1, true);
    call(&mut node, 2, false);
    let (first, without) = (records(&node), books(&node.live.as_ref().unwrap().state));
    let mut news = whole_block(&node, 2);
    let logs = told(&node, 2, vec![came_in(1), came_in(2), went_back(2)]);
    (news.logs, news.state.balance) = (Some(logs.clone()), U256::from(PRICE));
    node.on_chain(news).unwrap();
    let with = books(&node.live.as_ref().unwrap().state);
    assert_eq!((with.0.earned, with.0.refunded, with.1), (Usdc(PRICE), Usdc(PRICE), 900));
    for last in first..=records(&node) {
        let state = found(&node, last);
        let mut gone = state.clone();
        takes_back(&mut gone, last, 1);
        assert_eq!(books(&gone), without, "the block never was, and the journal ends with record {last}");
        // It stands: what follows the newest block that is known to have been read is read again.
        let mut stands = state;
        let read = stands.read_blocks().next().map_or(0, |(number, _)| number);
        takes_back(&mut stands, last, read);
        if read < 2 {
            let money = money_events::translate(&logs, &BTreeSet::new(), &node.cx, stands.leases(), &stands.book);
            stands.apply(last + 2, 0, &Recorded::Events { events: money.life, payments: money.book });
        }
        assert_eq!(books(&stands), with, "the block stands, and the journal ends with record {last}");
    }
}
