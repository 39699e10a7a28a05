//! The protocol's timers, in chain seconds, and how a day in fast motion scales them.

use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

/// Seconds of a real day.
pub const DAY_SECS: u32 = 86_400;

/// All protocol time of one world. The first ten are fixed in the Treasury at birth, the last three in the market.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Timers {
    /// The scaled day: limits per day, runway alarms and terms count in it.
    pub day: u32,
    pub heartbeat_every: u32,
    /// A node without a fresh block in which it is operator stops itself after this.
    pub fence: u32,
    /// To answer a challenge.
    pub answer_time: u32,
    /// A handover is announced at least this long before.
    pub handover_notice: u32,
    /// After a takeover; past it another may supersede.
    pub restore_timeout: u32,
    /// Without a heartbeat for this long, a quorum may rescue.
    pub silence: u32,
    pub starve_timeout: u32,
    pub activate_within: u32,
    /// From wind-down to the earliest close.
    pub refund_window: u32,
    /// The provider's time to make a lease ready.
    pub ready_within: u32,
    /// Rent accrues up to the last vouching heartbeat plus this.
    pub grace: u32,
    /// Silence after which anyone may expire a lease.
    pub drop_after: u32,
}

/// A timer that would have been too short for one-second blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    pub name: &'static str,
    pub from: u32,
    pub to: u32,
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} raised from {} s to {} s", self.name, self.from, self.to)
    }
}

/// Two timers that do not fit together, named as the contract names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerError {
    pub pair: &'static str,
    pub left: u64,
    pub right: u64,
}

impl fmt::Display for TimerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the timers do not fit: {} fails with {} s and {} s", self.pair, self.left, self.right)
    }
}

impl std::error::Error for TimerError {}

/// Percent of a lease's term after which the agent moves on (DESIGN §5.3).
pub const RENEW_PCT: u32 = 60;

/// Blocks that one attempt at a move needs besides the notice: announce, commit and handover mined, one to spare.
pub const MOVE_BLOCKS: u32 = 4;

/// Attempts that must fit between the renewal point and the end of a lease: one and two more.
pub const MOVE_ATTEMPTS: u32 = 3;

impl Timers {
    /// The timers of a public chain.
    ///
    /// Source: this is the shortest heartbeat, in whole hours, with which a month's fees stay under 1 % of a rent of $30
    /// (docs/concepts/fees.md, docs/decisions/0016; a test of xtask computes it from the gas snapshots). The order of the
    /// others is DESIGN §4; their distances are choices, unmeasured: half an hour for a heartbeat to be mined, another to
    /// answer.
    pub fn real() -> Self {
        Self {
            day: DAY_SECS,
            heartbeat_every: 18_000,
            fence: 19_800,
            answer_time: 21_600,
            handover_notice: 900,
            restore_timeout: 3_600,
            silence: 25_200,
            starve_timeout: DAY_SECS,
            activate_within: DAY_SECS,
            refund_window: DAY_SECS,
            ready_within: 3_600,
            grace: 25_200,
            // Longer than fence, answer and restore together: a standby's lease outlives the silence that it ends.
            drop_after: 57_600,
        }
    }

    /// The smallest timers that work with one-second blocks, real processes and a model of 100 MB.
    /// Source: a guess refined by running worlds of 20-second days.
    fn minima(day: u32) -> Self {
        Self {
            day,
            heartbeat_every: 3,
            fence: 8,
            answer_time: 12,
            handover_notice: 3,
            restore_timeout: 20,
            silence: 26,
            starve_timeout: 15,
            activate_within: 90,
            refund_window: 6,
            ready_within: 45,
            grace: 34,
            drop_after: 40,
        }
    }

    /// Real timers x `day_secs` / 86,400, each raised to its minimum and to what §4's inequality then asks.
    /// The list names every timer that was raised; a real day raises nothing.
    pub fn scaled(day_secs: u32) -> (Self, Vec<Raised>) {
        let real = Self::real();
        if day_secs >= DAY_SECS {
            return (Self { day: day_secs, ..real }, Vec::new());
        }
        let minima = Self::minima(day_secs);
        let mut timers = Self { day: day_secs, ..real };
        let mut raised = Vec::new();
        let mut wanted = Vec::new();
        for ((name, value), (_, least)) in timers.fields_mut().into_iter().zip({
            let mut m = minima;
            m.fields_mut().map(|(n, v)| (n, *v))
        }) {
            let scaled = u64::from(*value) * u64::from(day_secs) / u64::from(DAY_SECS);
            // Not larger than the real timer, which is a u32.
            let scaled = u32::try_from(scaled).unwrap_or(*value);
            wanted.push((name, scaled));
            *value = scaled.max(least);
        }
        timers.fence = timers.fence.max(timers.heartbeat_every + 1);
        timers.answer_time = timers.answer_time.max(timers.fence + 1);
        timers.silence = timers.silence.max(timers.answer_time + 1);
        timers.grace = timers.grace.max(timers.answer_time + timers.restore_timeout).max(timers.silence);
        timers.drop_after = timers.drop_after.max(timers.grace);
        for ((name, to), (_, from)) in timers.fields_mut().map(|(n, v)| (n, *v)).into_iter().zip(wanted) {
            if to > from {
                raised.push(Raised { name, from, to });
            }
        }
        (timers, raised)
    }

    /// Every timer but the day, by its name in a manifest and in messages.
    fn fields_mut(&mut self) -> [(&'static str, &mut u32); 12] {
        [
            ("heartbeat_every", &mut self.heartbeat_every),
            ("fence", &mut self.fence),
            ("answer_time", &mut self.answer_time),
            ("handover_notice", &mut self.handover_notice),
            ("restore_timeout", &mut self.restore_timeout),
            ("silence", &mut self.silence),
            ("starve_timeout", &mut self.starve_timeout),
            ("activate_within", &mut self.activate_within),
            ("refund_window", &mut self.refund_window),
            ("ready_within", &mut self.ready_within),
            ("grace", &mut self.grace),
            ("drop_after", &mut self.drop_after),
        ]
    }

    /// Whether these timers fit together and a lease of `term` seconds leaves room for a move and two more attempts.
    /// The contract checks the same pairs but the last two. `block_secs`: the chain's block time.
    pub fn check(&self, term: u32, block_secs: u32) -> Result<(), TimerError> {
        let t = |v: u32| u64::from(v);
        let attempt = t(self.handover_notice) + t(MOVE_BLOCKS) * t(block_secs);
        let after_renewal = t(term) - t(term) * t(RENEW_PCT) / 100;
        let pairs = [
            ("3 blocks <= heartbeatEvery", 3 * t(block_secs), t(self.heartbeat_every)),
            ("heartbeatEvery < fence", t(self.heartbeat_every) + 1, t(self.fence)),
            ("fence < answerTime", t(self.fence) + 1, t(self.answer_time)),
            (
                "answerTime + restoreTimeout <= market.grace",
                t(self.answer_time) + t(self.restore_timeout),
                t(self.grace),
            ),
            ("grace <= dropAfter", t(self.grace), t(self.drop_after)),
            ("3 blocks <= handoverNotice", 3 * t(block_secs), t(self.handover_notice)),
            ("3 blocks <= restoreTimeout", 3 * t(block_secs), t(self.restore_timeout)),
            ("3 blocks <= refundWindow", 3 * t(block_secs), t(self.refund_window)),
            ("answerTime < silence", t(self.answer_time) + 1, t(self.silence)),
            ("3 x (handoverNotice + 4 blocks) <= 40 % of the term", t(MOVE_ATTEMPTS) * attempt, after_renewal),
            ("term <= 30 days", t(term), 30 * t(self.day)),
        ];
        match pairs.into_iter().find(|(_, left, right)| left > right) {
            Some((pair, left, right)) => Err(TimerError { pair, left, right }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_real_day_raises_nothing_and_fits_thirty_days() {
        let (timers, raised) = Timers::scaled(DAY_SECS);
        assert_eq!((timers, raised), (Timers::real(), vec![]));
        assert_eq!(timers.check(30 * DAY_SECS, 12), Ok(()));
    }

    #[test]
    fn a_day_of_twenty_seconds_is_raised_to_what_works() {
        let (timers, raised) = Timers::scaled(20);
        let shown: Vec<String> = raised.iter().map(Raised::to_string).collect();
        expect![[r#"
            fence raised from 4 s to 8 s
            answer_time raised from 5 s to 12 s
            handover_notice raised from 0 s to 3 s
            restore_timeout raised from 0 s to 20 s
            silence raised from 5 s to 26 s
            activate_within raised from 20 s to 90 s
            ready_within raised from 0 s to 45 s
            grace raised from 5 s to 34 s
            drop_after raised from 13 s to 40 s"#]]
        .assert_eq(&shown.join("\n"));
        assert_eq!(timers.check(3 * 20, 1), Ok(()));
    }

    #[test]
    fn every_scaled_day_satisfies_the_inequality() {
        for day in 10..DAY_SECS {
            let (timers, _) = Timers::scaled(day);
            if let Err(e) = timers.check(30 * day, 1) {
                panic!("a day of {day} s: {e}");
            }
        }
    }

    #[test]
    fn the_failing_pair_is_named() {
        let (timers, _) = Timers::scaled(20);
        expect!["the timers do not fit: 3 x (handoverNotice + 4 blocks) <= 40 % of the term fails with 21 s and 16 s"]
            .assert_eq(&timers.check(2 * 20, 1).expect_err("two days of 20 s are too short").to_string());
        let crossed = Timers { fence: 12, ..timers };
        expect!["the timers do not fit: fence < answerTime fails with 13 s and 12 s"]
            .assert_eq(&crossed.check(60, 1).expect_err("the fence is too late").to_string());
    }
}
