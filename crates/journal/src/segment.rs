//! Segment files: a header, then frames. Named by the first LSN they hold.
//!
//! Header, 32 bytes: `magic 8 | version u32 | zero u32 | first_lsn u64 | crc u32 of these 24 | zero u32`.

use crate::error::{Error, Kind, Result};
use crate::record::{self, Flaw, Lsn, Record, u32_at, u64_at};
use std::fs::File;
use std::path::{Path, PathBuf};

pub(crate) const HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"VIVJRNL\0";
const VERSION: u32 = 1;

/// Between two marks of the index: how far a reader may have to walk.
const MARK_EVERY_BYTES: u64 = 64 << 10;

/// A segment file and where to begin reading in it.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub first_lsn: Lsn,
    pub path: PathBuf,
    /// Of the file, header included.
    pub bytes: u64,
    /// Ascending (LSN, offset of its frame), sparse.
    marks: Vec<(Lsn, u64)>,
}

/// What a crash left at the end of the log and `open` cut off. Nothing in it was ever acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    pub path: PathBuf,
    /// Where the cut was made.
    pub offset: u64,
    /// How much was cut off.
    pub bytes: u64,
}

impl std::fmt::Display for TornTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cut {} bytes of an unfinished write off {} at offset {}: none of it was acknowledged",
            self.bytes,
            self.path.display(),
            self.offset
        )
    }
}

pub(crate) fn path_of(dir: &Path, first_lsn: Lsn) -> PathBuf {
    dir.join(format!("{first_lsn:020}.log"))
}

pub(crate) fn header(first_lsn: Lsn) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&first_lsn.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The first LSN that a header names. `Ok(None)`: no whole header, as a crash while creating the file leaves it.
pub(crate) fn read_header(bytes: &[u8], what: &str) -> Result<Option<Lsn>> {
    let Some(head) = bytes.get(..HEADER_BYTES) else {
        return Ok(None);
    };
    if head[..8] != MAGIC[..] || u32_at(head, 24) != Some(crc32c::crc32c(&head[..24])) {
        return Ok(None);
    }
    match (u32_at(head, 8), u64_at(head, 16)) {
        (Some(VERSION), Some(first)) => Ok(Some(first)),
        (version, _) => Err(Error::new(
            Kind::Version,
            format!("{what} has format version {}; this release reads {VERSION}", version.unwrap_or_default()),
        )),
    }
}

impl Segment {
    pub fn new(dir: &Path, first_lsn: Lsn) -> Self {
        Self { first_lsn, path: path_of(dir, first_lsn), bytes: 0, marks: Vec::new() }
    }

    /// Notes that the frame of `lsn` begins at `offset`.
    pub fn mark(&mut self, lsn: Lsn, offset: u64) {
        if self.marks.last().is_none_or(|(_, last)| offset >= last + MARK_EVERY_BYTES) {
            self.marks.push((lsn, offset));
        }
    }

    /// Where to begin walking towards `lsn`.
    pub fn offset_before(&self, lsn: Lsn) -> u64 {
        let after = self.marks.partition_point(|(marked, _)| *marked <= lsn);
        match after.checked_sub(1).and_then(|i| self.marks.get(i)) {
            Some((_, offset)) => *offset,
            None => u64_of(HEADER_BYTES),
        }
    }
}

/// The names of all segments, ascending by first LSN. Other files are left alone.
pub(crate) fn list(dir: &Path) -> Result<Vec<Lsn>> {
    let failed = |e: &std::io::Error| Error::io("reading the folder", dir, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| failed(&e))? {
        let name = entry.map_err(|e| failed(&e))?.file_name();
        if let Some(digits) = name.to_str().and_then(|n| n.strip_suffix(".log"))
            && digits.len() == 20
            && let Ok(lsn) = digits.parse()
        {
            found.push(lsn);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A segment read to its end.
pub(crate) struct Scan {
    pub segment: Segment,
    pub records: Vec<Record>,
    /// The LSN after the last one.
    pub next_lsn: Lsn,
    pub torn: Option<TornTail>,
}

/// What stands in one segment. `path` names it in errors; `last`: only there may a crash have left an unfinished write.
pub(crate) fn scan(mut segment: Segment, bytes: &[u8], last: bool) -> Result<Scan> {
    let (path, first_lsn) = (segment.path.clone(), segment.first_lsn);
    segment.bytes = u64_of(bytes.len());
    let mut records = Vec::new();
    let mut next_lsn = first_lsn;
    match read_header(bytes, &path.display().to_string())? {
        Some(named) if named == first_lsn => {}
        Some(named) => {
            return Err(corrupt(&path, 16, &format!("its header names LSN {named}, its file name {first_lsn}")));
        }
        // The header is synced before the first frame is written, so a file longer than it was whole once.
        None if last && bytes.len() <= HEADER_BYTES => {
            let torn = TornTail { path, offset: 0, bytes: segment.bytes };
            return Ok(Scan { segment, records, next_lsn, torn: Some(torn) });
        }
        None => return Err(corrupt(&path, 0, "its header is damaged")),
    }
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        match record::read_frame(&bytes[at..]) {
            Ok(frame) if frame.record.lsn == next_lsn => {
                segment.mark(next_lsn, u64_of(at));
                at += frame.bytes;
                next_lsn += 1;
                records.push(frame.record);
            }
            Ok(frame) => {
                let what = format!("LSN {} stands where {next_lsn} belongs", frame.record.lsn);
                return Err(corrupt(&path, u64_of(at), &what));
            }
            Err(_) if last && !was_whole_once(&bytes[at..], next_lsn) => {
                let torn = TornTail { path, offset: u64_of(at), bytes: u64_of(bytes.len() - at) };
                return Ok(Scan { segment, records, next_lsn, torn: Some(torn) });
            }
            Err(flaw) => return Err(corrupt(&path, u64_of(at), &format!("LSN {next_lsn}: {flaw}"))),
        }
    }
    Ok(Scan { segment, records, next_lsn, torn: None })
}

/// Whether some later frame in `bytes` says that `lsn` had been synced. An unfinished write may well leave whole
/// frames behind a hole (the disk orders its sectors as it likes), but those were written before the hole was synced.
fn was_whole_once(bytes: &[u8], lsn: Lsn) -> bool {
    (1..bytes.len()).any(|at| {
        // Cheap tests first: a checksum at every byte of 8 MiB would take minutes.
        let rest = &bytes[at..];
        let plausible = u64_at(rest, record::PREFIX_BYTES).is_some_and(|found| found > lsn && found - lsn < 1 << 32)
            && u64_at(rest, record::PREFIX_BYTES + 8).is_some_and(|synced| synced >= lsn);
        plausible && record::read_frame(rest).is_ok_and(|frame| frame.synced >= lsn && frame.record.lsn > lsn)
    })
}

fn corrupt(path: &Path, offset: u64, what: &str) -> Error {
    Error::new(
        Kind::Corrupt,
        format!(
            "{} is damaged at offset {offset}: {what}. Keep the file, move this folder away and start again: \
             the node then restores from the last acknowledged checkpoint",
            path.display()
        ),
    )
}

/// Frames `first..=last` of a segment file, as they stand.
pub(crate) fn read_range(segment: &Segment, first: Lsn, last: Lsn, out: &mut Vec<u8>) -> Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    let path = &segment.path;
    let failed = |e: &std::io::Error| Error::io("reading", path, e);
    let mut file = File::open(path).map_err(|e| failed(&e))?;
    let start = segment.offset_before(first);
    file.seek(SeekFrom::Start(start)).map_err(|e| failed(&e))?;
    let mut bytes = Vec::new();
    // Not to the file's end: behind `bytes` a frame may be half written.
    file.take(segment.bytes.saturating_sub(start)).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    let mut at = 0;
    while at < bytes.len() {
        let frame = record::read_frame(&bytes[at..])
            .map_err(|flaw: Flaw| corrupt(path, start + u64_of(at), &flaw.to_string()))?;
        if frame.record.lsn > last {
            break;
        }
        if frame.record.lsn >= first {
            out.extend_from_slice(&bytes[at..at + frame.bytes]);
        }
        at += frame.bytes;
    }
    Ok(())
}

/// Makes a folder's entries durable: without it a new or renamed file may be gone after a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("syncing the folder", dir, &e))
}

pub(crate) fn u64_of(count: usize) -> u64 {
    u64::try_from(count).expect("no supported machine counts past 64 bits")
}
