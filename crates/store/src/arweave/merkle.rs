//! The Merkle tree over a transaction's data: 256 KiB chunks, each provable by itself.
//!
//! A leaf is H(H(chunk hash), H(end)), a branch H(H(left), H(right), H(end of left)), numbers as 32 bytes
//! big-endian, H is SHA-256. A proof is the branches from the root down and then the leaf, in plain bytes.
//! Source: the Arweave 2.0 transaction format.

use crate::cid::sha256;
use crate::error::{Error, Result};
use crate::protobuf::len64;
use std::io::Read;

/// Bytes in a chunk.
pub const CHUNK_BYTES_MAX: u64 = 256 << 10;
/// A last chunk under this shares with the one before it.
const CHUNK_BYTES_MIN: u64 = 32 << 10;
const HASH: usize = 32;
const NOTE: usize = 32;
const LEAF: usize = HASH + NOTE;
const BRANCH: usize = HASH + HASH + NOTE;
/// No tree over 2^64 bytes is deeper, with room to spare for one that its author left unbalanced.
const PROOF_BYTES_MAX: usize = 128 * BRANCH + LEAF;

/// The tree of one object: 80 bytes a chunk are held, not the chunks.
#[derive(Clone, Debug)]
pub struct DataTree {
    /// Leaves first, the root last.
    layers: Vec<Vec<Node>>,
    chunks: Vec<Chunk>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    id: [u8; HASH],
    /// Where its data ends.
    end: u64,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    hash: [u8; HASH],
    start: u64,
    end: u64,
}

impl DataTree {
    /// Reads `bytes` bytes and builds their tree, holding one chunk at a time.
    ///
    /// `Usage` for no bytes at all, which no transaction carries, or when the stream ends early or goes on.
    pub fn build(data: &mut impl Read, bytes: u64) -> Result<Self> {
        if bytes == 0 {
            return Err(Error::usage("there is nothing to store"));
        }
        let failed = |e| Error::disk("cannot read what is to be stored", e);
        let mut chunks = Vec::new();
        let mut start = 0;
        for length in chunk_lengths(bytes) {
            let mut chunk = Vec::new();
            data.by_ref().take(length).read_to_end(&mut chunk).map_err(failed)?;
            if len64(&chunk) != length {
                return Err(Error::usage(format!("the data ends before its {bytes} bytes")));
            }
            chunks.push(Chunk { hash: sha256(&chunk), start, end: start + length });
            start += length;
        }
        if data.read(&mut [0]).map_err(failed)? != 0 {
            return Err(Error::usage(format!("the data goes on after its {bytes} bytes")));
        }
        let leaves = chunks.iter().map(|c| Node { id: leaf_id(&c.hash, &note(c.end)), end: c.end });
        let mut layers = vec![leaves.collect::<Vec<_>>()];
        while let Some(layer) = layers.last().filter(|layer| layer.len() > 1) {
            // One left over rises as it is.
            let above = layer.chunks(2).map(|pair| match pair {
                [left, right] => Node { id: branch_id(&left.id, &right.id, &note(left.end)), end: right.end },
                alone => alone[0],
            });
            let above = above.collect();
            layers.push(above);
        }
        Ok(Self { layers, chunks, bytes })
    }

    pub fn root(&self) -> [u8; 32] {
        self.layers.last().and_then(|layer| layer.first()).expect("a tree has a root").id
    }

    /// Bytes of data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many chunks are sent; an empty last one is in the tree and stays at home.
    pub fn count(&self) -> usize {
        self.chunks.iter().filter(|c| c.end > c.start).count()
    }

    /// Where chunk `at` lies in the data, end exclusive.
    pub fn range(&self, at: usize) -> Option<(u64, u64)> {
        self.chunks.get(at).map(|c| (c.start, c.end))
    }

    /// The proof of chunk `at`.
    pub fn proof(&self, at: usize) -> Option<Vec<u8>> {
        let chunk = self.chunks.get(at)?;
        let mut proof = Vec::with_capacity(self.layers.len() * BRANCH);
        for level in (1..self.layers.len()).rev() {
            let first = at >> level << 1;
            let below = &self.layers[level - 1];
            if let (Some(left), Some(right)) = (below.get(first), below.get(first + 1)) {
                proof.extend_from_slice(&left.id);
                proof.extend_from_slice(&right.id);
                proof.extend_from_slice(&note(left.end));
            }
        }
        proof.extend_from_slice(&chunk.hash);
        proof.extend_from_slice(&note(chunk.end));
        Some(proof)
    }
}

/// Cuts `bytes` as everybody does, so that the same data has the same root.
fn chunk_lengths(bytes: u64) -> impl Iterator<Item = u64> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let left = rest?;
        if left < CHUNK_BYTES_MAX {
            rest = None;
            return Some(left);
        }
        let after = left - CHUNK_BYTES_MAX;
        let length = if after > 0 && after < CHUNK_BYTES_MIN { left.div_ceil(2) } else { CHUNK_BYTES_MAX };
        rest = Some(left - length);
        Some(length)
    })
}

/// A chunk that a proof ties to its root: bytes `start..end` of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    pub start: u64,
    pub end: u64,
}

/// Checks that `chunk` is the piece with byte `offset` in the `bytes` bytes under `root`.
///
/// `Corrupt`, saying what is wrong, if the proof is of another root, offset or chunk.
pub fn verify_chunk(root: &[u8; 32], bytes: u64, offset: u64, proof: &[u8], chunk: &[u8]) -> Result<Proven> {
    walk(root, bytes, offset, proof, chunk).map_err(|why| Error::corrupt(format!("a chunk is not proven: {why}")))
}

fn walk(
    root: &[u8; 32],
    bytes: u64,
    offset: u64,
    proof: &[u8],
    chunk: &[u8],
) -> std::result::Result<Proven, &'static str> {
    if offset >= bytes {
        return Err("its offset lies outside of the data");
    }
    if proof.len() > PROOF_BYTES_MAX || proof.len() % BRANCH != LEAF {
        return Err("the proof has an odd length");
    }
    let (mut id, mut start, mut end, mut rest) = (*root, 0, bytes, proof);
    while rest.len() > LEAF {
        let (branch, below) = rest.split_first_chunk::<BRANCH>().ok_or("the proof has an odd length")?;
        let (left, right, split) = (&branch[..HASH], &branch[HASH..2 * HASH], &branch[2 * HASH..]);
        if branch_id(left, right, split) != id {
            return Err("a branch is not under the root");
        }
        // At the very end where the last leaf is empty.
        let split = number(split).filter(|split| start < *split && *split <= end);
        let split = split.ok_or("a branch splits outside of its data")?;
        let side = if offset < split { left } else { right };
        (start, end) = if offset < split { (start, split) } else { (split, end) };
        id.copy_from_slice(side);
        rest = below;
    }
    let (hash, last) = rest.split_at(HASH);
    if leaf_id(hash, last) != id {
        return Err("the leaf is not under the root");
    }
    if number(last) != Some(end) {
        return Err("the leaf ends elsewhere than its branch");
    }
    if len64(chunk) != end - start || sha256(chunk)[..] != *hash {
        return Err("the bytes are others");
    }
    Ok(Proven { start, end })
}

fn leaf_id(chunk_hash: &[u8], end: &[u8]) -> [u8; HASH] {
    sha256(&[sha256(chunk_hash), sha256(end)].concat())
}

fn branch_id(left: &[u8], right: &[u8], split: &[u8]) -> [u8; HASH] {
    sha256(&[sha256(left), sha256(right), sha256(split)].concat())
}

fn note(number: u64) -> [u8; NOTE] {
    let mut note = [0; NOTE];
    note[NOTE - 8..].copy_from_slice(&number.to_be_bytes());
    note
}

fn number(note: &[u8]) -> Option<u64> {
    let (high, low) = note.split_last_chunk::<8>()?;
    high.iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(*low))
}
