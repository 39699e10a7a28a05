//! The append-only log of one life: records with checksums, group commit, replay, ranges for shipping.
//!
//! One process writes one folder: segment files of at most 8 MiB, two snapshots, a lock. `append` returns at once
//! with the record's LSN; the writer thread makes batches durable and `OnDurable` hears of it. What was said to be durable is there
//! after a crash; of what was not, a tail may be cut off. Damage anywhere else is an error that names file and offset.
//! What cannot be told from a torn write: damage to the last batch of the log, when the disk loses what it had synced.
//!
//! The journal never looks into payloads. It holds digests of what customers sent, never prompts or answers.

pub mod crash;
mod error;
mod gate;
pub mod log;
mod reader;
mod record;
mod segment;
mod snapshot;
mod writer;

pub use error::{Error, Kind, Result};
pub use gate::Gate;
pub use reader::Reader;
pub use record::{Lsn, PAYLOAD_BYTES_MAX, Record};
pub use segment::TornTail;
pub use snapshot::Snapshot;
pub use writer::{Durable, OnDurable};

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use writer::{Start, Writer};

/// How a journal is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// A segment is not begun anew before it would grow past this. Tests make it small.
    pub segment_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        // 8 MiB: a scan takes milliseconds, and a life of a month stays under a thousand files.
        Self { segment_bytes_max: 8 << 20 }
    }
}

/// A journal and what `open` found in it.
pub struct Opened {
    pub journal: Journal,
    /// Replay begins from this state, or from nothing.
    pub snapshot: Option<Snapshot>,
    /// All records after the snapshot, in order.
    pub records: Vec<Record>,
    /// What a crash had left unfinished; worth a line in the log.
    pub torn: Option<TornTail>,
}

pub struct Journal {
    dir: PathBuf,
    next_lsn: Lsn,
    writer: Writer,
    /// Held as long as the journal is open; declared last, so that the writer is done before it goes.
    _lock: Lock,
}

/// The folder, taken for one process.
struct Lock(File);

impl Drop for Lock {
    /// Closing the file would not do: a child that another thread is just starting has a copy of it until it runs its
    /// own program, and the lock would live as long as the copy.
    fn drop(&mut self) {
        self.0.unlock().ok();
    }
}

impl Journal {
    /// Opens the journal in `dir`, or begins one there with LSN 1.
    ///
    /// Cuts a torn tail off and reports it. Fails with `Locked` when another process has it open, with `Corrupt` when
    /// anything but the tail is damaged, with `Version` when another release wrote it.
    pub fn open(dir: &Path, options: Options, on_durable: OnDurable) -> Result<Opened> {
        let lock = lock(dir)?;
        let snapshot = snapshot::latest(dir)?;
        let reached = snapshot.as_ref().map_or(0, |s| s.lsn);
        let names = segment::list(dir)?;
        let mut reading = log::Reading::new(dir, reached, names.first().copied())?;
        let mut segments = Vec::new();
        let mut torn = None;
        for (i, first_lsn) in names.iter().enumerate() {
            let path = segment::path_of(dir, *first_lsn);
            reading.comes(*first_lsn)?;
            let bytes = fs::read(&path).map_err(|e| Error::io("reading", &path, &e))?;
            let (mut segment, tail) = reading.scan(*first_lsn, &bytes, i + 1 == names.len())?;
            if let Some(tail) = &tail {
                segment = cut(dir, segment, tail)?;
            }
            torn = tail;
            segments.push(segment);
        }
        let (records, next_lsn) = reading.end()?;
        if segments.is_empty() {
            segments.push(writer::create(dir, next_lsn)?);
        }
        let journal = Self::start(dir, options, lock, segments, next_lsn, on_durable)?;
        Ok(Opened { journal, snapshot, records, torn })
    }

    /// Begins a life's journal with LSN 1. Refuses a folder that already holds one.
    pub fn create(dir: &Path, options: Options, on_durable: OnDurable) -> Result<Self> {
        let lock = lock_empty(dir)?;
        let segments = vec![writer::create(dir, 1)?];
        Self::start(dir, options, lock, segments, 1, on_durable)
    }

    /// Begins a journal in the middle of a life: a successor goes on from `snapshot`, with the LSN after it.
    /// Refuses a folder that already holds one.
    pub fn create_at(dir: &Path, snapshot: &Snapshot, options: Options, on_durable: OnDurable) -> Result<Self> {
        let lock = lock_empty(dir)?;
        let next_lsn = snapshot.lsn + 1;
        // The snapshot first: with it alone `open` goes on after it, with the segment alone it could not.
        snapshot::write(dir, snapshot.lsn, &snapshot.bytes)?;
        let segments = vec![writer::create(dir, next_lsn)?];
        Self::start(dir, options, lock, segments, next_lsn, on_durable)
    }

    fn start(
        dir: &Path,
        options: Options,
        lock: Lock,
        segments: Vec<segment::Segment>,
        next_lsn: Lsn,
        on_durable: OnDurable,
    ) -> Result<Self> {
        let start = Start {
            dir: dir.to_path_buf(),
            segment_bytes_max: options.segment_bytes_max,
            segments,
            durable: next_lsn - 1,
        };
        Ok(Self { dir: dir.to_path_buf(), next_lsn, writer: Writer::start(start, on_durable)?, _lock: lock })
    }

    /// The LSN that the next `append` will give: the folds are told it before the record can be written.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// The last LSN given, 0 before the first.
    pub fn last_lsn(&self) -> Lsn {
        self.next_lsn - 1
    }

    /// Queues a record and returns its LSN at once; it is durable when `OnDurable` hears so.
    ///
    /// Fails for good once the writer has failed (disk full, I/O), and with `Bug` for a payload over
    /// [`PAYLOAD_BYTES_MAX`]. `time` is chain seconds.
    pub fn append(&mut self, kind: u8, time: u64, outputs_digest: [u8; 32], payload: &[u8]) -> Result<Lsn> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::new(
                Kind::Bug,
                format!("a record of {} bytes; the limit is {PAYLOAD_BYTES_MAX}", payload.len()),
            ));
        }
        let lsn = self.next_lsn;
        self.writer.push([Record { lsn, kind, time, outputs_digest, payload: payload.to_vec() }])?;
        self.next_lsn += 1;
        Ok(lsn)
    }

    /// A handle that outlives borrows of the journal.
    pub fn durable(&self) -> Durable {
        self.writer.durable()
    }

    /// Blocks until everything appended is durable.
    pub fn sync(&self) -> Result<()> {
        self.writer.durable().wait(self.last_lsn())
    }

    /// The oldest record still here.
    pub fn first_lsn(&self) -> Lsn {
        self.writer.durable().segments().first().map_or(self.next_lsn, |s| s.first_lsn)
    }

    /// For another thread: what is on the disk, while records go on being appended here.
    pub fn reader(&self) -> Reader {
        Reader { dir: self.dir.clone(), durable: self.durable() }
    }

    /// Durable records `first..=last` as bytes for [`Journal::import`] elsewhere. Fails with `Gap` when some of them
    /// were removed or are not durable yet.
    pub fn export(&self, first: Lsn, last: Lsn) -> Result<Vec<u8>> {
        self.reader().export(first, last)
    }

    /// Appends what another journal exported, and returns what was new. Checks every byte before it appends any.
    ///
    /// Records that are already here are passed over, so that a range may be sent twice; `Gap` when some are missing
    /// in between, `Corrupt` when the bytes are not what was exported.
    pub fn import(&mut self, bytes: &[u8]) -> Result<Vec<Record>> {
        let new = log::new_records(bytes, self.next_lsn)?;
        self.writer.push(new.clone())?;
        self.next_lsn = new.last().map_or(self.next_lsn, |r| r.lsn + 1);
        Ok(new)
    }

    /// Keeps `bytes` as the state at `lsn`, atomically. That record must be durable.
    pub fn write_snapshot(&self, lsn: Lsn, bytes: &[u8]) -> Result<()> {
        self.reader().write_snapshot(lsn, bytes)
    }

    /// The newest whole snapshot.
    pub fn latest_snapshot(&self) -> Result<Option<Snapshot>> {
        snapshot::latest(&self.dir)
    }

    /// Removes segments that hold only records before `lsn`. Never what a replay from the older of the kept snapshots
    /// needs: it must still be possible when the newer one is damaged.
    pub fn truncate_before(&self, lsn: Lsn) -> Result<()> {
        self.reader().truncate_before(lsn)
    }
}

/// Writes as much as a busy second's records beside the journal in `dir`, syncs it and takes it away again.
///
/// # Errors
/// The disk takes no writes: full, read-only or broken.
pub fn takes_writes(dir: &Path) -> Result<()> {
    const BYTES: usize = 1 << 20;
    let path = dir.join("probe");
    let written = fs::write(&path, vec![0; BYTES]).and_then(|()| File::open(&path)?.sync_all());
    let removed = fs::remove_file(&path);
    written.and(removed).map_err(|e| Error::io("trying to write", &path, &e))
}

/// The records of an export, checked: checksums, and LSNs without gaps from the one its header names.
pub fn read_export(bytes: &[u8]) -> Result<Vec<Record>> {
    let damaged = |at: usize, what: String| {
        Error::new(Kind::Corrupt, format!("an exported range is damaged at byte {at}: {what}; ask for it again"))
    };
    let Some(mut next) = segment::read_header(bytes, "an exported range")? else {
        return Err(damaged(0, "it has no header".into()));
    };
    let mut at = segment::HEADER_BYTES;
    let mut records = Vec::new();
    while at < bytes.len() {
        let frame = record::read_frame(&bytes[at..]).map_err(|flaw| damaged(at, flaw.to_string()))?;
        if frame.record.lsn != next {
            return Err(damaged(at, format!("LSN {} stands where {next} belongs", frame.record.lsn)));
        }
        next += 1;
        at += frame.bytes;
        records.push(frame.record);
    }
    Ok(records)
}

/// Takes the folder for this process until the lock is dropped.
fn lock(dir: &Path) -> Result<Lock> {
    fs::create_dir_all(dir).map_err(|e| Error::io("creating the folder", dir, &e))?;
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io("opening", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(fs::TryLockError::WouldBlock) => Err(Error::new(
            Kind::Locked,
            format!("{} is in use by another process: stop that one first", dir.display()),
        )),
        Err(fs::TryLockError::Error(e)) => Err(Error::io("locking", &path, &e)),
    }
}

/// Takes a folder that holds no journal yet.
fn lock_empty(dir: &Path) -> Result<Lock> {
    let lock = lock(dir)?;
    if !segment::list(dir)?.is_empty() || snapshot::latest(dir)?.is_some() {
        return Err(Error::new(Kind::Bug, format!("{} already holds a journal", dir.display())));
    }
    Ok(lock)
}

/// Cuts a torn tail off, durably, and returns the segment as it then is.
fn cut(dir: &Path, mut segment: segment::Segment, tail: &TornTail) -> Result<segment::Segment> {
    if tail.offset == 0 {
        return writer::create(dir, segment.first_lsn);
    }
    OpenOptions::new()
        .write(true)
        .open(&segment.path)
        .and_then(|file| {
            file.set_len(tail.offset)?;
            file.sync_all()
        })
        .map_err(|e| Error::io("cutting the torn tail off", &segment.path, &e))?;
    segment.bytes = tail.offset;
    Ok(segment)
}
