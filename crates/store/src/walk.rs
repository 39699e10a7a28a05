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
/// Leaves that a walk remembers, and a CAR file on its way to a reader: as many as fit into a set of 2^18 places, of
/// which a hash table fills seven eighths. 9 MB; 13 MB while it grows to that. A file of 224 GiB by the profile has so
/// many, one of 56 GiB by the old one.
pub const LEAVES_REMEMBERED_MAX: usize = 7 << 15;

/// Walks a graph depth first, parents before children.
///
/// Hashes make cycles impossible, but not graphs of few blocks with exponentially many paths: a node is visited once,
/// depth is bounded by [`DEPTH_MAX`] and what waits by [`LINKS_WAITING_MAX`]. So all nodes are remembered, at 40 to 110
/// bytes each: 0.1 MB for a file of 1 TiB by the profile (1,025 nodes), 2.7 MB by the old one (24,246). A leaf leads
/// nowhere, whether it is a raw block or a node without links, and not all leaves are remembered.
pub struct Walk {
    stack: Vec<(Cid, usize)>,
    /// Digests of the nodes that were visited. Those without links are in `leaves` as soon as that is known.
    nodes: HashSet<[u8; 32]>,
    leaves: Leaves,
}

impl Walk {
    /// Visits each node once, and each leaf once as long as there are at most [`LEAVES_REMEMBERED_MAX`]. Of more, one
    /// that is not remembered comes again for each node that links to it: whoever walks must be able to meet it twice.
    pub fn from(root: &Cid) -> Self {
        Self::from_all(std::slice::from_ref(root))
    }

    /// The same from several, the first one first.
    pub fn from_all(roots: &[Cid]) -> Self {
        Self { leaves: Leaves::up_to(LEAVES_REMEMBERED_MAX), ..Self::repeating_leaves(roots) }
    }

    /// Visits each node once, and a leaf once for each node that links to it: remembers no leaves at all. For whom
    /// meeting one twice costs little.
    pub fn repeating_leaves(roots: &[Cid]) -> Self {
        let stack = roots.iter().rev().map(|root| (cid::normal(root), 0)).collect();
        Self { stack, nodes: HashSet::new(), leaves: Leaves::up_to(0) }
    }

    /// The next block to visit. Call [`Walk::visited`] with its bytes to go on below it, or not, to skip it.
    pub fn next_block(&mut self) -> Option<(Cid, usize)> {
        while let Some((cid, depth)) = self.stack.pop() {
            let is_new = match cid.codec() == cid::RAW {
                true => self.leaves.meet(&cid),
                false => !self.leaves.know(&cid) && self.nodes.insert(cid::digest(&cid)),
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
        let mut has_links = false;
        each_link(cid, bytes, |child| {
            has_links = true;
            let is_known = leaves.know(&child) || child.codec() != cid::RAW && nodes.contains(&cid::digest(&child));
            let is_fresh = !is_known && here.insert(name(&child));
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
        if !has_links && cid.codec() != cid::RAW {
            nodes.remove(&cid::digest(cid));
            leaves.meet(cid);
        }
        Ok(())
    }
}

/// Leaves that were met, the first ones, as many as are remembered. 34 bytes a place, of which seven in sixteen to seven
/// in eight are taken.
pub(crate) struct Leaves {
    met: HashSet<(bool, [u8; 32])>,
    max: usize,
}

impl Leaves {
    pub(crate) fn up_to(max: usize) -> Self {
        Self { met: HashSet::new(), max }
    }

    /// Remembers `cid` if there is room; false if it is known already.
    pub(crate) fn meet(&mut self, cid: &Cid) -> bool {
        match self.is_full() {
            true => !self.know(cid),
            false => self.met.insert(name(cid)),
        }
    }

    pub(crate) fn know(&self, cid: &Cid) -> bool {
        self.met.contains(&name(cid))
    }

    /// Whether the next one that is met is forgotten.
    pub(crate) fn is_full(&self) -> bool {
        self.met.len() >= self.max
    }
}

/// What tells a block from all others. Its digest alone does not: the same bytes may be linked as a raw block and as a
/// node, and only the node leads on.
pub(crate) fn name(cid: &Cid) -> (bool, [u8; 32]) {
    (cid.codec() == cid::RAW, cid::digest(cid))
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
    use std::collections::HashMap;

    #[test]
    fn a_walk_visits_each_block_once_however_many_paths_there_are() {
        // Forty levels, each linking twice to the next: 2^40 paths, 41 blocks.
        let mut blocks = HashMap::new();
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

    /// A node that links to each of `below`, with something of its own.
    fn node(own: u64, below: &[Cid]) -> (Cid, Vec<u8>) {
        let link = |cid: &Cid| Link { cid: *cid, name: String::new(), tsize: 1 };
        let bytes = Node { links: below.iter().map(link).collect(), data: own.to_le_bytes().to_vec() }.encode();
        (cid::of_dag_pb(&bytes), bytes)
    }

    /// How often each block of `nodes` and all below is visited.
    fn visits(mut walk: Walk, nodes: &HashMap<Cid, Vec<u8>>) -> HashMap<Cid, usize> {
        let mut visits = HashMap::new();
        while let Some((cid, depth)) = walk.next_block() {
            *visits.entry(cid).or_default() += 1;
            walk.visited(&cid, depth, nodes.get(&cid).map_or(&b"leaf"[..], |bytes| bytes)).unwrap();
        }
        visits
    }

    #[test]
    fn a_leaf_that_is_remembered_comes_once_and_a_forgotten_one_for_each_node_that_links_to_it() {
        // A raw leaf, a node without links, and that node's bytes as a raw block: three leaves, below each of three nodes.
        let (bare, bare_bytes) = node(0, &[]);
        let leaves = [cid::of_raw(b"leaf"), bare, cid::of_raw(&bare_bytes)];
        let above = [1, 2, 3].map(|own| node(own, &[leaves, leaves].concat()));
        let (root, root_bytes) = node(4, &[above[0].0, above[1].0, above[2].0, above[0].0]);
        let nodes: HashMap<_, _> = above.into_iter().chain([(root, root_bytes), (bare, bare_bytes)]).collect();
        for (leaves_max, times) in [(3, [1, 1, 1]), (2, [1, 1, 3]), (0, [3, 3, 3])] {
            let walk = Walk { leaves: Leaves::up_to(leaves_max), ..Walk::from(&root) };
            let seen = visits(walk, &nodes);
            assert_eq!(leaves.map(|leaf| seen[&leaf]), times, "{leaves_max} remembered");
            assert_eq!((seen.len(), seen[&root]), (7, 1));
        }
        assert_eq!(visits(Walk::from(&root), &nodes).values().sum::<usize>(), 7);
        assert_eq!(visits(Walk::repeating_leaves(&[root]), &nodes).values().sum::<usize>(), 4 + 9);
    }

    #[test]
    fn a_raw_block_takes_no_node_of_the_same_bytes_out_of_memory() {
        let (node_cid, bytes) = node(1, &[cid::of_raw(b"leaf")]);
        let mut walk = Walk::from_all(&[node_cid, cid::of_raw(&bytes), node_cid]);
        let mut seen = Vec::new();
        while let Some((cid, depth)) = walk.next_block() {
            walk.visited(&cid, depth, &bytes).unwrap();
            seen.push(cid);
        }
        assert_eq!(seen, [node_cid, cid::of_raw(b"leaf"), cid::of_raw(&bytes)]);
    }
}
