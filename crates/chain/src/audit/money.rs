//! Where every micro-USDC came from and went to.

use alloy::primitives::{Address, B256};
use std::collections::BTreeMap;

use super::{Difference, Evidence, Fact, What};
use crate::{
    LeaseStatus,
    bindings::{MarketEvent, TreasuryEvent},
};

/// What a movement of the token was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// A customer's payment by `exact` or `upto`.
    Exact,
    /// The channel contract paid out what vouchers had promised.
    Channels,
    /// An `exact` payment went back.
    Refund,
    /// Into a lease's escrow.
    Escrow,
    /// What a lease did not use.
    EscrowBack,
    /// `spend(Storage, ..)`.
    Storage,
    /// `spend(Tools, ..)`.
    Tools,
    /// Into the purse.
    Purse,
    /// Back from the purse.
    PurseBack,
    /// `buyGas`.
    Gas,
    /// A steward was paid for an acknowledgement.
    Duty,
    /// The beneficiary's, at the end; the creator's, when the birth failed.
    Withdrawn,
    /// It came before the agent was activated.
    Seed,
    /// It came after that, and nothing says why.
    Gift,
    /// It went, and nothing says why.
    Unexplained,
    /// The purse paid somebody.
    FromPurse,
    /// A stranger filled the purse.
    IntoPurse,
}

/// One movement of the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    /// Height.
    pub block: u64,
    /// Chain seconds.
    pub at: u64,
    /// Its transaction.
    pub tx: B256,
    /// What for.
    pub purpose: Purpose,
    /// Who gave it to the treasury, or got it from it.
    pub party: Address,
    /// Micro-USDC.
    pub amount: u128,
}

/// Sums over a life, micro-USDC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Money {
    /// In the treasury before the first block read.
    pub opening: u128,
    /// Paid in before activation.
    pub seed: u128,
    /// Paid in later by nobody's purchase; to the treasury, into its leases or into its purse.
    pub gifts: u128,
    /// `exact` payments.
    pub exact: u128,
    /// From channels.
    pub channels: u128,
    /// `exact` payments given back.
    pub refunds: u128,
    /// Accrued so far, paid out or not.
    pub rent: u128,
    /// To birth's payees for storage.
    pub storage: u128,
    /// To birth's payees for tools.
    pub tools: u128,
    /// What the purse paid to others.
    pub purse: u128,
    /// For gas that was bought.
    pub gas: u128,
    /// To stewards, for acknowledgements.
    pub duty: u128,
    /// To whom nobody knows why.
    pub unexplained: u128,
    /// To the beneficiary.
    pub withdrawn: u128,
    /// In the treasury now, by the token.
    pub balance: u128,
    /// In open leases and not accrued yet.
    pub escrow: u128,
    /// In the purse now.
    pub in_purse: u128,
    /// Unclaimed deposits that went back to their payers. They never were the agent's.
    pub channel_refunds: u128,
    /// Claimed and still with the channel contract.
    pub unsettled: u128,
    /// Came back from leases and waits at the market, because the token refused to bring it.
    pub uncollected: u128,
}

impl Money {
    /// What customers paid, refunded or not.
    pub fn revenue(&self) -> u128 {
        self.exact + self.channels
    }

    /// What living cost.
    pub fn costs(&self) -> u128 {
        self.rent + self.storage + self.tools + self.purse + self.gas + self.duty
    }

    /// Revenue less refunds and costs. Seed, gifts, withdrawals and unexplained spending are not in it.
    pub fn net(&self) -> i128 {
        signed(self.revenue()) - signed(self.refunds) - signed(self.costs())
    }

    /// What the sums say that treasury, leases and purse hold together.
    fn left(&self) -> i128 {
        signed(self.opening) + signed(self.seed) + signed(self.gifts) + self.net()
            - signed(self.unexplained)
            - signed(self.withdrawn)
    }

    /// What there is.
    fn held(&self) -> i128 {
        signed(self.balance + self.escrow + self.in_purse + self.uncollected)
    }
}

/// ETH, in wei. The treasury's own ETH comes with no event, so this is what it paid out and not a balance sheet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gas {
    /// Bought with USDC.
    pub bought: u128,
    /// To operators and relays.
    pub refueled: u128,
    /// To whoever relayed orders and takeovers.
    pub repaid: u128,
}

/// One lease's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseBill {
    /// Its id.
    pub lease: u64,
    /// Who hosted.
    pub provider: Address,
    /// Micro-USDC x 1e-6 per second.
    pub price_e6: u64,
    /// Chain seconds: when it was rented.
    pub rented_at: u64,
    /// When the host was ready; 0: never.
    pub started_at: u64,
    /// When it was closed; `None` while open.
    pub closed_at: Option<u64>,
    /// Micro-USDC paid into escrow, by anybody.
    pub paid_in: u128,
    /// Accrued for the provider.
    pub rent: u128,
    /// Came back, or waits at the market for `collect`.
    pub refund: u128,
    /// Still in escrow and not accrued.
    pub left: u128,
}

/// Every movement, explained.
pub(super) struct Moved(Vec<Movement>, Vec<Difference>);

impl Moved {
    pub(super) fn of(&self, purpose: Purpose) -> Vec<Movement> {
        self.0.iter().filter(|m| m.purpose == purpose).cloned().collect()
    }

    pub(super) fn all(&self) -> &[Movement] {
        &self.0
    }

    fn total(&self, purpose: Purpose) -> u128 {
        self.0.iter().filter(|m| m.purpose == purpose).map(|m| m.amount).sum()
    }
}

/// What an event says must have moved in its transaction.
struct Claim {
    /// Into the treasury, or out of it.
    inward: bool,
    /// With whom; `None`: whoever it was (a pool behind a router).
    party: Option<Address>,
    purpose: Purpose,
    amount: u128,
    /// The event is written whether or not the token moves.
    may_fail: bool,
}

/// Gives each movement the event that explains it.
pub(super) fn follow(e: &Evidence) -> Moved {
    let mut claims: BTreeMap<B256, Vec<Claim>> = BTreeMap::new();
    for fact in &e.facts {
        if let Some(claim) = claim(e, fact) {
            claims.entry(fact.tx).or_default().push(claim);
        }
        // What the token refused to bring back is kept by the market, and comes with `Collected`.
        if let What::Market(MarketEvent::Owed(owed)) = &fact.what
            && owed.to == e.treasury
            && let Some(back) =
                claims.entry(fact.tx).or_default().iter_mut().rev().find(|c| c.purpose == Purpose::EscrowBack)
        {
            back.amount = back.amount.saturating_sub(owed.amount.saturating_to());
        }
    }
    let mut moved = Moved(Vec::new(), Vec::new());
    let mut activated = false;
    for fact in &e.facts {
        match fact.what {
            What::Treasury(TreasuryEvent::Activated(_)) => activated = true,
            What::Transfer { from, to, amount } if from != to && amount > 0 => {
                let claims = claims.entry(fact.tx).or_default();
                movement(e, fact, (from, to, amount), claims, activated, &mut moved.0);
            }
            What::Transfer { .. } | What::Treasury(_) | What::Market(_) => {}
        }
    }
    for (tx, claims) in claims {
        for claim in claims.iter().filter(|c| c.amount > 0 && !c.may_fail) {
            let what = format!("{:?} in transaction {tx}, which the treasury tells of", claim.purpose);
            moved.1.push(Difference { what, events: signed(claim.amount), chain: 0 });
        }
    }
    moved
}

fn claim(e: &Evidence, fact: &Fact) -> Option<Claim> {
    let out = |party, purpose, amount| Some(Claim { inward: false, party, purpose, amount, may_fail: false });
    let inward = |party, purpose, amount| Some(Claim { inward: true, party, purpose, amount, may_fail: false });
    let market = Some(e.birth.market);
    match &fact.what {
        What::Treasury(event) => match event {
            TreasuryEvent::ExactSettled(s) => inward(Some(s.payer), Purpose::Exact, s.amount.saturating_to()),
            TreasuryEvent::ExactRefunded(r) => out(Some(r.payer), Purpose::Refund, r.amount.saturating_to()),
            TreasuryEvent::Rented(r) => out(market, Purpose::Escrow, r.prepay),
            TreasuryEvent::ToppedUp(t) => out(market, Purpose::Escrow, t.amount),
            TreasuryEvent::Spent(s) => {
                let purpose = match s.kind {
                    0 => Purpose::Storage,
                    1 => Purpose::Tools,
                    _ => Purpose::Purse,
                };
                out(Some(s.payee), purpose, s.amount)
            }
            TreasuryEvent::GasBought(g) => out(None, Purpose::Gas, g.paid.saturating_to()),
            TreasuryEvent::DutyPaid(d) => {
                out(Some(d.steward), Purpose::Duty, d.amount).map(|claim| Claim { may_fail: true, ..claim })
            }
            TreasuryEvent::Withdrawn(w) => out(Some(w.beneficiary), Purpose::Withdrawn, w.amount.saturating_to()),
            TreasuryEvent::BirthAborted(b) => out(Some(b.creator), Purpose::Withdrawn, b.amount.saturating_to()),
            _ => None,
        },
        What::Market(MarketEvent::LeaseClosed(c)) => inward(market, Purpose::EscrowBack, c.refund),
        What::Market(MarketEvent::Collected(c)) if c.to == e.treasury => {
            inward(market, Purpose::EscrowBack, c.amount.saturating_to())
        }
        What::Market(_) | What::Transfer { .. } => None,
    }
}

fn movement(
    e: &Evidence,
    fact: &Fact,
    (from, to, amount): (Address, Address, u128),
    claims: &mut [Claim],
    activated: bool,
    out: &mut Vec<Movement>,
) {
    let mut put = |purpose, party, amount| {
        out.push(Movement { block: fact.block, at: fact.at, tx: fact.tx, purpose, party, amount });
    };
    let purse = (!e.purse.is_zero()).then_some(e.purse);
    if Some(from) == purse && to != e.treasury {
        return put(Purpose::FromPurse, to, amount);
    }
    let inward = to == e.treasury;
    if !inward && from != e.treasury {
        return put(Purpose::IntoPurse, from, amount);
    }
    let party = if inward { from } else { to };
    let mut rest = amount;
    for claim in claims.iter_mut().filter(|c| c.inward == inward && c.party.is_none_or(|p| p == party)) {
        let part = claim.amount.min(rest);
        if part > 0 {
            (claim.amount, rest) = (claim.amount - part, rest - part);
            put(claim.purpose, party, part);
        }
    }
    if rest == 0 {
        return;
    }
    let channels = e.birth.options.channels;
    let purpose = match (inward, activated) {
        (false, _) => Purpose::Unexplained,
        (true, _) if Some(from) == purse => Purpose::PurseBack,
        // Whoever made it pay out: it is what vouchers had promised.
        (true, _) if from == channels && !channels.is_zero() => Purpose::Channels,
        (true, false) => Purpose::Seed,
        // By Permit2, or settled by somebody else: the treasury has no record of it, the payer's signature is one.
        (true, true) if e.signed.contains(&fact.tx) => Purpose::Exact,
        (true, true) => Purpose::Gift,
    };
    put(purpose, party, rest);
}

/// What each lease cost, and whether its money adds up.
pub(super) fn rents(e: &Evidence) -> (Vec<LeaseBill>, Vec<Difference>) {
    let mut differences = Vec::new();
    let mut bills: BTreeMap<u64, LeaseBill> = BTreeMap::new();
    for fact in &e.facts {
        let What::Market(event) = &fact.what else { continue };
        match event {
            MarketEvent::LeaseRequested(r) => {
                let bill = LeaseBill {
                    lease: r.lease.saturating_to(),
                    provider: r.provider,
                    price_e6: r.priceE6,
                    rented_at: fact.at,
                    started_at: 0,
                    closed_at: None,
                    paid_in: r.escrow,
                    rent: 0,
                    refund: 0,
                    left: 0,
                };
                bills.insert(bill.lease, bill);
            }
            MarketEvent::LeaseToppedUp(t) => {
                if let Some(bill) = bills.get_mut(&t.lease.saturating_to()) {
                    bill.paid_in += t.amount;
                }
            }
            MarketEvent::LeaseReady(r) => {
                // Again after a restart: the rent began with the first.
                if let Some(bill) = bills.get_mut(&r.lease.saturating_to()).filter(|b| b.started_at == 0) {
                    bill.started_at = fact.at;
                }
            }
            MarketEvent::LeaseClosed(c) => {
                if let Some(bill) = bills.get_mut(&c.lease.saturating_to()) {
                    (bill.closed_at, bill.rent, bill.refund) = (Some(fact.at), c.rentTotal, c.refund);
                }
            }
            _ => {}
        }
    }
    let mut open = 0;
    for view in &e.leases {
        let Some(bill) = bills.get_mut(&view.id) else { continue };
        if matches!(view.lease.status(), LeaseStatus::Requested | LeaseStatus::Ready) {
            bill.rent = view.accrued;
            bill.left = bill.paid_in.saturating_sub(view.accrued);
            open += bill.left;
        }
    }
    for bill in bills.values() {
        let accounted = bill.rent + bill.refund + bill.left;
        if accounted != bill.paid_in {
            let what = format!("escrow of lease {}", bill.lease);
            differences.push(Difference { what, events: signed(bill.paid_in), chain: signed(accounted) });
        }
    }
    let escrow: u128 = e.state.escrow.saturating_to();
    if open != escrow {
        differences.push(Difference {
            what: "escrow of open leases".into(),
            events: signed(open),
            chain: signed(escrow),
        });
    }
    (bills.into_values().collect(), differences)
}

pub(super) fn sum(e: &Evidence, moved: &Moved, leases: &[LeaseBill]) -> Money {
    let paid_in: u128 = leases.iter().map(|l| l.paid_in).sum();
    let gifts_in_escrow = paid_in.saturating_sub(moved.total(Purpose::Escrow));
    Money {
        opening: e.opening,
        seed: moved.total(Purpose::Seed),
        gifts: moved.total(Purpose::Gift) + moved.total(Purpose::IntoPurse) + gifts_in_escrow,
        exact: moved.total(Purpose::Exact),
        channels: moved.total(Purpose::Channels),
        refunds: moved.total(Purpose::Refund),
        rent: leases.iter().map(|l| l.rent).sum(),
        storage: moved.total(Purpose::Storage),
        tools: moved.total(Purpose::Tools),
        purse: moved.total(Purpose::FromPurse),
        gas: moved.total(Purpose::Gas),
        duty: moved.total(Purpose::Duty),
        unexplained: moved.total(Purpose::Unexplained),
        withdrawn: moved.total(Purpose::Withdrawn),
        balance: e.state.balance.saturating_to(),
        escrow: e.state.escrow.saturating_to(),
        in_purse: e.purse_balance,
        channel_refunds: e.facts.iter().map(channel_refund).sum(),
        unsettled: e.unsettled,
        uncollected: leases.iter().map(|l| l.refund).sum::<u128>().saturating_sub(moved.total(Purpose::EscrowBack)),
    }
}

fn channel_refund(fact: &Fact) -> u128 {
    match &fact.what {
        What::Treasury(TreasuryEvent::ChannelRefunded(r)) => r.amount,
        _ => 0,
    }
}

/// The movements against the token's own word, the events against the movements, and the whole sheet: what the sums
/// leave against what there is.
pub(super) fn balance(e: &Evidence, moved: &Moved, money: &Money) -> Vec<Difference> {
    let mut differences = moved.1.clone();
    if money.left() != money.held() {
        let what = "treasury, leases and purse together".into();
        differences.push(Difference { what, events: money.left(), chain: money.held() });
    }
    let mut sums = signed(e.opening);
    for fact in &e.facts {
        if let What::Transfer { from, to, amount } = fact.what {
            // A transfer to oneself is both.
            sums += if to == e.treasury { signed(amount) } else { 0 };
            sums -= if from == e.treasury { signed(amount) } else { 0 };
        }
    }
    let balance = signed(e.state.balance.saturating_to());
    if sums != balance {
        differences.insert(0, Difference { what: "the treasury's balance".into(), events: sums, chain: balance });
    }
    differences
}

pub(super) fn gas(e: &Evidence) -> Gas {
    let mut gas = Gas::default();
    for fact in &e.facts {
        let What::Treasury(event) = &fact.what else { continue };
        match event {
            TreasuryEvent::GasBought(g) => gas.bought += g.amountWei.saturating_to::<u128>(),
            TreasuryEvent::Refueled(r) => gas.refueled += r.amountWei.saturating_to::<u128>(),
            TreasuryEvent::Repaid(r) => gas.repaid += r.amountWei.saturating_to::<u128>(),
            _ => {}
        }
    }
    gas
}

pub(super) fn signed(amount: u128) -> i128 {
    // The token's whole supply fits 64 bits; a foreign token's nonsense shows as a difference.
    i128::try_from(amount).unwrap_or(i128::MAX)
}
