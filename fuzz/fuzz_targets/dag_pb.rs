//! MerkleDAG nodes of strangers. What must hold: a node that was read is written and read again as itself, in a form
//! that does not change any more; the walk, the list of links and the claim of size, which copy no names, see the same
//! node; and memory is a multiple of the block.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::cid;
use store::dag::{self, Link, Node};
use store::walk::Walk;
use vivarium_fuzz::bounded;

/// The shortest link: two lengths with their keys, and a CIDv0.
const LINK_BYTES_MIN: usize = 38;

fuzz_target!(|data: &[u8]| {
    let name = cid::of_dag_pb(data);
    // A list that grows by doubling holds up to three times its links while it moves; a name is a part of the block.
    let links_max = data.len() / LINK_BYTES_MIN + 4;
    let bytes_max = 4096 + 2 * data.len() + 3 * links_max * size_of::<Link>();
    let read = bounded(bytes_max, || Node::decode(&name, data));
    let links = dag::links(&name, data);
    let claimed = dag::claimed_bytes(&name, data);
    let mut walk = Walk::from(&name);
    let (first, depth) = walk.next_block().expect("a root");
    let visited = walk.visited(&first, depth, data);
    let Ok(node) = read else {
        assert!(links.is_err() && claimed.is_err() && visited.is_err(), "one reader takes what another refuses");
        return;
    };
    let written = node.encode();
    let again = Node::decode(&cid::of_dag_pb(&written), &written).expect("what was written here");
    assert!(again == node, "written again it is another node");
    assert!(again.encode() == written, "two forms of one node");
    assert!(links.expect("links of a node") == node.links.iter().map(|link| link.cid).collect::<Vec<_>>());
    let sum = node.links.iter().fold(u64::try_from(data.len()).unwrap(), |sum, link| sum.saturating_add(link.tsize));
    assert_eq!(claimed.expect("a node's claim"), sum);
    visited.expect("a node with few links");
    let mut below = std::collections::HashSet::new();
    while let Some((child, depth)) = walk.next_block() {
        assert!(depth == 1 && node.links.iter().any(|link| cid::normal(&link.cid) == child), "not linked: {child}");
        assert!(below.insert((child.codec(), cid::digest(&child))), "{child} comes twice");
    }
});
