//! What customers want: so many calls a day of a trade, shared out among those who sell it.

use super::fixed::{ONE, exp2, log2, lognormal};
use crate::Chance;

/// Of one call: prompt and completion tokens. A guess, unmeasured: a short chat turn.
pub const PROMPT_TOKENS: u64 = 500;
pub const COMPLETION_TOKENS: u64 = 250;
/// Share of what a host could do in a day that demand's hours leave room for, percent: by night it idles. A guess.
pub const PEAK_PCT: u64 = 60;

/// Calls a day and agent at the reference price, averaged over all agents and a steady year. A guess, unmeasured, and the
/// one that matters most: about what pays two median hosts, so that who is better than the average lives.
const CALLS_DAY: u64 = 7_000;
/// Micro-USDC a call at which demand is as said above: the floor's price on a median host.
const REFERENCE_CALL: u64 = 330;
/// A price that is 1 % higher loses 1.11 % of the calls, per mille: measured between providers of the same open model on
/// OpenRouter (National Bureau of Economic Research, "The Emerging Market for Intelligence", 2025).
const ELASTICITY: i64 = 1_110;
/// Of the calls that would come to a town whose agents all were average, so many go to sellers elsewhere, percent. A guess.
const ELSEWHERE_PCT: u64 = 50;
/// How unequal agents are by birth: of three, two draw between half and twice the median's customers at the same price.
/// Revenue in app stores is more unequal still (C. Perry, "The Shape of the App Store", 2015: a power law). The number is
/// a guess.
const SKILL_SPREAD: i64 = 1_000;
/// Days after its birth until an agent is known to everybody who may know it. New models on OpenRouter reach their level
/// "within weeks" (A. Fradkin, "Demand for LLMs", arXiv 2504.15440, 2025).
const ADOPTION_DAYS: u64 = 21;
/// A day's calls of one agent vary by this much around their mean (as [`lognormal`] counts). Traffic of real services is
/// burstier than even arrivals (BurstGPT, arXiv 2401.17644); the number is a guess.
const DAILY_SPREAD: i64 = 250;

/// Per mille of a trade's mean over the year. Which shapes a year has is a guess; each is one that a price controller must
/// stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trade {
    /// The same every day.
    Steady,
    /// Office work: weekends at a third.
    Weekly,
    /// Doubles over the year.
    Growing,
    /// Halves every four months: something better came.
    Fading,
    /// Quiet, and now and then a week of many times that.
    Bursts,
}

impl Trade {
    pub const ALL: [Self; 5] = [Self::Steady, Self::Weekly, Self::Growing, Self::Fading, Self::Bursts];

    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Weekly => "weekly",
            Self::Growing => "growing",
            Self::Fading => "fading",
            Self::Bursts => "bursts",
        }
    }

    /// Per mille of the mean on this day. `burst`: the town has one now.
    fn level(self, day: u64, burst: bool) -> u64 {
        let day_e16 = i64::try_from(day).unwrap_or(0) * ONE;
        match self {
            Self::Steady => 1_000,
            // Five days of 1,235 and two of 412.
            Self::Weekly => {
                if day % 7 < 5 {
                    1_235
                } else {
                    412
                }
            }
            Self::Growing => exp2(log2(690) + day_e16 / 365),
            Self::Fading => exp2(log2(2_400) - day_e16 / 122),
            Self::Bursts => {
                if burst {
                    6_000
                } else {
                    500
                }
            }
        }
    }
}

/// Customers' liking for an agent, per mille of the median's.
pub fn skill(chance: &mut Chance) -> u64 {
    lognormal(chance, 1_000, SKILL_SPREAD).clamp(20, 50_000)
}

/// One who sells on a day.
#[derive(Clone, Copy, Debug)]
pub struct Seller {
    pub trade: Trade,
    pub skill: u64,
    /// Since birth.
    pub days: u64,
    /// Micro-USDC.
    pub call: u64,
}

impl Seller {
    /// Its weight among those who sell the same.
    fn appeal(&self) -> u64 {
        let price = (log2(REFERENCE_CALL) - log2(self.call.max(1))) * ELASTICITY / 1_000;
        let known = self.skill * (self.days + 1).min(ADOPTION_DAYS) / ADOPTION_DAYS;
        // Twenty bits more, for prices far above the reference.
        exp2(log2(known.max(1)) + price + 20 * ONE)
    }
}

/// The demand of one town.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Agents of each trade at the beginning.
    born: [u64; 5],
    burst_until: u64,
    day: u64,
}

impl Demand {
    pub fn new(trades: impl Iterator<Item = Trade>) -> Self {
        let mut born = [0; 5];
        trades.for_each(|trade| born[trade as usize] += 1);
        Self { born, burst_until: 0, day: 0 }
    }

    /// A burst begins about every eleven weeks and lasts one.
    pub fn new_day(&mut self, day: u64, chance: &mut Chance) {
        self.day = day;
        if day >= self.burst_until && chance.below(77) == 0 {
            self.burst_until = day + 7;
        }
    }

    /// Per mille of the trade's mean.
    pub fn level(&self, trade: Trade) -> u64 {
        trade.level(self.day, self.day < self.burst_until)
    }

    /// Calls that come to each seller today, in their order.
    pub fn share_out(&self, sellers: &[Seller], chance: &mut Chance) -> Vec<u64> {
        let appeals: Vec<u64> = sellers.iter().map(Seller::appeal).collect();
        Trade::ALL.into_iter().fold(vec![0; sellers.len()], |mut calls, trade| {
            let born = self.born[trade as usize];
            // An average agent: the mean of the skills is above their median.
            let average = exp2(log2(1_270) + 20 * ONE);
            let elsewhere =
                u128::from(born) * u128::from(average) * u128::from(ELSEWHERE_PCT) / u128::from(100 - ELSEWHERE_PCT);
            let ours = || sellers.iter().zip(&appeals).enumerate().filter(move |(_, (s, _))| s.trade == trade);
            let all: u128 = elsewhere + ours().map(|(_, (_, appeal))| u128::from(*appeal)).sum::<u128>();
            let come = u128::from(born * CALLS_DAY) * u128::from(self.level(trade)) * 100
                / u128::from(1_000 * (100 - ELSEWHERE_PCT));
            for (index, (_, appeal)) in ours() {
                let mean = come * u128::from(*appeal) / all.max(1);
                calls[index] = lognormal(chance, u64::try_from(mean).unwrap_or(0), DAILY_SPREAD);
            }
            calls
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheaper_and_the_better_get_more_and_trades_do_not_mix() {
        let seller = |trade, skill, call| Seller { trade, skill, days: 100, call };
        let demand = Demand::new([Trade::Steady, Trade::Steady, Trade::Fading].into_iter());
        let sellers = [
            seller(Trade::Steady, 1_000, 330),
            seller(Trade::Steady, 1_000, 660),
            seller(Trade::Steady, 2_000, 330),
            seller(Trade::Fading, 1_000, 330),
        ];
        let mut sums = [0; 4];
        for seed in 0..200 {
            let calls = demand.share_out(&sellers, &mut Chance::new(seed));
            sums.iter_mut().zip(calls).for_each(|(sum, calls)| *sum += calls / 200);
        }
        let [plain, dear, good, other] = sums;
        assert!((2_000..2_320).contains(&(plain * 1_000 / dear)), "twice the price: {sums:?}");
        assert!((1_900..2_100).contains(&(good * 1_000 / plain)), "twice the skill: {sums:?}");
        assert!(other > plain, "alone in its trade: {sums:?}");
    }

    #[test]
    fn a_year_of_each_shape_has_about_the_same_mean() {
        for trade in Trade::ALL {
            let sum: u64 = (0..365).map(|day| trade.level(day, day % 84 < 7)).sum();
            assert!((900..1_200).contains(&(sum / 365)), "{trade:?}: {}", sum / 365);
        }
    }
}
