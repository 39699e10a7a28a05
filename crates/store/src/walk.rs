//! What it takes to walk a graph of blocks that a stranger made.

use crate::cid::{self, Cid};
use crate::dag::each_link;
use crate::error::{Error, Result};
use std::collections::HashSet;

/// Deeper graphs than this are refused. The deepest file of the profile is 4 levels at 1 TiB; directories come on top.
pub const DEPTH_MAX: usize = 64;
/// Links that a walk has read and not followed yet. A block of 2 MiB holds up to 55,000, so that a stranger's graph of
/// few wide nodes, each below the other, would fill the memory (3.5 million at 64 levels). A file of the profile waits
/// for at most 4,096; 25 full directories without shards, each inside the other, come to this. About 100 bytes each.
pub const LINKS_WAITING_MAX: usize = 1 << 17;

/// Walks a graph depth first, parents before children.
///
/// Hashes make cycles impossible, but not graphs of few blocks with exponentially many paths: a node is visited once,
/// depth is bounded by [`DEPTH_MAX`] and what waits by [`LINKS_WAITING_MAX`].
pub struct Walk {
    stack: Vec<(Cid, usize)>,
    /// Digests of the nodes that were visited. Never looked into for a leaf: the same bytes may be linked as both, and
    /// only the node leads on.
    nodes: HashSet<[u8; 32]>,
    /// Digests of the leaves that were visited, if each comes once.
    leaves: Option<HashSet<[u8; 32]>>,
}

impl Walk {
    /// Visits each block once; remembers them all, at 40 to 110 bytes each.
    pub fn from(root: &Cid) -> Self {
        Self::from_all(std::slice::from_ref(root))
    }

    /// The same from several, the first one first.
    pub fn from_all(roots: &[Cid]) -> Self {
        Self { leaves: Some(HashSet::new()), ..Self::repeating_leaves(roots) }
    }

    /// Visits each node once, and a leaf once for each node that links to it: remembers nodes only, so that memory
    /// hardly grows with a file (a thousandth of its blocks are nodes). For who can meet a leaf twice.
    pub fn repeating_leaves(roots: &[Cid]) -> Self {
        let stack = roots.iter().rev().map(|root| (cid::normal(root), 0)).collect();
        Self { stack, nodes: HashSet::new(), leaves: None }
    }

    /// The next block to visit. Call [`Walk::visited`] with its bytes to go on below it, or not, to skip it.
    pub fn next_block(&mut self) -> Option<(Cid, usize)> {
        while let Some((cid, depth)) = self.stack.pop() {
            let digest = cid::digest(&cid);
            let is_new = match cid.codec() == cid::RAW {
                true => self.leaves.as_mut().is_none_or(|leaves| leaves.insert(digest)),
                false => self.nodes.insert(digest),
            };
            if is_new {
                return Some((cid, depth));
            }
        }
        None
    }

    /// Whether nothing is left to visit.
    pub fn is_done(&self) -> bool {
        self.stack.is_empty()
    }

    /// Adds the children of `cid`, found at `depth`.
    ///
    /// `Corrupt` if it is no node, `OverLimit` if it lies too deep or too much waits: then the walk is over.
    pub fn visited(&mut self, cid: &Cid, depth: usize, bytes: &[u8]) -> Result<()> {
        let Self { stack, nodes, leaves } = self;
        let before = stack.len();
        let (mut waiting, mut here) = (before, HashSet::new());
        each_link(cid, bytes, |child| {
            let digest = cid::digest(&child);
            let is_fresh = match (child.codec() == cid::RAW, &*leaves) {
                (true, Some(leaves)) => !leaves.contains(&digest),
                (true, None) => here.insert(digest),
                (false, _) => !nodes.contains(&digest),
            };
            waiting += usize::from(is_fresh);
            if is_fresh && waiting <= LINKS_WAITING_MAX {
                stack.push((cid::normal(&child), depth + 1));
            }
        })?;
        check_waiting(cid, waiting)?;
        if waiting > before && depth >= DEPTH_MAX {
            return Err(Error::over_limit(format!("{cid} lies {depth} levels deep; the limit is {DEPTH_MAX}")));
        }
        stack[before..].reverse();
        Ok(())
    }
}

/// `OverLimit` if more links wait below `cid` than a walk may hold.
pub(crate) fn check_waiting(cid: &Cid, waiting: usize) -> Result<()> {
    match waiting > LINKS_WAITING_MAX {
        false => Ok(()),
        true => Err(Error::over_limit(format!(
            "the graph is too wide: at {cid} over {LINKS_WAITING_MAX} links wait to be followed"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dag::{Link, Node};

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
}
