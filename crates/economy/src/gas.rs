//! ETH for operator and relay: asked of the treasury when theirs is low, bought by it when its own is.

use crate::input::View;
use crate::money::Usdc;
use crate::note::Note;
use crate::output::Output;
use crate::{Agent, Turn};

/// One purchase of gas takes at most this part of the day limit. A guess: what a day may take for gas is worth cents at
/// the prices that births are made for (docs/concepts/fees.md).
const GAS_SHARE: u128 = 10;

impl Agent {
    /// Gas is not the treasury's token, and heartbeats need it: it is asked for while paused, too.
    pub(crate) fn refuel(&mut self, view: &View, turn: &mut Turn) {
        let (operator_wei, relay_wei) = (view.operator_gas_wei, view.relay_gas_wei);
        if !view.limits.is_key_low(operator_wei) && !view.limits.is_key_low(relay_wei) {
            self.refuel_pause = 0;
            return;
        }
        if turn.now < self.refuel_from {
            return;
        }
        if self.ask(Output::Refuel, turn) {
            // What did not help may help soon (a relay that is new to the treasury got nothing), or not for long: the
            // treasury may have none left to give.
            let (timers, block) = (&self.genesis.timers, u64::from(self.genesis.policy.wishes.block_secs));
            let longest = u64::from(timers.heartbeat_every).max(u64::from(timers.day) / 24).max(15 * block);
            self.refuel_pause = (2 * self.refuel_pause).clamp(15 * block, longest);
            self.refuel_from = turn.now + self.refuel_pause;
            turn.note(Note::GasLow { operator_wei, relay_wei });
        }
    }

    /// Buys ETH for the treasury when less than half of what a day may take of it is left, out of what hosts and customers
    /// leave. The contract decides how much is missing and what it may cost; `max`, and a quarter of a day before the next
    /// try, keep gas that became dear from taking the day.
    pub(crate) fn buy_gas(&mut self, view: &View, spend: bool, turn: &mut Turn) {
        let low = view.limits.is_treasury_low(view.treasury_gas_wei);
        if !self.genesis.policy.buys_gas || !low || !spend || self.life.is_ending() || turn.now < self.buy_gas_from {
            return;
        }
        let (day, money) = self.refund_room(view);
        let kept = self.life.owed().saturating_add(view.limits.starve_floor);
        let share = Usdc(view.limits.day_limit.0 / GAS_SHARE);
        let max = share.min(day).min(money.saturating_sub(kept));
        // A trade of cents costs more gas than it brings.
        if max.0 >= share.0 / 4 && !max.is_zero() && self.ask(Output::BuyGas { max }, turn) {
            self.buy_gas_from = turn.now + u64::from(self.genesis.timers.day) / 4;
            turn.note(Note::BuysGas { treasury_wei: view.treasury_gas_wei, max });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosting::tests::{NOW, agent, limits, view};
    use crate::{Input, Limits, Outcome, OutputId, Stage};

    /// The day's limit of these tests' treasury is 20 USDC, and a day may take a thousand wei.
    fn low_by(wei: u128) -> View {
        let limits = Limits { gas_day_max_wei: 1_000, ..limits() };
        View { treasury_gas_wei: 500 - wei, limits, ..view(vec![]) }
    }

    fn buyer() -> Agent {
        let mut genesis = agent().genesis().clone();
        genesis.policy.buys_gas = true;
        Agent::new(genesis)
    }

    fn bought(outputs: &[Output]) -> Option<u128> {
        outputs.iter().find_map(|output| match output {
            Output::BuyGas { max } => Some(max.0),
            _ => None,
        })
    }

    fn asked(view: View) -> Option<u128> {
        bought(&buyer().step(NOW, 1, Input::Block(Box::new(view))))
    }

    #[test]
    fn gas_is_bought_when_less_than_half_a_days_is_left_for_a_tenth_of_the_day_limit() {
        assert_eq!(asked(low_by(1)), Some(2_000_000));
        assert_eq!(asked(low_by(0)), None, "half is enough");
        assert_eq!(bought(&agent().step(NOW, 1, Input::Block(Box::new(low_by(1))))), None, "birth named no market");
    }

    #[test]
    fn gas_is_never_bought_paused_ending_restoring_or_by_another() {
        for (why, view) in [
            ("paused", View { paused: true, ..low_by(1) }),
            ("restoring", View { restoring: true, ..low_by(1) }),
            ("stopped", View { stage: Stage::Stopped, ..low_by(1) }),
            ("winding down", View { stage: Stage::WindingDown, wind_down_at: NOW, ..low_by(1) }),
            ("hungry", View { balance: Usdc(1_000_000), escrow: Usdc::ZERO, ..low_by(1) }),
            ("another's", View { operator_is_me: false, ..low_by(1) }),
        ] {
            assert_eq!(asked(view), None, "{why}");
        }
    }

    /// Without a standby, a new lease of 1,728,000 is kept back of the day limit's 20,000,000.
    #[test]
    fn hosts_come_first_and_cents_are_not_traded() {
        let left = |day: u128| asked(View { spent_in_day: Usdc(20_000_000 - 1_728_000 - day), ..low_by(1) });
        assert_eq!((left(700_000), left(500_000), left(499_999)), (Some(700_000), Some(500_000), None));
    }

    #[test]
    fn dear_gas_takes_four_tenths_of_a_day_limit_a_day() {
        let (mut agent, mut spent, mut lsn) = (buyer(), 0, 0);
        for second in (0..86_400).step_by(60) {
            lsn += 1;
            let timestamp = NOW + second;
            // What it bought was nearly nothing.
            let look = View { number: second, timestamp, last_heartbeat: timestamp, ..low_by(1) };
            let outputs = agent.step(timestamp, lsn, Input::Block(Box::new(look)));
            let Some(index) = outputs.iter().position(|output| matches!(output, Output::BuyGas { .. })) else {
                continue;
            };
            spent += outputs[index].spends().0;
            let id = OutputId { lsn, index: u32::try_from(index).unwrap() };
            lsn += 1;
            agent.step(timestamp, lsn, Input::Done { id, outcome: Outcome::Done { block: second } });
        }
        assert_eq!(spent, 8_000_000);
    }
}
