//! Merkle trees over receipts: one root a heartbeat commits the agent to every receipt of a day, so that neither a
//! receipt nor its amount can be changed or left out afterwards.
//!
//! Shape: RFC 6962, section 2.1 (the left subtree is the largest power of two below the size), because such a tree
//! grows at its end and keeps every earlier root provable. Hashes: OpenZeppelin's `MerkleProof` (keccak-256 over the
//! two children in ascending order) and `StandardMerkleTree` (leaves hashed twice), so that a contract checks a proof
//! with one library call. A leaf's last hash is over 32 bytes and an inner node's over 64: neither passes for the other.

use super::{Error, bytes};
use crate::Usdc;
use crate::scheme::exact::Hash;
use alloy::primitives::{B256, U256, keccak256};
use alloy::sol_types::SolValue;
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// A tree ends with a day, or with the first heartbeat that finds this many leaves in it: so much is kept in memory
/// and in each checkpoint (64 bytes a leaf). A guess.
const LEAVES_CLOSE: u32 = 16_384;
/// Heartbeats whose end is not known that are remembered. One is on its way at a time; a lost one stays.
const CUTS_MAX: usize = 8;

/// The leaf of a receipt: `keccak256(keccak256(abi.encode(bytes32 digest, uint256 amount)))`. The digest is the one the
/// operator signs. It holds the amount already; here the amount stands beside it, so that a day's sum can be checked
/// from (digest, amount) pairs by somebody who is not shown the receipts.
pub fn leaf(digest: B256, amount: Usdc) -> Hash {
    keccak256(keccak256((digest, U256::from(amount.micro())).abi_encode())).0
}

/// Two children in ascending order.
fn parent(a: &Hash, b: &Hash) -> Hash {
    let (first, second) = if a <= b { (a, b) } else { (b, a) };
    let mut pair = [0; 64];
    pair[..32].copy_from_slice(first);
    pair[32..].copy_from_slice(second);
    keccak256(pair).0
}

/// That a receipt is under a root. The position is for people: the hashes do not need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Of the leaf, from 0.
    pub index: u32,
    /// Leaves under the root.
    pub size: u32,
    /// Siblings from the leaf up.
    pub path: Vec<Hash>,
}

impl Proof {
    /// The root that `leaf` is under, if the proof holds at all.
    pub fn root(&self, leaf: &Hash) -> Hash {
        self.path.iter().fold(*leaf, |node, sibling| parent(&node, sibling))
    }

    /// The document beside a receipt. `anchor`: the block of the heartbeat that carried the root, once it is known.
    pub fn to_json(&self, root: &Hash, anchor: Option<u64>) -> String {
        let hex32 = |hash: &Hash| format!("0x{}", hex::encode(hash));
        let json = ProofJson {
            index: self.index,
            size: self.size,
            path: self.path.iter().map(hex32).collect(),
            root: hex32(root),
            block: anchor,
        };
        serde_json::to_string(&json).expect("plain fields are JSON")
    }

    /// Reads [`to_json`](Self::to_json); the root it claims comes beside it.
    pub fn from_json(text: &str) -> Result<(Self, Hash), Error> {
        let json: ProofJson = serde_json::from_str(text).map_err(|e| Error(format!("not a proof: {e}")))?;
        // Deeper than any tree that could ever be: refused before it costs anything.
        if json.path.len() > 64 {
            return Err(Error(format!("a proof of {} hashes", json.path.len())));
        }
        let path: Result<Vec<Hash>, Error> = json.path.iter().map(|hash| bytes("path", hash)).collect();
        Ok((Self { index: json.index, size: json.size, path: path? }, bytes("root", &json.root)?))
    }
}

/// The twin at the edge.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProofJson {
    index: u32,
    size: u32,
    path: Vec<String>,
    root: String,
    block: Option<u64>,
}

/// A tree that grows at its end. `levels[k]` holds the roots of all complete subtrees of 2^k leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Tree {
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    fn size(&self) -> u32 {
        self.levels.first().map_or(0, |leaves| u32::try_from(leaves.len()).expect("a tree is closed long before"))
    }

    fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        for k in 0.. {
            if self.levels.len() == k {
                self.levels.push(Vec::new());
            }
            let level = &mut self.levels[k];
            level.push(node);
            if !level.len().is_multiple_of(2) {
                return;
            }
            node = parent(&level[level.len() - 2], &level[level.len() - 1]);
        }
    }

    /// Root of `count` leaves from `start` on; `start` is a multiple of the power of two not below `count`.
    fn root(&self, start: u32, count: u32) -> Hash {
        let half = split(count);
        if count.is_power_of_two() {
            let level = &self.levels[count.trailing_zeros() as usize];
            return level[(start / count) as usize];
        }
        parent(&self.root(start, half), &self.root(start + half, count - half))
    }

    fn root_of(&self, size: u32) -> Hash {
        if size == 0 { [0; 32] } else { self.root(0, size) }
    }

    /// Of the leaf at `index` under the first `size` leaves.
    fn proof(&self, index: u32, size: u32) -> Proof {
        let (mut start, mut count) = (0, size);
        let mut path = Vec::new();
        while count > 1 {
            let half = split(count);
            if index < start + half {
                path.push(self.root(start + half, count - half));
                count = half;
            } else {
                path.push(self.root(start, half));
                (start, count) = (start + half, count - half);
            }
        }
        path.reverse();
        Proof { index, size, path }
    }

    /// Takes the leaves from `size` on into a tree of their own.
    fn split_off(&mut self, size: u32) -> Self {
        let leaves = self.levels.first().map(Vec::as_slice).unwrap_or_default();
        let (mut first, mut rest) = (Self::default(), Self::default());
        for (index, leaf) in (0..).zip(leaves) {
            if index < size { &mut first } else { &mut rest }.push(*leaf);
        }
        *self = first;
        rest
    }
}

/// The largest power of two below `count`, at least 1.
fn split(count: u32) -> u32 {
    count.div_ceil(2).next_power_of_two()
}

/// A root that a heartbeat carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Cut {
    tree: u64,
    size: u32,
    day: u64,
}

/// Where a receipt's leaf is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Place {
    pub tree: u64,
    pub index: u32,
}

/// A tree and what of it is on chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Day {
    tree: Tree,
    /// Chain days since 1970 at its first leaf.
    day: u64,
    /// Leaves under its last root that is on chain, and the block of that heartbeat.
    anchored: Option<(u32, u64)>,
}

/// The trees of an agent's receipts: a pure fold over its journal, hence the same after a replay, a move or a takeover.
///
/// Each heartbeat carries the root of the open tree as it stood when the heartbeat was decided. The first one of a new
/// day whose inclusion is known closes the tree at exactly that root; what was added since begins the next tree. So
/// every leaf of a closed tree is under a root on chain, and a heartbeat that is lost loses nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Trees {
    /// Ascending; the last one is open. Empty before the first receipt.
    days: VecDeque<Day>,
    /// Number of `days[0]`.
    first: u64,
    /// By the heartbeat's output id (lsn, index).
    cuts: BTreeMap<(u64, u32), Cut>,
}

impl Trees {
    /// Adds a receipt's leaf on chain day `day`.
    pub fn add(&mut self, leaf: Hash, day: u64) -> Place {
        if self.days.is_empty() {
            self.days.push_back(Day::default());
        }
        let tree = self.open_number();
        let open = self.days.back_mut().expect("just ensured");
        if open.tree.size() == 0 {
            open.day = day;
        }
        let index = open.tree.size();
        open.tree.push(leaf);
        Place { tree, index }
    }

    /// A heartbeat was decided on chain day `day`: the root it carries, zero when there is no receipt since the last
    /// closed tree.
    pub fn cut(&mut self, heartbeat: (u64, u32), day: u64) -> Hash {
        let Some(open) = self.days.back() else { return [0; 32] };
        let cut = Cut { tree: self.open_number(), size: open.tree.size(), day };
        let root = open.tree.root_of(cut.size);
        self.cuts.insert(heartbeat, cut);
        while self.cuts.len() > CUTS_MAX {
            self.cuts.pop_first();
        }
        root
    }

    /// The root that this heartbeat carries, whenever it is sent.
    pub fn root_of(&self, heartbeat: (u64, u32)) -> Hash {
        self.cuts.get(&heartbeat).and_then(|cut| Some(self.day(cut.tree)?.tree.root_of(cut.size))).unwrap_or([0; 32])
    }

    /// The heartbeat is on chain since `block`.
    pub fn anchored(&mut self, heartbeat: (u64, u32), block: u64) {
        let Some(cut) = self.cuts.remove(&heartbeat) else { return };
        let open = self.open_number();
        let Some(day) = cut.tree.checked_sub(self.first).and_then(|at| self.days.get_mut(usize::try_from(at).ok()?))
        else {
            return;
        };
        let before = day.anchored.map_or(0, |(size, _)| size);
        if cut.size < before.max(1) {
            return;
        }
        if cut.size > before {
            day.anchored = Some((cut.size, block));
        }
        let ends = cut.day > day.day || cut.size >= LEAVES_CLOSE;
        if cut.tree == open && ends {
            // Whoever was placed behind the cut is in the next tree now: see `find`.
            let rest = day.tree.split_off(cut.size);
            self.days.push_back(Day { tree: rest, day: cut.day, anchored: None });
            // A later root of this tree, whose end is not known, covers what moved on: nothing is proved by it.
            self.cuts.retain(|_, other| other.tree != cut.tree || other.size <= cut.size);
        }
    }

    /// The heartbeat never happened.
    pub fn lost(&mut self, heartbeat: (u64, u32)) {
        self.cuts.remove(&heartbeat);
    }

    /// Forgets the closed trees before `tree`, and whoever was placed in them.
    pub fn forget_before(&mut self, tree: u64) {
        while self.first < tree && self.days.len() > 1 {
            self.days.pop_front();
            self.first += 1;
        }
    }

    /// The proof of a receipt under the newest root of its tree that is on chain, with that root and its block. `None`:
    /// not on chain yet, or forgotten.
    pub fn proof(&self, place: Place) -> Option<(Proof, Hash, u64)> {
        let Place { tree, index } = self.find(place)?;
        let day = self.day(tree)?;
        let (size, block) = day.anchored?;
        (index < size).then(|| (day.tree.proof(index, size), day.tree.root_of(size), block))
    }

    /// A leaf that came after the cut of its tree went on into the next one, and may do so again.
    fn find(&self, mut place: Place) -> Option<Place> {
        while place.tree < self.open_number() {
            let size = self.day(place.tree)?.tree.size();
            if place.index < size {
                break;
            }
            place = Place { tree: place.tree + 1, index: place.index - size };
        }
        Some(place)
    }

    fn day(&self, tree: u64) -> Option<&Day> {
        self.days.get(usize::try_from(tree.checked_sub(self.first)?).ok()?)
    }

    fn open_number(&self) -> u64 {
        self.first + u64::try_from(self.days.len().saturating_sub(1)).expect("few trees")
    }
}

#[cfg(test)]
mod tests;
