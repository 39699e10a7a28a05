//! Which tokens go into the next step: one for every answer that runs, and a piece of one prompt; and which slot a
//! request gets, so that the beginning that it shares with an earlier prompt is not computed twice.
//!
//! Pure bookkeeping; it knows neither the model nor a socket.
//!
//! The prompt's piece is decoded by itself. With one context a sequence (`kv_unified` off) an answer therefore has the
//! same bits whatever else runs beside it, and whatever was left in the context before it: only prompts are reused, never
//! answers (which were computed token by token, and that rounds otherwise on some processors), and only whole blocks of
//! [`BLOCK`].

use std::collections::VecDeque;
use std::ops::Range;

/// Requests that may wait for a slot. At four streams' speed the last of them waits about a minute; beyond that
/// "busy" is the honest answer. A guess.
pub(crate) const QUEUE_MAX: usize = 32;

/// A shared beginning is reused in whole blocks of so many tokens, and the last one is always computed, and prompts are cut
/// between them: the products of matrices take rows in tiles of up to 32, so every row falls into the same place of a
/// tile, whatever was reused and wherever it was cut.
pub(crate) const BLOCK: usize = 32;

/// Copying another slot's context moves the memory of all of it, so it must save at least so many tokens. A guess.
const COPY_MIN: usize = 2 * BLOCK;

/// A prompt, or what a context holds of one. Computed with another adapter it is another context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<i32>,
    /// Place of the adapter that is on while it is computed.
    pub(crate) adapter: Option<usize>,
}

/// One request on its way; `T` is whatever belongs to its answer.
pub(crate) struct Sequence<T> {
    pub(crate) prompt: Prompt,
    /// Tokens of the prompt that are in the context.
    prefilled: usize,
    /// Its first piece was given out.
    begun: bool,
    /// Position of the next token.
    position: i32,
    /// The last chosen token, which the next step puts into the context.
    pub(crate) next: Option<i32>,
    pub(crate) answer: T,
}

pub(crate) struct Schedule<T> {
    waiting: VecDeque<(Prompt, T)>,
    slots: Vec<Slot<T>>,
    /// Slots whose prompt is not finished, the first admitted first.
    prefilling: VecDeque<usize>,
    /// Counts admissions: the slot with the lowest number was used longest ago.
    admissions: u64,
}

struct Slot<T> {
    taken: Option<Sequence<T>>,
    /// What the context holds of the last request's prompt, when nobody has the slot.
    kept: Prompt,
    admission: u64,
}

impl<T> Slot<T> {
    /// How much of what is in the context can begin this prompt: whole blocks, and one is left to compute.
    fn reusable(&self, prompt: &Prompt) -> usize {
        let common = self.common(prompt);
        common.min(prompt.tokens.len().saturating_sub(BLOCK)) / BLOCK * BLOCK
    }

    /// Tokens of this prompt that are in the context from its beginning on.
    fn common(&self, prompt: &Prompt) -> usize {
        let (held, adapter) = match &self.taken {
            Some(sequence) => (&sequence.prompt.tokens[..sequence.prefilled], sequence.prompt.adapter),
            None => (&self.kept.tokens[..], self.kept.adapter),
        };
        if adapter != prompt.adapter {
            return 0;
        }
        held.iter().zip(&prompt.tokens).take_while(|(one, other)| one == other).count()
    }
}

/// A request got a slot. What its context holds beyond the first `kept` positions is the caller's to clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) slot: usize,
    pub(crate) kept: usize,
}

/// A token to decode; its logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) slot: usize,
    pub(crate) token: i32,
    pub(crate) position: i32,
    /// Rows of one adapter can be decoded together.
    pub(crate) adapter: Option<usize>,
}

/// A piece of a prompt to decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) slot: usize,
    /// The first piece of this prompt: what comes before it was in the context already.
    pub(crate) begins: bool,
    /// First, all of this slot's context is to be copied, and what lies beyond the piece's beginning cleared.
    pub(crate) copy_of: Option<usize>,
    /// Which tokens of the prompt; their places in it are their positions.
    pub(crate) range: Range<usize>,
    /// The prompt ends here: its last token's logits choose the first token of the answer.
    pub(crate) last: bool,
}

impl<T> Schedule<T> {
    pub(crate) fn new(slots: usize) -> Schedule<T> {
        let slots = (0..slots).map(|_| Slot { taken: None, kept: Prompt::default(), admission: 0 }).collect();
        Schedule { waiting: VecDeque::new(), slots, prefilling: VecDeque::new(), admissions: 0 }
    }

    /// Nothing to decode.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(|slot| slot.taken.is_none())
    }

    /// No free slot and no place to wait for one.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= QUEUE_MAX && self.slots.iter().all(|slot| slot.taken.is_some())
    }

    /// Queues a request; [`Schedule::admit`] lets it in. The prompt must not be empty.
    pub(crate) fn push(&mut self, prompt: Prompt, answer: T) {
        self.waiting.push_back((prompt, answer));
    }

    /// The next token of every running answer, in the order of the slots.
    pub(crate) fn rows(&mut self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (slot, place) in self.slots.iter_mut().enumerate() {
            let Some(sequence) = &mut place.taken else { continue };
            let Some(token) = sequence.next.take() else { continue };
            rows.push(Row { slot, token, position: sequence.position, adapter: sequence.prompt.adapter });
            sequence.position += 1;
        }
        rows
    }

    /// The next piece of the prompt that was admitted first, of at most so many tokens, which are whole blocks. Prompts of
    /// one beginning that came together share it here: the first of them is in the context when the second begins.
    pub(crate) fn piece(&mut self, tokens_max: usize) -> Option<Piece> {
        assert!(tokens_max >= BLOCK && tokens_max.is_multiple_of(BLOCK), "prompts are cut between blocks");
        let slot = *self.prefilling.front()?;
        let copy_of = self.worth_copying(slot);
        let sequence = self.slots[slot].taken.as_mut().expect("a slot that prefills is taken until it is released");
        let begins = !std::mem::replace(&mut sequence.begun, true);
        let from = copy_of.map_or(sequence.prefilled, |(_, shared)| shared);
        let to = sequence.prompt.tokens.len().min(from + tokens_max);
        sequence.prefilled = to;
        sequence.position = i32::try_from(to).expect("a prompt fits the context, which is counted in i32");
        let last = to == sequence.prompt.tokens.len();
        if last {
            self.prefilling.pop_front();
        }
        Some(Piece { slot, begins, copy_of: copy_of.map(|(other, _)| other), range: from..to, last })
    }

    /// Another slot that holds more of this one's prompt, and how much it holds, before the first piece.
    fn worth_copying(&self, slot: usize) -> Option<(usize, usize)> {
        let sequence = self.slots[slot].taken.as_ref().filter(|sequence| !sequence.begun)?;
        let others = self.slots.iter().enumerate().filter(|(other, _)| *other != slot);
        let held = others.map(|(other, place)| (other, place.reusable(&sequence.prompt)));
        held.max_by_key(|(_, shared)| *shared).filter(|(_, shared)| *shared >= sequence.prefilled + COPY_MIN)
    }

    pub(crate) fn sequence(&mut self, slot: usize) -> Option<&mut Sequence<T>> {
        self.slots.get_mut(slot)?.taken.as_mut()
    }

    /// The answer in this slot goes on with this token.
    pub(crate) fn go_on(&mut self, slot: usize, token: i32) {
        if let Some(sequence) = self.sequence(slot) {
            sequence.next = Some(token);
        }
    }

    /// So many more tokens than the one that was given out are in the context of this slot.
    pub(crate) fn skip(&mut self, slot: usize, tokens: usize) {
        if let Some(sequence) = self.sequence(slot) {
            sequence.position += i32::try_from(tokens).expect("an answer fits the context, which is counted in i32");
        }
    }

    /// Frees a slot. Its prompt stays in the context as far as it got; what follows it is the caller's to clear: the
    /// returned number of positions stays.
    pub(crate) fn release(&mut self, slot: usize) -> Option<(T, usize)> {
        let place = self.slots.get_mut(slot)?;
        let mut sequence = place.taken.take()?;
        sequence.prompt.tokens.truncate(sequence.prefilled);
        place.kept = sequence.prompt;
        self.prefilling.retain(|other| *other != slot);
        Some((sequence.answer, place.kept.tokens.len()))
    }

    /// The free slot that holds the most of this prompt, and how much that is, in whole blocks; what it holds beyond is
    /// forgotten, and the caller's to clear. `None`: none holds a block of it.
    pub(crate) fn cut_to(&mut self, prompt: &Prompt) -> Option<(usize, &[i32])> {
        let shared = |slot: &Slot<T>| slot.common(prompt) / BLOCK * BLOCK;
        let free = self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.taken.is_none());
        let (at, slot) = free.max_by_key(|(_, slot)| shared(slot)).filter(|(_, slot)| shared(slot) > 0)?;
        slot.kept.tokens.truncate(shared(slot));
        Some((at, slot.kept.tokens.as_slice()))
    }

    /// The free slot that was used longest ago, for a context from elsewhere. The caller clears it before.
    pub(crate) fn oldest_free(&self) -> Option<usize> {
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.taken.is_none());
        free.min_by_key(|(_, slot)| slot.admission).map(|(at, _)| at)
    }

    /// The context of a free slot holds this beginning of a prompt.
    pub(crate) fn hold(&mut self, slot: usize, prompt: Prompt) {
        self.admissions += 1;
        self.slots[slot].admission = self.admissions;
        self.slots[slot].kept = prompt;
    }

    /// The context of a free slot holds nothing any more.
    pub(crate) fn forget(&mut self, slot: usize) {
        self.slots[slot].kept.tokens.clear();
    }

    /// Lets whoever waits longest in. To be called until there is nobody, or no slot, when slots were freed and cleared.
    pub(crate) fn admit(&mut self) -> Option<Admission> {
        let (prompt, _) = self.waiting.front()?;
        let shared = |slot: &Slot<T>| slot.reusable(prompt);
        let free = self.slots.iter().enumerate().rev().filter(|(_, slot)| slot.taken.is_none());
        // The one that holds the most of it; of equals, the one that was used longest ago, and the first (`max` is the last).
        let (slot, place) = free.max_by_key(|(_, slot)| (shared(slot), u64::MAX - slot.admission))?;
        let kept = shared(place);
        let (prompt, answer) = self.waiting.pop_front()?;
        self.admissions += 1;
        let place = &mut self.slots[slot];
        place.kept.tokens.clear();
        place.admission = self.admissions;
        place.taken = Some(Sequence { prompt, prefilled: kept, begun: false, position: 0, next: None, answer });
        self.prefilling.push_back(slot);
        Some(Admission { slot, kept })
    }

    /// Slots whose answers are meant.
    pub(crate) fn slots_where(&self, mut is_meant: impl FnMut(&T) -> bool) -> Vec<usize> {
        let taken = self.slots.iter().enumerate().filter_map(|(slot, place)| Some((slot, place.taken.as_ref()?)));
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

    fn prompt(length: usize) -> Prompt {
        Prompt { tokens: (0..i32::try_from(length).unwrap()).collect(), adapter: None }
    }

    fn piece(slot: usize, range: Range<usize>, last: bool) -> Piece {
        Piece { slot, begins: range.start == 0, copy_of: None, range, last }
    }

    fn admit_all<T>(schedule: &mut Schedule<T>) -> Vec<Admission> {
        std::iter::from_fn(|| schedule.admit()).collect()
    }

    /// A prompt of `shared` tokens that all of them have, and `own` that only this one has.
    fn prompt_of(shared: usize, own: i32) -> Prompt {
        let Prompt { mut tokens, adapter } = prompt(shared);
        tokens.extend((0..40).map(|at| 1_000 * own + at));
        Prompt { tokens, adapter }
    }

    fn with_adapter(prompt: Prompt, adapter: usize) -> Prompt {
        Prompt { adapter: Some(adapter), ..prompt }
    }

    #[test]
    fn a_shared_beginning_is_not_computed_twice() {
        let mut schedule = Schedule::new(3);
        let admitted = |schedule: &mut Schedule<i32>, prompt: Prompt, name| {
            schedule.push(prompt, name);
            schedule.admit().unwrap();
            let first = schedule.piece(256).unwrap();
            while schedule.piece(256).is_some() {}
            assert!(first.begins);
            (first.slot, first.copy_of, first.range.start)
        };
        // Slots go round as long as there is nothing to share.
        assert_eq!(admitted(&mut schedule, prompt_of(200, 1), 1), (0, None, 0));
        assert_eq!(admitted(&mut schedule, prompt_of(3, 2), 2), (1, None, 0));
        // Its slot is taken: what it holds is copied. Whole blocks of what is shared, 200 tokens.
        assert_eq!(admitted(&mut schedule, prompt_of(200, 3), 3), (2, Some(0), 192));
        assert_eq!(schedule.release(0), Some((1, 240)));
        // Free: taken over as it is, and at least one block is computed, even of the very same prompt.
        assert_eq!(admitted(&mut schedule, prompt_of(200, 1), 1), (0, None, 192));
        schedule.release(1);
        // Too little to be worth a copy.
        assert_eq!(admitted(&mut schedule, prompt_of(40, 4), 4), (1, None, 0));
        schedule.release(2);
        schedule.forget(2);
        schedule.release(0);
        // A slot that was forgotten shares nothing; the one that holds most is taken.
        assert_eq!(admitted(&mut schedule, prompt_of(100, 5), 5), (0, None, 96));
    }

    #[test]
    fn what_was_not_computed_yet_is_not_shared() {
        let mut schedule = Schedule::new(2);
        schedule.push(prompt(1_000), "first");
        schedule.push(prompt(1_000), "second");
        assert_eq!(admit_all(&mut schedule), [Admission { slot: 0, kept: 0 }, Admission { slot: 1, kept: 0 }]);
        schedule.piece(256);
        assert_eq!(schedule.release(0), Some(("first", 256)));
        // What was computed until it was given up is there when the second begins.
        let second = schedule.piece(256).unwrap();
        assert_eq!((second.slot, second.copy_of, second.range), (1, Some(0), 256..512));
        assert_eq!(schedule.piece(256).unwrap().copy_of, None);
        schedule.push(prompt(1_000), "third");
        assert_eq!(schedule.admit(), Some(Admission { slot: 0, kept: 256 }));
    }

    #[test]
    fn prompts_are_cut_by_themselves_and_answers_run_beside_them() {
        let mut schedule = Schedule::new(2);
        schedule.push(prompt(2), "short");
        schedule.push(prompt(600), "long");
        admit_all(&mut schedule);
        assert!(schedule.rows().is_empty());
        assert_eq!(schedule.piece(256), Some(piece(0, 0..2, true)));
        schedule.go_on(0, 77);
        assert_eq!(schedule.rows(), [Row { slot: 0, token: 77, position: 2, adapter: None }]);
        assert_eq!(schedule.piece(256), Some(piece(1, 0..256, false)));
        schedule.go_on(0, 78);
        assert_eq!(schedule.rows(), [Row { slot: 0, token: 78, position: 3, adapter: None }]);
        assert_eq!(schedule.piece(256), Some(piece(1, 256..512, false)));
        assert_eq!(schedule.piece(256), Some(piece(1, 512..600, true)));
        assert_eq!(schedule.piece(256), None);
        schedule.go_on(1, 5);
        // Slot 0 chose nothing since, so only slot 1 has something to decode.
        assert_eq!(schedule.rows(), [Row { slot: 1, token: 5, position: 600, adapter: None }]);
    }

    #[test]
    fn a_freed_slot_goes_to_whoever_waits_longest() {
        let mut schedule = Schedule::new(1);
        for name in ["a", "b", "c"] {
            schedule.push(prompt(1), name);
        }
        admit_all(&mut schedule);
        schedule.piece(256);
        assert_eq!(schedule.unqueue(|name| *name == "b"), ["b"]);
        assert_eq!(schedule.release(0), Some(("a", 1)));
        admit_all(&mut schedule);
        assert_eq!(schedule.slots_where(|name| *name == "c"), [0]);
        assert_eq!(schedule.piece(256), Some(piece(0, 0..1, true)));
        assert_eq!(schedule.release(0), Some(("c", 1)));
        assert!(schedule.is_idle());
    }

    #[test]
    fn a_prompt_that_is_given_up_is_not_gone_on_with() {
        let mut schedule = Schedule::new(2);
        schedule.push(prompt(600), "gone");
        schedule.push(prompt(3), "next");
        admit_all(&mut schedule);
        schedule.piece(256);
        schedule.release(0);
        assert_eq!(schedule.piece(256), Some(piece(1, 0..3, true)));
    }

    #[test]
    fn a_context_is_saved_of_a_free_slot_and_restored_into_the_oldest() {
        let mut schedule = Schedule::new(2);
        schedule.push(prompt_of(100, 1), ());
        schedule.admit();
        while schedule.piece(256).is_some() {}
        // Answers run on in their slots.
        assert_eq!(schedule.cut_to(&prompt_of(100, 1)), None);
        assert_eq!(schedule.oldest_free(), Some(1));
        schedule.release(0);
        // Whole blocks of what they share, and nothing of the first prompt's own.
        assert_eq!(schedule.cut_to(&prompt_of(100, 2)), Some((0, &prompt(96).tokens[..])));
        assert_eq!(schedule.cut_to(&prompt_of(31, 3)), None);
        schedule.hold(1, prompt_of(128, 4));
        assert_eq!(schedule.oldest_free(), Some(0), "the other one was just restored");
        schedule.push(prompt_of(128, 4), ());
        assert_eq!(schedule.admit(), Some(Admission { slot: 1, kept: 128 }));
    }

    #[test]
    fn contexts_are_shared_within_one_adapter() {
        let mut schedule = Schedule::new(2);
        schedule.push(prompt(100), "plain");
        assert_eq!(schedule.admit(), Some(Admission { slot: 0, kept: 0 }));
        while schedule.piece(256).is_some() {}
        schedule.release(0);
        // The same text with an adapter on is computed from its beginning, also beside the slot that holds it without.
        schedule.push(with_adapter(prompt(100), 1), "adapted");
        assert_eq!(schedule.admit(), Some(Admission { slot: 1, kept: 0 }));
        assert_eq!(schedule.piece(256).map(|piece| (piece.copy_of, piece.range.start)), Some((None, 0)));
        schedule.release(1);
        for (prompt, slot) in [(prompt(100), 0), (with_adapter(prompt(100), 1), 1), (with_adapter(prompt(100), 0), 0)] {
            let kept = if prompt.adapter == Some(0) { 0 } else { 64 };
            schedule.push(prompt, "again");
            assert_eq!(schedule.admit(), Some(Admission { slot, kept }));
            while schedule.piece(256).is_some() {}
            schedule.release(slot);
        }
        assert_eq!(schedule.cut_to(&prompt(100)), None, "saved without an adapter, and none is left");
    }

    #[test]
    fn the_queue_ends() {
        let mut schedule = Schedule::new(1);
        for _ in 0..1 + QUEUE_MAX {
            assert!(!schedule.is_full());
            schedule.push(prompt(1), ());
            admit_all(&mut schedule);
        }
        assert!(schedule.is_full());
    }
}
