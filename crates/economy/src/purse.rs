//! The purse: a small contract from which the operator's signature pays suppliers. When it is filled, and up to what.
//!
//! What lies in it is what a thief of the operator's key gets at once, and each filling counts in the day limit though
//! half of it may come back unspent at the next move. So it holds a few calls, and is filled only when it runs low.

use crate::input::View;
use crate::money::Usdc;
use crate::output::Output;
use crate::{Agent, Turn};
use borsh::{BorshDeserialize, BorshSerialize};

/// Calls of the dearest supplier that it is filled up to, and under which it is filled. Guesses, unmeasured.
const CALLS_FULL: u128 = 16;
const CALLS_LOW: u128 = 4;

/// What the purse is for, fixed at birth. The default buys nothing, and is never filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Purse {
    /// Most that the contract lets lie in it at once; zero: there is none.
    pub cap: Usdc,
    /// What one call of the dearest supplier may cost; zero: there is no supplier.
    pub call_max: Usdc,
}

impl Purse {
    /// What it is filled up to.
    fn full(&self) -> Usdc {
        Usdc(self.call_max.0.saturating_mul(CALLS_FULL)).min(self.cap)
    }

    /// Under this it is filled: never so little that the dearest call cannot be paid, and half of a small one.
    fn low(&self) -> Usdc {
        let few = Usdc(self.call_max.0.saturating_mul(CALLS_LOW));
        few.min(Usdc(self.full().0 / 2)).max(self.call_max)
    }

    /// What is missing in a purse that holds so much; zero while it holds enough, and where nothing is bought.
    fn missing(&self, holds: Usdc) -> Usdc {
        if self.call_max.is_zero() || self.cap < self.call_max || holds >= self.low() {
            return Usdc::ZERO;
        }
        self.full().saturating_sub(holds)
    }
}

impl Agent {
    /// Fills the purse when it runs low, out of what hosts and customers leave: only while alive and not paused, which
    /// the caller knows (`spend`), not once the life is ending, and not on the eve of a move, which empties it.
    pub(crate) fn fill_purse(&mut self, view: &View, spend: bool, turn: &mut Turn) {
        let purse = self.genesis.policy.purse;
        let missing = purse.missing(view.purse);
        if !spend || missing.is_zero() || view.announced != 0 || self.life.is_ending() {
            return;
        }
        let (day, money) = self.refund_room(view);
        // What customers are owed, and what the agent starves without, is no supplier's.
        let kept = self.life.owed().saturating_add(view.limits.starve_floor);
        let amount = missing.min(day).min(money.saturating_sub(kept));
        // Less than a call is not worth a transaction, unless that is all that is missing.
        if amount >= purse.call_max.min(missing) {
            self.ask(Output::FillPurse { amount, full: purse.full() }, turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosting::tests::{NOW, agent, view};
    use crate::{ChainEvent, ChainEventKind, Input, Outcome, OutputId, Owed, Stage};

    const PURSE: Purse = Purse { cap: Usdc(1_000_000), call_max: Usdc(50_000) };

    fn buyer(purse: Purse) -> Agent {
        let mut genesis = agent().genesis().clone();
        genesis.policy.purse = purse;
        Agent::new(genesis)
    }

    fn filled(outputs: &[Output]) -> Option<u128> {
        outputs.iter().find_map(|output| match output {
            Output::FillPurse { amount, .. } => Some(amount.0),
            _ => None,
        })
    }

    /// What a purse of this plan is filled with in this view.
    fn asked(purse: Purse, view: View) -> Option<u128> {
        filled(&buyer(purse).step(NOW, 1, Input::Block(Box::new(view))))
    }

    fn holding(micro: u128) -> View {
        View { purse: Usdc(micro), ..view(vec![]) }
    }

    #[test]
    fn it_is_filled_up_to_sixteen_calls_when_it_holds_less_than_four() {
        assert_eq!(asked(PURSE, holding(0)), Some(800_000));
        assert_eq!(asked(PURSE, holding(199_999)), Some(600_001));
        assert_eq!(asked(PURSE, holding(200_000)), None, "four calls are enough");
        let small = Purse { cap: Usdc(120_000), ..PURSE };
        assert_eq!((asked(small, holding(0)), asked(small, holding(59_999))), (Some(120_000), Some(60_001)));
        assert_eq!(asked(small, holding(60_000)), None, "half of a small one");
        let least = Purse { cap: Usdc(50_000), ..PURSE };
        assert_eq!((asked(least, holding(49_999)), asked(least, holding(50_000))), (Some(1), None));
    }

    #[test]
    fn without_a_supplier_or_a_purse_for_one_call_it_is_never_filled() {
        assert_eq!(asked(Purse { call_max: Usdc::ZERO, ..PURSE }, holding(0)), None);
        assert_eq!(asked(Purse { cap: Usdc::ZERO, ..PURSE }, holding(0)), None);
        assert_eq!(asked(Purse { cap: Usdc(49_999), ..PURSE }, holding(0)), None);
        assert_eq!(asked(Purse::default(), holding(0)), None);
    }

    #[test]
    fn it_is_never_filled_paused_ending_restoring_by_another_or_on_the_eve_of_a_move() {
        let empty = || holding(0);
        for (why, view) in [
            ("paused", View { paused: true, ..empty() }),
            ("restoring", View { restoring: true, ..empty() }),
            ("announced", View { announced: 2, announced_at: NOW, ..empty() }),
            ("stopped", View { stage: Stage::Stopped, ..empty() }),
            ("winding down", View { stage: Stage::WindingDown, wind_down_at: NOW, ..empty() }),
            ("mandate over", View { mandate_until: NOW - 1, ..empty() }),
            ("hungry", View { balance: Usdc(1_000_000), escrow: Usdc::ZERO, ..empty() }),
            ("another's", View { operator_is_me: false, ..empty() }),
        ] {
            assert_eq!(asked(PURSE, view), None, "{why}");
        }
    }

    #[test]
    fn hosts_and_customers_come_first_in_money_and_in_the_day_limit() {
        // Without a standby, a new lease of 1,728,000 is kept back of the day limit's 20,000,000.
        let left = |day: u128| asked(PURSE, View { spent_in_day: Usdc(20_000_000 - 1_728_000 - day), ..holding(0) });
        assert_eq!((left(800_000), left(70_000), left(49_999)), (Some(800_000), Some(70_000), None));
        // The floor under which it starves, and what customers are owed, stay.
        let poor = |left: u128| asked(PURSE, View { balance: Usdc(1_000_000 + left), ..holding(0) });
        assert_eq!((poor(800_001), poor(70_000), poor(49_999)), (Some(800_000), Some(70_000), None));
        let owed = Owed { payer: [7; 20], nonce: [7; 32], amount: Usdc(100_000_000) };
        let mut agent = buyer(PURSE);
        agent.step(NOW, 1, Input::Owed(vec![owed]));
        assert_eq!(filled(&agent.step(NOW, 2, Input::Block(Box::new(holding(0))))), None, "owed to customers");
    }

    #[test]
    fn one_filling_is_on_its_way_at_a_time_and_counts_as_spent() {
        let mut agent = buyer(PURSE);
        let outputs = agent.step(NOW, 1, Input::Block(Box::new(holding(0))));
        let index = outputs.iter().position(|output| matches!(output, Output::FillPurse { .. })).unwrap();
        let id = OutputId { lsn: 1, index: u32::try_from(index).unwrap() };
        assert_eq!(outputs[index].spends(), Usdc(800_000));
        assert_eq!(agent.unfinished().iter().filter(|(unfinished, _)| *unfinished == id).count(), 1);
        let again = |agent: &mut Agent, lsn, number, purse| {
            let view = View { number, purse: Usdc(purse), ..view(vec![]) };
            filled(&agent.step(NOW, lsn, Input::Block(Box::new(view))))
        };
        assert_eq!(again(&mut agent, 2, 2, 0), None);
        agent.step(NOW, 3, Input::Done { id, outcome: Outcome::Done { block: 4 } });
        assert_eq!(again(&mut agent, 4, 3, 0), None, "a view of before it landed");
        let landed = ChainEvent { block: 4, index: 0, kind: ChainEventKind::PurseFilled { amount: Usdc(800_000) } };
        agent.step(NOW, 5, Input::Chain(vec![landed]));
        assert_eq!(again(&mut agent, 6, 4, 800_000), None);
        assert_eq!(again(&mut agent, 7, 5, 100_000), Some(700_000), "after it was spent");
    }
}
