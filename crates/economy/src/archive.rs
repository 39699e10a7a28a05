//! A copy of the memory on Arweave, bought of an archivist: when, for how much, and what is left to be handed over.
//!
//! The archivist is birth's payee for storage. What it says of a price can only lower what is paid below the ceiling,
//! and what was paid is what the treasury's events say. So it can take a day's ceiling a day and store nothing; no
//! more.

use crate::input::{ArchiveQuote, View};
use crate::money::{Address, Usdc};
use crate::note::{Level, Note};
use crate::output::{Output, Task};
use crate::{Agent, Turn};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::VecDeque;

/// Copies that are told of, newest last: a year of monthly ones. Older ones are in the log.
const STORED_KEPT: usize = 12;
/// Failures of one step after which it rests for a quarter of a day and begins with another price: the checkpoint, or
/// the price, may be too old by then, and nobody wants to read of each try.
const TRIES: u32 = 4;
/// Blocks that a price must still hold when it is paid.
const QUOTE_BLOCKS: u64 = 15;

/// What birth and manifest say of it. The default buys nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Archive {
    /// Birth's payee of the kind Storage.
    pub payee: Address,
    /// Most that it is paid in any day, which the contract enforces again; zero: nothing is archived.
    pub day_max: Usdc,
    /// Between two copies, seconds.
    pub every: u32,
}

/// A copy that the archivist took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Archived {
    /// The checkpoint.
    pub seq: u64,
    /// Its digest on chain.
    pub root: [u8; 32],
    /// The Arweave transaction, by the archivist's word.
    pub transaction: [u8; 32],
    /// Chain seconds.
    pub at: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Archiving {
    /// Paid and not used up: by the treasury's events, less the prices of what was stored.
    credit: Usdc,
    /// (block, log index) of the last payment: with it the archivist is asked to store.
    paid_in: Option<(u64, u32)>,
    /// What still counts in the payee's day: (when it was seen, how much).
    paid: VecDeque<(u64, Usdc)>,
    quote: Option<ArchiveQuote>,
    stored: VecDeque<Archived>,
    /// No price is asked for before this.
    ask_from: u64,
}

impl Archiving {
    /// Newest last.
    pub fn stored(&self) -> impl Iterator<Item = &Archived> {
        self.stored.iter()
    }

    pub fn hear_quote(&mut self, quote: ArchiveQuote) {
        self.quote = Some(quote);
    }

    /// The same copy told again changes nothing.
    pub fn hear_stored(&mut self, seq: u64, root: [u8; 32], transaction: [u8; 32], now: u64) {
        if self.stored.iter().any(|stored| stored.root == root) {
            return;
        }
        if let Some(quote) = self.quote.take_if(|quote| quote.root == root) {
            self.credit = self.credit.saturating_sub(quote.price);
        }
        self.stored.push_back(Archived { seq, root, transaction, at: now });
        if self.stored.len() > STORED_KEPT {
            self.stored.pop_front();
        }
    }

    /// What the treasury's event says, or takes back.
    pub fn hear_paid(&mut self, at: (u64, u32), amount: Usdc, back: bool, now: u64) {
        if back {
            self.credit = self.credit.saturating_sub(amount);
            if let Some(place) = self.paid.iter().rposition(|(_, paid)| *paid == amount) {
                self.paid.remove(place);
            }
            self.paid_in = self.paid_in.filter(|paid_in| *paid_in < at);
        } else {
            self.credit = self.credit.saturating_add(amount);
            self.paid.push_back((now, amount));
            self.paid_in = Some(at);
        }
    }

    /// A price that leads nowhere is forgotten, and another one asked for. What was paid stays credit.
    pub fn forget_quote(&mut self) {
        self.quote = None;
    }

    fn paid_in_day(&mut self, now: u64, day: u32) -> Usdc {
        while self.paid.front().is_some_and(|(at, _)| at.saturating_add(day.into()) <= now) {
            self.paid.pop_front();
        }
        self.paid.iter().map(|(_, amount)| *amount).sum()
    }
}

impl Agent {
    /// The copies that the archivist took, newest last; the last few.
    pub fn archived(&self) -> impl Iterator<Item = &Archived> {
        self.archiving.stored()
    }

    /// One step of the way: a price, the payment, the objects. `spend`: alive, not paused, the books even.
    pub(crate) fn archive(&mut self, view: &View, spend: bool, turn: &mut Turn) {
        let plan = self.genesis.policy.archive;
        let last = self.archiving.stored.back();
        let is_new = last.is_none_or(|last| last.seq < self.checkpoint.seq);
        let is_time = last.is_none_or(|last| turn.now >= last.at.saturating_add(plan.every.into()));
        if plan.day_max.is_zero() || self.checkpoint.seq == 0 || !is_new || !is_time {
            return;
        }
        // Before a move and at the end money is needed elsewhere; what is paid already is handed over all the same.
        let may_pay = spend && view.announced == 0 && !self.life.is_ending() && self.life.level() < Level::Frugal;
        let block = u64::from(self.genesis.policy.wishes.block_secs);
        let Some(quote) = self.archiving.quote else {
            if may_pay && turn.now >= self.archiving.ask_from {
                self.ask(Output::AskArchivist, turn);
            }
            return;
        };
        let missing = quote.price.saturating_sub(self.archiving.credit);
        if let (true, Some(payment)) = (missing.is_zero(), self.archiving.paid_in) {
            self.ask(Output::Archive { quote, payment }, turn);
            return;
        }
        // One that is on its way, or of which nobody knows, has its event first.
        if self.flights.busy(Task::PayArchivist) {
            return;
        }
        if quote.price > plan.day_max {
            self.archiving.forget_quote();
            self.archiving.ask_from = turn.now + u64::from(self.genesis.timers.day);
            turn.note(Note::ArchiveTooDear { price: quote.price, most: plan.day_max });
            return;
        }
        if turn.now.saturating_add(QUOTE_BLOCKS * block) > quote.valid_until {
            self.archiving.forget_quote();
            self.archiving.ask_from = turn.now + QUOTE_BLOCKS * block;
            return;
        }
        let left = plan.day_max.saturating_sub(self.archiving.paid_in_day(turn.now, self.genesis.timers.day));
        if may_pay && missing <= left.min(self.archive_room(view)) {
            self.ask(Output::PayArchivist { payee: plan.payee, amount: missing }, turn);
        }
    }

    /// What hosts and customers leave: never what the active host needs today nor what another lease begins with,
    /// whether there is a standby or not.
    fn archive_room(&self, view: &View) -> Usdc {
        let (day, _) = self.refund_room(view);
        let kept = self.life.owed().saturating_add(view.limits.starve_floor);
        day.min(self.beside_hosts(view).saturating_sub(kept))
    }

    /// When the next step is due by itself; in the past, or 0: none is.
    pub(crate) fn archive_from(&self) -> u64 {
        let every = u64::from(self.genesis.policy.archive.every);
        let due = self.archiving.stored.back().map_or(0, |last| last.at.saturating_add(every));
        due.max(self.archiving.ask_from)
    }

    /// After a step that failed: not for ever with one price, and not all day long.
    pub(crate) fn not_archived(&mut self, step: Task, now: u64) {
        if self.flights.fails(step) >= TRIES {
            self.archiving.forget_quote();
            self.archiving.ask_from = now + u64::from(self.genesis.timers.day) / 4;
        }
    }
}

#[cfg(test)]
mod tests;
