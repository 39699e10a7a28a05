//! What `vivarium store …` does, a function a command. Each returns what `--json` prints.

pub mod arweave;
pub mod kubo;

use crate::blocks::{Blocks, check_each, store_ahead};
use crate::car;
use crate::cid::{self, Cid};
use crate::error::{Error, Kind, Result, off_thread};
use crate::fetch::{Fetcher, Progress, SourceReport};
use crate::unixfs::{self, Limits, Listing, Object, Profile};
use crate::walk::Walk;
use bytes::Bytes;
use serde::Serialize;
use std::fs::File;
use std::future::Future;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// `added` is the reason under which `add` and `import` pin.
pub const ADDED: &str = "added";

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Added {
    pub cid: String,
    /// Content bytes.
    pub bytes: u64,
    pub blocks: u64,
}

/// Stores a file or directory and pins it. `progress` hears the encoded bytes stored so far.
pub fn add(dir: &Path, path: &Path, profile: Profile, mut progress: impl FnMut(u64)) -> Result<Added> {
    let blocks = Blocks::open(dir)?;
    let _writing = blocks.writing()?;
    let (mut count, mut stored) = (0, 0);
    let imported = store_ahead(&blocks, |put| {
        unixfs::import_path(path, profile, &mut |cid, bytes| {
            count += 1;
            stored += crate::protobuf::len64(&bytes);
            put(cid, bytes)?;
            progress(stored);
            Ok(())
        })
    })?;
    blocks.sync()?;
    blocks.pin(&imported.cid, ADDED)?;
    Ok(Added { cid: imported.cid.to_string(), bytes: imported.bytes, blocks: count })
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Got {
    pub cid: String,
    pub path: PathBuf,
    /// Content bytes written.
    pub bytes: u64,
    /// What each source did; empty if everything was here.
    pub sources: Vec<GotFrom>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GotFrom {
    pub url: String,
    pub blocks: u64,
    pub bytes: u64,
    pub dropped: Option<String>,
}

impl From<SourceReport> for GotFrom {
    fn from(s: SourceReport) -> Self {
        Self { url: s.url, blocks: s.blocks, bytes: s.bytes, dropped: s.dropped }
    }
}

/// Writes a file or directory to `dest`, which must not exist, fetching what is not here from `sources`.
pub async fn get(
    dir: &Path,
    cid: &str,
    dest: &Path,
    sources: Vec<String>,
    limits: Limits,
    progress: impl Fn(&Progress),
) -> Result<Got> {
    let (root, blocks) = (cid::parse(cid)?, Blocks::open(dir)?);
    let fetched = Fetcher::new(net::Client::new(), sources).fetch_dag(&blocks, &root, progress).await?;
    let path = dest.to_owned();
    let bytes = off_thread(move || unixfs::export(&blocks, &root, &path, limits)).await?;
    let sources = fetched.sources.into_iter().map(GotFrom::from).collect();
    Ok(Got { cid: cid.to_owned(), path: dest.to_owned(), bytes, sources })
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The name in its directory; absent for pins.
    pub name: Option<String>,
    pub cid: String,
    /// Encoded bytes below by the author's claim; absent for pins.
    pub bytes: Option<u64>,
    /// Why it is kept; only for pins.
    pub reasons: Vec<String>,
}

/// The entries of a directory by name, or all pins for `None`.
pub fn ls(dir: &Path, cid: Option<&str>) -> Result<Vec<Listed>> {
    let blocks = Blocks::open(dir)?;
    let Some(cid) = cid else {
        let listed =
            |p: crate::blocks::Pin| Listed { name: None, cid: p.root.to_string(), bytes: None, reasons: p.reasons };
        return Ok(blocks.pins()?.into_iter().map(listed).collect());
    };
    let root = cid::parse(cid)?;
    match unixfs::read(&root, &blocks.get(&root)?)? {
        Object::File { bytes, .. } => {
            Ok(vec![Listed { name: None, cid: cid.to_owned(), bytes: Some(bytes), reasons: Vec::new() }])
        }
        directory => {
            let mut entries = Listing::of_object(&blocks, &root, directory)?.collect::<Result<Vec<_>>>()?;
            entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let listed = |e: unixfs::Entry| Listed {
                name: Some(e.name),
                cid: e.cid.to_string(),
                bytes: Some(e.tsize),
                reasons: Vec::new(),
            };
            Ok(entries.into_iter().map(listed).collect())
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pinned {
    pub cid: String,
    pub reasons: Vec<String>,
}

/// Keeps a graph, which must be here whole: pinning what cannot be kept would be a promise nobody holds. `progress` hears
/// the blocks looked for so far.
pub fn pin(dir: &Path, cid: &str, reason: &str, progress: impl FnMut(u64)) -> Result<Pinned> {
    let (root, blocks) = (cid::parse(cid)?, Blocks::open(dir)?);
    let _writing = blocks.writing()?;
    blocks.check_whole(&[root], progress)?;
    blocks.pin(&root, reason)?;
    pinned(&blocks, &root)
}

/// Takes back one reason, or all. `Missing` if there was nothing to take back.
pub fn unpin(dir: &Path, cid: &str, reason: Option<&str>) -> Result<Pinned> {
    let (root, blocks) = (cid::parse(cid)?, Blocks::open(dir)?);
    if !blocks.unpin(&root, reason)? {
        return Err(Error::missing(format!(
            "{cid} is not pinned{}",
            reason.map_or(String::new(), |r| format!(" as {r}"))
        )));
    }
    pinned(&blocks, &root)
}

fn pinned(blocks: &Blocks, root: &Cid) -> Result<Pinned> {
    let found = blocks.pins()?.into_iter().find(|p| cid::digest(&p.root) == cid::digest(root));
    Ok(Pinned { cid: root.to_string(), reasons: found.map(|p| p.reasons).unwrap_or_default() })
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collected {
    pub removed_blocks: u64,
    pub removed_bytes: u64,
    pub kept_blocks: u64,
    pub missing_blocks: u64,
    /// Pins that cannot be followed to their end.
    pub unreadable: Vec<Unreadable>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    pub pin: String,
    pub why: String,
}

/// Removes what no pin reaches and what is older than `age_min`. `progress` hears the blocks looked at so far: those that
/// pins reach, then all.
pub fn gc(dir: &Path, age_min: Duration, progress: impl FnMut(u64)) -> Result<Collected> {
    let done = Blocks::open(dir)?.gc_each(age_min, progress)?;
    let crate::blocks::Collected { removed_blocks, removed_bytes, kept_blocks, missing_blocks, unreadable } = done;
    let named = |u: crate::blocks::Unreadable| Unreadable { pin: u.pin.to_string(), why: u.why };
    let unreadable = unreadable.into_iter().map(named).collect();
    Ok(Collected { removed_blocks, removed_bytes, kept_blocks, missing_blocks, unreadable })
}

/// Names that `verify` gathers of each kind; about 100 bytes each.
const NAMED_MAX: usize = 100_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Blocks read; a leaf for each node that links to it.
    pub blocks: u64,
    pub bytes: u64,
    /// Blocks that did not match their name and were removed: fetch their roots again.
    pub damaged: Vec<String>,
    /// Blocks that a graph needs and that are not here; only when a root was given.
    pub missing: Vec<String>,
}

/// Reads every block of a graph, or of the whole store, and checks it against its name, several at once. `Missing` as
/// soon as over 100,000 are damaged or missing.
pub fn verify(dir: &Path, cid: Option<&str>, mut progress: impl FnMut(u64)) -> Result<Verified> {
    let blocks = Blocks::open(dir)?;
    let (read_bytes, found) = (AtomicU64::new(0), Mutex::new(Verified::default()));
    let check = |cid: &Cid| -> Result<Option<Bytes>> {
        let here = blocks.has(cid);
        let got = blocks.get(cid);
        let mut found = found.lock().map_err(|_| Error::bug("a checking thread panicked"))?;
        match got {
            Ok(bytes) => {
                let length = crate::protobuf::len64(&bytes);
                found.blocks += 1;
                found.bytes += length;
                read_bytes.fetch_add(length, Ordering::Relaxed);
                Ok(Some(bytes))
            }
            Err(e) if e.kind == Kind::Missing => {
                let list = if here { &mut found.damaged } else { &mut found.missing };
                if list.len() >= NAMED_MAX {
                    let list = if here { "damaged" } else { "missing" };
                    return Err(Error::missing(format!("over {NAMED_MAX} blocks are {list}, {cid} among them")));
                }
                list.push(cid.to_string());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    };
    check_each(
        |hand_out| {
            let mut hand_out = |cid| {
                hand_out(cid)?;
                progress(read_bytes.load(Ordering::Relaxed));
                Ok(())
            };
            let Some(root) = cid else {
                return blocks.iter().try_for_each(|listed| hand_out(listed?.0));
            };
            let mut walk = Walk::repeating_leaves(&[cid::parse(root)?]);
            while let Some((cid, depth)) = walk.next_block() {
                if cid.codec() == cid::RAW {
                    hand_out(cid)?;
                } else if let Some(bytes) = check(&cid)? {
                    // What lies below is only known once it is read.
                    walk.visited(&cid, depth, &bytes)?;
                }
            }
            Ok(())
        },
        |cid| check(&cid).map(drop),
    )?;
    let mut found = found.into_inner().map_err(|_| Error::bug("a checking thread panicked"))?;
    for list in [&mut found.damaged, &mut found.missing] {
        list.sort_unstable();
        list.dedup();
    }
    progress(found.bytes);
    Ok(found)
}

/// Serves the store until `stop`.
pub async fn serve(dir: &Path, listener: TcpListener, stop: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    crate::serve(listener, Blocks::open(dir)?, stop).await
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub roots: Vec<String>,
    pub blocks: u64,
    /// Bytes of the CAR file written, or of the blocks read.
    pub bytes: u64,
}

/// Writes a graph as a CAR file, which must not exist. `progress` hears the bytes of blocks written so far.
pub fn export(
    dir: &Path,
    cid: &str,
    dest: &Path,
    version: car::Version,
    mut progress: impl FnMut(u64),
) -> Result<Moved> {
    let (root, blocks) = (cid::parse(cid)?, Blocks::open(dir)?);
    let file = File::create_new(dest).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::usage(format!("{} is there already", dest.display())),
        _ => Error::disk(format!("cannot make {}", dest.display()), e),
    })?;
    let mut out = BufWriter::new(&file);
    let mut exported = 0;
    let each = |_: &Cid, block: &[u8]| {
        exported += crate::protobuf::len64(block);
        progress(exported);
        Ok(())
    };
    let written = match version {
        car::Version::V1 => car::export_each(&blocks, &root, &[], &mut out, each),
        car::Version::V2 => car::export_v2_each(&blocks, &root, &mut out, each),
    };
    let written = written.and_then(|done| {
        file.sync_all().map_err(|e| Error::disk("cannot write the CAR file", e))?;
        Ok(done)
    });
    if written.is_err() {
        // Half a CAR file is worse than none; the first failure is the one to report.
        let _ = std::fs::remove_file(dest);
    }
    let (count, bytes) = written?;
    Ok(Moved { roots: vec![cid.to_owned()], blocks: count, bytes })
}

/// Stores all blocks of a CAR file and pins its roots; `Missing`, `Corrupt` or `OverLimit` if one of these cannot be
/// kept whole. `progress` hears the bytes of blocks stored so far.
pub fn import(dir: &Path, source: &Path, progress: impl FnMut(u64)) -> Result<Moved> {
    let blocks = Blocks::open(dir)?;
    let _writing = blocks.writing()?;
    let failed = |e: std::io::Error| Error::usage(format!("cannot open {}", source.display())).caused_by(e);
    let done = car::import_each(&blocks, BufReader::new(File::open(source).map_err(failed)?), progress)?;
    pin_roots(&blocks, &done)
}

/// Pins the roots of a CAR file, all or none: whoever made it chose them. The blocks stay either way, until they are
/// collected.
fn pin_roots(blocks: &Blocks, done: &car::Imported) -> Result<Moved> {
    blocks.check_whole(&done.roots, |_| {}).map_err(|e| {
        let stored = done.blocks;
        Error::new(e.kind, format!("{stored} blocks are stored, but no root is pinned: {e}"))
    })?;
    for root in &done.roots {
        blocks.pin(root, ADDED)?;
    }
    Ok(Moved { roots: done.roots.iter().map(Cid::to_string).collect(), blocks: done.blocks, bytes: done.bytes })
}
