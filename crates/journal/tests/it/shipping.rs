//! Export on one host, import on the next.

use crate::{SMALL, append, assert_run, deaf, open};
use journal::{Journal, Kind, Snapshot, read_export};

fn begin_at_40(dir: &std::path::Path) -> journal::Result<Journal> {
    let snapshot = Snapshot { lsn: 40, bytes: b"state at 40".to_vec() };
    Journal::create_at(dir, &snapshot, SMALL, deaf())
}

#[test]
fn a_successor_goes_on_with_the_same_lsns() {
    let (old, new) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut active = open(old.path()).journal;
    append(&mut active, 100);
    active.sync().expect("durable");
    let mut standby = begin_at_40(new.path()).expect("begun");
    for (first, last) in [(41, 41), (42, 70), (60, 90), (91, 100), (1, 100)] {
        let had = standby.next_lsn();
        let added = standby.import(&active.export(first, last).expect("here")).expect("follows");
        assert_run(&added, had, last.max(had - 1));
    }
    append(&mut standby, 5);
    drop(standby);
    let opened = open(new.path());
    assert_eq!(opened.snapshot.map(|s| s.lsn), Some(40));
    assert_run(&opened.records, 41, 105);
    assert_eq!(opened.journal.first_lsn(), 41);
}

#[test]
fn a_range_with_a_gap_or_a_flaw_changes_nothing() {
    let (old, new) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut active = open(old.path()).journal;
    append(&mut active, 30);
    active.sync().expect("durable");
    let mut standby = open(new.path()).journal;
    let range = active.export(1, 20).expect("here");
    assert_eq!(standby.import(&active.export(2, 5).expect("here")).err().map(|e| e.kind), Some(Kind::Gap));
    for at in 0..range.len() {
        let mut flawed = range.clone();
        flawed[at] ^= 0x10;
        // The header's spare bytes are not part of what is checked; everything else is.
        if (28..32).contains(&at) {
            continue;
        }
        let error = standby.import(&flawed).err().unwrap_or_else(|| panic!("a flaw at byte {at} went unnoticed"));
        assert!(matches!(error.kind, Kind::Corrupt | Kind::Version), "byte {at}: {error}");
        assert_eq!(standby.next_lsn(), 1);
    }
    // Two ranges glued together with a piece missing.
    let (a, b) = (active.export(1, 5).expect("here"), active.export(7, 9).expect("here"));
    let glued = [a.as_slice(), &b[32..]].concat();
    assert_eq!(standby.import(&glued).err().map(|e| e.kind), Some(Kind::Corrupt));
    assert_eq!(standby.import(&range).map(|r| r.len()), Ok(20));
}

#[test]
fn only_what_is_durable_and_here_is_exported() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut journal = open(dir.path()).journal;
    append(&mut journal, 60);
    journal.sync().expect("durable");
    for (first, last) in [(0, 5), (1, 61), (61, 61), (5, 4)] {
        assert_eq!(journal.export(first, last).err().map(|e| e.kind), Some(Kind::Gap), "{first}..{last}");
    }
    for first in 1..=60 {
        assert_run(&read_export(&journal.export(first, 60).expect("here")).expect("whole"), first, 60);
        assert_run(&read_export(&journal.export(1, first).expect("here")).expect("whole"), 1, first);
    }
}

#[test]
fn a_folder_in_use_is_not_begun_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(open(dir.path()));
    assert_eq!(begin_at_40(dir.path()).err().map(|e| e.kind), Some(Kind::Bug));
    assert_eq!(Journal::create(dir.path(), SMALL, deaf()).err().map(|e| e.kind), Some(Kind::Bug));
}
