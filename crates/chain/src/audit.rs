//! An agent's books, rebuilt from the chain alone by somebody who trusts neither the agent nor its creator.
//!
//! [`read`](read::read) gathers the [`Evidence`]: every event of the treasury and of its leases, every movement of
//! the token to or from it, and what it says of itself at one block. [`audit`] is a pure fold over that. Each movement
//! of money is explained by at most one event of its own transaction; what no event explains is a gift when it came in
//! and *unexplained spending* when it went out.
//!
//! Then the sums are held against the token's balance and the market's escrow. They come out equal to the
//! micro-USDC, or [`Audit::differences`] names what does not.

mod life;
mod money;
mod people;
mod read;

pub use life::{By, Checkpoint, Downtime, Epoch, Intervention};
pub use money::{Gas, LeaseBill, Money, Movement, Purpose};
pub use people::{Income, Link, Payer, Relation};
pub use read::{Scope, Step, read};

use alloy::primitives::{Address, B256, Bytes};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::{
    bindings::{Birth, ChannelConfig, MarketEvent, State, TreasuryEvent},
    market::LeaseView,
    rpc::Head,
};

/// What the chain says of one agent, up to and including one block.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Whose books.
    pub treasury: Address,
    /// Of which chain.
    pub chain_id: u64,
    /// As it reads at [`Evidence::head`]: the creator is zero after `activate`.
    pub birth: Birth,
    /// At [`Evidence::head`].
    pub state: State,
    /// The purse, or zero.
    pub purse: Address,
    /// Micro-USDC in it.
    pub purse_balance: u128,
    /// Micro-USDC that vouchers claimed and nobody settled yet.
    pub unsettled: u128,
    /// The contract that this treasury's proxy calls, if it is such a proxy: what an auditor reads the source of.
    pub implementation: Option<Address>,
    /// The last block read.
    pub head: Head,
    /// The first block read.
    pub first_block: u64,
    /// Micro-USDC of the treasury before it.
    pub opening: u128,
    /// In chain order, each once.
    pub facts: Vec<Fact>,
    /// Events of the treasury or the market that this program cannot name. Not a reason to stop: they move no money
    /// that the token does not tell of too.
    pub strange: u64,
    /// Every lease the treasury ever rented, as it stands at the head.
    pub leases: Vec<LeaseView>,
    /// Transactions whose sender or input matters, by hash.
    pub sent: BTreeMap<B256, Sent>,
    /// Channels that the agent claimed from, with what was claimed of each so far.
    pub channels: Vec<(ChannelConfig, u128)>,
    /// Transactions of transfers to the treasury that their payers had signed.
    pub signed: BTreeSet<B256>,
    /// Token transfers into the accounts of those who paid the agent: (to, from).
    pub funding: Vec<(Address, Address)>,
    /// Accounts that the auditor knows to belong to somebody, besides those that the record itself names.
    pub known: Vec<(Address, Relation)>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Height.
    pub block: u64,
    /// Chain seconds.
    pub at: u64,
    /// Its transaction.
    pub tx: B256,
    /// What it was.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The treasury says so.
    Treasury(TreasuryEvent),
    /// The market says so of one of the treasury's leases.
    Market(MarketEvent),
    /// The token moved to or from the treasury or its purse.
    Transfer {
        /// Payer; zero when minted.
        from: Address,
        /// Payee.
        to: Address,
        /// Micro-USDC.
        amount: u128,
    },
}

/// A transaction, as far as it tells who did something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Who paid for it.
    pub from: Address,
    /// What it called; `None` for a creation.
    pub to: Option<Address>,
    /// With what.
    pub input: Bytes,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Sums, micro-USDC.
    pub money: Money,
    /// Rent by lease, in order of id.
    pub leases: Vec<LeaseBill>,
    /// Money that came in and belongs to no sale, lease or purse.
    pub gifts: Vec<Movement>,
    /// Money that went out and no event says why. Empty for an agent that lives by its contract.
    pub unexplained: Vec<Movement>,
    /// What the purse paid. The chain says to whom and when; for what, only the operator knew.
    pub purse_payments: Vec<Movement>,
    /// Wei.
    pub gas: Gas,
    /// Everything that people did to the agent, in order.
    pub interventions: Vec<Intervention>,
    /// Who was operator, and how that began and ended.
    pub epochs: Vec<Epoch>,
    /// Acknowledged checkpoints, in order.
    pub checkpoints: Vec<Checkpoint>,
    /// Silence.
    pub downtime: Downtime,
    /// Whoever paid for answers, by address.
    pub payers: Vec<Payer>,
    /// Their payments, strangers apart from those who are linked to the agent's own people.
    pub income: Income,
    /// What does not come out equal. Empty when the books balance.
    pub differences: Vec<Difference>,
}

/// Two sums that should be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which sums.
    pub what: String,
    /// What the events add up to, micro-USDC.
    pub events: i128,
    /// What the chain holds, micro-USDC.
    pub chain: i128,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (events, chain) = (self.events, self.chain);
        write!(f, "{}: {events} by the events, {chain} on chain, {} apart", self.what, chain - events)
    }
}

/// Rebuilds the books.
pub fn audit(evidence: &Evidence) -> Audit {
    let moved = money::follow(evidence);
    let (leases, mut differences) = money::rents(evidence);
    let money = money::sum(evidence, &moved, &leases);
    differences.splice(0..0, money::balance(evidence, &moved, &money));
    let epochs = life::epochs(evidence);
    let relations = people::relations(evidence, &epochs);
    let payers = people::payers(evidence, &moved, &relations);
    Audit {
        leases,
        gifts: moved.of(Purpose::Gift),
        unexplained: moved.of(Purpose::Unexplained),
        purse_payments: moved.of(Purpose::FromPurse),
        gas: money::gas(evidence),
        interventions: life::interventions(evidence, &moved),
        checkpoints: life::checkpoints(evidence),
        downtime: life::downtime(evidence),
        income: people::income(&payers),
        epochs,
        payers,
        money,
        differences,
    }
}

impl Audit {
    /// Whether every sum came out equal.
    pub fn balances(&self) -> bool {
        self.differences.is_empty()
    }
}

#[cfg(test)]
mod tests;
