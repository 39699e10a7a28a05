//! The writer thread: takes what has queued up, writes it, syncs once. Group commit.
//!
//! The first failure is final: after a failed fdatasync nobody knows what is on the disk, so it is never repeated.
//! A second thread tells the owner. So an owner that is slow to listen never holds the disk up, and one that waits
//! for the disk while it should listen does not hang.

use crate::crash_point;
use crate::error::{Error, Kind, Result};
use crate::log;
use crate::record::{Lsn, Record};
use crate::segment::{self, Segment, u64_of};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Called on a thread of its own, with the last durable LSN after it grew (several commits may share one call), and
/// at most once with the error after which nothing becomes durable any more: stop serving then. It may block.
pub type OnDurable = Box<dyn Fn(Result<Lsn>) + Send>;

#[derive(Default)]
struct State {
    queue: Vec<Record>,
    queued_bytes: u64,
    durable: Lsn,
    failed: Option<Error>,
    closing: bool,
    /// The writer thread has ended.
    closed: bool,
    /// All segments, ascending, the last one being written.
    segments: Vec<Segment>,
}

#[derive(Default)]
struct Shared {
    // A std Mutex, because it is never held across a write or a sync.
    state: Mutex<State>,
    work: Condvar,
    progress: Condvar,
    /// Held while old segments are read or removed, which may be asked for on several threads.
    old: Mutex<()>,
    /// The same of snapshots; they take longer, and who writes a journal on waits for none.
    snapshots: Mutex<()>,
}

impl Shared {
    /// A panic on another thread must not turn into a second one here: the state is consistent at every unlock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is durable, for anyone who waits. Clones share one state.
#[derive(Clone)]
pub struct Durable(Arc<Shared>);

impl Durable {
    /// The last LSN on disk.
    pub fn lsn(&self) -> Lsn {
        self.0.lock().durable
    }

    /// Blocks until `lsn` is on disk, or fails.
    pub fn wait(&self, lsn: Lsn) -> Result<()> {
        let mut state = self.0.lock();
        while state.durable < lsn {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if state.closed {
                return Err(Error::new(Kind::Bug, format!("LSN {lsn} was never appended")));
            }
            state = self.0.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    pub(crate) fn segments(&self) -> Vec<Segment> {
        self.0.lock().segments.clone()
    }

    /// Takes segments off the list that lie wholly before `lsn`, never the one being written.
    pub(crate) fn forget_before(&self, lsn: Lsn) -> Vec<Segment> {
        let mut state = self.0.lock();
        let gone = state.segments.windows(2).take_while(|pair| pair[1].first_lsn <= lsn).count();
        state.segments.drain(..gone).collect()
    }

    /// While it is held, no segment goes.
    pub(crate) fn old_segments(&self) -> MutexGuard<'_, ()> {
        self.0.old.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While it is held, no snapshot comes or goes.
    pub(crate) fn snapshots(&self) -> MutexGuard<'_, ()> {
        self.0.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The failure after which nothing becomes durable any more.
    pub fn error(&self) -> Option<Error> {
        self.0.lock().failed.clone()
    }

    /// Bytes appended and not yet durable: a caller that sees it grow should slow its customers down.
    pub fn backlog_bytes(&self) -> u64 {
        self.0.lock().queued_bytes
    }
}

/// Where the writer goes on.
pub(crate) struct Start {
    pub dir: PathBuf,
    pub segment_bytes_max: u64,
    pub segments: Vec<Segment>,
    /// The last LSN on disk already.
    pub durable: Lsn,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    /// The last of `start.segments` must exist with a whole header.
    pub fn start(start: Start, on_durable: OnDurable) -> Result<Self> {
        let Some(current) = start.segments.last() else {
            return Err(Error::new(Kind::Bug, "the writer needs a segment to begin with"));
        };
        let file = open_end(current)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { durable: start.durable, segments: start.segments.clone(), ..State::default() }),
            ..Shared::default()
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            file,
            path: current.path.clone(),
            bytes: current.bytes,
            dir: start.dir,
            segment_bytes_max: start.segment_bytes_max,
            durable: start.durable,
        };
        let told = start.durable;
        let teller = Arc::clone(&shared);
        spawn("journal-news", move || tell(&teller, told, &on_durable))?;
        let thread = spawn("journal", move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues records in order; those of one call share one commit.
    pub fn push(&self, records: impl IntoIterator<Item = Record>) -> Result<()> {
        let mut state = self.shared.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let was_empty = state.queue.is_empty();
        for record in records {
            state.queued_bytes += u64_of(record.frame_bytes());
            state.queue.push(record);
        }
        drop(state);
        // The worker sleeps only on an empty queue, and looks at it again after each commit: whoever finds records there
        // has nothing to say. Each word is a system call, which thousands of records a second would feel.
        if was_empty {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    pub fn durable(&self) -> Durable {
        Durable(Arc::clone(&self.shared))
    }
}

impl Drop for Writer {
    /// Everything appended is written and synced before the file is let go. The teller is not waited for: the owner
    /// that it tells may be the one who drops.
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has already been reported by its hook.
            let _ = thread.join();
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    dir: PathBuf,
    file: File,
    path: PathBuf,
    bytes: u64,
    segment_bytes_max: u64,
    durable: Lsn,
}

impl Worker {
    fn run(mut self) {
        loop {
            let mut state = self.shared.lock();
            while state.queue.is_empty() && !state.closing {
                state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.queue.is_empty() {
                state.closed = true;
                drop(state);
                self.shared.progress.notify_all();
                return;
            }
            let batch = std::mem::take(&mut state.queue);
            let failed = state.failed.is_some();
            drop(state);
            let outcome = if failed { Ok(()) } else { self.commit(&batch) };
            let mut state = self.shared.lock();
            state.queued_bytes = state.queued_bytes.saturating_sub(frame_bytes(&batch));
            state.durable = self.durable;
            if let Err(error) = outcome {
                state.failed = Some(error);
            }
            drop(state);
            self.shared.progress.notify_all();
        }
    }

    /// Writes a batch with one sync for each segment it touches.
    fn commit(&mut self, batch: &[Record]) -> Result<()> {
        let mut rest = batch;
        while !rest.is_empty() {
            let write = log::next_write(rest, self.bytes, self.segment_bytes_max, self.durable);
            if let Some(first_lsn) = write.begins {
                self.rotate(first_lsn)?;
            }
            let (now, later) = rest.split_at(write.records);
            rest = later;
            let bytes = write.bytes;
            self.file.write_all(&bytes).map_err(|e| Error::io("writing", &self.path, &e))?;
            crash_point!("journal.append");
            // Data only: the file's length is metadata that fdatasync does flush, its times are not needed.
            self.file.sync_data().map_err(|e| Error::io("syncing", &self.path, &e))?;
            crash_point!("journal.synced");
            self.bytes += u64_of(bytes.len());
            self.durable = now.last().map_or(self.durable, |r| r.lsn);
            let mut state = self.shared.lock();
            let written = self.bytes;
            if let Some(current) = state.segments.last_mut() {
                current.bytes = written;
                for (lsn, offset) in write.offsets {
                    current.mark(lsn, offset);
                }
            }
        }
        Ok(())
    }

    fn rotate(&mut self, first_lsn: Lsn) -> Result<()> {
        let next = create(&self.dir, first_lsn)?;
        self.file = open_end(&next)?;
        self.bytes = next.bytes;
        self.path.clone_from(&next.path);
        self.shared.lock().segments.push(next);
        Ok(())
    }
}

/// The teller's loop: one call for whatever became durable since the last.
fn tell(shared: &Shared, mut told: Lsn, on_durable: &OnDurable) {
    loop {
        let mut state = shared.lock();
        while state.durable == told && state.failed.is_none() && !state.closed {
            state = shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (durable, failed, closed) = (state.durable, state.failed.clone(), state.closed);
        drop(state);
        if durable > told {
            told = durable;
            on_durable(Ok(durable));
        }
        if let Some(error) = failed {
            on_durable(Err(error));
            return;
        }
        if closed {
            return;
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|e| Error::new(Kind::Io, format!("the thread `{name}` did not start: {e}")))
}

fn frame_bytes(records: &[Record]) -> u64 {
    records.iter().map(|r| u64_of(r.frame_bytes())).sum()
}

/// A new segment with a durable header and a durable name.
pub(crate) fn create(dir: &std::path::Path, first_lsn: Lsn) -> Result<Segment> {
    let mut segment = Segment::new(dir, first_lsn);
    let header = segment::header(first_lsn);
    // Truncating: what stands there is a header that a crash cut short, or `scan` would have read it.
    File::create(&segment.path)
        .and_then(|mut file| {
            file.write_all(&header)?;
            file.sync_all()
        })
        .map_err(|e| Error::io("creating", &segment.path, &e))?;
    segment::sync_dir(dir)?;
    segment.bytes = u64_of(header.len());
    Ok(segment)
}

fn open_end(segment: &Segment) -> Result<File> {
    OpenOptions::new().append(true).open(&segment.path).map_err(|e| Error::io("opening", &segment.path, &e))
}
