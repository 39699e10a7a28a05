//! Who is asked for which block: a pure machine, told what happened and what time it is.

use crate::cid::Cid;
use std::collections::{BTreeMap, BTreeSet};

/// Blocks asked of one source at once. Hides the round trip; more only fills buffers.
pub(super) const AT_ONCE_PER_SOURCE: usize = 4;
/// Sources that work on one block at once, the first one included.
const RACERS_MAX: usize = 3;
/// Failures in a row after which a source is given up. A choice: three rests add up to under two seconds.
const FAILURES_MAX: u32 = 4;
const REST_MS: u64 = 200;
/// A block older than this many times the usual is asked of another source too.
const OVERTAKE_FACTOR: u64 = 4;
const OVERTAKE_MS_MIN: u64 = 250;
const OVERTAKE_MS_MAX: u64 = 5_000;
const OVERTAKE_MS_FIRST: u64 = 1_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Blocks to get, in the order of the file. The newest go first: that is depth-first order.
    Want(Vec<Cid>),
    /// Blocks to get after all that wait, in the order of the file: that is the order of the file.
    WantLast(Vec<Cid>),
    /// Verified and stored.
    Arrived {
        source: usize,
        cid: Cid,
    },
    /// The source says it does not have it.
    Lacks {
        source: usize,
        cid: Cid,
    },
    /// The source sent other bytes.
    Lied {
        source: usize,
        cid: Cid,
        why: String,
    },
    /// Refused, timed out, broke off.
    Failed {
        source: usize,
        cid: Cid,
        why: String,
    },
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Ask {
        source: usize,
        cid: Cid,
    },
    /// Somebody else brought it, or the source is dropped.
    Cancel {
        source: usize,
        cid: Cid,
    },
    /// Never asked again in this fetch.
    Drop {
        source: usize,
        why: String,
    },
    /// No source that is left can bring this block.
    Stuck {
        cid: Cid,
        missing: bool,
    },
}

#[derive(Default)]
struct Source {
    asked: BTreeSet<Cid>,
    failures_in_row: u32,
    rest_until_ms: u64,
    dropped: bool,
}

#[derive(Default)]
struct Block {
    /// Sources that do not have it.
    lacking: BTreeSet<usize>,
    /// Source → when it was asked.
    racing: BTreeMap<usize, u64>,
}

pub(super) struct Schedule {
    sources: Vec<Source>,
    blocks: BTreeMap<Cid, Block>,
    /// Not asked of anybody now; the last is next.
    waiting: Vec<Cid>,
    usual_ms: Option<u64>,
}

impl Schedule {
    pub fn new(sources: usize) -> Self {
        let sources = (0..sources).map(|_| Source::default()).collect();
        Self { sources, blocks: BTreeMap::new(), waiting: Vec::new(), usual_ms: None }
    }

    pub fn is_done(&self) -> bool {
        self.blocks.is_empty()
    }

    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Want(cids) => {
                for cid in cids.into_iter().rev() {
                    if self.blocks.insert(cid, Block::default()).is_none() {
                        self.waiting.push(cid);
                    }
                }
            }
            Input::WantLast(cids) => {
                // What waits is taken from its end.
                let new = cids.into_iter().filter(|cid| self.blocks.insert(*cid, Block::default()).is_none());
                let new: Vec<Cid> = new.collect();
                self.waiting.splice(..0, new.into_iter().rev());
            }
            Input::Arrived { source, cid } => self.arrived(now_ms, source, cid, out),
            Input::Lacks { source, cid } => {
                self.sources[source].failures_in_row = 0;
                self.returned(source, cid);
                if let Some(block) = self.blocks.get_mut(&cid) {
                    block.lacking.insert(source);
                }
            }
            Input::Lied { source, cid, why } => {
                self.returned(source, cid);
                self.drop_source(source, why, out);
            }
            Input::Failed { source, cid, why } => {
                self.returned(source, cid);
                let failing = &mut self.sources[source];
                failing.failures_in_row += 1;
                failing.rest_until_ms = now_ms + (REST_MS << failing.failures_in_row.min(5));
                if failing.failures_in_row >= FAILURES_MAX {
                    self.drop_source(source, why, out);
                }
            }
            Input::Tick => {}
        }
        self.assign(now_ms, out);
        self.find_stuck(out);
    }

    fn arrived(&mut self, now_ms: u64, source: usize, cid: Cid, out: &mut Vec<Output>) {
        self.sources[source].failures_in_row = 0;
        let Some(block) = self.blocks.remove(&cid) else { return };
        self.waiting.retain(|c| *c != cid);
        if let Some(since) = block.racing.get(&source) {
            let took = now_ms.saturating_sub(*since);
            self.usual_ms = Some(self.usual_ms.map_or(took, |usual| (usual * 7 + took) / 8));
        }
        for racer in block.racing.into_keys() {
            self.sources[racer].asked.remove(&cid);
            if racer != source {
                out.push(Output::Cancel { source: racer, cid });
            }
        }
    }

    /// A request ended without the block: it waits again unless somebody else is at it.
    fn returned(&mut self, source: usize, cid: Cid) {
        self.sources[source].asked.remove(&cid);
        if let Some(block) = self.blocks.get_mut(&cid) {
            let was_racing = block.racing.remove(&source).is_some();
            if was_racing && block.racing.is_empty() {
                self.waiting.push(cid);
            }
        }
    }

    fn drop_source(&mut self, source: usize, why: String, out: &mut Vec<Output>) {
        if self.sources[source].dropped {
            return;
        }
        self.sources[source].dropped = true;
        out.push(Output::Drop { source, why });
        for cid in std::mem::take(&mut self.sources[source].asked) {
            out.push(Output::Cancel { source, cid });
            self.returned(source, cid);
        }
    }

    /// Gives every source with a free hand something to do: a waiting block, else one that takes too long.
    fn assign(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        loop {
            let before = out.len();
            for source in 0..self.sources.len() {
                let state = &self.sources[source];
                if state.dropped || state.rest_until_ms > now_ms || state.asked.len() >= AT_ONCE_PER_SOURCE {
                    continue;
                }
                let Some(cid) = self.next_for(source, now_ms) else { continue };
                self.sources[source].asked.insert(cid);
                if let Some(block) = self.blocks.get_mut(&cid) {
                    block.racing.insert(source, now_ms);
                }
                out.push(Output::Ask { source, cid });
            }
            if out.len() == before {
                return;
            }
        }
    }

    fn next_for(&mut self, source: usize, now_ms: u64) -> Option<Cid> {
        let lacks = |cid: &Cid| self.blocks.get(cid).is_some_and(|b| b.lacking.contains(&source));
        if let Some(at) = self.waiting.iter().rposition(|cid| !lacks(cid)) {
            return Some(self.waiting.remove(at));
        }
        let patience = self
            .usual_ms
            .map_or(OVERTAKE_MS_FIRST, |usual| (usual * OVERTAKE_FACTOR).clamp(OVERTAKE_MS_MIN, OVERTAKE_MS_MAX));
        let overdue = self.blocks.iter().filter_map(|(cid, block)| {
            let newest = *block.racing.values().max()?;
            let open = block.racing.len() < RACERS_MAX
                && !block.racing.contains_key(&source)
                && !block.lacking.contains(&source)
                && now_ms.saturating_sub(newest) >= patience;
            open.then_some((newest, *cid))
        });
        overdue.min().map(|(_, cid)| cid)
    }

    /// Reports blocks that nobody who is left can bring.
    fn find_stuck(&self, out: &mut Vec<Output>) {
        let hopeless = |block: &Block| {
            let all = 0..self.sources.len();
            block.racing.is_empty() && all.into_iter().all(|s| self.sources[s].dropped || block.lacking.contains(&s))
        };
        let stuck = self.waiting.iter().find(|cid| self.blocks.get(cid).is_some_and(hopeless));
        if let Some(cid) = stuck {
            // "Missing" only if every source answered so; one that could not be asked may have it.
            let lacking = &self.blocks[cid].lacking;
            let missing = !self.sources.is_empty() && (0..self.sources.len()).all(|s| lacking.contains(&s));
            out.push(Output::Stuck { cid: *cid, missing });
        }
    }
}

#[cfg(test)]
mod tests;
