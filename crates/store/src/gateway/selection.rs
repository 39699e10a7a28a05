//! Which blocks of a graph a CAR holds, and in what order: depth first, each node once, and each leaf once or nearly so.
//!
//! Pure: it says which block it wants to see and is given that block's bytes.

use crate::cid::{self, Cid};
use crate::dag::{each_link, links};
use crate::error::{Error, Kind, Result};
use crate::unixfs::{self, Object, Slot};
use crate::walk::{DEPTH_MAX, LEAVES_REMEMBERED_MAX, Leaves, check_waiting};
use std::collections::HashSet;

/// How much of a graph is wanted below its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The block at its end alone.
    Block,
    /// A whole file or a part of one; of a directory the blocks that list it.
    Entity(ByteRange),
    All,
}

/// What an answer says of blocks that are linked from several places, before anybody has counted them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dups {
    /// None comes twice (`dups=n`). A graph of more leaves than are remembered breaks off.
    No,
    /// Nothing. Of more leaves than are remembered, one that is not comes again for each node that links to it. That
    /// is not `dups=y` of IPIP-412, by which nodes come again too, with all below them: few blocks could make an answer
    /// without end.
    Unsaid,
}

/// `entity-bytes` as it was asked for: inclusive offsets, negative ones from the end, `to` open if absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRange {
    pub from: i64,
    pub to: Option<i64>,
}

impl ByteRange {
    /// `from:to`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = text.strip_prefix('-').unwrap_or(text);
            // `i64::from_str` takes "+5" too.
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i64>().ok()).flatten()
        };
        let (from, to) = text.split_once(':')?;
        Some(Self { from: number(from)?, to: if to == "*" { None } else { Some(number(to)?) } })
    }

    /// The part of `bytes` content bytes that is meant, end exclusive; `None` if there is none of it.
    pub fn within(self, bytes: u64) -> Option<(u64, u64)> {
        let length = i128::from(bytes);
        let absolute = |offset: i64| if offset < 0 { length + i128::from(offset) } else { i128::from(offset) };
        let from = absolute(self.from).max(0);
        let end = self.to.map_or(length, |to| absolute(to) + 1).min(length);
        (from < end).then(|| (u64::try_from(from).unwrap_or(0), u64::try_from(end).unwrap_or(0)))
    }
}

/// What is wanted at one block.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// Nothing below.
    Alone,
    /// Everything below.
    Whole,
    /// The entity at the end of the path.
    Entity(ByteRange),
    /// The blocks of one directory.
    Listing,
    /// Content bytes `from..end` of this node of a file, which claims `bytes`.
    Part { from: u64, end: u64, bytes: u64 },
}

/// A block to look at, and to send unless it was.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub cid: Cid,
    depth: usize,
    want: Want,
    /// Sent already; looked at again only for another part of what lies below.
    pub is_sent: bool,
}

/// A CAR under way. It holds what [`crate::walk::Walk`] holds, for the same reasons, and the second name of each node in
/// `whole`.
pub struct Selection {
    stack: Vec<Step>,
    /// Digests of the nodes that went, all of them; those without links only until that is known.
    nodes: HashSet<[u8; 32]>,
    /// Leaves that went.
    leaves: Leaves,
    dups: Dups,
    /// Nodes below which everything was wanted once: twice is for nothing. Without this few blocks could make
    /// exponentially much work.
    whole: HashSet<[u8; 32]>,
}

impl Selection {
    /// The blocks of `path` first, each alone, then what `scope` says of `end`, which may be the last of them.
    pub fn new(path: &[Cid], end: &Cid, scope: Scope, dups: Dups) -> Self {
        let want = match scope {
            Scope::Block => Want::Alone,
            Scope::Entity(range) => Want::Entity(range),
            Scope::All => Want::Whole,
        };
        let step = |cid: &Cid, want| Step { cid: cid::normal(cid), depth: 0, want, is_sent: false };
        let stack = [step(end, want)].into_iter().chain(path.iter().rev().map(|cid| step(cid, Want::Alone)));
        let leaves = Leaves::up_to(LEAVES_REMEMBERED_MAX);
        Self { stack: stack.collect(), nodes: HashSet::new(), leaves, dups, whole: HashSet::new() }
    }

    /// The next block to look at. Call [`Selection::visited`] with its bytes. `OverLimit` if nobody could tell whether
    /// it was sent, where none may be sent twice.
    pub fn next_step(&mut self) -> Result<Option<Step>> {
        while let Some(step) = self.stack.pop() {
            if self.leaves.know(&step.cid) {
                continue;
            }
            if step.cid.codec() == cid::RAW {
                self.sent_leaf(&step.cid)?;
                return Ok(Some(step));
            }
            let digest = cid::digest(&step.cid);
            let is_sent = !self.nodes.insert(digest);
            let has_news = match step.want {
                Want::Alone => !is_sent,
                Want::Whole => self.whole.insert(digest) || !is_sent,
                // At most two parts of a level are not whole: the first and the last.
                Want::Part { from, end, bytes } if from == 0 && end == bytes => self.whole.insert(digest) || !is_sent,
                Want::Entity(_) | Want::Listing | Want::Part { .. } => true,
            };
            if has_news {
                return Ok(Some(Step { is_sent, ..step }));
            }
        }
        Ok(None)
    }

    /// Remembers a leaf that goes, if there is room; fails where none may be forgotten.
    fn sent_leaf(&mut self, cid: &Cid) -> Result<()> {
        if self.dups == Dups::No && self.leaves.is_full() {
            let why = "its root claims less than that, so that none was to come twice";
            return Err(Error::over_limit(format!("{cid} is one leaf more than {LEAVES_REMEMBERED_MAX}, and {why}")));
        }
        self.leaves.meet(cid);
        Ok(())
    }

    /// Adds what is wanted below `step`, whose bytes are `block`.
    pub fn visited(&mut self, step: &Step, block: &[u8]) -> Result<()> {
        let Step { cid, depth, want, .. } = *step;
        let mut below: Vec<(Cid, Want)> = match want {
            _ if cid.codec() == cid::RAW => Vec::new(),
            Want::Alone => Vec::new(),
            Want::Whole => links(&cid, block)?.into_iter().map(|child| (child, Want::Whole)).collect(),
            Want::Listing => match unixfs::read(&cid, block)? {
                Object::Shard(shard) => parts_of_listing(shard),
                _ => return Err(Error::corrupt(format!("{cid} should be a part of a directory and is none"))),
            },
            Want::Entity(range) => match unixfs::read(&cid, block) {
                Ok(file @ Object::File { bytes, .. }) => {
                    range.within(bytes).map(|(from, end)| parts_of_file(file, from, end)).unwrap_or_default()
                }
                Ok(Object::Shard(shard)) => parts_of_listing(shard),
                Ok(Object::Directory { .. }) => Vec::new(),
                // What is no UnixFS file or directory (a symbolic link, another kind of node) is one block.
                Err(e) if matches!(e.kind, Kind::Usage | Kind::Corrupt) => Vec::new(),
                Err(e) => return Err(e),
            },
            Want::Part { from, end, bytes } => {
                let object = unixfs::read(&cid, block)?;
                match &object {
                    Object::File { bytes: here, .. } if *here == bytes => parts_of_file(object, from, end),
                    _ => {
                        return Err(Error::corrupt(format!(
                            "{cid} is not the part of {bytes} bytes that it should be"
                        )));
                    }
                }
            }
        };
        if !below.is_empty() && depth >= DEPTH_MAX {
            return Err(Error::over_limit(format!("{cid} lies {depth} levels deep; the limit is {DEPTH_MAX}")));
        }
        let mut here = HashSet::new();
        below.retain(|(child, _)| child.codec() != cid::RAW || here.insert(cid::digest(child)));
        check_waiting(&cid, self.stack.len() + below.len())?;
        if below.is_empty() && cid.codec() != cid::RAW && has_no_links(&cid, block) {
            self.sent_leaf(&cid)?;
            self.nodes.remove(&cid::digest(&cid));
            self.whole.remove(&cid::digest(&cid));
        }
        let steps = below.into_iter().rev();
        self.stack.extend(steps.map(|(cid, want)| Step {
            cid: cid::normal(&cid),
            depth: depth + 1,
            want,
            is_sent: false,
        }));
        Ok(())
    }
}

fn has_no_links(cid: &Cid, block: &[u8]) -> bool {
    let mut has_none = true;
    each_link(cid, block, |_| has_none = false).is_ok() && has_none
}

fn parts_of_listing(shard: unixfs::Shard) -> Vec<(Cid, Want)> {
    let below = |(_, slot)| match slot {
        Slot::Below(cid) => Some((cid, Want::Listing)),
        Slot::Entry(_) => None,
    };
    shard.slots.into_iter().filter_map(below).collect()
}

/// The parts of a file's node that hold some of its bytes `from..end`.
fn parts_of_file(object: Object, from: u64, end: u64) -> Vec<(Cid, Want)> {
    let Object::File { inline, parts, .. } = object else { return Vec::new() };
    let mut at = crate::protobuf::len64(&inline);
    let mut below = Vec::new();
    for (cid, bytes) in parts {
        // The sum of all parts fits into 64 bits: `unixfs::read` checked it.
        let (start, stop) = (at, at + bytes);
        at = stop;
        if start < end && from < stop {
            let (from, end) = (from.saturating_sub(start), (end - start).min(bytes));
            below.push((cid, Want::Part { from, end, bytes }));
        }
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dag::{Link, Node};
    use std::collections::HashMap;

    fn node(own: u64, below: &[Cid]) -> (Cid, Vec<u8>) {
        let link = |cid: &Cid| Link { cid: *cid, name: String::new(), tsize: 1 };
        let bytes = Node { links: below.iter().map(link).collect(), data: own.to_le_bytes().to_vec() }.encode();
        (cid::of_dag_pb(&bytes), bytes)
    }

    #[test]
    fn no_leaf_comes_twice_where_that_was_said_and_a_forgotten_one_does_elsewhere() {
        // A raw leaf, a node without links, and that node's bytes as a raw block, below each of two nodes; the raw ones
        // twice.
        let (bare, bare_bytes) = node(0, &[]);
        let leaves = [cid::of_raw(b"leaf"), bare, cid::of_raw(&bare_bytes)];
        let above = [1, 2].map(|own| node(own, &[&leaves[..], &leaves[..1], &leaves[2..]].concat()));
        let (root, root_bytes) = node(3, &[above[0].0, above[1].0, above[0].0]);
        let nodes: HashMap<_, _> = above.into_iter().chain([(root, root_bytes), (bare, bare_bytes)]).collect();
        let sent = |leaves_max, dups| {
            let new = Selection::new(&[root], &root, Scope::All, dups);
            let mut selection = Selection { leaves: Leaves::up_to(leaves_max), ..new };
            let mut sent = Vec::new();
            while let Some(step) = selection.next_step()? {
                selection.visited(&step, nodes.get(&step.cid).map_or(&b"leaf"[..], |bytes| bytes))?;
                sent.extend((!step.is_sent).then_some(step.cid));
            }
            Ok::<_, Error>(leaves.map(|leaf| sent.iter().filter(|cid| **cid == leaf).count()).to_vec())
        };
        for dups in [Dups::No, Dups::Unsaid] {
            assert_eq!(sent(3, dups).unwrap(), [1, 1, 1], "{dups:?}");
        }
        assert_eq!(sent(2, Dups::Unsaid).unwrap(), [1, 1, 2]);
        assert_eq!(sent(0, Dups::Unsaid).unwrap(), [2, 2, 2]);
        for leaves_max in [0, 1, 2] {
            assert_eq!(sent(leaves_max, Dups::No).unwrap_err().kind, Kind::OverLimit, "{leaves_max}");
        }
    }

    #[test]
    fn ranges_are_counted_from_either_end_and_cut_to_what_is_there() {
        let range = |text: &str| ByteRange::parse(text).unwrap().within(100);
        assert_eq!(range("0:*"), Some((0, 100)));
        assert_eq!(range("0:0"), Some((0, 1)));
        assert_eq!(range("-10:*"), Some((90, 100)));
        assert_eq!(range("-1000:*"), Some((0, 100)));
        assert_eq!(range("10:-10"), Some((10, 91)));
        assert_eq!(range("99:1000"), Some((99, 100)));
        assert_eq!((range("100:*"), range("5:4"), range("0:-101")), (None, None, None));
        assert_eq!(ByteRange::parse("0:*").unwrap().within(0), None);
        for wrong in
            ["", ":", "1", "1:", ":1", "*:1", "+1:2", "a:b", "1:2:3", "1.0:2", "9223372036854775808:*", "--1:*"]
        {
            assert_eq!(ByteRange::parse(wrong), None, "{wrong}");
        }
    }
}
