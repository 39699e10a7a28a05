//! Snapshots: the folds' state at some LSN, so that a replay begins there.
//!
//! File: `magic 8 | lsn u64 | len u64 | crc u32 of lsn, len and bytes | bytes`. The last two are kept: the older one
//! is what is left should the disk damage the newer.

use crate::error::{Error, Kind, Result};
use crate::record::{Lsn, u32_at, u64_at};
use crate::segment::{sync_dir, u64_of};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"VIVSNAP1";
const HEADER_BYTES: usize = 28;
const KEPT: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The last record that this state contains.
    pub lsn: Lsn,
    pub bytes: Vec<u8>,
}

fn path_of(dir: &Path, lsn: Lsn) -> PathBuf {
    dir.join(format!("{lsn:020}.snapshot"))
}

/// Written beside, synced, renamed, the folder synced: after a crash there is the old one or the new one.
pub(crate) fn write(dir: &Path, lsn: Lsn, bytes: &[u8]) -> Result<()> {
    let path = path_of(dir, lsn);
    let beside = path.with_extension("tmp");
    let mut head = Vec::with_capacity(HEADER_BYTES);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&lsn.to_le_bytes());
    head.extend_from_slice(&u64_of(bytes.len()).to_le_bytes());
    head.extend_from_slice(&checksum(&head[8..24], bytes).to_le_bytes());
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(&head)?;
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(e) = written {
        // What is half written helps nobody and may be what fills the disk.
        let _ = fs::remove_file(&beside);
        return Err(Error::io("writing the snapshot", &path, &e));
    }
    fs::rename(&beside, &path).map_err(|e| Error::io("naming the snapshot", &path, &e))?;
    sync_dir(dir)?;
    let mut all = list(dir)?;
    all.truncate(all.len().saturating_sub(KEPT));
    for old in all {
        let path = path_of(dir, old);
        fs::remove_file(&path).map_err(|e| Error::io("removing the old snapshot", &path, &e))?;
    }
    Ok(())
}

/// The newest whole snapshot; damaged ones are passed over.
pub(crate) fn latest(dir: &Path) -> Result<Option<Snapshot>> {
    latest_to(dir, Lsn::MAX)
}

/// The same of those that hold nothing after `last`.
pub(crate) fn latest_to(dir: &Path, last: Lsn) -> Result<Option<Snapshot>> {
    for lsn in list(dir)?.into_iter().rev().filter(|lsn| *lsn <= last) {
        let path = path_of(dir, lsn);
        let bytes = fs::read(&path).map_err(|e| Error::io("reading the snapshot", &path, &e))?;
        if let Some(snapshot) = parse(&bytes)
            && snapshot.lsn == lsn
        {
            return Ok(Some(snapshot));
        }
    }
    Ok(None)
}

/// Where a replay would begin if the newest snapshot were damaged; 0 without any.
pub(crate) fn oldest_lsn(dir: &Path) -> Result<Lsn> {
    Ok(list(dir)?.first().copied().unwrap_or(0))
}

/// LSNs of all snapshot files, ascending.
fn list(dir: &Path) -> Result<Vec<Lsn>> {
    let failed = |e: &std::io::Error| Error::io("reading the folder", dir, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| failed(&e))? {
        let name = entry.map_err(|e| failed(&e))?.file_name();
        if let Some(lsn) = name.to_str().and_then(|n| n.strip_suffix(".snapshot")).and_then(|n| n.parse().ok()) {
            found.push(lsn);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn parse(bytes: &[u8]) -> Option<Snapshot> {
    let (head, body) = (bytes.get(..HEADER_BYTES)?, bytes.get(HEADER_BYTES..)?);
    let whole = head[..8] == MAGIC[..]
        && u64_at(head, 16) == Some(u64_of(body.len()))
        && u32_at(head, 24) == Some(checksum(&head[8..24], body));
    if !whole {
        return None;
    }
    Some(Snapshot { lsn: u64_at(head, 8)?, bytes: body.to_vec() })
}

fn checksum(head: &[u8], bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), bytes)
}

/// The error of a log that begins after what its snapshots reach.
pub(crate) fn missing(dir: &Path, first: Lsn) -> Error {
    Error::new(
        Kind::Corrupt,
        format!(
            "the log in {} begins at LSN {first} and no whole snapshot reaches up to it. Move this folder away and \
             start again: the node then restores from the last acknowledged checkpoint",
            dir.display()
        ),
    )
}
