//! Double entry in micro-USDC. Every posting moves one amount from one account to another, so all accounts sum to 0;
//! three of them, balance, escrow and purse, are compared with the chain at every block.

use crate::input::{ChainEvent, ChainEventKind, LeaseView, View};
use crate::money::Usdc;
use crate::note::{Note, Side};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum Account {
    /// The treasury's tokens. Asset.
    Treasury,
    /// Prepaid rent not yet accrued, all open leases. Asset.
    Escrow,
    /// Paid and not yet delivered. Liability; a debit means delivered and not yet settled.
    Customers,
    /// Delivered and charged. Income.
    Sales,
    /// From strangers. Income.
    Gifts,
    /// More on chain than events explain; shrinks again when a late event explains it. Income.
    Unexplained,
    /// What the agent was born with. Equity.
    Seed,
    /// Accrued rent, paid out or not. Expense.
    Rent,
    /// Pulled by the beneficiary after the end. Equity.
    Withdrawn,
    /// Came back from a lease while the token refused the treasury: waits at the market until anyone collects it. Asset.
    AtMarket,
    /// Paid to stewards for acknowledging checkpoints. Expense.
    Duties,
    /// In the purse. Asset.
    Purse,
    /// Paid from the purse: others' answers, sold on. Expense.
    Purchases,
    /// Paid for ETH. Expense.
    Gas,
    /// Paid to the archivist. Expense.
    Storage,
}

/// What is known of one open lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct LeaseBook {
    paid_in: Usdc,
    accrued: Usdc,
    /// Of `accrued`, what left escrow for the provider.
    rent_paid: Usdc,
}

impl LeaseBook {
    fn left(&self) -> Usdc {
        self.paid_in.saturating_sub(self.accrued)
    }
}

/// A sum on chain that is smaller than the ledger says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imbalance {
    pub side: Side,
    pub chain: Usdc,
    pub ledger: i128,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Ledger {
    /// Debit positive, credit negative.
    balances: BTreeMap<Account, i128>,
    leases: BTreeMap<u64, LeaseBook>,
    /// As they were when they closed, so that a reorg can open them again. The last few only.
    closed: BTreeMap<u64, LeaseBook>,
    refunded: Usdc,
    rent_paid_closed: Usdc,
    /// The last events taken, ascending: (block, log index). A reorg takes them off again, newest first.
    taken: VecDeque<(u64, u32)>,
    activated: bool,
    /// The last comparison with the chain did not come out even.
    off: bool,
    /// The largest LSN of the request records counted as earned.
    earned_lsn: u64,
}

/// Closed leases and events kept for a reorg: far more than any reorg can take back.
const CLOSED_KEPT: usize = 32;
const EVENTS_KEPT: usize = 256;

impl Ledger {
    pub fn balance(&self) -> i128 {
        self.of(Account::Treasury)
    }

    pub fn escrow(&self) -> i128 {
        self.of(Account::Escrow)
    }

    /// Debit positive, micro-USDC.
    pub fn of(&self, account: Account) -> i128 {
        self.balances.get(&account).copied().unwrap_or(0)
    }

    /// How much less the chain holds than the accounts say, balance and escrow together. Zero while they balance: what it
    /// holds more was booked as a gift.
    pub fn short(&self, view: &View) -> Usdc {
        if !self.off {
            return Usdc::ZERO;
        }
        let short = |account, chain: Usdc| {
            let chain = i128::try_from(chain.0).expect("USDC's whole supply fits 64 bits");
            Usdc(self.of(account).saturating_sub(chain).max(0).unsigned_abs())
        };
        short(Account::Treasury, view.balance).saturating_add(short(Account::Escrow, view.escrow))
    }

    pub fn sales(&self) -> Usdc {
        self.credit(Account::Sales)
    }

    /// From strangers, and what no event explains.
    pub fn gifts(&self) -> Usdc {
        self.credit(Account::Gifts).saturating_add(self.credit(Account::Unexplained))
    }

    pub fn seed(&self) -> Usdc {
        self.credit(Account::Seed)
    }

    /// Accrued so far, paid out or not.
    pub fn rent(&self) -> Usdc {
        self.debit(Account::Rent)
    }

    /// Of [`Ledger::rent`], what has not left escrow yet.
    pub fn rent_unpaid(&self) -> Usdc {
        self.leases.values().map(|l| l.accrued.saturating_sub(l.rent_paid)).sum()
    }

    /// Of [`Ledger::rent`], what providers have.
    pub fn rent_paid(&self) -> Usdc {
        self.leases.values().map(|l| l.rent_paid).sum::<Usdc>().saturating_add(self.rent_paid_closed)
    }

    /// Paid back to customers so far.
    pub fn refunds(&self) -> Usdc {
        self.refunded
    }

    /// What customers' payments brought so far, refunded or not: sales and refunds, less what is delivered and not
    /// settled, plus what is settled and not delivered.
    pub fn arrived(&self) -> Usdc {
        let sales = i128::try_from(self.sales().saturating_add(self.refunds()).0).unwrap_or(i128::MAX);
        Usdc(u128::try_from(sales - self.of(Account::Customers)).unwrap_or(0))
    }

    /// Paid by customers and neither delivered nor refunded; 0 while more was delivered than settled.
    pub fn customers(&self) -> Usdc {
        self.credit(Account::Customers)
    }

    /// Waits at the market: whoever calls its `collect` brings it home.
    pub fn at_market(&self) -> Usdc {
        self.debit(Account::AtMarket)
    }

    /// In the purse, as of the last block.
    pub fn purse(&self) -> Usdc {
        self.debit(Account::Purse)
    }

    /// Paid for ETH so far.
    pub fn gas(&self) -> Usdc {
        self.debit(Account::Gas)
    }

    /// Paid to the archivist so far.
    pub fn storage(&self) -> Usdc {
        self.debit(Account::Storage)
    }

    /// Paid to suppliers so far, from the purse.
    pub fn purchases(&self) -> Usdc {
        self.debit(Account::Purchases)
    }

    pub fn withdrawn(&self) -> Usdc {
        self.debit(Account::Withdrawn)
    }

    /// Whether the last comparison with the chain came out even.
    pub fn is_balanced(&self) -> bool {
        !self.off
    }

    /// The last event taken, (block, log index): whoever feeds events after a restart goes on behind it.
    pub fn position(&self) -> Option<(u64, u32)> {
        self.taken.back().copied()
    }

    fn credit(&self, account: Account) -> Usdc {
        Usdc(u128::try_from(-self.of(account)).unwrap_or(0))
    }

    fn debit(&self, account: Account) -> Usdc {
        Usdc(u128::try_from(self.of(account)).unwrap_or(0))
    }

    fn post(&mut self, debit: Account, credit: Account, amount: Usdc) {
        let amount = i128::try_from(amount.0).expect("USDC's whole supply fits 64 bits");
        *self.balances.entry(debit).or_default() += amount;
        *self.balances.entry(credit).or_default() -= amount;
        assert_eq!(self.sum(), 0, "double entry");
    }

    /// `back` takes the same posting back.
    fn post_or_reverse(&mut self, back: bool, debit: Account, credit: Account, amount: Usdc) {
        if back { self.post(credit, debit, amount) } else { self.post(debit, credit, amount) }
    }

    fn sum(&self) -> i128 {
        self.balances.values().sum()
    }

    /// Fails only by a bug; checked after every input.
    pub(crate) fn assert_balanced(&self) {
        assert_eq!(self.sum(), 0, "the accounts do not sum to zero");
        assert!(self.leases.values().all(|l| l.accrued <= l.paid_in), "a lease accrued more than was paid in");
    }

    /// Delivered calls. Returns whether they were new.
    pub(crate) fn earned(&mut self, first_lsn: u64, last_lsn: u64, sum: Usdc) -> bool {
        if first_lsn <= self.earned_lsn || last_lsn < first_lsn {
            return false;
        }
        self.earned_lsn = last_lsn;
        self.post(Account::Customers, Account::Sales, sum);
        true
    }

    /// One event, or its reversal. Events at or before the last one taken are passed over, so that a range may be fed
    /// twice. Returns what is worth a line.
    pub(crate) fn event(&mut self, event: &ChainEvent) -> Option<Note> {
        let (event, back) = match &event.kind {
            ChainEventKind::Reverted(event) => (event.as_ref(), true),
            _ => (event, false),
        };
        let at = (event.block, event.index);
        let taken = self.position().is_some_and(|last| at <= last);
        if taken != back {
            return None;
        }
        if back {
            // Everything behind the one before it may come anew: the new branch may hold events in earlier blocks.
            self.taken.retain(|earlier| *earlier < at);
            if self.taken.is_empty() {
                self.taken.push_back((event.block.saturating_sub(1), u32::MAX));
            }
        } else {
            self.taken.push_back(at);
            while self.taken.len() > EVENTS_KEPT {
                self.taken.pop_front();
            }
        }
        let note = self.book(&event.kind, back);
        if back { Some(Note::Reorg { block: event.block }) } else { note }
    }

    fn book(&mut self, kind: &ChainEventKind, back: bool) -> Option<Note> {
        use Account::{AtMarket, Customers, Duties, Escrow, Gas, Gifts, Purse, Seed, Storage, Treasury, Withdrawn};
        match *kind {
            ChainEventKind::Activated { .. } => self.activated = !back,
            ChainEventKind::ExactSettled { amount, .. } => self.post_or_reverse(back, Treasury, Customers, amount),
            ChainEventKind::ChannelsSettled { amount } | ChainEventKind::CustomerPaid { amount, .. } => {
                self.post_or_reverse(back, Treasury, Customers, amount)
            }
            ChainEventKind::ExactRefunded { amount, .. } => {
                self.post_or_reverse(back, Customers, Treasury, amount);
                self.refunded = move_by(self.refunded, amount, back);
            }
            ChainEventKind::Rented { lease, prepay: amount } | ChainEventKind::ToppedUp { lease, amount } => {
                self.post_or_reverse(back, Escrow, Treasury, amount);
                let book = self.leases.entry(lease).or_default();
                book.paid_in = move_by(book.paid_in, amount, back);
                let excess = book.accrued.saturating_sub(book.paid_in);
                book.accrued = book.accrued.saturating_sub(excess);
                if *book == LeaseBook::default() {
                    self.leases.remove(&lease);
                }
                // Rent that a reorged payment had covered was never earned.
                self.post(Escrow, Account::Rent, excess);
            }
            ChainEventKind::RentPaid { lease, amount } => {
                if let Some(book) = self.leases.get_mut(&lease) {
                    book.rent_paid = move_by(book.rent_paid, amount, back);
                }
            }
            ChainEventKind::LeaseClosed { lease, rent_total, refund } => {
                if back {
                    self.reopen(lease, refund);
                } else {
                    self.close(lease, rent_total, refund);
                }
            }
            ChainEventKind::TransferIn { from, amount } => {
                let (account, note) =
                    if self.activated { (Gifts, Note::Gift { from, amount }) } else { (Seed, Note::Seed { amount }) };
                self.post_or_reverse(back, Treasury, account, amount);
                return Some(note);
            }
            ChainEventKind::Withdrawn { amount } => self.post_or_reverse(back, Withdrawn, Treasury, amount),
            ChainEventKind::MarketOwes { amount } => self.post_or_reverse(back, AtMarket, Treasury, amount),
            ChainEventKind::MarketPaid { amount } => self.post_or_reverse(back, Treasury, AtMarket, amount),
            ChainEventKind::DutyPaid { amount } => self.post_or_reverse(back, Duties, Treasury, amount),
            ChainEventKind::PurseFilled { amount } => {
                self.post_or_reverse(back, Purse, Treasury, amount);
                return Some(Note::PurseFilled { amount });
            }
            ChainEventKind::PurseReturned { amount } => {
                self.post_or_reverse(back, Treasury, Purse, amount);
                return Some(Note::PurseReturned { amount });
            }
            ChainEventKind::GasBought { amount } => {
                self.post_or_reverse(back, Gas, Treasury, amount);
                return Some(Note::GasBought { amount });
            }
            ChainEventKind::StoragePaid { amount } => {
                self.post_or_reverse(back, Storage, Treasury, amount);
                return Some(Note::StoragePaid { amount });
            }
            // Unwrapped by the caller; a reversal of a reversal does not exist.
            ChainEventKind::Reverted(_) => {}
        }
        None
    }

    /// The market's word on the lease's rent is final: accrual is trued up to it, then escrow comes back.
    fn close(&mut self, lease: u64, rent_total: Usdc, refund: Usdc) {
        let mut book = self.leases.remove(&lease).unwrap_or_default();
        self.accrue(&mut book, rent_total);
        let missing = refund.saturating_sub(book.left());
        // A stranger topped this lease up; the refund is ours all the same.
        self.post(Account::Escrow, Account::Unexplained, missing);
        book.paid_in = book.paid_in.saturating_add(missing);
        self.post(Account::Treasury, Account::Escrow, refund);
        book.rent_paid = rent_total;
        self.rent_paid_closed = self.rent_paid_closed.saturating_add(rent_total);
        self.closed.insert(lease, book);
        while self.closed.len() > CLOSED_KEPT {
            self.closed.pop_first();
        }
    }

    fn reopen(&mut self, lease: u64, refund: Usdc) {
        self.post(Account::Escrow, Account::Treasury, refund);
        if let Some(book) = self.closed.remove(&lease) {
            self.rent_paid_closed = self.rent_paid_closed.saturating_sub(book.rent_paid);
            self.leases.insert(lease, book);
        }
    }

    /// Moves the lease's accrued rent to `accrued`, up or (after a reorg) down, within what was paid in.
    fn accrue(&mut self, book: &mut LeaseBook, accrued: Usdc) {
        let accrued = accrued.min(book.paid_in);
        let (up, down) = (accrued.saturating_sub(book.accrued), book.accrued.saturating_sub(accrued));
        self.post(Account::Rent, Account::Escrow, up);
        self.post(Account::Escrow, Account::Rent, down);
        book.accrued = accrued;
    }

    /// Posts the rent accrued up to this block, books what no event explains as a gift, and compares.
    ///
    /// Chain above ledger is a gift; chain below ledger first takes unexplained gifts back, and what then remains is
    /// an imbalance: spending must stop until it is gone.
    pub(crate) fn compare(&mut self, view: &View, notes: &mut Vec<Note>) -> Result<(), Imbalance> {
        for lease in [&view.active, &view.standby, &view.draining].into_iter().flatten() {
            self.accrue_lease(lease);
        }
        self.settle_purse(view.purse, notes);
        let escrow = self.settle(Side::Escrow, view.escrow, notes);
        let balance = self.settle(Side::Balance, view.balance, notes);
        let outcome = balance.and(escrow);
        match (&outcome, self.off) {
            (Err(off), false) => {
                notes.push(Note::BooksDontBalance { account: off.side, chain: off.chain, ledger: off.ledger });
            }
            (Ok(()), true) => notes.push(Note::BooksBalanceAgain),
            _ => {}
        }
        self.off = outcome.is_err();
        outcome
    }

    fn accrue_lease(&mut self, lease: &LeaseView) {
        if let Some(mut book) = self.leases.get(&lease.id).copied() {
            let accrued = book.paid_in.saturating_sub(lease.escrow_left);
            self.accrue(&mut book, accrued);
            self.leases.insert(lease.id, book);
        }
    }

    /// What left the purse and did not come back was paid to suppliers; a supplier's refund takes that back. Only what is
    /// above that was a stranger's. Like rent it follows the chain both ways, so a reorg needs no case of its own.
    fn settle_purse(&mut self, chain: Usdc, notes: &mut Vec<Note>) {
        let on_chain = i128::try_from(chain.0).expect("USDC's whole supply fits 64 bits");
        let more = on_chain - self.of(Account::Purse);
        if more < 0 {
            self.post(Account::Purchases, Account::Purse, Usdc(more.unsigned_abs()));
        } else if more > 0 {
            let back = Usdc(more.unsigned_abs()).min(self.purchases());
            self.post(Account::Purse, Account::Purchases, back);
            let amount = Usdc(more.unsigned_abs()).saturating_sub(back);
            if !amount.is_zero() {
                self.post(Account::Purse, Account::Unexplained, amount);
                notes.push(Note::Unexplained { amount });
            }
        }
    }

    fn settle(&mut self, side: Side, chain: Usdc, notes: &mut Vec<Note>) -> Result<(), Imbalance> {
        let account = match side {
            Side::Balance => Account::Treasury,
            Side::Escrow => Account::Escrow,
        };
        let on_chain = i128::try_from(chain.0).expect("USDC's whole supply fits 64 bits");
        let more = on_chain - self.of(account);
        if more > 0 {
            let amount = Usdc(more.unsigned_abs());
            self.post(account, Account::Unexplained, amount);
            notes.push(Note::Unexplained { amount });
        } else if more < 0 {
            let back = Usdc(more.unsigned_abs()).min(self.credit(Account::Unexplained));
            self.post(Account::Unexplained, account, back);
        }
        let ledger = self.of(account);
        if ledger > on_chain { Err(Imbalance { side, chain, ledger }) } else { Ok(()) }
    }
}

fn move_by(from: Usdc, by: Usdc, back: bool) -> Usdc {
    if back { from.saturating_sub(by) } else { from.saturating_add(by) }
}

#[cfg(test)]
mod tests;
