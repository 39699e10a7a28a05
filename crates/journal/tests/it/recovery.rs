//! Torn tails, damage, snapshots, order.

use crate::{SMALL, append, assert_run, deaf, open, open_large, segments};
use journal::{Journal, Kind, Options};
use std::fs;
use std::sync::mpsc;

#[test]
fn what_was_appended_is_replayed_in_order_over_many_segments() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut opened = open(dir.path());
    append(&mut opened.journal, 100);
    drop(opened);
    assert!(segments(dir.path()).len() > 5, "the segments are small");
    for path in segments(dir.path()) {
        assert!(fs::metadata(&path).expect("there").len() <= SMALL.segment_bytes_max, "{path:?} is too long");
    }
    let opened = open(dir.path());
    assert_run(&opened.records, 1, 100);
    assert_eq!((opened.torn, opened.journal.next_lsn()), (None, 101));
}

#[test]
fn a_torn_tail_is_cut_at_every_byte_and_the_log_goes_on() {
    let whole = tempfile::tempdir().expect("a folder");
    let mut opened = open_large(whole.path());
    append(&mut opened.journal, 9);
    opened.journal.sync().expect("durable");
    let bytes_before = fs::metadata(&segments(whole.path())[0]).expect("there").len();
    append(&mut opened.journal, 1);
    drop(opened);
    let bytes = fs::read(&segments(whole.path())[0]).expect("readable");
    let name = segments(whole.path())[0].file_name().expect("a name").to_owned();
    let before = usize::try_from(bytes_before).expect("small");
    for end in before..bytes.len() {
        // Cut short, and with the missing bytes there but never written.
        for hole in [false, true] {
            let dir = tempfile::tempdir().expect("a folder");
            let mut torn = bytes[..end].to_vec();
            if hole {
                torn.resize(bytes.len(), 0);
            }
            fs::write(dir.path().join(&name), &torn).expect("written");
            let mut opened = open_large(dir.path());
            assert_run(&opened.records, 1, 9);
            let cut = opened.torn.as_ref().map(|t| (t.offset, t.bytes));
            let expected = (torn.len() > before).then(|| (bytes_before, torn.len() as u64 - bytes_before));
            assert_eq!(cut, expected, "cut at byte {end}, hole {hole}");
            append(&mut opened.journal, 2);
            drop(opened);
            assert_run(&open_large(dir.path()).records, 1, 11);
        }
    }
}

#[test]
fn a_header_cut_short_is_a_torn_tail_too() {
    let whole = tempfile::tempdir().expect("a folder");
    let mut opened = open(whole.path());
    append(&mut opened.journal, 40);
    drop(opened);
    let last = segments(whole.path()).pop().expect("several");
    let first_lsn: u64 = last.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok()).expect("a number");
    for end in 0..32 {
        let bytes = fs::read(&last).expect("readable");
        fs::write(&last, &bytes[..end]).expect("written");
        let mut opened = open(whole.path());
        assert!(opened.torn.is_some());
        assert_run(&opened.records, 1, first_lsn - 1);
        append(&mut opened.journal, 1);
        drop(opened);
        assert_run(&open(whole.path()).records, 1, first_lsn);
    }
}

#[test]
fn whole_frames_behind_a_hole_are_a_torn_write_when_nothing_of_it_was_acknowledged() {
    let (source, dir) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut other = open_large(source.path()).journal;
    append(&mut other, 3);
    other.sync().expect("durable");
    let mut opened = open_large(dir.path());
    // An imported range is one batch, so one commit.
    opened.journal.import(&other.export(1, 3).expect("here")).expect("follows");
    drop(opened);
    let path = &segments(dir.path())[0];
    let mut bytes = fs::read(path).expect("readable");
    bytes[32..60].fill(0);
    fs::write(path, &bytes).expect("written");
    let opened = open_large(dir.path());
    assert_eq!(opened.records, vec![], "nobody was told that these were durable");
    assert_eq!(opened.torn.expect("reported").offset, 32);
}

#[test]
fn damage_in_the_middle_is_an_error_with_file_and_offset() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut opened = open_large(dir.path());
    for _ in 0..3 {
        append(&mut opened.journal, 1);
        opened.journal.sync().expect("durable");
    }
    drop(opened);
    let path = &segments(dir.path())[0];
    let bytes = fs::read(path).expect("readable");
    let first_bytes = 8 + 57 + crate::payload(1).len();
    let second_bytes = 8 + 57 + crate::payload(2).len();
    // The first record was acknowledged before the second was written, and the second before the third.
    for (at, damaged_at) in [(32, 32), (32 + first_bytes - 1, 32), (32 + first_bytes + 30, 32 + first_bytes)] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        fs::write(path, &damaged).expect("written");
        let Err(error) = Journal::open(dir.path(), Options::default(), deaf()) else {
            panic!("a flipped bit at {at} went unnoticed");
        };
        assert_eq!(error.kind, Kind::Corrupt);
        let message = error.to_string();
        assert!(message.contains(&format!("offset {damaged_at}:")), "{message}");
        assert!(message.contains(path.to_str().expect("text")) && message.contains("checkpoint"), "{message}");
    }
    let third = 32 + first_bytes + second_bytes;
    assert!(third < bytes.len(), "there is a third record");
}

#[test]
fn damage_in_an_older_segment_is_never_taken_for_a_torn_tail() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut opened = open(dir.path());
    append(&mut opened.journal, 100);
    drop(opened);
    let first = &segments(dir.path())[0];
    let bytes = fs::read(first).expect("readable");
    let mut damaged = bytes.clone();
    let end = damaged.len() - 1;
    damaged[end] ^= 1;
    for wrong in [damaged, bytes[..end].to_vec(), bytes[..10].to_vec()] {
        fs::write(first, wrong).expect("written");
        assert_eq!(Journal::open(dir.path(), SMALL, deaf()).err().map(|e| e.kind), Some(Kind::Corrupt));
    }
    fs::write(first, bytes).expect("written");
    fs::remove_file(&segments(dir.path())[2]).expect("removed");
    let error = Journal::open(dir.path(), SMALL, deaf()).err().expect("a segment is missing");
    assert!(error.kind == Kind::Corrupt && error.message.contains("lacks LSN"), "{error}");
}

#[test]
fn another_release_s_file_is_refused_by_version() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(open(dir.path()));
    let path = &segments(dir.path())[0];
    let mut bytes = fs::read(path).expect("readable");
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, bytes).expect("written");
    assert_eq!(Journal::open(dir.path(), SMALL, deaf()).err().map(|e| e.kind), Some(Kind::Version));
}

#[test]
fn progress_is_told_in_order_and_a_batch_shares_one_commit() {
    let (source, dir) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut other = open_large(source.path()).journal;
    append(&mut other, 1_000);
    other.sync().expect("durable");
    let (heard, ears) = mpsc::channel();
    let mut journal = Journal::create(
        dir.path(),
        Options::default(),
        Box::new(move |news| {
            let _ = heard.send(news.expect("the disk works"));
        }),
    )
    .expect("begun");
    journal.import(&other.export(1, 1_000).expect("here")).expect("follows");
    assert_eq!(ears.recv(), Ok(1_000), "a thousand records, one commit");
    for lsn in 1_001..1_200 {
        append(&mut journal, 1);
        if lsn % 7 == 0 {
            journal.sync().expect("durable");
        }
    }
    journal.sync().expect("durable");
    assert_eq!((journal.durable().lsn(), journal.durable().backlog_bytes()), (1_199, 0));
    drop(journal);
    // The teller hangs up when it has said the last word.
    let told: Vec<u64> = ears.iter().collect();
    assert!(told.is_sorted_by(|a, b| a < b) && told.last() == Some(&1_199), "{told:?}");
}

#[test]
fn an_owner_that_does_not_listen_holds_nothing_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let (release, hold) = mpsc::channel::<()>();
    let mut journal = Journal::create(
        dir.path(),
        SMALL,
        Box::new(move |_| {
            let _ = hold.recv();
        }),
    )
    .expect("begun");
    for _ in 0..10 {
        append(&mut journal, 10);
        journal.sync().expect("durable though nobody listens");
    }
    drop(journal);
    assert_run(&open(dir.path()).records, 1, 100);
    drop(release);
}

#[test]
fn a_snapshot_shortens_the_replay_and_frees_segments() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut opened = open(dir.path());
    append(&mut opened.journal, 60);
    opened.journal.write_snapshot(50, b"state at 50").expect("written");
    append(&mut opened.journal, 40);
    opened.journal.sync().expect("durable");
    let before = segments(dir.path()).len();
    opened.journal.truncate_before(u64::MAX).expect("removed");
    assert!(segments(dir.path()).len() < before);
    assert!(opened.journal.first_lsn() <= 51, "what a replay needs stays");
    drop(opened);
    let mut opened = open(dir.path());
    assert_eq!(opened.snapshot.as_ref().map(|s| (s.lsn, s.bytes.as_slice())), Some((50, &b"state at 50"[..])));
    assert_run(&opened.records, 51, 100);
    // A newer snapshot that the disk damaged: the older one serves.
    opened.journal.write_snapshot(90, b"state at 90").expect("written");
    opened.journal.truncate_before(u64::MAX).expect("removed");
    append(&mut opened.journal, 1);
    drop(opened);
    let newest = dir.path().join(format!("{:020}.snapshot", 90));
    let mut bytes = fs::read(&newest).expect("there");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&newest, bytes).expect("written");
    let opened = open(dir.path());
    assert_eq!(opened.snapshot.map(|s| s.lsn), Some(50));
    assert_run(&opened.records, 51, 101);
}

#[test]
fn a_log_that_lost_what_its_snapshot_holds_is_not_continued() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut opened = open_large(dir.path());
    append(&mut opened.journal, 10);
    opened.journal.write_snapshot(10, b"ten").expect("written");
    drop(opened);
    let path = &segments(dir.path())[0];
    let bytes = fs::read(path).expect("readable");
    fs::write(path, &bytes[..bytes.len() - 1]).expect("written");
    let error = Journal::open(dir.path(), Options::default(), deaf()).err().expect("LSN 10 was acknowledged");
    assert!(error.kind == Kind::Corrupt && error.message.contains("ends at LSN 9"), "{error}");
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let held = open(dir.path());
    let error = Journal::open(dir.path(), SMALL, deaf()).err().expect("it is held");
    assert_eq!(error.kind, Kind::Locked);
    drop(held);
    drop(open(dir.path()));
}

#[test]
fn a_payload_that_is_too_long_is_refused_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut opened = open(dir.path());
    append(&mut opened.journal, 1);
    let too_long = vec![0; journal::PAYLOAD_BYTES_MAX + 1];
    assert_eq!(opened.journal.append(0, 0, [0; 32], &too_long).err().map(|e| e.kind), Some(Kind::Bug));
    // The longest that is allowed does not fit a small segment; it gets one of its own.
    let longest = vec![1; journal::PAYLOAD_BYTES_MAX];
    assert_eq!(opened.journal.append(0, 0, [0; 32], &longest), Ok(2));
    append(&mut opened.journal, 1);
    drop(opened);
    let opened = open(dir.path());
    assert_eq!(opened.records.len(), 3);
    assert_eq!(opened.records[1].payload, longest);
}

#[test]
fn a_reader_beside_the_writer_sees_every_record_once_while_segments_go() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut journal = open(dir.path()).journal;
    append(&mut journal, 60);
    journal.write_snapshot(50, b"state at 50").expect("written");
    let reader = journal.reader();
    assert!(reader.has_snapshot().expect("listed"));
    append(&mut journal, 40);
    let (stop, beside) = (std::sync::atomic::AtomicBool::new(false), reader.clone());
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                beside.truncate_before(51).expect("removed");
            }
        });
        for _ in 0..200 {
            let last = journal.last_lsn();
            let from = reader.snapshot_before(last).expect("read").expect("there is one");
            let mut next = from.lsn + 1;
            let each = |record: journal::Record| {
                assert_eq!(record.lsn, next);
                next += 1;
                Ok::<_, journal::Error>(())
            };
            reader.records(from.lsn + 1, last, each).expect("all are here");
            assert_eq!(next, last + 1);
            append(&mut journal, 1);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    // Not one from after the record that is asked for; nor records that are gone.
    journal.write_snapshot(200, b"state at 200").expect("written");
    assert_eq!(reader.snapshot_before(199).expect("read").map(|snapshot| snapshot.lsn), Some(50));
    let gone = reader.records(1, 60, |_| Ok::<_, journal::Error>(()));
    assert_eq!(gone.expect_err("they are gone").kind, journal::Kind::Gap);
}
