use super::{Profile, SHARD_BYTES, check_name, encode_directory, encode_file, encode_leaf, shard};
use crate::cid::{self, Cid};
use crate::dag::{Link, Node};
use crate::error::{Error, Result};
use crate::protobuf::len64;
use crate::walk::DEPTH_MAX;
use std::io::Read;
use std::path::Path;

/// What an import made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    pub cid: Cid,
    /// Content bytes: of the file, or of all files below the directory.
    pub bytes: u64,
    /// Encoded bytes of all blocks, counted as often as they are linked.
    pub dag_bytes: u64,
}

/// Cuts a stream into blocks and hands each to `emit`, children before parents.
///
/// Holds one chunk and, per level, at most `width` links: memory does not grow with the size of the file.
/// Fails with what `emit` fails with, or `Disk` when the stream cannot be read.
pub fn import_reader(
    reader: &mut impl Read,
    profile: Profile,
    emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>,
) -> Result<Imported> {
    let mut tree = Tree { profile, levels: vec![Vec::new()] };
    let bytes_max = u64::try_from(profile.chunk_bytes).map_err(|_| Error::bug("a chunk over 2^64 bytes"))?;
    let mut first = true;
    loop {
        let mut chunk = Vec::with_capacity(profile.chunk_bytes);
        let failed = |e| Error::disk("cannot read what is to be stored", e);
        reader.by_ref().take(bytes_max).read_to_end(&mut chunk).map_err(failed)?;
        if chunk.is_empty() && !first {
            break;
        }
        first = false;
        let last = chunk.len() < profile.chunk_bytes;
        let part = tree.leaf(chunk, emit)?;
        tree.add(0, part, emit)?;
        if last {
            break;
        }
    }
    tree.finish(emit)
}

/// [`import_reader`] for bytes in memory.
pub fn import_bytes(
    mut bytes: &[u8],
    profile: Profile,
    emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>,
) -> Result<Imported> {
    import_reader(&mut bytes, profile, emit)
}

/// A file, or a directory with all that lies in it (hidden files too), names sorted by their bytes.
///
/// A directory over 256 KiB becomes a trie of blocks. Memory grows with the entries of one directory, not with files.
///
/// `Usage` for symbolic links, devices and names that are not UTF-8; `OverLimit` for a directory that is nested
/// too deep.
pub fn import_path(
    path: &Path,
    profile: Profile,
    emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>,
) -> Result<Imported> {
    import_at(path, profile, emit, 0)
}

fn import_at(
    path: &Path,
    profile: Profile,
    emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>,
    depth: usize,
) -> Result<Imported> {
    let cannot = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::usage(format!("there is no {}", path.display())).caused_by(e),
        _ => Error::disk(format!("cannot read {}", path.display()), e),
    };
    let kind = std::fs::symlink_metadata(path).map_err(cannot)?.file_type();
    if kind.is_file() {
        let mut file = std::fs::File::open(path).map_err(cannot)?;
        return import_reader(&mut file, profile, emit);
    }
    if !kind.is_dir() {
        let what = if kind.is_symlink() { "a symbolic link" } else { "neither file nor directory" };
        return Err(Error::usage(format!("{} is {what}; store a copy without it", path.display())));
    }
    if depth >= DEPTH_MAX {
        return Err(Error::over_limit(format!("{} is nested over {DEPTH_MAX} levels deep", path.display())));
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(cannot)? {
        let name = entry.map_err(cannot)?.file_name();
        let name = name.into_string().map_err(|name| {
            Error::usage(format!("the name {name:?} in {} is not UTF-8 and cannot be stored", path.display()))
        })?;
        check_name(&name).map_err(|why| Error::usage(format!("{}: {why}", path.display())))?;
        names.push(name);
    }
    names.sort_unstable();
    let mut node = Node { links: Vec::with_capacity(names.len()), data: encode_directory() };
    let (mut bytes, mut below) = (0u64, 0u64);
    for name in names {
        let child = import_at(&path.join(&name), profile, emit, depth + 1)?;
        bytes += child.bytes;
        below += child.dag_bytes;
        node.links.push(Link { cid: child.cid, name, tsize: child.dag_bytes });
    }
    let encoded = node.encode();
    if shard_measure(&node, &encoded, profile) > SHARD_BYTES {
        let (cid, dag_bytes) = shard::write(node.links, profile, emit)?;
        return Ok(Imported { cid, bytes, dag_bytes });
    }
    let imported = Imported { cid: profile.node_cid(&encoded), bytes, dag_bytes: below + len64(&encoded) };
    emit(imported.cid, encoded)?;
    Ok(imported)
}

/// What the profile compares with the shard threshold: IPIP-499 says the block's bytes for the new one, the
/// sum of names and CIDs for the old one.
fn shard_measure(node: &Node, encoded: &[u8], profile: Profile) -> usize {
    match profile.cid_v0 {
        true => node.links.iter().map(|l| l.name.len() + l.cid.to_bytes().len()).sum(),
        false => encoded.len(),
    }
}

/// A finished subtree, waiting for its parent.
#[derive(Clone, Copy)]
struct Part {
    cid: Cid,
    bytes: u64,
    dag_bytes: u64,
}

/// A balanced tree built from the left; level 0 holds leaves that have no parent yet.
struct Tree {
    profile: Profile,
    levels: Vec<Vec<Part>>,
}

impl Tree {
    fn leaf(&self, chunk: Vec<u8>, emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>) -> Result<Part> {
        let bytes = len64(&chunk);
        let (cid, encoded) = match self.profile.raw_leaves {
            true => (cid::of_raw(&chunk), chunk),
            false => {
                let encoded = Node { links: Vec::new(), data: encode_leaf(&chunk) }.encode();
                (self.profile.node_cid(&encoded), encoded)
            }
        };
        let part = Part { cid, bytes, dag_bytes: len64(&encoded) };
        emit(cid, encoded)?;
        Ok(part)
    }

    fn add(&mut self, level: usize, part: Part, emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>) -> Result<()> {
        // A full level gets its parent only when one more comes: exactly `width` leaves have one parent, no grandparent.
        if self.levels[level].len() == self.profile.width {
            self.close(level, emit)?;
        }
        self.levels[level].push(part);
        Ok(())
    }

    /// Gives the waiting parts of `level` a parent.
    fn close(&mut self, level: usize, emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>) -> Result<()> {
        let parts = std::mem::take(&mut self.levels[level]);
        let sizes: Vec<u64> = parts.iter().map(|p| p.bytes).collect();
        let links = parts.iter().map(|p| Link { cid: p.cid, name: String::new(), tsize: p.dag_bytes });
        let encoded = Node { links: links.collect(), data: encode_file(&sizes) }.encode();
        let below: u64 = parts.iter().map(|p| p.dag_bytes).sum();
        let parent = Part {
            cid: self.profile.node_cid(&encoded),
            bytes: sizes.iter().sum(),
            dag_bytes: below + len64(&encoded),
        };
        emit(parent.cid, encoded)?;
        if self.levels.len() == level + 1 {
            self.levels.push(Vec::new());
        }
        self.add(level + 1, parent, emit)
    }

    fn finish(mut self, emit: &mut impl FnMut(Cid, Vec<u8>) -> Result<()>) -> Result<Imported> {
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            if top && self.levels[level].len() == 1 {
                let Part { cid, bytes, dag_bytes } = self.levels[level][0];
                return Ok(Imported { cid, bytes, dag_bytes });
            }
            if !self.levels[level].is_empty() {
                self.close(level, emit)?;
            }
            level += 1;
        }
    }
}
