//! Guessing the next tokens by looking them up: where the last few tokens came before, what followed there may follow
//! again. Editing code, quoting and filling forms repeat much; open text does not.
//!
//! Pure: what is guessed, and whether, follows from the tokens of this one request alone. A guess is never shown: the
//! model says of each token in it whether it would have chosen the same.

use std::collections::BTreeMap;

/// So many tokens in a row must have come before. Two find much that leads nowhere, four miss the beginning. A guess.
const NEEDLE: usize = 3;

/// Most tokens of one guess. One step with nine rows takes as long as five or six with one (SmolLM2 Q4_1, AVX-512, one
/// thread, 2026-11-29), so longer guesses that fail cost more than they bring.
pub(crate) const DRAFT_MAX: usize = 8;

/// What a row beside the first costs, in hundredths of a step with one row; by the same measurement.
const ROW_COST_PCT: i64 = 50;

/// The first guess, and the first one after a guess that was wrong; each that was right doubles the next.
const DRAFT_FIRST: usize = 2;

/// What a request may lose by guesses before it makes none any more, in hundredths of a step: two first guesses that were
/// all wrong. It then waits for so many tokens and may lose half as much again: text changes its kind. So guesses cost
/// open text at most a few steps in a hundred.
const CREDIT_PCT: i64 = 200;
const REST_TOKENS: usize = 64;

/// The tokens of one request, and where each few of them came last.
pub(crate) struct Lookup {
    tokens: Vec<i32>,
    last: BTreeMap<[i32; NEEDLE], usize>,
    /// What followed the last [`NEEDLE`] tokens when they came before begins here.
    found: Option<usize>,
    /// Length of the next guess.
    reach: usize,
    /// What guesses have earned so far and not lost, at most [`CREDIT_PCT`].
    credit_pct: i64,
    /// No guess before there are so many tokens.
    rests_until: usize,
}

impl Lookup {
    pub(crate) fn new(prompt: impl IntoIterator<Item = i32>) -> Lookup {
        let mut lookup = Lookup {
            tokens: Vec::new(),
            last: BTreeMap::new(),
            found: None,
            reach: DRAFT_FIRST,
            credit_pct: CREDIT_PCT,
            rests_until: 0,
        };
        for token in prompt {
            lookup.push(token);
        }
        lookup
    }

    /// The request goes on with this token.
    pub(crate) fn push(&mut self, token: i32) {
        self.tokens.push(token);
        let needle = self.tokens.last_chunk::<NEEDLE>();
        self.found = needle.and_then(|needle| self.last.insert(*needle, self.tokens.len()));
    }

    /// What may come next: at most so many tokens, often none.
    pub(crate) fn guess(&self, most: usize) -> Vec<i32> {
        match self.found {
            // What goes round in circles goes on with its circle.
            Some(at) if self.tokens.len() >= self.rests_until => {
                self.tokens[at..].iter().copied().cycle().take(most.min(self.reach)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Of `guessed` tokens, so many were right.
    pub(crate) fn told(&mut self, guessed: usize, right: usize) {
        let count = |tokens: usize| i64::try_from(tokens).unwrap_or(i64::MAX);
        let earned = count(right) * 100 - count(guessed) * ROW_COST_PCT;
        self.credit_pct = (self.credit_pct + earned).min(CREDIT_PCT);
        self.reach = if right == guessed { (2 * self.reach).min(DRAFT_MAX) } else { DRAFT_FIRST };
        if self.credit_pct <= 0 {
            self.credit_pct = CREDIT_PCT / 2;
            self.rests_until = self.tokens.len() + REST_TOKENS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_is_guessed_again() {
        let mut lookup = Lookup::new([1, 2, 3, 4, 5, 6, 1, 2]);
        assert!(lookup.guess(8).is_empty());
        lookup.push(3);
        assert_eq!(lookup.guess(8), [4, 5]);
        assert_eq!(lookup.guess(1), [4]);
        lookup.told(2, 2);
        assert_eq!(lookup.guess(8), [4, 5, 6, 1]);
        lookup.told(4, 4);
        assert_eq!(lookup.guess(8), [4, 5, 6, 1, 2, 3, 4, 5]);
        lookup.told(8, 7);
        assert_eq!(lookup.guess(8), [4, 5]);
        lookup.push(9);
        assert!(lookup.guess(8).is_empty());
        // The last time counts, not the first.
        for token in [1, 2, 3] {
            lookup.push(token);
        }
        assert_eq!(lookup.guess(1), [9]);
    }

    #[test]
    fn guesses_that_do_not_pay_rest() {
        let mut lookup = Lookup::new([1, 2, 3, 4, 1, 2, 3]);
        for _ in 0..10 {
            lookup.told(2, 2);
        }
        // What was earned long ago is no licence.
        lookup.told(2, 0);
        assert!(!lookup.guess(8).is_empty());
        lookup.told(2, 0);
        assert!(lookup.guess(8).is_empty());
        for _ in 0..REST_TOKENS / 3 {
            [1, 2, 3].into_iter().for_each(|token| lookup.push(token));
        }
        assert!(lookup.guess(8).is_empty());
        [1, 2, 3].into_iter().for_each(|token| lookup.push(token));
        assert!(!lookup.guess(8).is_empty());
        lookup.told(2, 0);
        assert!(lookup.guess(8).is_empty());
    }

    /// Half of it right is neither gain nor loss.
    #[test]
    fn guesses_that_pay_go_on() {
        let mut lookup = Lookup::new([1, 2, 3, 4, 1, 2, 3]);
        for _ in 0..100 {
            lookup.told(2, 1);
        }
        assert!(!lookup.guess(8).is_empty());
    }
}
