//! A folder of blocks: the embedded store.
//!
//! ```text
//! DIR/blocks/7f/bafk…   one file a block, sharded by the first byte of its digest
//! DIR/pins/bafy…        why this root is kept, a reason a line
//! DIR/tmp/              blocks being written
//! DIR/lock              shared by whoever writes, alone for garbage collection
//! ```
//!
//! A block appears under its name only when it is whole (write, sync, rename), so a kill at any moment leaves
//! either the block or nothing, and several processes may use one folder at once. Bulk writers may leave the
//! sync to one call at their end ([`Blocks::put_later`], [`Blocks::sync`]): what a power cut then tears is
//! found by the hash when it is read, removed, and counted as missing.

mod ahead;
mod filter;
mod gc;
mod pins;

pub(crate) use ahead::{check_each, store_ahead};
pub use gc::{Collected, Unreadable};
pub use pins::Pin;

use crate::cid::{self, Cid};
use crate::dag::BLOCK_BYTES_MAX;
use crate::error::{Error, Result};
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// A temporary file older than this belongs to nobody who still lives.
const TMP_ABANDONED: Duration = Duration::from_secs(3600);

/// A handle on a folder of blocks. Cheap to clone; clones share the folder.
#[derive(Clone, Debug)]
pub struct Blocks {
    dir: Arc<PathBuf>,
    next_tmp: Arc<AtomicU64>,
}

impl Blocks {
    /// Opens the folder, making it if it is not there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        for part in ["blocks", "pins", "tmp"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(|e| Error::disk(format!("cannot make {}", path.display()), e))?;
        }
        let blocks = Self { dir: Arc::new(dir), next_tmp: Arc::new(AtomicU64::new(rand::random())) };
        blocks.sweep_tmp();
        Ok(blocks)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stores a block; `Corrupt` if it does not match `cid`, `OverLimit` if it is over 2 MiB.
    /// When this returns the block survives a power cut. Putting a block again only renews its age.
    pub fn put(&self, cid: &Cid, bytes: &[u8]) -> Result<()> {
        verify(cid, bytes)?;
        self.write(cid, bytes, true)
    }

    /// [`Blocks::put`] without waiting for the disk: [`Blocks::sync`] once after many.
    pub fn put_later(&self, cid: &Cid, bytes: &[u8]) -> Result<()> {
        verify(cid, bytes)?;
        self.write(cid, bytes, false)
    }

    /// [`Blocks::put_later`] for bytes whose name was just made of them or found to be theirs, so that they are hashed once.
    pub(crate) fn put_named(&self, cid: &Cid, bytes: &[u8]) -> Result<()> {
        self.write(cid, bytes, false)
    }

    /// Makes all blocks put so far survive a power cut.
    pub fn sync(&self) -> Result<()> {
        let failed = |e| Error::disk(format!("cannot sync {}", self.dir.display()), e);
        let dir = File::open(self.dir.as_path()).map_err(failed)?;
        rustix::fs::syncfs(&dir).map_err(|e| failed(e.into()))
    }

    /// The block's verified bytes. `Missing` if it is not here; a file that no longer matches its name (a power
    /// cut, a failing disk) is removed and counts as missing, so that a fetch brings it again.
    pub fn get(&self, cid: &Cid) -> Result<Bytes> {
        cid::check(cid).map_err(Error::usage)?;
        let path = self.path(cid);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::missing(format!("block {cid} is not in {}", self.dir.display())));
            }
            Err(e) => return Err(Error::disk(format!("cannot read block {cid}"), e)),
        };
        if cid::verify(cid, &bytes).is_err() {
            tracing::warn!(%cid, bytes = bytes.len(), "a block on disk does not match its name; removed");
            fs::remove_file(&path).map_err(|e| Error::disk(format!("cannot remove damaged block {cid}"), e))?;
            return Err(Error::missing(format!("block {cid} was damaged on disk and is removed; fetch it again")));
        }
        Ok(Bytes::from(bytes))
    }

    /// Whether a block of that name is here. Its bytes are checked when they are read.
    pub fn has(&self, cid: &Cid) -> bool {
        self.path(cid).exists()
    }

    /// The length of a block, unread; `None` if it is not here.
    pub fn len(&self, cid: &Cid) -> Option<u64> {
        fs::metadata(self.path(cid)).ok().map(|m| m.len())
    }

    /// Removes a block, pinned or not; true if it was here.
    pub fn delete(&self, cid: &Cid) -> Result<bool> {
        match fs::remove_file(self.path(cid)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::disk(format!("cannot remove block {cid}"), e)),
        }
    }

    /// All blocks with their lengths, in no useful order. Holds one shard's listing at a time.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Cid, u64)>> + use<> {
        let root = self.dir.join("blocks");
        let shards = (0..=u8::MAX).map(move |byte| root.join(hex::encode([byte])));
        shards.flat_map(|shard| match fs::read_dir(&shard) {
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            Err(e) => vec![Err(Error::disk(format!("cannot list {}", shard.display()), e))],
            Ok(entries) => entries.filter_map(|entry| listed(entry, &shard).transpose()).collect(),
        })
    }

    /// Keeps garbage collection away while the result lives: for whoever stores blocks first and pins them after.
    pub fn writing(&self) -> Result<Lock> {
        let lock = self.lock_file()?;
        lock.file.lock_shared().map_err(|e| Error::disk("cannot lock the store", e))?;
        Ok(lock)
    }

    fn lock_file(&self) -> Result<Lock> {
        let path = self.dir.join("lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = opened.map_err(|e| Error::disk(format!("cannot open {}", path.display()), e))?;
        Ok(Lock { file })
    }

    fn write(&self, cid: &Cid, bytes: &[u8], durable: bool) -> Result<()> {
        let path = self.path(cid);
        let failed = |e| Error::disk(format!("cannot store block {cid}"), e);
        // Compared, not only found: a power cut may have left a file of the right length and other bytes.
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            // Renew its age, so that garbage collection does not take it from under this writer.
            let renewed = File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
            if renewed.is_ok() {
                return Ok(());
            }
        }
        let shard = path.parent().expect("a block's path has a shard");
        let tmp = self.tmp_path();
        let written = write_whole(&tmp, bytes, durable).and_then(|()| match fs::rename(&tmp, &path) {
            // The first block of its shard.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(shard).and_then(|()| fs::rename(&tmp, &path))
            }
            renamed => renamed,
        });
        if written.is_err() {
            // Give the space back; the first error is the one to report.
            let _ = fs::remove_file(&tmp);
        }
        written.map_err(failed)?;
        if durable {
            File::open(shard).and_then(|d| d.sync_all()).map_err(failed)?;
        }
        Ok(())
    }

    fn path(&self, cid: &Cid) -> PathBuf {
        let shard = hex::encode(&cid::digest(cid)[..1]);
        self.dir.join("blocks").join(shard).join(cid::normal(cid).to_string())
    }

    pub(crate) fn tmp_path(&self) -> PathBuf {
        let number = self.next_tmp.fetch_add(1, Ordering::Relaxed);
        self.dir.join("tmp").join(format!("{}-{number:016x}", std::process::id()))
    }

    /// Removes what killed writers left. Failing to is harmless: the space is tried for again at the next start.
    fn sweep_tmp(&self) {
        let Ok(entries) = fs::read_dir(self.dir.join("tmp")) else { return };
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|m| m.modified());
            let age = modified.ok().and_then(|m| SystemTime::now().duration_since(m).ok());
            if age.is_some_and(|age| age > TMP_ABANDONED) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// A hold on the store's lock, released when dropped (or when the process dies).
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Closing is not enough: a child that another thread is just starting has a copy until it runs its own program.
    fn drop(&mut self) {
        self.file.unlock().ok();
    }
}

/// Whether these bytes may be kept under this name.
fn verify(cid: &Cid, bytes: &[u8]) -> Result<()> {
    if bytes.len() > BLOCK_BYTES_MAX {
        let length = bytes.len();
        return Err(Error::over_limit(format!("block {cid} is {length} bytes long; {BLOCK_BYTES_MAX} are allowed")));
    }
    cid::verify(cid, bytes)
}

fn write_whole(path: &Path, bytes: &[u8], durable: bool) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    if durable { file.sync_data() } else { Ok(()) }
}

/// One file of a shard; `None` for what is not ours.
fn listed(entry: std::io::Result<fs::DirEntry>, shard: &Path) -> Result<Option<(Cid, u64)>> {
    let failed = |e| Error::disk(format!("cannot list {}", shard.display()), e);
    let entry = entry.map_err(failed)?;
    let Some(cid) = entry.file_name().to_str().and_then(|name| cid::parse(name).ok()) else { return Ok(None) };
    match entry.metadata() {
        Ok(meta) => Ok(Some((cid, meta.len()))),
        // Removed between the listing and now.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}
