//! Files and directories as graphs of blocks (UnixFS).
//!
//! Writing follows a [`Profile`], so that the same bytes get the same CID everywhere; reading takes any UnixFS
//! file or directory, whoever wrote it, and believes none of its numbers. A directory over 256 KiB is a trie of
//! blocks ([`Shard`]), in and out.
//! Symbolic links are refused both ways: they are how an archive writes outside its folder.

mod directory;
mod export;
mod import;
mod shard;

pub use directory::{Listing, find};
pub(crate) use export::{FileNode, file_node};
pub use export::{Limits, export, read_file};
pub use import::{Imported, import_bytes, import_path, import_reader};
pub use shard::{Shard, Slot};

use crate::cid::{self, Cid};
use crate::dag::Node;
use crate::error::{Error, Result};
use crate::protobuf::{Reader, Value, len64, put_bytes, put_number};

/// How content is cut and named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Bytes in a leaf.
    pub chunk_bytes: usize,
    /// Links in an inner node of a file.
    pub width: usize,
    /// Leaves are bare bytes (`raw`) or dag-pb nodes.
    pub raw_leaves: bool,
    /// Roots and links in the old `Qm…` form.
    pub cid_v0: bool,
}

impl Profile {
    /// `unixfs-v1-2025` of IPIP-499: what this project writes.
    pub const V1_2025: Self = Self { chunk_bytes: 1 << 20, width: 1024, raw_leaves: true, cid_v0: false };
    /// `unixfs-v0-2015`: what Kubo wrote for a decade.
    pub const V0_2015: Self = Self { chunk_bytes: 256 << 10, width: 174, raw_leaves: false, cid_v0: true };

    /// A profile by its name in IPIP-499.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "unixfs-v1-2025" => Ok(Self::V1_2025),
            "unixfs-v0-2015" => Ok(Self::V0_2015),
            _ => Err(Error::usage(format!("`{name}` is no profile; there are unixfs-v1-2025 and unixfs-v0-2015"))),
        }
    }

    pub(crate) fn node_cid(&self, bytes: &[u8]) -> Cid {
        let cid = cid::of_dag_pb(bytes);
        if self.cid_v0 { cid::as_v0(&cid) } else { cid }
    }
}

/// Directories beyond this become sharded in both profiles.
pub(crate) const SHARD_BYTES: usize = 256 << 10;

/// What one block is, in UnixFS terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `inline` comes first, then the parts in order, each with the content bytes it claims.
    File {
        inline: Vec<u8>,
        parts: Vec<(Cid, u64)>,
        bytes: u64,
    },
    Directory {
        entries: Vec<Entry>,
    },
    /// One block of a directory that takes several; [`Listing`] reads them all.
    Shard(Shard),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub cid: Cid,
    /// Encoded bytes below, by the author's claim.
    pub tsize: u64,
}

const TYPE_RAW: u64 = 0;
const TYPE_DIRECTORY: u64 = 1;
const TYPE_FILE: u64 = 2;
const TYPE_SYMLINK: u64 = 4;
const TYPE_SHARD: u64 = 5;

/// Reads a block that already matched `cid`.
///
/// `Corrupt` if it is no UnixFS node or its numbers contradict each other; `Usage` for symbolic links, which are
/// legal but not spoken.
pub fn read(cid: &Cid, bytes: &[u8]) -> Result<Object> {
    if cid.codec() == cid::RAW {
        return Ok(Object::File { inline: bytes.to_vec(), parts: Vec::new(), bytes: len64(bytes) });
    }
    let node = Node::decode(cid, bytes)?;
    let corrupt = |why: String| Error::corrupt(format!("{cid} is not a UnixFS node: {why}"));
    let data = Data::decode(&node.data).map_err(corrupt)?;
    match data.kind {
        TYPE_FILE | TYPE_RAW => file(node, data).map_err(corrupt),
        TYPE_DIRECTORY => directory(node).map_err(corrupt),
        TYPE_SYMLINK => Err(Error::usage(format!("{cid} is a symbolic link; those are refused"))),
        TYPE_SHARD => shard::read(node, &data).map(Object::Shard).map_err(corrupt),
        other => Err(corrupt(format!("type {other} is unknown"))),
    }
}

fn file(node: Node, data: Data) -> std::result::Result<Object, String> {
    if node.links.len() != data.part_bytes.len() {
        return Err(format!("{} parts but {} sizes", node.links.len(), data.part_bytes.len()));
    }
    if data.part_bytes.contains(&0) {
        // Empty parts cost work and carry nothing: a graph of them can be made arbitrarily large for free.
        return Err("a part of no bytes".into());
    }
    let inline_bytes = len64(&data.inline);
    let sum = data.part_bytes.iter().try_fold(inline_bytes, |sum, part| sum.checked_add(*part));
    let sum = sum.ok_or("sizes over 64 bits")?;
    if data.bytes.is_some_and(|claimed| claimed != sum) {
        return Err(format!("{sum} bytes in its parts, another number in its head"));
    }
    let parts = node.links.into_iter().map(|l| l.cid).zip(data.part_bytes).collect();
    Ok(Object::File { inline: data.inline, parts, bytes: sum })
}

fn directory(node: Node) -> std::result::Result<Object, String> {
    let mut entries = Vec::with_capacity(node.links.len());
    for link in node.links {
        check_name(&link.name)?;
        entries.push(Entry { name: link.name, cid: link.cid, tsize: link.tsize });
    }
    let mut names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("the name {:?} is there twice", twice[0]));
    }
    Ok(Object::Directory { entries })
}

/// A name that stays inside its directory on every system we run on.
pub(crate) fn check_name(name: &str) -> std::result::Result<(), String> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) {
        return Err(format!("the name {name:?} would leave its directory"));
    }
    if name.len() > 255 {
        return Err(format!("a name of {} bytes; file systems take 255", name.len()));
    }
    Ok(())
}

/// The UnixFS message inside a node's data.
#[derive(Default)]
struct Data {
    kind: u64,
    inline: Vec<u8>,
    bytes: Option<u64>,
    part_bytes: Vec<u64>,
    hash_type: Option<u64>,
    fanout: Option<u64>,
}

impl Data {
    fn decode(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut data = Self::default();
        let mut kind = None;
        let mut reader = Reader::new(bytes);
        while let Some((number, value)) = reader.field()? {
            match (number, value) {
                (1, Value::Varint(k)) => kind = Some(k),
                (2, Value::Bytes(inline)) => data.inline = inline.to_vec(),
                (3, Value::Varint(bytes)) => data.bytes = Some(bytes),
                (4, Value::Varint(part)) => data.part_bytes.push(part),
                (4, Value::Bytes(packed)) => {
                    let mut packed = Reader::new(packed);
                    while !packed.at_end() {
                        data.part_bytes.push(packed.varint()?);
                    }
                }
                (5, Value::Varint(code)) => data.hash_type = Some(code),
                (6, Value::Varint(fanout)) => data.fanout = Some(fanout),
                // Mode and time (UnixFS 1.5): legal, and of no use to us.
                (7 | 8, _) => {}
                (number, _) => return Err(format!("field {number} is unknown")),
            }
        }
        data.kind = kind.ok_or("it has no type")?;
        Ok(data)
    }
}

/// The UnixFS message of an inner file node.
fn encode_file(part_bytes: &[u64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + 4 * part_bytes.len());
    put_number(1, TYPE_FILE, &mut out);
    put_number(3, part_bytes.iter().sum(), &mut out);
    for part in part_bytes {
        put_number(4, *part, &mut out);
    }
    out
}

/// The UnixFS message of a leaf in the old profile; an empty file has no data field.
fn encode_leaf(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 16);
    put_number(1, TYPE_FILE, &mut out);
    if !content.is_empty() {
        put_bytes(2, content, &mut out);
    }
    put_number(3, len64(content), &mut out);
    out
}

fn encode_directory() -> Vec<u8> {
    let mut out = Vec::new();
    put_number(1, TYPE_DIRECTORY, &mut out);
    out
}

/// The UnixFS message of a shard: which of its slots are taken, as a big-endian number without leading zeros.
fn encode_shard(taken: &[u8], fanout: u64) -> Vec<u8> {
    let first = taken.iter().position(|byte| *byte != 0).unwrap_or(taken.len());
    let mut out = Vec::with_capacity(taken.len() + 12);
    put_number(1, TYPE_SHARD, &mut out);
    put_bytes(2, &taken[first..], &mut out);
    put_number(5, shard::MURMUR3_X64_64, &mut out);
    put_number(6, fanout, &mut out);
    out
}
