//! How much of a prompt goes into a step, so that the answers beside it do not stand still for long.
//!
//! Pure: it is told how long steps and pieces took and says how long the next piece is. Where a prompt is cut does not show
//! in an answer, as long as it is between blocks (docs/decisions/0045).

use std::collections::VecDeque;
use std::time::Duration;

use crate::schedule::BLOCK;

/// Tokens of a piece at most, and of one beside which no answer runs. More read no faster, and a request that comes or is
/// given up waits until the piece is read.
pub(crate) const PIECE_MAX: usize = 256;

/// What a running answer may wait for its next token while a prompt is read. Where a step with one block takes longer, it
/// waits that long. A choice: text that comes three times a second is still read as it comes.
const GAP_MAX: Duration = Duration::from_millis(300);

/// The latest pieces, of which the slowest says what the next one takes: others on this machine come and go, and later
/// tokens take longer than earlier ones. A guess.
const LATEST: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// What a token of each of the latest pieces took.
    token: VecDeque<Duration>,
    /// The latest step of running answers.
    step: Duration,
}

impl Pace {
    /// A token of each running answer took so long.
    pub(crate) fn made_a_step(&mut self, took: Duration) {
        self.step = took;
    }

    /// A piece of so many tokens took so long. One that is shorter than a block says little of longer ones.
    pub(crate) fn read(&mut self, tokens: usize, took: Duration) {
        let Some(tokens) = u32::try_from(tokens).ok().filter(|_| tokens >= BLOCK) else { return };
        if self.token.len() == LATEST {
            self.token.pop_front();
        }
        self.token.push_back(took / tokens);
    }

    /// Tokens that the next piece may have beside running answers: whole blocks, at least one and at most [`PIECE_MAX`].
    pub(crate) fn beside_answers(&self) -> usize {
        let left = GAP_MAX.saturating_sub(self.step);
        let fit = self.token.iter().max().map_or(0, |token| left.as_nanos() / token.as_nanos().max(1));
        let fit = usize::try_from(fit).unwrap_or(PIECE_MAX);
        (fit / BLOCK * BLOCK).clamp(BLOCK, PIECE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_piece_takes_what_is_left_of_the_gap() {
        let mut pace = Pace::default();
        assert_eq!(pace.beside_answers(), BLOCK, "nothing was measured");
        pace.read(256, 256 * 2 * MS);
        assert_eq!(pace.beside_answers(), 128, "150 tokens in whole blocks");
        pace.made_a_step(60 * MS);
        assert_eq!(pace.beside_answers(), 96, "120 tokens fit beside the step");
        // Its end says nothing: what it cost is mostly not its tokens'.
        pace.read(3, 60 * MS);
        assert_eq!(pace.beside_answers(), 96);
        // Slower now: less at once, but never less than a block.
        pace.read(96, 96 * 7 * MS);
        assert_eq!(pace.beside_answers(), BLOCK);
        pace.made_a_step(400 * MS);
        assert_eq!(pace.beside_answers(), BLOCK);
        // Fast again: believed when nothing else has been seen for a while. Then nothing that could be measured.
        pace.made_a_step(MS);
        for _ in 1..LATEST {
            pace.read(32, MS);
            assert_eq!(pace.beside_answers(), BLOCK);
        }
        pace.read(32, MS);
        assert_eq!(pace.beside_answers(), PIECE_MAX);
        (0..LATEST).for_each(|_| pace.read(32, Duration::ZERO));
        assert_eq!(pace.beside_answers(), PIECE_MAX);
    }
}
