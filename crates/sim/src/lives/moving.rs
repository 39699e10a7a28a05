//! A move between two hosts: the announced successor follows the active node's journal, message by message, some of which
//! are lost, come late or come twice. What may leave the old node meanwhile, its shipped gate says (`journal::Gate`).
//!
//! As `node/src/moving.rs`: from where a follower asks is its acknowledgement. Keys and sealing are left out.

use super::disk::Disk;
use super::node::Node;
use crate::Chance;

/// Questions and answers between two blocks.
const EXCHANGES: u32 = 3;
/// How often a successor asks for the last words before it goes on with what it has.
const LAST_WORDS: u32 = 4;

#[derive(Clone, Debug)]
pub struct Follower {
    pub lease: u64,
    pub disk: Disk,
    /// It had the keys, and so the last checkpoint: it says that it is able.
    pub has_memory: bool,
    /// An answer that is still on its way.
    late: Option<Vec<u8>>,
}

impl Follower {
    /// Begins with what the last acknowledged checkpoint holds of this node's records.
    pub fn new(lease: u64, node: &Node, checkpoint_seq: u64) -> Self {
        let records = node.memories.get(&checkpoint_seq).map_or(0, |memory| memory.last_lsn);
        Self { lease, disk: Disk::with(node.disk.records_to(records)), has_memory: false, late: None }
    }

    /// What passes between the two until the next block. Of a thousand messages, `bad` are lost, late or doubled.
    pub fn follows(&mut self, node: &mut Node, bad: u64, chance: &mut Chance) {
        for _ in 0..EXCHANGES {
            self.asks(node, bad, chance);
        }
    }

    /// The old node has closed its journal. Whether its last words arrived.
    pub fn hears_the_last_words(&mut self, node: &mut Node, bad: u64, chance: &mut Chance) -> bool {
        (0..LAST_WORDS).any(|_| self.asks(node, bad, chance) && self.disk.last_lsn() == node.disk.durable())
    }

    /// One question and its answer. False: one of them was lost, or is late.
    fn asks(&mut self, node: &mut Node, bad: u64, chance: &mut Chance) -> bool {
        if let Some(late) = self.late.take_if(|_| chance.of_1000(500)) {
            self.disk.import(&late);
        }
        if chance.of_1000(bad) {
            return false;
        }
        if !node.is_followed {
            node.grants();
            self.has_memory |= !chance.of_1000(bad);
            return false;
        }
        if !self.has_memory {
            self.has_memory = !chance.of_1000(bad);
            return false;
        }
        node.is_followed_to(self.disk.durable());
        let Some(answer) = node.disk.export_after(self.disk.durable()) else { return true };
        if !chance.of_1000(bad) {
            self.disk.import(&answer);
            return true;
        }
        match chance.below(3) {
            0 => return false,
            1 => self.late = Some(answer),
            _ => {
                self.disk.import(&answer);
                self.disk.import(&answer);
                return true;
            }
        }
        false
    }
}
