//! Who paid, and whether they are the agent's own people.

use alloy::primitives::Address;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    Epoch, Evidence, What,
    money::{Moved, Purpose},
};
use crate::bindings::{MarketEvent, TreasuryEvent};

/// What an account is to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Relation {
    /// Gave birth to it.
    Creator,
    /// Watches or watched over it, or owns a Safe that does.
    Steward,
    /// Gets what is left.
    Beneficiary,
    /// Rents or rented it a host.
    Provider,
    /// Its own: operators, relays, its purse.
    Itself,
    /// The world's built-in customers.
    Crowd,
}

/// Why a payer is not counted as a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It is one of them.
    Is(Relation),
    /// One of them sent it tokens.
    FundedBy(Relation, Address),
}

/// One customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payer {
    /// Who.
    pub address: Address,
    /// Micro-USDC by `exact`.
    pub exact: u128,
    /// Micro-USDC claimed from its channels.
    pub channels: u128,
    /// Micro-USDC given back.
    pub refunds: u128,
    /// `None`: a stranger, as far as one hop shows.
    pub link: Option<Link>,
}

/// Payments by who made them, micro-USDC, refunds not taken off. Channels count as claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Income {
    /// By strangers.
    pub strangers: u128,
    /// By accounts linked to creator, stewards, beneficiary, providers or the agent itself.
    pub linked: u128,
    /// By the built-in crowd.
    pub crowd: u128,
}

impl Payer {
    /// All it paid.
    pub fn paid(&self) -> u128 {
        self.exact + self.channels
    }
}

impl Link {
    /// To whom.
    pub fn relation(self) -> Relation {
        match self {
            Self::Is(relation) | Self::FundedBy(relation, _) => relation,
        }
    }
}

/// Everybody that the record names, and whom the auditor knows.
pub(super) fn relations(e: &Evidence, epochs: &[Epoch]) -> BTreeMap<Address, Relation> {
    let mut found: Vec<(Address, Relation)> = Vec::new();
    let stewards = e.birth.stewards.iter().map(|s| (*s, Relation::Steward));
    found.extend(stewards.chain([(e.birth.beneficiary, Relation::Beneficiary), (e.purse, Relation::Itself)]));
    for fact in &e.facts {
        match &fact.what {
            What::Treasury(TreasuryEvent::Born(b)) => found.push((b.creator, Relation::Creator)),
            What::Treasury(TreasuryEvent::StewardsSet(s)) => {
                found.extend(s.stewards.iter().map(|s| (*s, Relation::Steward)));
            }
            What::Treasury(TreasuryEvent::DutyPaid(d)) => found.push((d.steward, Relation::Steward)),
            What::Treasury(TreasuryEvent::RelaySet(r)) => found.push((r.relay, Relation::Itself)),
            What::Market(MarketEvent::LeaseRequested(r)) => found.push((r.provider, Relation::Provider)),
            _ => {}
        }
    }
    found.extend(epochs.iter().map(|epoch| (epoch.operator, Relation::Itself)));
    found.extend(e.known.iter().copied());
    let mut relations = BTreeMap::new();
    for (address, relation) in found.into_iter().filter(|(address, _)| !address.is_zero()) {
        // The closer one counts: a creator that also rents out hosts is the creator.
        relations.entry(address).and_modify(|r: &mut Relation| *r = relation.min(*r)).or_insert(relation);
    }
    relations
}

/// Everyone who paid, by address.
pub(super) fn payers(e: &Evidence, moved: &Moved, relations: &BTreeMap<Address, Relation>) -> Vec<Payer> {
    let mut payers: BTreeMap<Address, Payer> = BTreeMap::new();
    let mut of = |address: Address, add: &dyn Fn(&mut Payer)| {
        let fresh = Payer { address, exact: 0, channels: 0, refunds: 0, link: None };
        add(payers.entry(address).or_insert(fresh));
    };
    for m in moved.all() {
        match m.purpose {
            Purpose::Exact => of(m.party, &|p| p.exact += m.amount),
            Purpose::Refund => of(m.party, &|p| p.refunds += m.amount),
            _ => {}
        }
    }
    for (config, claimed) in &e.channels {
        of(config.payer, &|p| p.channels += claimed);
    }
    // Contracts that pay everybody out are nobody's link.
    let ours: BTreeSet<Address> = [e.treasury, e.birth.options.channels, e.birth.market].into();
    for payer in payers.values_mut() {
        payer.link = relations.get(&payer.address).map(|r| Link::Is(*r)).or_else(|| {
            let givers = e.funding.iter().filter(|(to, from)| *to == payer.address && !ours.contains(from));
            let linked = givers.filter_map(|(_, from)| relations.get(from).map(|r| (*r, *from)));
            linked.min().map(|(relation, from)| Link::FundedBy(relation, from))
        });
    }
    payers.into_values().collect()
}

pub(super) fn income(payers: &[Payer]) -> Income {
    let mut income = Income::default();
    for payer in payers {
        match payer.link.map(Link::relation) {
            None => income.strangers += payer.paid(),
            Some(Relation::Crowd) => income.crowd += payer.paid(),
            Some(_) => income.linked += payer.paid(),
        }
    }
    income
}

/// Whoever paid the agent directly: whose own money is looked at.
pub(super) fn customers(facts: &[super::Fact]) -> BTreeSet<Address> {
    let exact = facts.iter().filter_map(|fact| match &fact.what {
        What::Treasury(TreasuryEvent::ExactSettled(s)) => Some(s.payer),
        _ => None,
    });
    exact.collect()
}
