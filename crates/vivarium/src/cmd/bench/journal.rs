//! `vivarium bench journal`: what durability costs, each figure beside what the same disk gives a plain file in the same run.

use super::report::{Report, millis, percentile};
use anyhow::{Context, Result, ensure};
use journal::{Journal, OnDurable, Options};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vivarium::world::Programs;

/// Figures of the journal, with a plain file on the same disk beside them
#[derive(clap::Args)]
pub struct Flags {
    /// Records that are waited for, for each number of writers
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    commits: u32,
    /// Records that nobody waits for, and that are replayed
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    records: u32,
    /// Bytes in a record's payload: a reserved call has about two hundred
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    payload_bytes: u32,
    /// Mebibytes in a snapshot: a day of a busy small agent is under ten
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    snapshot_mib: u32,
    /// The folder whose disk is measured; else where temporary files go, which may be no disk at all
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Writes the figures into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Threads that each wait for their own records.
const WRITERS: [u32; 3] = [1, 8, 64];
/// Of a frame, beside its payload (`crates/journal/src/record.rs`).
const FRAME_BYTES: usize = 65;
/// Chain seconds; nobody looks.
const NOW: u64 = 1_800_000_000;

pub fn run(flags: &Flags) -> Result<()> {
    let under = flags.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = scratch_folder(&under)?;
    let dir = scratch.0.as_path();
    let payload = noise(usize::try_from(flags.payload_bytes)?);
    let mut report = Report::new("journal");
    for writers in WRITERS {
        commits(&mut report, dir, &payload, flags.commits, writers)?;
    }
    let log = dir.join("log");
    unwaited(&mut report, dir, &log, &payload, flags.records)?;
    reopened(&mut report, &log, flags.records)?;
    snapshots(&mut report, dir, &log, &payload, flags)?;
    if flags.write {
        report.write(&Programs::project()?.join("docs/benchmarks.md"))?;
    }
    Ok(())
}

/// What so many threads make durable, each waiting for its record before it appends the next: the disk is asked once for
/// all that wait.
fn commits(report: &mut Report, dir: &Path, payload: &[u8], count: u32, writers: u32) -> Result<()> {
    let each = count.div_ceil(writers);
    // Before and after: a disk is not the same twice.
    let mut alone = raw(&dir.join("raw"), payload, count.div_ceil(2))?;
    let log = dir.join(format!("by-{writers}"));
    let journal = Journal::create(&log, Options::default(), deaf())?;
    let durable = journal.durable();
    let journal = Mutex::new(journal);
    let started = Instant::now();
    let waits: Vec<Duration> = std::thread::scope(|scope| {
        let work = || -> Result<Vec<Duration>> {
            let mut waits = Vec::new();
            for _ in 0..each {
                let asked = Instant::now();
                let lsn = journal.lock().expect("no writer panics").append(1, NOW, [0; 32], payload)?;
                durable.wait(lsn)?;
                waits.push(asked.elapsed());
            }
            Ok(waits)
        };
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no writer panics")).collect::<Result<Vec<_>>>()
    })?
    .concat();
    let took = started.elapsed();
    drop(journal);
    std::fs::remove_dir_all(&log).context("cannot remove the journal")?;
    alone.extend(raw(&dir.join("raw"), payload, count.div_ceil(2))?);
    let (rate, plain) = (per_sec(waits.len(), took), per_sec(alone.len(), alone.iter().sum()));
    report.row(
        &format!("durable records, {writers} writer(s), each waits for its own"),
        format!("{rate:.0}/s, p50 {}, p99 {}", millis(percentile(&waits, 50)), millis(percentile(&waits, 99))),
        format!(
            "a plain write and fdatasync of as many bytes, one after the other: {plain:.0}/s, p50 {}, p99 {}; ratio {:.2}",
            millis(percentile(&alone, 50)),
            millis(percentile(&alone, 99)),
            rate / plain
        ),
    );
    Ok(())
}

/// Records appended without waiting, then the last one waited for; beside it the same bytes in one file, synced once.
fn unwaited(report: &mut Report, dir: &Path, log: &Path, payload: &[u8], count: u32) -> Result<()> {
    let mut journal = Journal::create(log, Options::default(), deaf())?;
    let started = Instant::now();
    for _ in 0..count {
        journal.append(1, NOW, [0; 32], payload)?;
    }
    journal.sync()?;
    let took = started.elapsed();
    drop(journal);
    let path = dir.join("plain");
    let mut file = File::create_new(&path).context("cannot create a plain file")?;
    let frame = vec![0xa5; FRAME_BYTES + payload.len()];
    let piece = frame.repeat(1_000);
    let started = Instant::now();
    let mut left = bytes_of(count, payload);
    while left > 0 {
        let now = left.min(piece.len());
        file.write_all(&piece[..now])?;
        left -= now;
    }
    file.sync_data().context("cannot sync the plain file")?;
    let plain = started.elapsed();
    std::fs::remove_file(&path).context("cannot remove the plain file")?;
    let bytes = bytes_of(count, payload);
    report.row(
        "records not waited for, durable at the end",
        format!("{:.0}/s, {}", per_sec(usize::try_from(count)?, took), rate(bytes, took)),
        format!("as many bytes in one file, synced once: {}; ratio {:.2}", rate(bytes, plain), ratio(took, plain)),
    );
    Ok(())
}

/// The whole log opened: every frame read, its checksum and number checked, its record handed over.
fn reopened(report: &mut Report, log: &Path, count: u32) -> Result<()> {
    let plain = read_all(log)?;
    let (bytes, read_in) = plain;
    let started = Instant::now();
    let opened = Journal::open(log, Options::default(), deaf())?;
    let took = started.elapsed();
    let records = opened.records.len();
    ensure!(records == usize::try_from(count)?, "{records} records came back of {count}");
    report.row(
        "replay: a journal opened, every record checked",
        format!("{:.0}/s, {}", per_sec(records, took), rate(bytes, took)),
        format!("a plain read of its files: {}; ratio {:.2}", rate(bytes, read_in), ratio(took, read_in)),
    );
    Ok(())
}

/// A snapshot, a tenth of the records after it, and the start of a process that finds both.
fn snapshots(report: &mut Report, dir: &Path, log: &Path, payload: &[u8], flags: &Flags) -> Result<()> {
    let state = noise(usize::try_from(flags.snapshot_mib)? << 20);
    let path = dir.join("plain");
    let started = Instant::now();
    File::create_new(&path).and_then(|mut file| {
        file.write_all(&state)?;
        file.sync_all()
    })?;
    let plain = started.elapsed();
    std::fs::remove_file(&path).context("cannot remove the plain file")?;
    let mut journal = Journal::open(log, Options::default(), deaf())?.journal;
    let started = Instant::now();
    journal.write_snapshot(journal.last_lsn(), &state)?;
    let took = started.elapsed();
    report.row(
        &format!("a snapshot of {} MiB, durable", flags.snapshot_mib),
        millis(took),
        format!("as many bytes in a plain file, synced: {}; ratio {:.2}", millis(plain), ratio(took, plain)),
    );
    let after = flags.records.div_ceil(10);
    for _ in 0..after {
        journal.append(1, NOW, [0; 32], payload)?;
    }
    journal.sync()?;
    journal.truncate_before(journal.last_lsn())?;
    drop(journal);
    let (bytes, read_in) = read_all(log)?;
    let started = Instant::now();
    let opened = Journal::open(log, Options::default(), deaf())?;
    let took = started.elapsed();
    let found = (opened.snapshot.is_some_and(|found| found.bytes == state), opened.records.len());
    ensure!(found == (true, usize::try_from(after)?), "what came back is not what was written");
    report.row(
        &format!("reopened with that snapshot and {after} records after it"),
        millis(took),
        format!("a plain read of its {:.1} MB: {}; aim of a replay: 1 s", bytes as f64 / 1e6, millis(read_in)),
    );
    Ok(())
}

/// Waits for each write of a frame's bytes to be on the disk, at the end of a growing file.
fn raw(path: &Path, payload: &[u8], count: u32) -> Result<Vec<Duration>> {
    let frame = vec![0xa5; FRAME_BYTES + payload.len()];
    let mut file = OpenOptions::new().create(true).append(true).open(path).context("cannot open a plain file")?;
    let mut waits = Vec::new();
    for _ in 0..count {
        let asked = Instant::now();
        file.write_all(&frame)?;
        file.sync_data()?;
        waits.push(asked.elapsed());
    }
    Ok(waits)
}

fn read_all(dir: &Path) -> Result<(usize, Duration)> {
    let started = Instant::now();
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        bytes += std::hint::black_box(std::fs::read(entry?.path())?).len();
    }
    Ok((bytes, started.elapsed()))
}

fn deaf() -> OnDurable {
    Box::new(|_| {})
}

/// Of the frames of so many records.
fn bytes_of(count: u32, payload: &[u8]) -> usize {
    (FRAME_BYTES + payload.len()) * usize::try_from(count).expect("a count fits")
}

/// xorshift64, so that nothing is compressed on the way.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out: Vec<u8> = std::iter::repeat_with(&mut word).take(bytes.div_ceil(8)).flatten().collect();
    out.truncate(bytes);
    out
}

fn per_sec(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn rate(bytes: usize, took: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / took.as_secs_f64())
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

/// A folder that is gone at the end, however that comes.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn scratch_folder(under: &Path) -> Result<Scratch> {
    let dir = under.join(format!("vivarium-bench-journal-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(Scratch(dir))
}
