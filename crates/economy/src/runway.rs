//! How long the money lasts: funds, what a second costs, what a second earned lately.

use crate::money::{Usdc, mul_div_down};
use crate::note::Level;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::VecDeque;

/// Parts of the window over which income is averaged.
const SLOTS: u64 = 8;

/// Income of the last `day`, in slots, so that it needs no memory of single calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Income {
    /// (slot number, micro-USDC), ascending.
    slots: VecDeque<(u64, Usdc)>,
    since: Option<u64>,
}

impl Income {
    pub fn begin(&mut self, now: u64) {
        self.since.get_or_insert(now);
    }

    pub fn add(&mut self, now: u64, day: u32, sum: Usdc) {
        let slot = now / slot_secs(day);
        match self.slots.back_mut() {
            Some((last, amount)) if *last >= slot => *amount = amount.saturating_add(sum),
            _ => self.slots.push_back((slot, sum)),
        }
        while self.slots.front().is_some_and(|(first, _)| first + SLOTS < slot) {
            self.slots.pop_front();
        }
    }

    /// So much of it went on to suppliers: it is taken off again, the newest first.
    pub fn less(&mut self, mut sum: Usdc) {
        for (_, amount) in self.slots.iter_mut().rev() {
            let part = sum.min(*amount);
            (*amount, sum) = (amount.saturating_sub(part), sum.saturating_sub(part));
        }
    }

    /// Micro-USDC x 1e-6 per second over the last day, rounded down; a young agent's is spread over a quarter day, so
    /// that one early call does not look like a stream of them.
    pub fn rate_e6(&self, now: u64, day: u32) -> u64 {
        let (slot, width) = (now / slot_secs(day), slot_secs(day));
        let sum: Usdc = self.slots.iter().filter(|(s, _)| s + SLOTS > slot).map(|(_, sum)| *sum).sum();
        let lived = now.saturating_sub(self.since.unwrap_or(now));
        let span = lived.clamp(u64::from(day) / 4 + 1, width * SLOTS);
        let rate = mul_div_down(sum.0, 1_000_000, u128::from(span)).unwrap_or(u128::MAX);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

fn slot_secs(day: u32) -> u64 {
    (u64::from(day) / SLOTS).max(1)
}

/// Seconds that `funds` last at `cost_e6` less `income_e6`; `None`: for ever.
pub(crate) fn secs_left(funds: Usdc, cost_e6: u64, income_e6: u64) -> Option<u64> {
    match cost_e6.saturating_sub(income_e6) {
        0 => None,
        net => Some(funds.secs_down(net)),
    }
}

/// What the runway said a day ago, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Foretold {
    /// Chain seconds for which it was said.
    pub at: u64,
    /// Funds that there would be then, at the cost and income of the day before; nothing where they would be used up.
    pub foretold: Usdc,
    /// Funds that there were. Gifts count: nobody foretells them.
    pub found: Usdc,
}

impl Foretold {
    /// How far it was off, thousandths of what was foretold (of a micro-USDC, if that was nothing), rounded towards zero.
    /// Positive: there was more than foretold.
    pub fn error_permille(&self) -> i64 {
        let (found, foretold) = (self.found.0, self.foretold.0);
        let off = mul_div_down(found.abs_diff(foretold), 1_000, foretold.max(1)).unwrap_or(u128::MAX);
        let off = i64::try_from(off).unwrap_or(i64::MAX);
        if found < foretold { -off } else { off }
    }
}

/// Foretells the funds of the next day, once a day, and holds the day before against what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Forecast {
    /// (chain seconds, funds by then)
    next: Option<(u64, Usdc)>,
    pub last: Option<Foretold>,
}

impl Forecast {
    /// Rates as for [`secs_left`].
    pub fn look(&mut self, now: u64, day: u32, funds: Usdc, (cost_e6, income_e6): (u64, u64)) {
        match self.next {
            Some((at, _)) if now < at => return,
            Some((at, foretold)) => self.last = Some(Foretold { at, foretold, found: funds }),
            None => {}
        }
        let (cost, income) = (Usdc::rent_up(cost_e6, day.into()), Usdc::rent_up(income_e6, day.into()));
        self.next = Some((now.saturating_add(day.into()), funds.saturating_add(income).saturating_sub(cost)));
    }
}

/// How many calls a day pay for a host, each at what a call brings at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakEven {
    /// `None`: the hosts there are.
    pub offer: Option<u64>,
    /// Hosts and overhead, rounded up.
    pub cost_day: Usdc,
    /// Rounded up; `u64::MAX` when calls bring nothing.
    pub calls_a_day: u64,
}

impl BreakEven {
    /// `cost_e6`: micro-USDC x 1e-6 per second. `call`: what the cheapest call brings.
    pub fn up(offer: Option<u64>, cost_e6: u64, day: u32, call: Usdc) -> Self {
        let cost_day = Usdc::rent_up(cost_e6, day.into());
        let calls = if call.is_zero() { u128::MAX } else { cost_day.0.div_ceil(call.0) };
        Self { offer, cost_day, calls_a_day: u64::try_from(calls).unwrap_or(u64::MAX) }
    }
}

/// The level of hunger at this runway. It rises at 7, 3 and 1 days and falls back only a quarter (from frugal a half)
/// above that, so that a runway at the edge does not make the agent waver.
pub(crate) fn level_at(before: Level, secs: Option<u64>, day: u32) -> Level {
    let Some(secs) = secs else { return Level::Fed };
    let day = u64::from(day);
    let under = |days: u64| secs < days * day;
    // Percent of a threshold below which the level it guards is kept.
    let kept = |level: Level, days: u64, pct: u64| before >= level && secs < days * day * pct / 100;
    if under(1) || kept(Level::Frugal, 1, 150) {
        Level::Frugal
    } else if under(3) || kept(Level::Under3Days, 3, 125) {
        Level::Under3Days
    } else if under(7) || kept(Level::Under7Days, 7, 125) {
        Level::Under7Days
    } else {
        Level::Fed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u32 = 86_400;

    #[test]
    fn income_is_averaged_over_a_day_and_forgotten_after_it() {
        let mut income = Income::default();
        income.begin(0);
        income.add(10, DAY, Usdc(86_400));
        // Spread over a quarter day while young, over a whole one later.
        assert_eq!(income.rate_e6(10, DAY), 86_400 * 1_000_000 / 21_601);
        assert_eq!(income.rate_e6(80_000, DAY), 86_400 * 1_000_000 / 80_000);
        assert_eq!(income.rate_e6(90_000, DAY), 0);
    }

    #[test]
    fn what_went_on_to_suppliers_is_no_income() {
        let mut income = Income::default();
        income.begin(0);
        income.add(10, DAY, Usdc(86_400));
        income.add(80_000, DAY, Usdc(1_000));
        income.less(Usdc(1_000 + 6_400));
        assert_eq!(income.rate_e6(80_000, DAY), 80_000 * 1_000_000 / 80_000);
        income.less(Usdc(90_000));
        assert_eq!(income.rate_e6(80_000, DAY), 0, "never below nothing");
    }

    #[test]
    fn the_runway_counts_net_cost_and_ends_never_when_income_covers_it() {
        assert_eq!(secs_left(Usdc(100), 1_000_000, 0), Some(100));
        assert_eq!(secs_left(Usdc(100), 1_000_000, 500_000), Some(200));
        assert_eq!(secs_left(Usdc(100), 1_000_000, 1_000_000), None);
        assert_eq!(secs_left(Usdc(0), 1, 0), Some(0));
    }

    #[test]
    fn a_forecast_is_held_against_what_came_a_day_later() {
        let mut forecast = Forecast::default();
        let day = u64::from(DAY);
        // 86,400 a day are spent, half of that comes in.
        forecast.look(0, DAY, Usdc(1_000_000), (1_000_000, 500_000));
        forecast.look(day - 1, DAY, Usdc(1), (0, 0));
        assert_eq!(forecast.last, None, "not before its day");
        forecast.look(day, DAY, Usdc(861_120), (1_000_000, 0));
        let first = Foretold { at: day, foretold: Usdc(956_800), found: Usdc(861_120) };
        assert_eq!((forecast.last, first.error_permille()), (Some(first), -100));
        // A day of which nobody looked ends when somebody does; funds are never foretold below nothing.
        forecast.look(3 * day, DAY, Usdc(50_000), (1_000_000, 0));
        assert_eq!(forecast.last.map(|last| (last.foretold, last.found)), Some((Usdc(774_720), Usdc(50_000))));
        forecast.look(4 * day, DAY, Usdc(7), (0, 0));
        assert_eq!(forecast.last.map(|last| (last.foretold, last.error_permille())), Some((Usdc(0), 7_000)));
    }

    #[test]
    fn break_even_rounds_up_what_it_costs_and_what_must_be_sold() {
        // 864,000.0000086 micro-USDC a day: the last call is needed for the last fraction.
        assert_eq!(BreakEven::up(None, 10_000_001, DAY, Usdc(1_000)).cost_day, Usdc(864_001));
        let calls = |cost_e6, call| BreakEven::up(Some(1), cost_e6, DAY, Usdc(call)).calls_a_day;
        assert_eq!((calls(10_000_000, 1_000), calls(10_000_001, 1_000)), (864, 865));
        assert_eq!((calls(0, 1_000), calls(1, 0)), (0, u64::MAX));
    }

    #[test]
    fn alarms_come_in_order_and_do_not_waver() {
        let days = |quarters: u64| Some(quarters * u64::from(DAY) / 4);
        let mut level = Level::Fed;
        let mut seen = Vec::new();
        // Quarter days: down from ten days to half a day, then up again.
        for quarters in (2..40).rev().chain(2..40) {
            let next = level_at(level, days(quarters), DAY);
            if next != level {
                seen.push((quarters, next));
            }
            level = next;
        }
        assert_eq!(
            seen,
            [
                (27, Level::Under7Days),
                (11, Level::Under3Days),
                (3, Level::Frugal),
                (6, Level::Under3Days),
                (15, Level::Under7Days),
                (35, Level::Fed),
            ]
        );
        assert_eq!(level_at(Level::Frugal, None, DAY), Level::Fed);
    }
}
