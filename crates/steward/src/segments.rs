//! Which segment headers a steward keeps, so that a successor finds what came after the last checkpoint.
//!
//! A header is kept if the operator of the present epoch signed it (checked before it comes here) and it fits the
//! ones before it: it follows the last one, or replaces the last one (the node died between announcing a segment
//! and noting that it had), or leaves a gap because *this* steward was away: the others hold what it missed, and
//! the successor walks the chain over all of them. What it may not do is rewrite what lies behind.

use crate::refusal::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Headers kept for one treasury at most; far above what accumulates between two checkpoints. A guess.
const KEEP_MAX: usize = 20_000;

/// Where a segment belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub epoch: u64,
    pub index: u64,
    pub first_lsn: u64,
    pub last_lsn: u64,
    pub cid: String,
    pub prev: Option<String>,
}

/// A header as it came, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub place: Place,
    pub header: Value,
}

/// What accepting a header did to the book, for whoever keeps it on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Already there: nothing to write.
    Known,
    /// One more at the end.
    Appended,
    /// Others went: write the whole book.
    Rewritten,
}

/// The headers kept for one treasury, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentBook {
    kept: Vec<Kept>,
}

impl SegmentBook {
    pub fn new(kept: Vec<Kept>) -> Self {
        Self { kept }
    }

    pub fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// Takes a header in, or says why not. On a refusal the book is as before.
    pub fn accept(&mut self, new: Kept) -> Result<Change, Refusal> {
        let place = &new.place;
        let gap = |why: String| Err(Refusal::Gap { why });
        if place.first_lsn > place.last_lsn || place.first_lsn == 0 {
            return gap(format!("records {} to {} are no run", place.first_lsn, place.last_lsn));
        }
        if self.kept.iter().any(|k| k.place == *place) {
            return Ok(Change::Known);
        }
        let Some(last) = self.kept.last().map(|k| k.place.clone()) else {
            self.kept.push(new);
            return Ok(Change::Appended);
        };
        if place.epoch < last.epoch {
            return gap(format!("epoch {} is over, segments of epoch {} are kept", place.epoch, last.epoch));
        }
        if place.epoch > last.epoch {
            // A successor goes on where it restored to. What the old epoch wrote beyond that never became part
            // of the agent's life, and must not be mistaken for it by the next successor.
            let before = self.kept.len();
            self.kept.retain(|k| k.place.last_lsn < new.place.first_lsn);
            let change = if self.kept.len() == before { Change::Appended } else { Change::Rewritten };
            self.kept.push(new);
            return self.bounded(change);
        }
        if place.index == last.index && place.first_lsn == last.first_lsn && place.last_lsn >= last.last_lsn {
            if place.prev != last.prev {
                return gap(format!("it replaces segment {} but follows another one", last.index));
            }
            self.kept.pop();
            self.kept.push(new);
            return Ok(Change::Rewritten);
        }
        if place.first_lsn <= last.last_lsn {
            return gap(format!("records up to {} are kept, it begins at {}", last.last_lsn, place.first_lsn));
        }
        if place.index <= last.index && place.prev.is_some() {
            return gap(format!("segment {} is kept already, it is number {}", last.index, place.index));
        }
        if Some(place.index) == last.index.checked_add(1) {
            if place.prev.as_ref().is_some_and(|prev| *prev != last.cid) {
                return gap(format!("it does not name {} as the one before it", last.cid));
            }
            let next = last.last_lsn.saturating_add(1);
            if place.first_lsn != next {
                return gap(format!("record {next} is the next, it begins at {}", place.first_lsn));
            }
        }
        self.kept.push(new);
        self.bounded(Change::Appended)
    }

    /// Forgets what an acknowledged checkpoint covers. True if something went.
    pub fn prune(&mut self, checkpoint_lsn: u64) -> bool {
        let before = self.kept.len();
        self.kept.retain(|k| k.place.last_lsn > checkpoint_lsn);
        self.kept.len() != before
    }

    /// Headers that reach past `after_lsn`, of epochs from `epoch_from` on.
    pub fn after(&self, epoch_from: u64, after_lsn: u64) -> impl Iterator<Item = &Value> {
        self.kept.iter().filter(move |k| k.place.epoch >= epoch_from && k.place.last_lsn > after_lsn).map(|k| &k.header)
    }

    fn bounded(&mut self, change: Change) -> Result<Change, Refusal> {
        if self.kept.len() <= KEEP_MAX {
            return Ok(change);
        }
        self.kept.pop();
        Err(Refusal::Gap { why: format!("{KEEP_MAX} segments since the last acknowledged checkpoint; commit one") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(epoch: u64, index: u64, first_lsn: u64, last_lsn: u64, cid: &str, prev: Option<&str>) -> Kept {
        let (cid, prev) = (cid.to_owned(), prev.map(str::to_owned));
        Kept { header: Value::from(cid.clone()), place: Place { epoch, index, first_lsn, last_lsn, cid, prev } }
    }

    fn book() -> SegmentBook {
        let mut book = SegmentBook::default();
        assert_eq!(book.accept(segment(1, 0, 1, 10, "a", None)), Ok(Change::Appended));
        assert_eq!(book.accept(segment(1, 1, 11, 20, "b", Some("a"))), Ok(Change::Appended));
        book
    }

    fn cids(book: &SegmentBook) -> Vec<&str> {
        book.after(0, 0).map(|h| h.as_str().unwrap()).collect()
    }

    #[test]
    fn a_chain_grows_and_a_doubled_header_changes_nothing() {
        let mut book = book();
        assert_eq!(book.accept(segment(1, 0, 1, 10, "a", None)), Ok(Change::Known));
        assert_eq!(book.accept(segment(1, 1, 11, 20, "b", Some("a"))), Ok(Change::Known));
        assert_eq!(cids(&book), ["a", "b"]);
        assert_eq!(book.after(0, 10).count(), 1);
        assert_eq!(book.after(2, 0).count(), 0);
    }

    #[test]
    fn the_past_cannot_be_rewritten() {
        for bad in [
            segment(1, 2, 21, 30, "c", Some("x")),
            segment(1, 2, 22, 30, "c", Some("b")),
            segment(1, 2, 20, 30, "c", Some("b")),
            segment(1, 0, 1, 10, "A", None),
            segment(1, 1, 11, 15, "B", Some("a")),
            segment(1, 1, 11, 30, "B", Some("x")),
            segment(1, 0, 21, 30, "B", Some("x")),
            segment(0, 2, 21, 30, "c", Some("b")),
            segment(1, 2, 30, 21, "c", Some("b")),
            segment(1, 2, 0, 21, "c", Some("b")),
        ] {
            let mut book = book();
            let before = book.clone();
            assert_eq!(book.accept(bad.clone()).unwrap_err().code(), "gap", "{bad:?}");
            assert_eq!(book, before);
        }
    }

    #[test]
    fn numbers_at_their_end_are_kept_like_others() {
        let mut book = book();
        assert_eq!(book.accept(segment(1, u64::MAX, 21, 30, "c", Some("b"))), Ok(Change::Appended));
        assert_eq!(book.accept(segment(1, 0, 31, u64::MAX, "d", None)), Ok(Change::Appended));
        assert_eq!(book.accept(segment(1, 1, u64::MAX, u64::MAX, "e", Some("d"))).unwrap_err().code(), "gap");
        assert_eq!(cids(&book), ["a", "b", "c", "d"]);
    }

    #[test]
    fn the_last_one_may_be_sealed_again() {
        let mut book = book();
        assert_eq!(book.accept(segment(1, 1, 11, 25, "B", Some("a"))), Ok(Change::Rewritten));
        assert_eq!(book.accept(segment(1, 2, 26, 30, "c", Some("B"))), Ok(Change::Appended));
        assert_eq!(cids(&book), ["a", "B", "c"]);
    }

    #[test]
    fn a_steward_that_was_away_goes_on_with_a_gap() {
        let mut book = book();
        assert_eq!(book.accept(segment(1, 5, 51, 60, "f", Some("e"))), Ok(Change::Appended));
        assert_eq!(cids(&book), ["a", "b", "f"]);
    }

    #[test]
    fn a_chain_may_start_again_at_a_checkpoint() {
        let mut book = book();
        assert!(book.prune(15));
        assert_eq!(cids(&book), ["b"]);
        assert!(!book.prune(15));
        assert_eq!(book.accept(segment(1, 0, 21, 30, "c", None)), Ok(Change::Appended));
        assert!(book.prune(30));
        assert_eq!(book.accept(segment(1, 7, 99, 100, "z", Some("y"))), Ok(Change::Appended));
    }

    #[test]
    fn a_successors_first_segment_ends_the_old_branch() {
        let mut book = book();
        // Restored to record 10 only: what the old epoch wrote after it is not part of the life any more.
        assert_eq!(book.accept(segment(2, 0, 11, 12, "n", None)), Ok(Change::Rewritten));
        assert_eq!(cids(&book), ["a", "n"]);
        assert_eq!(book.accept(segment(1, 2, 21, 30, "c", Some("b"))).unwrap_err().code(), "gap");
    }
}
