//! Snapshots are made beside the loop, by folding what the journal holds, while it takes more.

use super::*;
use pay::book::channels::ChannelInput;
use pay::scheme::channel::{ChannelConfig, ChannelId, ChannelState};
use std::time::Instant;

fn channel(number: u64) -> Recorded {
    let id = |first: u8| {
        let mut bytes = [first; 32];
        bytes[1..9].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    let payer: [u8; 20] = id(1)[..20].try_into().unwrap();
    let (receiver, token) = (AGENT.into(), [5; 20]);
    let config = ChannelConfig {
        payer,
        payer_authorizer: payer,
        receiver,
        receiver_authorizer: receiver,
        token,
        withdraw_delay_secs: 900,
        salt: id(2),
    };
    let state = ChannelState {
        balance: Usdc(1_000_000),
        claimed: Usdc(0),
        withdrawal: None,
        refund_nonce: 0,
        block: number + 1,
    };
    Recorded::Book(BookInput::Channel(ChannelInput::Seen { channel: ChannelId(id(3)), config, state, at: 1 }))
}

impl Bench {
    fn lives_on(&mut self, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| self.record(&channel(number)));
    }

    /// The first is of a young life, and encoded here.
    async fn with_a_first_snapshot() -> Self {
        let mut here = Self::new().await;
        here.lives_on(0..100);
        assert!(matches!(here.live.folded(), Folded::Here(_)));
        here.snapshot();
        here.lives_on(100..200);
        here
    }

    /// What a start finds.
    fn started_anew(self) -> (State, u64) {
        let (dir, live, _kept) = (self.dir.path().join("journal"), self.live, self.dir);
        drop(live);
        let opened = Live::replay(&dir, for_tests, Box::new(|_| ())).unwrap().unwrap();
        (opened.0, opened.1.last_lsn())
    }
}

#[tokio::test]
async fn a_snapshot_is_the_state_at_its_record_though_records_come_meanwhile() {
    let mut here = Bench::with_a_first_snapshot().await;
    let (expected, lsn) = (here.live.state.encode(), here.live.journal.last_lsn());
    let due = here.live.snapshot().unwrap();
    assert!(matches!(due.state, Folded::Anew(_)), "nothing is encoded on the loop's thread");
    assert!(here.live.snapshot().is_none(), "one at a time");
    here.lives_on(200..400);
    let making = std::thread::spawn(move || due.run());
    here.lives_on(400..5_000);
    let made = making.join().unwrap();
    here.live.snapshot_made(&made);
    made.unwrap();
    let snapshot = here.live.journal.latest_snapshot().unwrap().unwrap();
    assert!(snapshot.lsn == lsn && snapshot.bytes == expected, "at {} of {lsn}", snapshot.lsn);
    let (now, last) = (here.live.state.encode(), here.live.journal.last_lsn());
    let (state, reached) = here.started_anew();
    assert!(reached == last && state.encode() == now);
}

/// Where commits stay away, a start would fold ever more.
#[tokio::test]
async fn a_long_journal_gets_a_snapshot_without_a_commit() {
    let mut here = Bench::with_a_first_snapshot().await;
    here.lives_on(200..20_099);
    assert!(here.live.snapshot_when_long().is_none(), "19,999 records since the last");
    here.lives_on(20_099..20_100);
    let due = here.live.snapshot_when_long().unwrap();
    assert!(here.live.snapshot_when_long().is_none(), "it is being made");
    let made = due.run();
    here.live.snapshot_made(&made);
    made.unwrap();
    assert!(here.live.snapshot_when_long().is_none(), "and then it is short");
    assert_eq!(here.live.journal.latest_snapshot().unwrap().unwrap().lsn, here.live.journal.last_lsn());
}

#[tokio::test]
async fn a_checkpoints_snapshot_is_the_state_at_its_record_though_records_come_meanwhile() {
    let mut here = Bench::with_a_first_snapshot().await;
    let mut draft = here.begin(None);
    let expected = here.live.state.encode();
    here.lives_on(200..400);
    let made = here.write(&mut draft).await;
    let opened = open(&here.store, &made, &here.memory_key(&made)).await.unwrap();
    assert!(opened.snapshot.lsn == made.lsn && opened.snapshot.state == expected);
}

#[tokio::test]
async fn a_crash_while_a_snapshot_is_made_leaves_the_one_before() {
    let mut here = Bench::with_a_first_snapshot().await;
    let due = here.live.snapshot().unwrap();
    here.lives_on(200..300);
    // The process dies: folded, half written beside.
    let state = due.state.encoded().unwrap();
    let beside = here.dir.path().join("journal").join(format!("{:020}.tmp", due.lsn));
    std::fs::write(beside, &state[..state.len() / 2]).unwrap();
    let (now, last) = (here.live.state.encode(), here.live.journal.last_lsn());
    assert_eq!(here.live.journal.latest_snapshot().unwrap().unwrap().lsn, 100);
    let (state, reached) = here.started_anew();
    assert!(reached == last && state.encode() == now);
}

#[tokio::test]
async fn a_state_that_cannot_be_folded_anew_is_encoded_where_it_is() {
    let mut here = Bench::with_a_first_snapshot().await;
    let path = here.dir.path().join("journal").join(format!("{:020}.snapshot", 100));
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let made = here.live.snapshot().unwrap().run();
    here.live.snapshot_made(&made);
    assert_eq!(made.unwrap_err().kind, crate::Kind::Corrupt);
    // The next one is: nothing is lost but time.
    here.snapshot();
    let newest = here.live.journal.latest_snapshot().unwrap().unwrap();
    assert!(newest.lsn == 200 && newest.bytes == here.live.state.encode());
}

/// How long the loop's thread is held by a snapshot of an agent with 100,000 channels: what it was, what a copy would be,
/// and what it is. `cargo test -p node --release --lib how_long -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_the_loop_waits_for_a_snapshot() {
    let mut here = Bench::with_a_first_snapshot().await;
    // Keys of conversations are wrapped to one that a checkpoint makes.
    here.checkpoint(None).await;
    here.lives_on(200..100_000);
    for number in 0..STORED_MAX {
        let cid = store::cid::of_raw(&number.to_le_bytes()).to_string();
        here.stored(&format!("resp_{number:024x}"), 1, &cid, rand::random());
    }
    here.live.journal.sync().unwrap();
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        println!("{what}: {:?}", began.elapsed());
    };
    let mut bytes = Vec::new();
    timed("encoding the state", &mut || bytes = here.live.state.encode());
    println!("which has {} bytes", bytes.len());
    let journal = here.live.journal.reader();
    let lsn = here.live.journal.last_lsn();
    timed("writing it", &mut || journal.write_snapshot(lsn, &bytes).unwrap());
    let mut copy = None;
    timed("copying the state", &mut || copy = Some(here.live.state.clone()));
    timed("dropping the copy", &mut || drop(copy.take()));
    here.lives_on(100_000..110_000);
    here.live.journal.sync().unwrap();
    let mut due = None;
    timed("asking for a snapshot", &mut || due = here.live.snapshot());
    timed("making it beside, with 10,000 records after the last", &mut || due.take().unwrap().run().unwrap());
    here.live.stands = None;
    timed("drawing up a checkpoint with a snapshot", &mut || drop(here.begin(None)));
    timed("drawing up another", &mut || drop(here.begin(None)));
}
