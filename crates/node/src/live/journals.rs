//! Journals as files: those of older builds are replayed to the state they had then; damaged ones say where and what to do.
//!
//! `crates/node/tests/journals/` has a folder for each build whose journals are still read: the log as it was written, and
//! `state.txt`, what it folds to. A folder of a release is never written again. Before the first release there is one,
//! `unreleased`, which `UPDATE_EXPECT=1 cargo test -p node --lib journals` makes anew: then running agents of earlier builds
//! cannot go on with this one, and CHANGELOG.md says so.

use super::*;
use crate::conversation::{ConversationInput, Stored};
use crate::paid_call;
use economy::{ChainEvent, ChainEventKind, Input, LeaseView, Limits, OfferView, Outcome, Stage, Usdc, View};
use expect_test::expect_file;
use pay::book::channels::{CallReservation, ChannelAsk, ChannelDecision, ChannelInput};
use pay::book::{AbortWhy, BookInput, Delivery};
use pay::scheme::channel::{ChannelConfig, ChannelId, ChannelState, HeldVoucher};
use pay::{RequestId, TransferMethod};
use std::path::PathBuf;

const BORN: u64 = 1_800_000_000;
const HOST: [u8; 20] = [0xA1; 20];
const OTHER_HOST: [u8; 20] = [0xA2; 20];
const CUSTOMER: [u8; 20] = [0xC1; 20];
const CHANNEL: ChannelId = ChannelId([0xC2; 32]);

fn journals() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/journals"))
}

/// What every journal here begins from: with other wishes the same records say something else.
fn start() -> State {
    crate::genesis::for_tests_of([0x7E; 20])
}

fn lease(id: u64, provider: [u8; 20], at: u64) -> LeaseView {
    LeaseView {
        id,
        offer: id,
        provider,
        price_e6: 10_000_000,
        start: at,
        end: at + 30 * 86_400,
        ready_by: at,
        ready: true,
        escrow_left: Usdc(1_700_000),
    }
}

/// Block `number` of this story, with so much in the treasury.
fn view(number: u64, balance: u128, standby: bool) -> Input {
    let offer = |id, provider| OfferView {
        id,
        provider,
        price_e6: 10_000_000,
        free: 3,
        min_term: 86_400,
        max_term: 30 * 86_400,
        served: 4,
        failed: 0,
    };
    Input::Block(Box::new(View {
        number,
        timestamp: BORN + 2 * number,
        stage: Stage::Alive,
        paused: false,
        restoring: false,
        epoch: 1,
        operator_is_me: true,
        active: Some(lease(1, HOST, BORN)),
        standby: standby.then(|| lease(2, OTHER_HOST, BORN)),
        draining: None,
        announced: 0,
        announced_at: 0,
        checkpoint_seq: u64::from(number > 40),
        last_heartbeat: BORN,
        challenged_at: 0,
        balance: Usdc(balance),
        escrow: Usdc(1_700_000),
        purse: Usdc::ZERO,
        spent_in_day: Usdc(1_728_000),
        operator_gas_wei: 2_000_000_000_000_000,
        relay_gas_wei: 2_000_000_000_000_000,
        treasury_gas_wei: 30_000_000_000_000_000,
        mandate_until: BORN + 365 * 86_400,
        wind_down_at: 0,
        limits: Limits {
            day_limit: Usdc(20_000_000),
            price_e6_max: 20_000_000,
            term_max: 30 * 86_400,
            prepay_max: 2 * 86_400,
            gas_day_max_wei: 5_000_000_000_000_000,
            gas_target_wei: 1_000_000_000_000_000,
            starve_floor: Usdc(1_000_000),
        },
        offers: vec![offer(1, HOST), offer(2, OTHER_HOST)],
    }))
}

fn chain_event(block: u64, kind: ChainEventKind) -> Recorded {
    Recorded::Life(Input::Chain(vec![ChainEvent { block, index: 0, kind }]))
}

fn paid(nonce: u8) -> (RequestId, Recorded) {
    let reserved = paid_call::reserved(CUSTOMER, nonce, BORN + 20, BORN + 900);
    (paid_call::request(CUSTOMER, nonce), Recorded::Book(reserved))
}

fn delivery() -> Delivery {
    paid_call::delivery(3, BORN + 24)
}

fn settled(nonce: u8) -> BookInput {
    BookInput::Settled {
        method: TransferMethod::Eip3009,
        payer: CUSTOMER,
        nonce: [nonce; 32],
        amount: Usdc(900),
        tx: [8; 32],
        block: 12,
        recorded: true,
    }
}

/// A call on a channel, as the book of `state` would have it.
fn called(state: &State) -> (RequestId, Recorded) {
    let ask = ChannelAsk {
        channel: CHANNEL,
        max: Usdc(500),
        ceiling: Usdc(500),
        deposit: None,
        route: "POST /v1/embeddings".into(),
        body_digest: [4; 32],
        fresh: false,
    };
    let ChannelDecision::New { request } = state.book.channels().decide(&ask, BORN + 30) else {
        panic!("a funded channel serves")
    };
    let reservation = CallReservation {
        request,
        channel: CHANNEL,
        voucher: HeldVoucher { max: ask.max, signature: [6; 65] },
        accepted: ask.ceiling,
        ceiling: ask.ceiling,
        route: ask.route,
        body_digest: ask.body_digest,
        identifier: Some([3; 32]),
        prompt_tokens: 8,
        max_tokens: 1,
        run: String::new(),
        at: BORN + 30,
    };
    (request, Recorded::Book(BookInput::Channel(ChannelInput::Reserved(reservation))))
}

/// The first minutes of a life: birth, two payments of which one comes back, a channel with a call on it, a standby.
/// Each record is durable before the next, so that the files are the same each time.
fn write_story(dir: &Path) {
    let journal = Journal::create(dir, journal::Options::default(), Box::new(|_| {})).expect("an empty folder");
    let mut live = Live::new(start(), journal, 0, KeyRing::default(), 1_000_000);
    let mut tell = |at: u64, record: Recorded| {
        let lsn = live.record(BORN + at, &record).expect("the disk takes it");
        live.journal.sync().expect("durable");
        (lsn, live.state.clone())
    };
    let money = |amount| ChainEventKind::TransferIn { from: [0xB0; 20], amount: Usdc(amount) };
    tell(0, chain_event(1, money(100_000_000)));
    tell(0, chain_event(2, ChainEventKind::Rented { lease: 1, prepay: Usdc(1_728_000) }));
    tell(0, chain_event(3, ChainEventKind::Activated { lease: 1 }));
    tell(2, Recorded::Life(Input::Booted { epoch: 1, lease: 1, restored: false }));
    tell(2, Recorded::Line { kind: "epoch".into(), text: "epoch 1 begins on lease 1".into() });
    tell(4, Recorded::Life(Input::Throughput { milli_tokens_per_sec: 41_000 }));
    tell(20, Recorded::Life(view(10, 98_272_000, false)));
    tell(20, Recorded::Read { number: 10, hash: [10; 32] });
    for (nonce, answered) in [(1, true), (2, false)] {
        let (request, reserved) = paid(nonce);
        tell(20, reserved);
        tell(21, Recorded::Book(BookInput::SettleSent { request }));
        let outcome = match answered {
            true => BookInput::Delivered { request, delivery: delivery(), amount: Usdc(700) },
            false => BookInput::Aborted { request, why: AbortWhy::Engine },
        };
        tell(24, Recorded::Book(outcome));
        let event = ChainEventKind::ExactSettled { payer: CUSTOMER, nonce: [nonce; 32], amount: Usdc(900) };
        let (block, input) = (11 + u64::from(nonce), settled(nonce));
        if answered {
            // As builds before `Recorded::Events` wrote it.
            tell(24, chain_event(block, event));
            tell(24, Recorded::Book(input));
        } else {
            let events = vec![ChainEvent { block, index: 0, kind: event }];
            tell(24, Recorded::Events { events, payments: vec![input] });
        }
    }
    let config = ChannelConfig {
        payer: CUSTOMER,
        payer_authorizer: CUSTOMER,
        receiver: [0x7E; 20],
        receiver_authorizer: [0x7E; 20],
        token: [0xDD; 20],
        withdraw_delay_secs: 90_000,
        salt: [0; 32],
    };
    let state = ChannelState { balance: Usdc(10_000), block: 14, ..ChannelState::default() };
    let seen = ChannelInput::Seen { channel: CHANNEL, config, state, at: BORN + 28 };
    let (_, folded) = tell(28, Recorded::Book(BookInput::Channel(seen)));
    let (request, reserved) = called(&folded);
    tell(30, reserved);
    let charged = ChannelInput::Charged { request, amount: Usdc(321), delivery: delivery() };
    let (lsn, _) = tell(31, Recorded::Book(BookInput::Channel(charged)));
    tell(32, Recorded::Life(Input::Earned { first_lsn: 9, last_lsn: lsn, count: 2, tokens: 42, sum: Usdc(1_221) }));
    let (payer, wrapped_key) = (CUSTOMER, vec![7; 32]);
    let stored = Stored { response: "resp_1".into(), payer, at: BORN + 33, cid: "bafkrei".into(), wrapped_key };
    tell(33, Recorded::Conversation(ConversationInput::Store(stored)));
    tell(34, Recorded::Life(Input::StandbyAnswered { lease: 2, ready: true }));
    let (lsn, folded) = tell(100, Recorded::Life(view(50, 98_273_800, true)));
    tell(100, Recorded::Read { number: 50, hash: [50; 32] });
    let waiting = folded.agent.unfinished();
    let (id, _) = waiting.iter().find(|(id, _)| id.lsn <= lsn).expect("a young agent has something to do");
    tell(104, Recorded::Life(Input::Done { id: *id, outcome: Outcome::Done { block: 51 } }));
}

/// What a person compares, and the digest of all that they do not.
fn told(state: &State, records: u64) -> String {
    let ledger = state.agent.ledger();
    let lines = [
        format!("records: {records}"),
        format!("balance: {}", ledger.balance()),
        format!("escrow: {}", ledger.escrow()),
        format!("seed: {}", ledger.seed().0),
        format!("sales: {}", ledger.sales().0),
        format!("balanced: {}", ledger.is_balanced()),
        format!("served: {}", state.served),
        format!("unposted: {:?}", state.unposted()),
        format!("owed: {:?}", state.book.owed().map(|(id, _, amount)| (*id, amount.0)).collect::<Vec<_>>()),
        format!("channels: {:?}", state.book.channels().totals()),
        format!("leases: {:?}", state.leases()),
        format!("log: {} lines", state.log.last_seq()),
        format!("conversations: {:?}", state.conversations.by_page()),
        format!("read: {:?}", state.read_blocks().map(|(number, _)| number).collect::<Vec<_>>()),
        format!("state: {}", hex::encode(state.digest())),
    ];
    lines.join("\n") + "\n"
}

/// Of a copy: opening a journal may cut its tail off, and takes its lock.
fn copied(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(from).expect("a journal") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|extension| extension != "txt") {
            std::fs::copy(&path, dir.path().join(path.file_name().expect("a file"))).expect("copied");
        }
    }
    dir
}

fn replayed(dir: &Path) -> Result<(State, Journal)> {
    Live::replay(dir, start, Box::new(|_| {})).map(|found| found.expect("a journal"))
}

#[test]
fn journals_of_every_build_that_is_still_read_fold_to_what_they_were() {
    let unreleased = journals().join("unreleased");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let fresh = tempfile::tempdir().expect("a folder");
        write_story(fresh.path());
        std::fs::create_dir_all(&unreleased).expect("made");
        for entry in std::fs::read_dir(fresh.path()).expect("readable") {
            let path = entry.expect("readable").path();
            if path.extension().is_some_and(|extension| extension == "log") {
                std::fs::copy(&path, unreleased.join(path.file_name().expect("a file"))).expect("copied");
            }
        }
    }
    let mut builds = 0;
    for entry in std::fs::read_dir(journals()).expect("tests/journals") {
        let build = entry.expect("readable").path();
        let dir = copied(&build);
        let (state, journal) =
            replayed(dir.path()).unwrap_or_else(|e| panic!("{}: {}", build.display(), net::chain_of(&e)));
        expect_file![build.join("state.txt")].assert_eq(&told(&state, journal.last_lsn()));
        // A snapshot of it is read back to the same state, and the life goes on.
        let decoded = State::decode(&state.encode()).expect("its own snapshot");
        assert_eq!(decoded.digest(), state.digest());
        let last = journal.last_lsn();
        let mut live = Live::new(state, journal, last, KeyRing::default(), 1_000_000);
        let line = Recorded::Line { kind: "life".into(), text: "it goes on".into() };
        assert_eq!(live.record(BORN + 200, &line).expect("it takes records"), last + 1);
        builds += 1;
    }
    assert!(builds > 0, "no journal is kept: UPDATE_EXPECT=1 makes one");
}

#[test]
fn a_damaged_middle_stops_with_its_offset_and_says_how_the_memory_comes_back() {
    let dir = copied(&journals().join("unreleased"));
    let log = dir.path().join(format!("{:020}.log", 1));
    let mut bytes = std::fs::read(&log).expect("the log");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    std::fs::write(&log, &bytes).expect("written");
    let Err(error) = replayed(dir.path()) else { panic!("a flipped bit went unnoticed") };
    assert_eq!(error.kind, crate::Kind::Corrupt);
    let said = net::chain_of(&error);
    assert!(said.contains(log.to_str().expect("text")) && said.contains("is damaged at offset "), "{said}");
    assert!(said.contains("move this folder away") && said.contains("last acknowledged checkpoint"), "{said}");
    // Nothing was mended behind anybody's back.
    assert_eq!(std::fs::read(&log).expect("still there"), bytes);
}

#[test]
fn a_record_that_folds_otherwise_than_it_did_stops_the_replay() {
    let dir = copied(&journals().join("unreleased"));
    let (_, mut journal) = replayed(dir.path()).expect("whole");
    let line = Recorded::Line { kind: "life".into(), text: "another code's".into() };
    let lsn = journal.append(line.kind(), BORN + 200, [7; 32], &line.encode()).expect("it takes records");
    journal.sync().expect("durable");
    drop(journal);
    let Err(error) = replayed(dir.path()) else { panic!("it went unnoticed") };
    assert!(error.to_string().contains(&format!("differs at record {lsn}")), "{error}");
}
