use super::{Listing, Object, read};
use crate::blocks::Blocks;
use crate::cid::Cid;
use crate::error::{Error, Result};
use crate::walk::{DEPTH_MAX, check_waiting};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// So many files are synced one by one; beyond that one sync of the whole file system is cheaper (a few milliseconds
/// a file on a busy disk, measured in November 2026).
const SYNCED_EACH_MAX: u64 = 64;

/// What a reader is ready to write for a stranger's graph.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Content bytes in all files together.
    pub bytes_max: u64,
    /// Files and directories together.
    pub entries_max: u64,
    /// Files are written executable: for a directory of programs. CIDs carry no mode, so the reader decides.
    pub executable: bool,
}

impl Default for Limits {
    /// 1 TiB in 100,000 files, not executable.
    fn default() -> Self {
        Self { bytes_max: 1 << 40, entries_max: 100_000, executable: false }
    }
}

/// Writes the file or directory behind `root` to `dest`, every block verified. Returns the content bytes.
///
/// `dest` must not exist. Nothing appears under that name before everything is written and synced: a crash
/// leaves at most a `.dest.partial-*` beside it. `Missing` names the first block that is not in `blocks`.
pub fn export(blocks: &Blocks, root: &Cid, dest: &Path, limits: Limits) -> Result<u64> {
    if fs::symlink_metadata(dest).is_ok() {
        return Err(Error::usage(format!("{} is there already", dest.display())));
    }
    let partial = partial_beside(dest)?;
    let mut writer = Writer { blocks, limits, bytes: 0, entries: 0, waiting: 0 };
    let done = writer.object(root, &partial, 0).and_then(|()| writer.sync(&partial)).and_then(|()| {
        fs::rename(&partial, dest).map_err(|e| Error::disk(format!("cannot name {}", dest.display()), e))
    });
    if done.is_err() {
        // The first failure is the one to report; what cannot be removed is seen at the next try.
        let _ = if partial.is_dir() { fs::remove_dir_all(&partial) } else { fs::remove_file(&partial) };
    }
    done.map(|()| writer.bytes)
}

/// The whole file behind `root`, at most `bytes_max` long; `OverLimit` before anything of it is read otherwise.
pub fn read_file(blocks: &Blocks, root: &Cid, bytes_max: usize) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    copy_file(blocks, root, limit, &mut |bytes| {
        whole.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(whole)
}

struct Writer<'a> {
    blocks: &'a Blocks,
    limits: Limits,
    bytes: u64,
    entries: u64,
    /// Entries of the directories that this one lies in, whether written already or not.
    waiting: usize,
}

impl Writer<'_> {
    fn object(&mut self, cid: &Cid, path: &Path, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::over_limit(format!("{cid} lies {depth} levels deep; the limit is {DEPTH_MAX}")));
        }
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(Error::over_limit(format!("more than {} files and directories", self.limits.entries_max)));
        }
        let failed = |e| Error::disk(format!("cannot write {}", path.display()), e);
        match read(cid, &self.blocks.get(cid)?)? {
            directory @ (Object::Directory { .. } | Object::Shard(_)) => {
                fs::create_dir(path).map_err(failed)?;
                // Of a directory in shards one block a level is held, which is little.
                let listed = if let Object::Directory { entries } = &directory { entries.len() } else { 0 };
                self.waiting += listed;
                check_waiting(cid, self.waiting)?;
                for entry in Listing::of_object(self.blocks, cid, directory)? {
                    let entry = entry?;
                    // `read` refused every name that would leave this directory.
                    self.object(&entry.cid, &path.join(&entry.name), depth + 1)?;
                }
                self.waiting -= listed;
                if self.syncs_each() { File::open(path).and_then(|d| d.sync_all()).map_err(failed) } else { Ok(()) }
            }
            Object::File { .. } => {
                let mode = if self.limits.executable { 0o755 } else { 0o644 };
                // `create_new` never follows or replaces what is there.
                let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
                let left = self.limits.bytes_max - self.bytes;
                self.bytes += copy_file(self.blocks, cid, left, &mut |bytes| file.write_all(bytes).map_err(failed))?;
                if self.syncs_each() { file.sync_all().map_err(failed) } else { Ok(()) }
            }
        }
    }

    fn syncs_each(&self) -> bool {
        self.entries <= SYNCED_EACH_MAX
    }

    /// Makes durable what was not synced as it was written.
    fn sync(&self, partial: &Path) -> Result<()> {
        if self.syncs_each() {
            return Ok(());
        }
        let failed = |e| Error::disk(format!("cannot sync {}", partial.display()), e);
        let dir = File::open(partial).map_err(failed)?;
        rustix::fs::syncfs(&dir).map_err(|e| failed(e.into()))
    }
}

/// Hands the content of a file to `sink` in order. Each part must be exactly as long as its parent said, so
/// the work is bounded by the size in the root, and that by `bytes_max`.
fn copy_file(blocks: &Blocks, root: &Cid, bytes_max: u64, sink: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let mut total = None;
    let mut stack = vec![(*root, None, 0usize)];
    while let Some((cid, claimed, depth)) = stack.pop() {
        if depth > DEPTH_MAX {
            return Err(Error::over_limit(format!("{cid} lies {depth} levels deep; the limit is {DEPTH_MAX}")));
        }
        let FileNode { inline, parts, bytes } = file_node(&cid, &blocks.get(&cid)?, claimed)?;
        if *total.get_or_insert(bytes) > bytes_max {
            return Err(Error::over_limit(format!("{root} is {bytes} bytes long; {bytes_max} are allowed here")));
        }
        sink(&inline)?;
        check_waiting(&cid, stack.len() + parts.len())?;
        stack.extend(parts.into_iter().rev().map(|(part, bytes)| (part, Some(bytes), depth + 1)));
    }
    Ok(total.unwrap_or(0))
}

/// One node of a file.
pub(crate) struct FileNode {
    pub inline: Vec<u8>,
    /// What comes after `inline`, each part with its content bytes.
    pub parts: Vec<(Cid, u64)>,
    /// Content bytes of this node and all below.
    pub bytes: u64,
}

/// Reads a block as a node of a file and checks its size against its parent's claim.
pub(crate) fn file_node(cid: &Cid, block: &[u8], claimed: Option<u64>) -> Result<FileNode> {
    let Object::File { inline, parts, bytes } = read(cid, block)? else {
        return Err(Error::usage(format!("{cid} is a directory where a file is expected")));
    };
    if let Some(claimed) = claimed.filter(|claimed| *claimed != bytes) {
        return Err(Error::corrupt(format!("{cid} holds {bytes} bytes; its parent says {claimed}")));
    }
    Ok(FileNode { inline, parts, bytes })
}

fn partial_beside(dest: &Path) -> Result<PathBuf> {
    let name = dest.file_name().ok_or_else(|| Error::usage(format!("{} is no file name", dest.display())))?;
    let parent = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(Error::usage(format!("there is no directory {}", parent.display())));
    }
    let stamp = hex::encode(rand::random::<[u8; 4]>());
    Ok(parent.join(format!(".{}.partial-{stamp}", name.to_string_lossy())))
}
