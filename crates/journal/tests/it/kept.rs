//! Files as earlier formats wrote them are read as they were.
//!
//! `crates/journal/tests/kept/` has a folder for each format that is read: segments, a snapshot, an exported range, a torn
//! tail, and `told.txt`, what they hold. `UPDATE_EXPECT=1 cargo test -p journal --test it kept` writes the folder of the
//! present format if there is none; it changes none that is there.

use crate::{SMALL, append, assert_run, deaf, open, open_large, segments};
use journal::{Journal, read_export};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn kept() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kept"))
}

/// The format that this build writes, as its segments say.
fn present_format() -> u32 {
    let dir = tempfile::tempdir().expect("a folder");
    drop(open(dir.path()));
    let header = fs::read(&segments(dir.path())[0]).expect("a segment");
    u32::from_le_bytes(header[8..12].try_into().expect("four bytes"))
}

/// Sixty records in small segments, the state at 20, those before it gone as far as they may be, and a write that a crash
/// cut short.
fn write_journal(dir: &Path) {
    let mut journal = Journal::create(dir, SMALL, deaf()).expect("begun");
    for _ in 0..60 {
        append(&mut journal, 1);
        // One by one, so that the files are the same each time.
        journal.sync().expect("durable");
        if journal.last_lsn() == 20 {
            journal.write_snapshot(20, b"state at 20").expect("written");
        }
    }
    journal.truncate_before(u64::MAX).expect("removed");
    fs::write(dir.join("range.export"), journal.export(50, 55).expect("here")).expect("written");
    append(&mut journal, 1);
    drop(journal);
    let last = segments(dir).pop().expect("a segment");
    let bytes = fs::read(&last).expect("readable");
    fs::write(&last, &bytes[..bytes.len() - 3]).expect("cut");
    fs::remove_file(dir.join("lock")).expect("the lock is no part of it");
}

/// Of a copy: opening cuts the torn tail off.
fn told(from: &Path) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("readable").path();
        fs::copy(&path, dir.path().join(path.file_name().expect("a file"))).expect("copied");
    }
    let mut opened = open(dir.path());
    let snapshot = opened.snapshot.expect("a snapshot");
    let mut out = format!("snapshot: {} {}\n", snapshot.lsn, String::from_utf8_lossy(&snapshot.bytes));
    for record in &opened.records {
        let crc = crc32c::crc32c(&record.payload);
        let (lsn, kind, time) = (record.lsn, record.kind, record.time);
        let (outputs, bytes) = (crc32c::crc32c(&record.outputs_digest), record.payload.len());
        writeln!(out, "{lsn}: kind {kind}, at {time}, outputs {outputs:08x}, {bytes} bytes {crc:08x}").expect("told");
    }
    let torn = opened.torn.expect("a torn tail");
    writeln!(out, "torn: {} bytes at {}", torn.bytes, torn.offset).expect("told");
    let range = read_export(&fs::read(from.join("range.export")).expect("a range")).expect("whole");
    writeln!(out, "range: {:?}", range.iter().map(|record| record.lsn).collect::<Vec<_>>()).expect("told");
    // The log goes on behind it, and a successor of this build takes the range of that one.
    let next = opened.journal.next_lsn();
    append(&mut opened.journal, 3);
    drop(opened.journal);
    let again = open(dir.path());
    assert_run(&again.records, snapshot.lsn + 1, next + 2);
    let other = tempfile::tempdir().expect("a folder");
    let mut successor = open_large(other.path()).journal;
    append(&mut successor, 49);
    assert_eq!(successor.import(&fs::read(from.join("range.export")).expect("a range")).expect("it fits").len(), 6);
    out
}

#[test]
fn journals_of_every_format_are_read_as_they_were_written() {
    let present = kept().join(format!("format-{}", present_format()));
    let updates = std::env::var_os("UPDATE_EXPECT").is_some();
    if updates && !present.is_dir() {
        fs::create_dir_all(&present).expect("made");
        write_journal(&present);
        fs::write(present.join("told.txt"), told(&present)).expect("written");
    }
    assert!(
        present.is_dir(),
        "{} is not kept: UPDATE_EXPECT=1 cargo test -p journal --test it kept",
        present.display()
    );
    for entry in fs::read_dir(kept()).expect("tests/kept") {
        let dir = entry.expect("readable").path();
        let golden = fs::read_to_string(dir.join("told.txt")).expect("told.txt");
        assert_eq!(told(&dir), golden, "{} is read otherwise", dir.display());
    }
}
