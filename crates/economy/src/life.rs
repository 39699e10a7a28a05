//! Hunger and the end: levels by runway, then closing one's affairs in order.
//!
//! Whatever ends a life (hunger, a quorum's stop, the mandate), the order is the same: stop selling, hear what is
//! owed, commit a last checkpoint, refund, wind down, refund what is left, close.

use crate::input::{Owed, Stage, View};
use crate::money::{Address, Usdc};
use crate::note::{Level, Note};
use crate::output::{Output, StopWhy, Task};
use crate::runway;
use crate::sleep;
use crate::{Agent, Turn};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, BTreeSet};

/// Attempts at a refund or the last checkpoint after which the end goes on without. A refund is tried all the same, while
/// there is anybody to do so: what refused it (a frozen token) may be over.
const TRIES: u32 = 3;
/// Refunds on their way at once: one key's transactions are a queue.
const REFUNDS_AT_ONCE: usize = 4;
/// Blocks after the last refund before the treasury is closed: a branch that takes it back would leave nobody to repeat it.
const REFUND_DEPTH: u64 = 8;
/// Refunds remembered, so that an old list does not ask for one again.
const REFUNDS_KEPT: usize = 1_024;

type Payment = (Address, [u8; 32]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Ending {
    why: StopWhy,
    since: u64,
    /// When the node answered what is owed, or was waited for long enough: the last checkpoint comes after that.
    owed_at: Option<u64>,
    /// The last checkpoint is acknowledged, or was tried often enough.
    sealed: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Life {
    level: Level,
    ending: Option<Ending>,
    owed: BTreeMap<Payment, Usdc>,
    refunded: BTreeSet<Payment>,
    /// The block of the last refund.
    refunded_in: u64,
    paused: bool,
    challenged_at: u64,
    stage_noted: Option<Stage>,
}

impl Life {
    pub fn level(&self) -> Level {
        self.level
    }

    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub fn stop_why(&self) -> Option<StopWhy> {
        self.ending.map(|e| e.why)
    }

    pub fn owed(&self) -> Usdc {
        self.owed.values().copied().sum()
    }

    pub fn hear_owed(&mut self, owed: Vec<Owed>, now: u64) {
        let new = owed.into_iter().map(|o| ((o.payer, o.nonce), o.amount));
        self.owed = new.filter(|(payment, amount)| !self.refunded.contains(payment) && !amount.is_zero()).collect();
        if let Some(ending) = &mut self.ending {
            ending.owed_at.get_or_insert(now);
        }
    }

    /// A refund was mined, or taken back by a reorg: then it is owed again, for what was sent may be refused now.
    pub fn refunded(&mut self, payment: Payment, amount: Usdc, block: u64, back: bool) {
        self.refunded_in = self.refunded_in.max(block);
        if back {
            self.refunded.remove(&payment);
            self.owed.insert(payment, amount);
        } else {
            self.owed.remove(&payment);
            self.refunded.insert(payment);
            while self.refunded.len() > REFUNDS_KEPT {
                self.refunded.pop_first();
            }
        }
    }

    pub fn booted(&mut self) {
        // The node that just began has not been asked yet.
        if let Some(ending) = &mut self.ending {
            ending.owed_at = None;
        }
    }
}

impl Agent {
    /// Seconds the money lasts at the cost of the hosts there are; `None`: income covers it.
    pub(crate) fn runway_at(&self, view: &View, now: u64) -> Option<u64> {
        let hosts = [&view.active, &view.standby].into_iter().flatten();
        let cost = hosts.fold(self.genesis.policy.overhead_e6, |sum, l| sum.saturating_add(l.price_e6));
        runway::secs_left(funds(view), cost, self.income.rate_e6(now, self.genesis.timers.day))
    }

    /// The same as if there were a standby: the measure of hunger, so that dropping the standby does not feed it.
    fn runway_with_standby(&self, view: &View, now: u64) -> Option<u64> {
        let cost = self.cost_e6(view, true);
        runway::secs_left(funds(view), cost, self.income.rate_e6(now, self.genesis.timers.day))
    }

    /// Hosts and overhead, micro-USDC x 1e-6 per second. `two`: a missing standby counts like the active host.
    pub(crate) fn cost_e6(&self, view: &View, two: bool) -> u64 {
        let active = view.active.as_ref().map_or(0, |l| l.price_e6);
        let standby = match &view.standby {
            Some(standby) => standby.price_e6,
            None if two => active,
            None => 0,
        };
        self.genesis.policy.overhead_e6.saturating_add(active).saturating_add(standby)
    }

    /// Moves along the ladder and takes note of what others decided.
    pub(crate) fn age(&mut self, view: &View, turn: &mut Turn) {
        let day = self.genesis.timers.day;
        let rates = (self.cost_e6(view, false), self.income.rate_e6(turn.now, day));
        self.forecast.look(turn.now, day, funds(view), rates);
        if view.paused != self.life.paused {
            self.life.paused = view.paused;
            turn.note(if view.paused { Note::Paused } else { Note::Resumed });
        }
        if view.challenged_at != self.life.challenged_at {
            self.life.challenged_at = view.challenged_at;
            if view.challenged_at != 0 {
                turn.note(Note::Challenged { at: view.challenged_at });
            }
        }
        if self.life.stage_noted != Some(view.stage) {
            self.life.stage_noted = Some(view.stage);
            self.note_stage(view, turn);
        }
        match view.stage {
            Stage::Alive if view.restoring => {}
            Stage::Alive if turn.now > view.mandate_until => self.end(StopWhy::MandateOver, turn),
            Stage::Alive => self.feel_hunger(view, turn),
            Stage::Stopped => self.end(StopWhy::Stopped, turn),
            Stage::WindingDown | Stage::Closed => self.end(StopWhy::Ended, turn),
            Stage::Unborn => {}
        }
    }

    fn note_stage(&self, view: &View, turn: &mut Turn) {
        match view.stage {
            Stage::WindingDown => {
                let until = view.wind_down_at + u64::from(self.genesis.timers.refund_window);
                turn.note(Note::WindingDown { until });
            }
            Stage::Closed => turn.note(Note::Closed {
                earned: self.ledger.sales(),
                rent: self.ledger.rent(),
                gifts: self.ledger.gifts(),
                refunds: self.ledger.refunds(),
            }),
            Stage::Unborn | Stage::Alive | Stage::Stopped => {}
        }
    }

    fn feel_hunger(&mut self, view: &View, turn: &mut Turn) {
        // Without a host to pay there is no burn to judge by.
        let Some(active) = &view.active else { return };
        let day = self.genesis.timers.day;
        let secs = self.runway_with_standby(view, turn.now);
        let before = self.life.level;
        // While it ends the ladder stands at its last step.
        let fed = runway::level_at(before.min(Level::Frugal), secs, day);
        let income = self.income.rate_e6(turn.now, day);
        let net = active.price_e6.saturating_add(self.genesis.policy.overhead_e6).saturating_sub(income);
        let last_needs = Usdc::rent_up(net, u64::from(self.genesis.policy.final_secs));
        let end_at = last_needs.saturating_add(self.life.owed()).max(view.limits.starve_floor);
        let hungry = net > 0 && funds(view) < end_at;
        let ending = self.life.ending.is_some_and(|e| e.why == StopWhy::Hunger);
        if ending && funds(view) >= Usdc(end_at.0.saturating_mul(2)) && !self.is_leaving() {
            self.life.ending = None;
            turn.note(Note::EndingCalledOff { funds: funds(view) });
        }
        // A paused treasury neither pays nor lets its operator wind it down: the stewards hold it, so wait for them.
        let level = if self.life.is_ending() || (hungry && !view.paused) { Level::Final } else { fed };
        if level != before {
            self.life.level = level;
            turn.note(Note::Runway { secs, before, level });
        }
        if level == Level::Final {
            self.end(StopWhy::Hunger, turn);
        }
    }

    /// Begins the end, once. A stronger reason replaces hunger: it cannot be called off by funds.
    fn end(&mut self, why: StopWhy, turn: &mut Turn) {
        match &mut self.life.ending {
            None => {
                self.life.ending = Some(Ending { why, since: turn.now, owed_at: None, sealed: false });
                if why != StopWhy::Ended {
                    turn.note(Note::Ending { why });
                }
            }
            Some(ending) if ending.why == StopWhy::Hunger => ending.why = why,
            Some(_) => {}
        }
    }

    /// Whether a last checkpoint is still wanted: one before the wind-down, and one in it, once nothing is owed any more
    /// or half the window is over. The log that it names is what is left to read when the agent is closed.
    pub(crate) fn end_needs_checkpoint(&self, view: &View, now: u64) -> bool {
        let Some(ending) = self.life.ending else { return false };
        if !ending.sealed {
            return ending.owed_at.is_some_and(|owed_at| self.checkpoint.at <= owed_at);
        }
        let half = view.wind_down_at + u64::from(self.genesis.timers.refund_window / 2);
        view.stage == Stage::WindingDown
            && self.checkpoint.at <= view.wind_down_at
            && (self.life.owed().is_zero() || now >= half)
            && self.flights.fails(Task::Checkpoint) < TRIES
    }

    /// The last checkpoint is acknowledged, or was tried often enough.
    fn seal(&mut self, turn: &mut Turn) {
        let timers = &self.genesis.timers;
        let Some(ending) = self.life.ending.as_mut().filter(|e| !e.sealed) else { return };
        if turn.now >= ending.since + u64::from(timers.answer_time) {
            ending.owed_at.get_or_insert(turn.now);
        }
        let Some(owed_at) = ending.owed_at else { return };
        if self.checkpoint.at > owed_at {
            ending.sealed = true;
        } else if self.flights.fails(Task::Checkpoint) >= TRIES {
            ending.sealed = true;
            turn.note(Note::GaveUp { task: Task::Checkpoint });
        }
    }

    /// One step of the end, and refunds of what is owed at any time. `spend`: money may leave an `Alive` treasury.
    pub(crate) fn settle_affairs(&mut self, view: &View, spend: bool, turn: &mut Turn) {
        let may_refund = match view.stage {
            Stage::Alive => spend,
            Stage::WindingDown => !view.paused && !view.restoring && self.ledger.is_balanced(),
            Stage::Unborn | Stage::Stopped | Stage::Closed => false,
        };
        let refunding = may_refund && self.refund(view, turn);
        self.seal(turn);
        if refunding || !self.life.ending.is_some_and(|e| e.sealed) {
            return;
        }
        match view.stage {
            Stage::Stopped => self.wind_down(turn),
            Stage::Alive if turn.now > view.mandate_until => self.wind_down(turn),
            Stage::Alive if self.may_sleep(view, turn.now) => self.sleep(view, turn),
            // The contract takes it from the operator only below the floor, and not while paused.
            Stage::Alive if self.is_starved(view) && !view.paused => self.wind_down(turn),
            Stage::WindingDown
                if turn.now >= view.wind_down_at + u64::from(self.genesis.timers.refund_window)
                    && view.number >= self.life.refunded_in + REFUND_DEPTH
                    && !self.end_needs_checkpoint(view, turn.now) =>
            {
                self.ask(Output::Close, turn);
            }
            Stage::Unborn | Stage::Alive | Stage::WindingDown | Stage::Closed => {}
        }
    }

    /// Whether it lies down instead of winding down: for want of money alone, with a day of its mandate left, owing nobody
    /// anything (the wind-down lifts the day limit for refunds), and with so little that it is not woken at once.
    fn may_sleep(&self, view: &View, now: u64) -> bool {
        self.genesis.policy.hibernates
            && self.life.stop_why() == Some(StopWhy::Hunger)
            && !view.paused
            && self.life.owed().is_zero()
            && now.saturating_add(self.genesis.timers.day.into()) < view.mandate_until
            && funds(view) < sleep::sleeps_below(view.limits.starve_floor, self.prepay_there(view))
    }

    /// What a rescue would prepay at most, at the price of the cheapest host.
    fn prepay_there(&self, view: &View) -> Usdc {
        let cheapest = self.cheapest(view, 1).first().map(|offer| offer.price_e6);
        let here = view.active.as_ref().map(|lease| lease.price_e6);
        let price_e6 = cheapest.into_iter().chain(here).min().unwrap_or(0);
        Usdc::rent_up(price_e6, view.limits.prepay_max.into())
    }

    /// Its operator is nobody's key after it, so it waits for what is on its way.
    fn sleep(&mut self, view: &View, turn: &mut Turn) {
        if !self.flights.spending().is_zero() || !self.flights.may(Task::Hibernate, turn.now) {
            return;
        }
        let (until, fails) = (view.mandate_until, self.flights.fails(Task::Hibernate));
        if fails == 0 {
            let wakes_at = sleep::wakes_at(view.limits.starve_floor, self.prepay_there(view));
            turn.note(Note::Hibernates { until, funds: funds(view), wakes_at });
        }
        self.ask(Output::Hibernate { until, leaves_claims: fails >= TRIES }, turn);
    }

    /// After it nothing else may be spent, so it waits for what is on its way.
    fn wind_down(&mut self, turn: &mut Turn) {
        if self.flights.spending().is_zero() {
            self.ask(Output::WindDown, turn);
        }
    }

    fn is_starved(&self, view: &View) -> bool {
        funds(view) < view.limits.starve_floor
    }

    /// From here on escrow is only drawn down.
    pub(crate) fn is_about_to_wind_down(&self, view: &View) -> bool {
        self.life.is_ending() && (self.is_starved(view) || self.is_leaving())
    }

    /// What takes it from its hosts was sent.
    fn is_leaving(&self) -> bool {
        self.flights.busy(Task::WindDown) || self.flights.busy(Task::Hibernate)
    }

    /// Pays back what is owed. Returns whether any of it is on its way or will be tried again soon.
    fn refund(&mut self, view: &View, turn: &mut Turn) -> bool {
        let mut pending = self.flights.refunds() > 0;
        let owed: Vec<(Payment, Usdc)> = self.life.owed.iter().map(|(p, a)| (*p, *a)).collect();
        for ((payer, nonce), amount) in owed {
            let holds_up = self.flights.fails(Task::Refund { payer, nonce }) < TRIES;
            let (day, money) = self.refund_room(view);
            // The wind-down lifts the day limit for refunds, so what it does not leave room for waits for that.
            let room = if view.stage == Stage::Alive { day.min(money) } else { money };
            if amount > room {
                continue;
            }
            pending |= holds_up;
            if self.flights.refunds() < REFUNDS_AT_ONCE {
                self.ask(Output::Refund { payer, nonce, amount }, turn);
            }
        }
        pending
    }

    pub(crate) fn life_wakes(&self, view: &View, now: u64) -> Vec<u64> {
        let mut at = vec![view.mandate_until.saturating_add(1)];
        if view.stage == Stage::WindingDown {
            at.push(view.wind_down_at + u64::from(self.genesis.timers.refund_window));
        }
        at.extend(self.life.ending.map(|e| e.since + u64::from(self.genesis.timers.answer_time)));
        at.retain(|t| *t > now);
        at
    }
}

/// What the agent owns and can still turn into rent or refunds.
pub(crate) fn funds(view: &View) -> Usdc {
    view.balance.saturating_add(view.escrow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosting::tests::{NOW, agent, view};
    use crate::input::LeaseView;
    use crate::{ChainEvent, ChainEventKind, Input, Outcome, OutputId};

    fn owed(n: u8) -> Owed {
        Owed { payer: [n; 20], nonce: [n; 32], amount: Usdc(100) }
    }

    fn refunds(outputs: &[Output]) -> usize {
        outputs.iter().filter(|o| matches!(o, Output::Refund { .. })).count()
    }

    #[test]
    fn what_is_owed_is_paid_back_once_however_old_the_list() {
        let mut agent = agent();
        agent.step(NOW, 1, Input::Block(Box::new(view(vec![]))));
        let outputs = agent.step(NOW, 2, Input::Owed((0..6).map(owed).collect()));
        assert_eq!(refunds(&outputs), REFUNDS_AT_ONCE);
        let refunded = ChainEventKind::ExactRefunded { payer: [0; 20], nonce: [0; 32], amount: Usdc(100) };
        agent.step(NOW, 3, Input::Chain(vec![ChainEvent { block: 1, index: 0, kind: refunded.clone() }]));
        // The node's book had not heard of it yet.
        agent.step(NOW, 4, Input::Owed((0..6).map(owed).collect()));
        assert_eq!(agent.life.owed(), Usdc(500));
        // Gone with a block: the book says it before the chain does, and then it is owed all the same.
        agent.step(NOW, 5, Input::Owed((0..6).map(owed).collect()));
        let mined = ChainEvent { block: 1, index: 0, kind: refunded };
        let kind = ChainEventKind::Reverted(Box::new(mined));
        agent.step(NOW, 6, Input::Chain(vec![ChainEvent { block: 1, index: 0, kind }]));
        assert_eq!(agent.life.owed(), Usdc(600));
    }

    /// Else anybody could pay in and ask for it back until no host can be paid.
    #[test]
    fn what_hosts_need_of_the_day_limit_is_not_given_back() {
        let refunded = |amount, view: View| {
            let mut agent = agent();
            agent.step(NOW, 1, Input::Block(Box::new(view)));
            refunds(&agent.step(NOW, 2, Input::Owed(vec![Owed { amount: Usdc(amount), ..owed(1) }])))
        };
        // The active host is paid for two days; a standby's first day at twice its price is kept back.
        let left = 20_000_000 - 1_728_000;
        assert_eq!((refunded(left, view(vec![])), refunded(left + 1, view(vec![]))), (1, 0));
        let ending = View { stage: Stage::WindingDown, ..view(vec![]) };
        assert_eq!(refunded(20_000_000, ending), 1, "the wind-down lifts the limit");
        let room = |view: View| agent().refund_room(&view).0.0;
        let standby = view(vec![]).active.map(|active| LeaseView { id: 2, ..active });
        let has_standby = View { standby, ..view(vec![]) };
        assert_eq!(room(has_standby.clone()), 20_000_000);
        let host = |price_e6, escrow_left| View {
            active: view(vec![]).active.map(|lease| LeaseView { price_e6, escrow_left, ..lease }),
            ..has_standby.clone()
        };
        assert_eq!(room(host(10_000_000, Usdc::ZERO)), 20_000_000 - 864_000, "the active host's day");
        assert_eq!(room(host(900_000_000, Usdc::ZERO)), 10_000_000, "never more than half is kept back");
    }

    /// A frozen token refuses for a while. Three failures were once the end of it, and the customer never got its money.
    #[test]
    fn a_refund_that_keeps_failing_holds_nothing_up_and_is_tried_all_the_same() {
        let mut agent = agent();
        let (mut now, mut lsn) = (NOW, 2);
        agent.step(now, 1, Input::Block(Box::new(view(vec![]))));
        let mut outputs = agent.step(now, lsn, Input::Owed(vec![owed(1)]));
        for attempt in 1..=TRIES + 2 {
            let index = outputs.iter().position(|o| matches!(o, Output::Refund { .. })).expect("it is tried");
            let id = OutputId { lsn, index: u32::try_from(index).unwrap() };
            lsn += 1;
            agent.step(now, lsn, Input::Done { id, outcome: Outcome::Failed { reason: "frozen".to_owned() } });
            let mut turn = Turn { now, lsn: lsn + 1, outputs: Vec::new() };
            assert_eq!(agent.refund(&view(vec![]), &mut turn), attempt < TRIES, "it holds the end up");
            (now, lsn) = (now + 3_600, lsn + 2);
            outputs = agent.step(now, lsn, Input::Block(Box::new(View { timestamp: now, ..view(vec![]) })));
        }
    }

    #[test]
    fn an_ended_life_says_so_and_asks_for_nothing_more() {
        let mut agent = agent();
        let closed = View { stage: Stage::Closed, active: None, ..view(vec![]) };
        let outputs = agent.step(NOW, 1, Input::Block(Box::new(closed.clone())));
        assert!(outputs.contains(&Output::StopServing { why: StopWhy::Ended }));
        assert!(outputs.iter().all(|o| o.task().is_none()));
        assert_eq!(agent.step(NOW + 9, 2, Input::Block(Box::new(closed))), vec![]);
    }
}
