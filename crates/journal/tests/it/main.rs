//! The journal from outside: what a crash may cost, and what it may not.

mod child;
mod crash;
mod kept;
mod recovery;
mod shipping;

use journal::{Journal, OnDurable, Opened, Options, Record};
use std::path::Path;

/// Small enough that a few records fill a segment.
pub const SMALL: Options = Options { segment_bytes_max: 1_000 };

pub fn open(dir: &Path) -> Opened {
    Journal::open(dir, SMALL, deaf()).expect("the journal opens")
}

pub fn open_large(dir: &Path) -> Opened {
    Journal::open(dir, Options::default(), deaf()).expect("the journal opens")
}

pub fn deaf() -> OnDurable {
    Box::new(|_| ())
}

/// A payload that is different for each number, of different lengths, and does not end like a hole on the disk.
pub fn payload(n: u64) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.extend((0..=n % 50).map(|_| 0xa5));
    bytes
}

pub fn append(journal: &mut Journal, count: u64) {
    for _ in 0..count {
        let n = journal.next_lsn();
        let lsn = journal.append(3, 1_000 + n, [7; 32], &payload(n)).expect("appends");
        assert_eq!(lsn, n, "the LSN that was announced is the one given");
    }
}

pub fn assert_run(records: &[Record], first: u64, last: u64) {
    let expected: Vec<Record> = (first..=last)
        .map(|n| Record { lsn: n, kind: 3, time: 1_000 + n, outputs_digest: [7; 32], payload: payload(n) })
        .collect();
    assert_eq!(records, expected.as_slice());
}

/// Segment files by name, so ascending.
pub fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .expect("the folder is there")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    all.sort();
    all
}
