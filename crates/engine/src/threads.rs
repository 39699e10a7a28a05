//! How many threads do the arithmetic: as many as make the next token sooner, on cores that others use, too.
//!
//! The threads of a step wait for each other hundreds of times, so on a core that somebody else has, two are slower than
//! one. Which is faster now shows only by trying: a few steps with another count beside as many steps before them, of the
//! same shape. What was of no use is tried again after twice the time; a step that takes much longer than it did has it
//! tried at once.
//!
//! Pure: it is told how long steps took and says with how many threads the next one is to be made.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Steps of a trial. Few, because the other count may be slow; more than one, because a step may meet anything. A guess.
const STEPS: usize = 4;

/// The latest steps, beside which a trial's are put. More would be of other loads; fewer lack shapes. A guess.
const LATEST: usize = 32;

/// Time between two trials, at first and at last. A guess: at last a trial takes a few steps of thousands.
const TRIAL_EVERY_MIN: Duration = Duration::from_secs(1);
const TRIAL_EVERY_MAX: Duration = Duration::from_secs(60);

/// Another count is taken when its steps take less than this part of the time, in hundredths.
const BETTER_PERCENT: u32 = 95;

/// Steps that take so many times what steps of their shape took are a reason to try another count at once.
const SLOW_TIMES: u32 = 2;

#[derive(Debug)]
pub(crate) struct Threads {
    /// Counts that may be taken, the smallest first; never empty.
    counts: Vec<u32>,
    /// Of `counts`.
    at: usize,
    /// The latest steps with `at`, the newest last.
    latest: VecDeque<Step>,
    trial: Option<Trial>,
    /// Whether the next trial is of a larger count.
    goes_up: bool,
    every: Duration,
    /// Of steps since the last trial.
    since: Duration,
    /// What steps of each shape took when the count was chosen, or when the shape was first seen.
    usual: BTreeMap<usize, Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    rows: usize,
    took: Duration,
}

/// Another count, on trial.
#[derive(Debug)]
struct Trial {
    /// Of `counts`.
    at: usize,
    /// Its steps for which there is one to put beside, and those; the sums are over the same shapes.
    compared: usize,
    took: Duration,
    beside: Duration,
    /// All its steps, compared or not.
    steps: VecDeque<Step>,
}

impl Threads {
    /// From `fewest` on by doubling up to `most`, beginning with `fewest`.
    pub(crate) fn new(fewest: u32, most: u32) -> Self {
        let doubled = std::iter::successors(Some(fewest), |count| count.checked_mul(2));
        let mut counts: Vec<u32> = doubled.take_while(|count| *count < most).collect();
        counts.push(most.max(fewest));
        Threads {
            counts,
            at: 0,
            latest: VecDeque::new(),
            trial: None,
            goes_up: true,
            every: TRIAL_EVERY_MIN,
            since: Duration::ZERO,
            usual: BTreeMap::new(),
        }
    }

    /// Counts that may be taken, the smallest first.
    pub(crate) fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Leaves the counts for which that holds (others were found to round otherwise, or cannot be set), and the first.
    pub(crate) fn keep(&mut self, is_right: impl Fn(u32) -> bool) {
        let first = self.counts[0];
        self.counts.retain(|count| *count == first || is_right(*count));
        self.at = 0;
    }

    /// Begins with this count, one of [`Threads::counts`].
    pub(crate) fn begin_with(&mut self, count: u32) {
        self.at = self.counts.iter().position(|of| *of == count).expect("one of those that may be taken");
    }

    /// For the next step.
    pub(crate) fn now(&self) -> u32 {
        self.counts[self.trial.as_ref().map_or(self.at, |trial| trial.at)]
    }

    /// A step was made with [`Threads::now`] threads.
    ///
    /// `rows`: its shape; only steps of the same shape are compared.
    pub(crate) fn made(&mut self, rows: usize, took: Duration) {
        if self.counts.len() == 1 {
            return;
        }
        let step = Step { rows, took };
        self.since += took;
        let beside = |latest: &VecDeque<Step>| median(latest.iter().filter(|of| of.rows == rows).map(|of| of.took));
        if let Some(trial) = &mut self.trial {
            trial.steps.push_back(step);
            if let Some(beside) = beside(&self.latest) {
                trial.compared += 1;
                trial.took += took;
                trial.beside += beside;
            }
            return self.judge();
        }
        if !self.usual.contains_key(&rows)
            && let Some(usual) = beside(&self.latest)
        {
            self.usual.insert(rows, usual);
        }
        if self.latest.len() == LATEST {
            self.latest.pop_front();
        }
        self.latest.push_back(step);
        let is_slow = self.is_slow();
        if self.since >= self.every || is_slow {
            self.since = Duration::ZERO;
            self.try_another(is_slow);
        }
    }

    /// Whether each of the latest steps took much longer than its shape used to.
    fn is_slow(&self) -> bool {
        let is_slow = |step: &Step| self.usual.get(&step.rows).is_some_and(|usual| step.took > *usual * SLOW_TIMES);
        self.latest.len() >= STEPS && self.latest.iter().rev().take(STEPS).all(is_slow)
    }

    /// The next count above or below in turn; below when steps have become slow.
    fn try_another(&mut self, is_slow: bool) {
        let (below, above) = (self.at.checked_sub(1), Some(self.at + 1).filter(|at| *at < self.counts.len()));
        let another = if self.goes_up && !is_slow { above.or(below) } else { below.or(above) };
        self.goes_up = !self.goes_up;
        self.trial = another.map(|at| Trial {
            at,
            compared: 0,
            took: Duration::ZERO,
            beside: Duration::ZERO,
            steps: VecDeque::new(),
        });
    }

    fn judge(&mut self) {
        let Some(trial) = &self.trial else { return };
        if trial.compared < STEPS && trial.steps.len() < LATEST {
            return;
        }
        let is_better = trial.compared >= STEPS && trial.took * 100 < trial.beside * BETTER_PERCENT;
        let trial = self.trial.take().expect("it is there");
        if is_better {
            (self.at, self.latest, self.every) = (trial.at, trial.steps, TRIAL_EVERY_MIN);
        } else {
            self.every = (self.every * 2).min(TRIAL_EVERY_MAX);
        }
        // What is usual now, of whatever else takes the cores.
        self.usual.clear();
        self.since = Duration::ZERO;
    }
}

/// Of two or more.
fn median(took: impl Iterator<Item = Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = took.collect();
    sorted.sort_unstable();
    (sorted.len() > 1).then(|| sorted[sorted.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A machine on which a step of one row takes so long with so many threads.
    fn run(threads: &mut Threads, steps: usize, rows: usize, takes: impl Fn(u32) -> Duration) -> Duration {
        (0..steps)
            .map(|_| {
                let took = takes(threads.now());
                threads.made(rows, took);
                took
            })
            .sum()
    }

    fn idle(count: u32) -> Duration {
        20 * MS / count
    }

    /// Two cores, and somebody else on one of them.
    fn busy(count: u32) -> Duration {
        if count == 1 { 20 * MS } else { 50 * MS * count }
    }

    #[test]
    fn counts_double_up_to_the_most() {
        assert_eq!(Threads::new(1, 1).counts(), [1]);
        assert_eq!(Threads::new(1, 2).counts(), [1, 2]);
        assert_eq!(Threads::new(1, 6).counts(), [1, 2, 4, 6]);
        assert_eq!(Threads::new(4, 2).counts(), [4], "what was asked for by number is not lowered");
        let mut threads = Threads::new(1, 8);
        threads.keep(|count| count != 4);
        assert_eq!(threads.counts(), [1, 2, 8]);
    }

    #[test]
    fn one_count_is_never_left() {
        let mut threads = Threads::new(3, 3);
        run(&mut threads, 1_000, 1, |_| 100 * MS);
        assert_eq!(threads.now(), 3);
    }

    #[test]
    fn idle_cores_are_used_and_taken_cores_given_up() {
        let mut threads = Threads::new(1, 2);
        run(&mut threads, 100, 1, idle);
        assert_eq!(threads.now(), 2, "within two seconds");
        let spent = run(&mut threads, 10, 1, busy);
        assert_eq!(threads.now(), 1);
        assert!(spent < 1_000 * MS, "{spent:?}");
        // Tries go on, ever more seldom, and cost little.
        let spent = run(&mut threads, 10_000, 1, busy);
        assert!(spent < 10_000 * 20 * MS * 105 / 100, "{spent:?}");
        run(&mut threads, 10_000, 1, idle);
        assert_eq!(threads.now(), 2);
    }

    #[test]
    fn steps_of_another_shape_are_not_compared() {
        let mut threads = Threads::new(1, 2);
        // Two threads are of no use; a step of eight rows takes four times as long.
        for round in 0..400 {
            let rows = if round % 3 == 0 { 8 } else { 1 };
            let takes = if rows == 8 { 80 * MS } else { 20 * MS };
            run(&mut threads, 3, rows, |count| takes + MS * count);
            assert_eq!(threads.counts[threads.at], 1, "round {round}");
        }
        // And of ever other shapes a trial comes to an end.
        for rows in 10..500 {
            run(&mut threads, 1, rows, |_| MS * 500);
        }
        assert_eq!(threads.counts[threads.at], 1);
        let longest = 2 * usize::try_from(TRIAL_EVERY_MAX.as_millis() / 20).unwrap();
        run(&mut threads, longest, 1, idle);
        assert_eq!(threads.counts[threads.at], 2);
    }

    #[test]
    fn more_cores_are_climbed_step_by_step() {
        let mut threads = Threads::new(1, 8);
        run(&mut threads, 2_000, 1, idle);
        assert_eq!(threads.now(), 8);
        // Only four of them are free now.
        run(&mut threads, 2_000, 1, |count| if count > 4 { 60 * MS } else { idle(count) });
        assert_eq!(threads.counts[threads.at], 4);
    }
}
