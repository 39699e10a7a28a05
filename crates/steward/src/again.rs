//! When something is tried again that may come to nothing. Pure: it is told what time it is, in seconds of whichever clock
//! its owner keeps.

/// The shortest and the longest wait between two tries, seconds.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    pub least: u64,
    pub most: u64,
}

/// Each try waits twice as long as the one before it, so that what a stranger lets come to nothing costs less and less.
/// What is not tried again for longer than [`Waits::most`], though it may be, begins anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    at: u64,
    wait: u64,
}

impl Again {
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.at
    }

    /// From when on it may be tried; 0: it never was.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// It is tried at `now`, and the answer takes up to `answer` seconds: not again before that, either.
    pub fn tried(&mut self, now: u64, answer: u64, waits: Waits) {
        let Waits { least, most } = waits;
        let is_forgotten = now > self.at.saturating_add(most);
        let before = if is_forgotten { 0 } else { self.wait };
        self.wait = before.saturating_mul(2).clamp(least, most);
        self.at = now.saturating_add(self.wait.max(answer));
    }

    /// The answer is there, and it is a failure: the wait alone counts from here.
    pub fn failed(&mut self, now: u64) {
        self.at = self.at.min(now.saturating_add(self.wait));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits { least: 8, most: 100 };

    #[test]
    fn each_wait_is_twice_the_last_one_up_to_a_bound_and_forgotten_after_it() {
        let (mut again, mut now) = (Again::default(), 1_000);
        assert!(again.is_due(now));
        let mut waits = Vec::new();
        for _ in 0..6 {
            again.tried(now, 0, WAITS);
            waits.push(again.at() - now);
            now = again.at();
        }
        assert_eq!(waits, [8, 16, 32, 64, 100, 100]);
        again.tried(now + 100, 0, WAITS);
        assert_eq!(again.at(), now + 200);
        again.tried(now + 301, 0, WAITS);
        assert_eq!(again.at(), now + 309);
    }

    #[test]
    fn an_answer_is_waited_for_and_a_failure_ends_that() {
        let mut again = Again::default();
        again.tried(1_000, 40, WAITS);
        assert!(!again.is_due(1_039) && again.is_due(1_040));
        again.failed(1_002);
        again.failed(1_004);
        assert!(!again.is_due(1_009) && again.is_due(1_010));
        again.tried(u64::MAX, u64::MAX, WAITS);
        assert_eq!(again.at(), u64::MAX);
    }
}
