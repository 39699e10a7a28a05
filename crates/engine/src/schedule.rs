//! Which tokens go into the next step: one for every answer that runs, and a piece of one prompt.
//!
//! Pure bookkeeping; it knows neither the model nor a socket.
//!
//! The prompt's piece is decoded by itself, and where it is cut depends on the prompt alone. With one context a
//! sequence (`kv_unified` off) an answer therefore has the same bits whatever else runs beside it.

use std::collections::VecDeque;
use std::ops::Range;

/// Tokens of a prompt in one step. More stall the running answers longer (256 of SmolLM2 take about 0.3 s on one
/// thread), fewer make prompts slower.
pub(crate) const PREFILL_CHUNK: usize = 256;

/// Requests that may wait for a slot. At four streams' speed the last of them waits about a minute; beyond that
/// "busy" is the honest answer. A guess.
pub(crate) const QUEUE_MAX: usize = 32;

/// One request on its way; `T` is whatever belongs to its answer.
pub(crate) struct Sequence<T> {
    pub(crate) prompt: Vec<i32>,
    /// Tokens of the prompt that are in the context.
    prefilled: usize,
    /// Position of the next token.
    position: i32,
    /// The last chosen token, which the next step puts into the context.
    next: Option<i32>,
    pub(crate) answer: T,
}

pub(crate) struct Schedule<T> {
    waiting: VecDeque<(Vec<i32>, T)>,
    slots: Vec<Option<Sequence<T>>>,
    /// Slots whose prompt is not finished, the first admitted first.
    prefilling: VecDeque<usize>,
}

/// A token to decode; its logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) slot: usize,
    pub(crate) token: i32,
    pub(crate) position: i32,
}

/// A piece of a prompt to decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) slot: usize,
    /// Which tokens of the prompt; their places in it are their positions.
    pub(crate) range: Range<usize>,
    /// The prompt ends here: its last token's logits choose the first token of the answer.
    pub(crate) last: bool,
}

impl<T> Schedule<T> {
    pub(crate) fn new(slots: usize) -> Schedule<T> {
        Schedule { waiting: VecDeque::new(), slots: (0..slots).map(|_| None).collect(), prefilling: VecDeque::new() }
    }

    /// Nothing to decode.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// No free slot and no place to wait for one.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= QUEUE_MAX && self.slots.iter().all(Option::is_some)
    }

    /// Queues a request. The prompt must not be empty.
    pub(crate) fn push(&mut self, prompt: Vec<i32>, answer: T) {
        self.waiting.push_back((prompt, answer));
        self.admit();
    }

    /// The next token of every running answer, in the order of the slots.
    pub(crate) fn rows(&mut self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (slot, sequence) in self.slots.iter_mut().enumerate() {
            let Some(sequence) = sequence else { continue };
            let Some(token) = sequence.next.take() else { continue };
            rows.push(Row { slot, token, position: sequence.position });
            sequence.position += 1;
        }
        rows
    }

    /// The next piece of the prompt that was admitted first.
    pub(crate) fn piece(&mut self) -> Option<Piece> {
        let slot = *self.prefilling.front()?;
        let sequence = self.slots[slot].as_mut().expect("a slot that prefills is taken until it is released");
        let from = sequence.prefilled;
        let to = sequence.prompt.len().min(from + PREFILL_CHUNK);
        sequence.prefilled = to;
        sequence.position = i32::try_from(to).expect("a prompt fits the context, which is counted in i32");
        let last = to == sequence.prompt.len();
        if last {
            self.prefilling.pop_front();
        }
        Some(Piece { slot, range: from..to, last })
    }

    pub(crate) fn sequence(&mut self, slot: usize) -> Option<&mut Sequence<T>> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// The answer in this slot goes on with this token.
    pub(crate) fn go_on(&mut self, slot: usize, token: i32) {
        if let Some(sequence) = self.sequence(slot) {
            sequence.next = Some(token);
        }
    }

    /// Frees a slot. What the context holds for it is the caller's to clear.
    pub(crate) fn release(&mut self, slot: usize) -> Option<T> {
        let sequence = self.slots.get_mut(slot)?.take()?;
        self.prefilling.retain(|other| *other != slot);
        Some(sequence.answer)
    }

    /// Lets the waiting in. To be called when slots were freed and cleared.
    pub(crate) fn admit(&mut self) {
        for (slot, place) in self.slots.iter_mut().enumerate() {
            if place.is_none() {
                let Some((prompt, answer)) = self.waiting.pop_front() else { return };
                *place = Some(Sequence { prompt, prefilled: 0, position: 0, next: None, answer });
                self.prefilling.push_back(slot);
            }
        }
    }

    /// Slots whose answers are meant.
    pub(crate) fn slots_where(&self, mut is_meant: impl FnMut(&T) -> bool) -> Vec<usize> {
        let taken = self.slots.iter().enumerate().filter_map(|(slot, place)| Some((slot, place.as_ref()?)));
        taken.filter(|(_, sequence)| is_meant(&sequence.answer)).map(|(slot, _)| slot).collect()
    }

    /// Takes the answers that are meant out of the queue.
    pub(crate) fn unqueue(&mut self, mut is_meant: impl FnMut(&T) -> bool) -> Vec<T> {
        let (meant, rest) = std::mem::take(&mut self.waiting).into_iter().partition(|(_, answer)| is_meant(answer));
        self.waiting = rest;
        VecDeque::into_iter(meant).map(|(_, answer)| answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(length: usize) -> Vec<i32> {
        (0..i32::try_from(length).unwrap()).collect()
    }

    #[test]
    fn prompts_are_cut_by_themselves_and_answers_run_beside_them() {
        let mut schedule = Schedule::new(2);
        schedule.push(prompt(2), "short");
        schedule.push(prompt(600), "long");
        assert!(schedule.rows().is_empty());
        assert_eq!(schedule.piece(), Some(Piece { slot: 0, range: 0..2, last: true }));
        schedule.go_on(0, 77);
        assert_eq!(schedule.rows(), [Row { slot: 0, token: 77, position: 2 }]);
        assert_eq!(schedule.piece(), Some(Piece { slot: 1, range: 0..256, last: false }));
        schedule.go_on(0, 78);
        assert_eq!(schedule.rows(), [Row { slot: 0, token: 78, position: 3 }]);
        assert_eq!(schedule.piece(), Some(Piece { slot: 1, range: 256..512, last: false }));
        assert_eq!(schedule.piece(), Some(Piece { slot: 1, range: 512..600, last: true }));
        assert_eq!(schedule.piece(), None);
        schedule.go_on(1, 5);
        // Slot 0 chose nothing since, so only slot 1 has something to decode.
        assert_eq!(schedule.rows(), [Row { slot: 1, token: 5, position: 600 }]);
    }

    #[test]
    fn a_freed_slot_goes_to_whoever_waits_longest() {
        let mut schedule = Schedule::new(1);
        for name in ["a", "b", "c"] {
            schedule.push(prompt(1), name);
        }
        schedule.piece();
        assert_eq!(schedule.unqueue(|name| *name == "b"), ["b"]);
        assert_eq!(schedule.release(0), Some("a"));
        schedule.admit();
        assert_eq!(schedule.slots_where(|name| *name == "c"), [0]);
        assert_eq!(schedule.piece(), Some(Piece { slot: 0, range: 0..1, last: true }));
        assert_eq!(schedule.release(0), Some("c"));
        assert!(schedule.is_idle());
    }

    #[test]
    fn a_prompt_that_is_given_up_is_not_gone_on_with() {
        let mut schedule = Schedule::new(2);
        schedule.push(prompt(600), "gone");
        schedule.push(prompt(3), "next");
        schedule.piece();
        schedule.release(0);
        assert_eq!(schedule.piece(), Some(Piece { slot: 1, range: 0..3, last: true }));
    }

    #[test]
    fn the_queue_ends() {
        let mut schedule = Schedule::new(1);
        for _ in 0..1 + QUEUE_MAX {
            assert!(!schedule.is_full());
            schedule.push(prompt(1), ());
        }
        assert!(schedule.is_full());
    }
}
