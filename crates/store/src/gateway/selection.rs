//! Which blocks of a graph a CAR holds, and in what order: depth first, each block once.
//!
//! Pure: it says which block it wants to see and is given that block's bytes.

use crate::cid::{self, Cid};
use crate::dag::links;
use crate::error::{Error, Kind, Result};
use crate::unixfs::{self, Object, Slot};
use crate::walk::{DEPTH_MAX, check_waiting};
use std::collections::HashSet;

/// How much of a graph is wanted below its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Block,
    /// A whole file or a part of one; of a directory the blocks that list it.
    Entity(ByteRange),
    All,
}

/// `entity-bytes` as it was asked for: inclusive offsets, negative ones from the end, `to` open if absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ByteRange {
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

#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub cid: Cid,
    depth: usize,
    want: Want,
    /// Sent already; looked at again only for another part of what lies below.
    pub is_sent: bool,
}

pub(super) struct Selection {
    stack: Vec<Step>,
    /// Digests of the blocks that went: the answer says that none comes twice (`dups=n`), so it must know them all.
    sent: HashSet<[u8; 32]>,
    /// Blocks below which everything was wanted once: twice is for nothing. Without this few blocks could make
    /// exponentially much work.
    whole: HashSet<[u8; 32]>,
}

impl Selection {
    /// The blocks of `path` first, each alone, then what `scope` says of `end`, which may be the last of them.
    pub fn new(path: &[Cid], end: &Cid, scope: Scope) -> Self {
        let want = match scope {
            Scope::Block => Want::Alone,
            Scope::Entity(range) => Want::Entity(range),
            Scope::All => Want::Whole,
        };
        let step = |cid: &Cid, want| Step { cid: cid::normal(cid), depth: 0, want, is_sent: false };
        let stack = [step(end, want)].into_iter().chain(path.iter().rev().map(|cid| step(cid, Want::Alone)));
        Self { stack: stack.collect(), sent: HashSet::new(), whole: HashSet::new() }
    }

    /// The next block to look at. Call [`Selection::visited`] with its bytes.
    pub fn next_step(&mut self) -> Option<Step> {
        loop {
            let step = self.stack.pop()?;
            let digest = cid::digest(&step.cid);
            let is_sent = !self.sent.insert(digest);
            let has_news = match step.want {
                _ if step.cid.codec() == cid::RAW => !is_sent,
                Want::Alone => !is_sent,
                Want::Whole => self.whole.insert(digest) || !is_sent,
                // At most two parts of a level are not whole: the first and the last.
                Want::Part { from, end, bytes } if from == 0 && end == bytes => self.whole.insert(digest) || !is_sent,
                Want::Entity(_) | Want::Listing | Want::Part { .. } => true,
            };
            if has_news {
                return Some(Step { is_sent, ..step });
            }
        }
    }

    /// Adds what is wanted below `step`, whose bytes are `block`.
    pub fn visited(&mut self, step: &Step, block: &[u8]) -> Result<()> {
        let Step { cid, depth, want, .. } = *step;
        let below: Vec<(Cid, Want)> = match want {
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
        check_waiting(&cid, self.stack.len() + below.len())?;
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
