//! MerkleDAG nodes (dag-pb) and what it takes to walk a graph of them that a stranger made.

use crate::cid::{self, Cid};
use crate::error::{Error, Result};
use crate::protobuf::{Reader, Value, len64, put_bytes, put_number};
use std::collections::HashSet;

/// A block may be at most this long, wherever it comes from (the limit of bitswap and of public gateways).
pub const BLOCK_BYTES_MAX: usize = 2 << 20;
/// Deeper graphs than this are refused. The deepest file of the profile is 4 levels at 1 TiB; directories come on top.
pub const DEPTH_MAX: usize = 64;

/// One link of a node: `tsize` is the encoded size of all that lies below, as its author claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub cid: Cid,
    pub name: String,
    pub tsize: u64,
}

/// A decoded dag-pb node; `data` is empty where the field is absent.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Node {
    pub links: Vec<Link>,
    pub data: Vec<u8>,
}

impl Node {
    /// The block's bytes. Links keep their order: their author sorted them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for link in &self.links {
            let mut inner = Vec::with_capacity(64 + link.name.len());
            put_bytes(1, &link.cid.to_bytes(), &mut inner);
            put_bytes(2, link.name.as_bytes(), &mut inner);
            put_number(3, link.tsize, &mut inner);
            put_bytes(2, &inner, &mut out);
        }
        put_bytes(1, &self.data, &mut out);
        out
    }

    /// Reads a block that already matched `cid`. `Corrupt` if it is no dag-pb node or links to hashes or
    /// codecs that are not spoken here.
    pub fn decode(cid: &Cid, bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|why| Error::corrupt(format!("{cid} is not a dag-pb node: {why}")))
    }

    fn read(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut node = Self::default();
        let mut reader = Reader::new(bytes);
        let mut data_seen = false;
        while let Some(field) = reader.field()? {
            match field {
                (1, Value::Bytes(data)) if !data_seen => {
                    data_seen = true;
                    node.data = data.to_vec();
                }
                (2, Value::Bytes(link)) => node.links.push(read_link(link)?),
                (number, _) => return Err(format!("field {number} is unknown or there twice")),
            }
        }
        Ok(node)
    }
}

fn read_link(bytes: &[u8]) -> std::result::Result<Link, String> {
    let (mut hash, mut name, mut tsize) = (None, None, None);
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        match field {
            (1, Value::Bytes(bytes)) if hash.is_none() => hash = Some(bytes),
            (2, Value::Bytes(bytes)) if name.is_none() => name = Some(bytes),
            (3, Value::Varint(number)) if tsize.is_none() => tsize = Some(number),
            (number, _) => return Err(format!("a link's field {number} is unknown or there twice")),
        }
    }
    let hash = hash.ok_or("a link without a CID")?;
    let cid = Cid::try_from(hash).map_err(|e| format!("a link's CID does not parse: {e}"))?;
    cid::check(&cid)?;
    let name = std::str::from_utf8(name.unwrap_or_default()).map_err(|_| "a link's name is not UTF-8")?;
    Ok(Link { cid, name: name.to_owned(), tsize: tsize.unwrap_or(0) })
}

/// The CIDs that a block points to, in order; none for raw blocks.
pub fn links(cid: &Cid, bytes: &[u8]) -> Result<Vec<Cid>> {
    if cid.codec() == cid::RAW {
        return Ok(Vec::new());
    }
    Ok(Node::decode(cid, bytes)?.links.into_iter().map(|l| l.cid).collect())
}

/// Encoded bytes of a whole graph by its root node's own claim; an upper bound for planning, never trusted.
pub fn claimed_bytes(cid: &Cid, bytes: &[u8]) -> Result<u64> {
    let own = len64(bytes);
    if cid.codec() == cid::RAW {
        return Ok(own);
    }
    Ok(Node::decode(cid, bytes)?.links.iter().fold(own, |sum, l| sum.saturating_add(l.tsize)))
}

/// Walks a graph depth first, parents before children, each block once.
///
/// Hashes make cycles impossible, but not graphs of few blocks with exponentially many paths: a block is
/// therefore visited once, and depth is bounded by [`DEPTH_MAX`].
pub struct Walk {
    stack: Vec<(Cid, usize)>,
    seen: HashSet<[u8; 32]>,
}

impl Walk {
    pub fn from(root: &Cid) -> Self {
        Self { stack: vec![(cid::normal(root), 0)], seen: HashSet::new() }
    }

    /// The same from several, the first one first.
    pub fn from_all(roots: &[Cid]) -> Self {
        Self { stack: roots.iter().rev().map(|root| (cid::normal(root), 0)).collect(), seen: HashSet::new() }
    }

    /// The next block to visit. Call [`Walk::visited`] with its bytes to go on below it, or not, to skip it.
    pub fn next_block(&mut self) -> Option<(Cid, usize)> {
        while let Some((cid, depth)) = self.stack.pop() {
            if self.seen.insert(cid::digest(&cid)) {
                return Some((cid, depth));
            }
        }
        None
    }

    /// Adds the children of `cid`, found at `depth`.
    pub fn visited(&mut self, cid: &Cid, depth: usize, bytes: &[u8]) -> Result<()> {
        let children = links(cid, bytes)?;
        if !children.is_empty() && depth >= DEPTH_MAX {
            return Err(Error::over_limit(format!("{cid} lies {depth} levels deep; the limit is {DEPTH_MAX}")));
        }
        let fresh = children.iter().rev().map(cid::normal).filter(|c| !self.seen.contains(&cid::digest(c)));
        self.stack.extend(fresh.map(|c| (c, depth + 1)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(name: &str, content: &[u8]) -> Link {
        Link { cid: cid::of_raw(content), name: name.into(), tsize: len64(content) }
    }

    #[test]
    fn a_node_survives_and_others_are_told_apart() {
        let node = Node { links: vec![link("", b"a"), link("", b"b")], data: vec![8, 1] };
        let bytes = node.encode();
        let cid = cid::of_dag_pb(&bytes);
        assert_eq!(Node::decode(&cid, &bytes).unwrap(), node);
        let mut lying = bytes.clone();
        lying[1] = 0x7f;
        assert!(Node::decode(&cid, &lying).unwrap_err().to_string().contains("beyond the end"));
        // A link by identity hash would smuggle content past the block limit.
        let mut inner = Vec::new();
        put_bytes(1, &[0x01, 0x55, 0x00, 0x01, 0x61], &mut inner);
        let mut smuggled = Vec::new();
        put_bytes(2, &inner, &mut smuggled);
        assert!(Node::decode(&cid, &smuggled).unwrap_err().to_string().contains("hash 0x0"));
    }

    #[test]
    fn a_walk_visits_each_block_once_however_many_paths_there_are() {
        // Forty levels, each linking twice to the next: 2^40 paths, 41 blocks.
        let mut blocks = std::collections::HashMap::new();
        let leaf = b"leaf".to_vec();
        let mut below = cid::of_raw(&leaf);
        blocks.insert(below, leaf);
        for _ in 0..40 {
            let twice = |name: &str| Link { cid: below, name: name.into(), tsize: 4 };
            let bytes = Node { links: vec![twice("a"), twice("b")], data: vec![8, 1] }.encode();
            below = cid::of_dag_pb(&bytes);
            blocks.insert(below, bytes);
        }
        let mut walk = Walk::from(&below);
        let mut count = 0;
        while let Some((cid, depth)) = walk.next_block() {
            walk.visited(&cid, depth, &blocks[&cid]).unwrap();
            count += 1;
        }
        assert_eq!(count, 41);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = Node::decode(&cid::of_dag_pb(&bytes), &bytes);
        }
    }
}
