use super::{Refusal, Token, refuse_if};
use crate::input::ChainEventKind;
use crate::money::{Address, Usdc};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the market's constructor fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarketTerms {
    /// Micro-USDC.
    pub stake_min: u128,
    /// Seconds from `rent` to `ready`.
    pub ready_within: u32,
    /// Seconds of rent past the last heartbeat that vouched.
    pub grace: u32,
    /// Seconds of silence after which anyone may end a lease.
    pub drop_after: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub provider: Address,
    /// Micro-USDC x 1e-6 per second.
    pub price_e6: u64,
    /// Leases at once.
    pub capacity: u32,
    pub used: u32,
    /// Seconds.
    pub min_term: u32,
    pub max_term: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    Requested,
    Ready,
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub tenant: Address,
    pub provider: Address,
    pub offer: u64,
    /// Fixed for the whole lease.
    pub price_e6: u64,
    pub term: u32,
    /// Past it anyone may reclaim.
    pub ready_by: u64,
    /// 0 until ready.
    pub start: u64,
    pub end: u64,
    pub vouched_at: u64,
    /// Paid in, gross, micro-USDC; once closed, what was earned.
    pub escrow: u128,
    pub withdrawn: u128,
    pub state: LeaseState,
    /// Zero until ready.
    pub node_key: Address,
}

impl Lease {
    pub fn is_open(&self) -> bool {
        self.state != LeaseState::Closed
    }
}

/// The lease market: stakes, offers, leases. Ids count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Market {
    /// Its own account.
    pub at: Address,
    terms: MarketTerms,
    // Shared by a treasury and what it was before a call, which is needed only when the call is refused.
    stakes: Arc<BTreeMap<Address, u128>>,
    /// (served, failed).
    records: Arc<BTreeMap<Address, (u32, u32)>>,
    offers: Arc<Vec<Offer>>,
    leases: Arc<Vec<Lease>>,
    /// What it told the world of each tenant's leases since somebody listened.
    pub told: Vec<(Address, ChainEventKind)>,
}

impl Market {
    pub fn new(at: Address, terms: MarketTerms) -> Self {
        Self {
            at,
            terms,
            stakes: Arc::default(),
            records: Arc::default(),
            offers: Arc::default(),
            leases: Arc::default(),
            told: Vec::new(),
        }
    }

    // ---- reading ----

    pub fn offer(&self, id: u64) -> Option<&Offer> {
        usize::try_from(id).ok().and_then(|id| self.offers.get(id.checked_sub(1)?))
    }

    pub fn lease(&self, id: u64) -> Option<&Lease> {
        usize::try_from(id).ok().and_then(|id| self.leases.get(id.checked_sub(1)?))
    }

    /// Leases ever made.
    pub fn lease_count(&self) -> u64 {
        u64::try_from(self.leases.len()).expect("a count")
    }

    pub fn stake(&self, provider: Address) -> u128 {
        self.stakes.get(&provider).copied().unwrap_or(0)
    }

    /// (served, failed).
    pub fn record(&self, provider: Address) -> (u32, u32) {
        self.records.get(&provider).copied().unwrap_or_default()
    }

    pub fn open_leases(&self, provider: Address) -> usize {
        self.leases.iter().filter(|l| l.provider == provider && l.is_open()).count()
    }

    /// All rent earned so far, rounded up once for the whole lease and never more than escrow.
    pub fn accrued_up(&self, now: u64, lease: &Lease) -> u128 {
        match lease.state {
            LeaseState::Closed => lease.withdrawn,
            LeaseState::Requested => 0,
            LeaseState::Ready => {
                let until = now.min(lease.end).min(lease.vouched_at + u64::from(self.terms.grace));
                Usdc::rent_up(lease.price_e6, until - lease.start).0.min(lease.escrow)
            }
        }
    }

    /// What open leases hold of stakes and rent: exactly what is in the market's account.
    pub fn held(&self) -> u128 {
        let open = self.leases.iter().filter(|l| l.is_open());
        self.stakes.values().sum::<u128>() + open.map(|l| l.escrow - l.withdrawn).sum::<u128>()
    }

    // ---- providers ----

    pub fn register(&mut self, token: &mut Token, who: Address, stake: u128) -> Result<(), Refusal> {
        refuse_if(stake == 0, Refusal::ZeroAmount)?;
        refuse_if(token.of(who) < stake, Refusal::InsufficientBalance)?;
        let total = self.stake(who) + stake;
        refuse_if(total < self.terms.stake_min, Refusal::NotStaked)?;
        Arc::make_mut(&mut self.stakes).insert(who, total);
        token.transfer(who, self.at, stake)
    }

    pub fn unregister(&mut self, token: &mut Token, who: Address) -> Result<(), Refusal> {
        let stake = self.stake(who);
        refuse_if(stake == 0, Refusal::NotStaked)?;
        refuse_if(self.open_leases(who) != 0, Refusal::StakeInUse)?;
        Arc::make_mut(&mut self.stakes).remove(&who);
        token.transfer(self.at, who, stake)
    }

    /// The new offer's id. `offer.used` is 0.
    pub fn post_offer(&mut self, offer: Offer) -> Result<u64, Refusal> {
        refuse_if(self.stake(offer.provider) < self.terms.stake_min, Refusal::NotStaked)?;
        refuse_if(offer.min_term == 0 || offer.min_term > offer.max_term, Refusal::BadTerm)?;
        Arc::make_mut(&mut self.offers).push(offer);
        Ok(u64::try_from(self.offers.len()).expect("a count"))
    }

    pub fn reprice(&mut self, who: Address, offer: u64, price_e6: u64) -> Result<(), Refusal> {
        self.own_offer(who, offer)?.price_e6 = price_e6;
        Ok(())
    }

    pub fn set_capacity(&mut self, who: Address, offer: u64, capacity: u32) -> Result<(), Refusal> {
        self.own_offer(who, offer)?.capacity = capacity;
        Ok(())
    }

    /// First call: starts the rent. Again after silence: replaces the node key.
    pub fn ready(&mut self, now: u64, who: Address, lease: u64, node_key: Address) -> Result<(), Refusal> {
        let grace = u64::from(self.terms.grace);
        let l = self.lease_mut(lease).filter(|l| l.provider == who).ok_or(Refusal::NotProvider)?;
        refuse_if(node_key == [0; 20], Refusal::ZeroAddress)?;
        match l.state {
            LeaseState::Requested => {
                refuse_if(now > l.ready_by, Refusal::TooLate)?;
                (l.state, l.start, l.end, l.vouched_at) = (LeaseState::Ready, now, now + u64::from(l.term), now);
            }
            LeaseState::Ready => {
                refuse_if(now <= l.vouched_at + grace, Refusal::TooEarly)?;
                refuse_if(now >= l.end, Refusal::TooLate)?;
            }
            LeaseState::Closed => return Err(Refusal::WrongState),
        }
        l.node_key = node_key;
        Ok(())
    }

    /// Pays the provider what accrued and was not paid yet.
    pub fn withdraw(&mut self, now: u64, token: &mut Token, who: Address, lease: u64) -> Result<(), Refusal> {
        let l = self.lease(lease).filter(|l| l.provider == who).ok_or(Refusal::NotProvider)?;
        refuse_if(l.state != LeaseState::Ready, Refusal::WrongState)?;
        let (earned, tenant) = (self.accrued_up(now, l), l.tenant);
        let paid = earned - l.withdrawn;
        self.expect_lease(lease).withdrawn = earned;
        self.tell_paid(tenant, lease, paid);
        token.transfer(self.at, who, paid)
    }

    // ---- tenants ----

    /// The new lease's id.
    pub fn rent(
        &mut self,
        now: u64,
        token: &mut Token,
        tenant: Address,
        (offer, term, prepay): (u64, u32, u128),
    ) -> Result<u64, Refusal> {
        let o = self.offer(offer).ok_or(Refusal::UnknownOffer)?.clone();
        refuse_if(self.stake(o.provider) < self.terms.stake_min, Refusal::NotStaked)?;
        refuse_if(!(o.min_term..=o.max_term).contains(&term), Refusal::BadTerm)?;
        refuse_if(o.used >= o.capacity, Refusal::NoCapacity)?;
        refuse_if(prepay > Usdc::rent_up(o.price_e6, u64::from(term)).0, Refusal::OverEscrow)?;
        token.transfer(tenant, self.at, prepay)?;
        self.expect_offer(offer).used += 1;
        Arc::make_mut(&mut self.leases).push(Lease {
            tenant,
            provider: o.provider,
            offer,
            price_e6: o.price_e6,
            term,
            ready_by: now + u64::from(self.terms.ready_within),
            start: 0,
            end: 0,
            vouched_at: 0,
            escrow: prepay,
            withdrawn: 0,
            state: LeaseState::Requested,
            node_key: [0; 20],
        });
        let lease = self.lease_count();
        self.told.push((tenant, ChainEventKind::Rented { lease, prepay: Usdc(prepay) }));
        Ok(lease)
    }

    /// Anyone; never past the whole rent.
    pub fn top_up(&mut self, token: &mut Token, from: Address, lease: u64, amount: u128) -> Result<(), Refusal> {
        let l = self.lease(lease).filter(|l| l.is_open()).ok_or(Refusal::WrongState)?;
        refuse_if(amount == 0, Refusal::ZeroAmount)?;
        let whole = Usdc::rent_up(l.price_e6, u64::from(l.term)).0;
        refuse_if(l.escrow.saturating_add(amount) > whole, Refusal::OverEscrow)?;
        token.transfer(from, self.at, amount)?;
        self.expect_lease(lease).escrow += amount;
        Ok(())
    }

    /// False, and no effect, for a lease that isn't running.
    pub fn vouch(&mut self, now: u64, who: Address, lease: u64) -> Result<bool, Refusal> {
        let l = self.lease_mut(lease).filter(|l| l.tenant == who).ok_or(Refusal::NotTenant)?;
        let counts = l.state == LeaseState::Ready && now <= l.end;
        if counts {
            l.vouched_at = now;
        }
        Ok(counts)
    }

    /// Pays what accrued, sends the rest of escrow back; which is returned.
    pub fn close(&mut self, now: u64, token: &mut Token, who: Address, lease: u64) -> Result<u128, Refusal> {
        let l = self.lease(lease).filter(|l| l.tenant == who).ok_or(Refusal::NotTenant)?;
        refuse_if(!l.is_open(), Refusal::WrongState)?;
        self.end(now, token, lease)
    }

    // ---- anyone ----

    /// A request past its time: full refund, the provider failed.
    pub fn reclaim(&mut self, now: u64, token: &mut Token, lease: u64) -> Result<(), Refusal> {
        let l = self.lease(lease).filter(|l| l.state == LeaseState::Requested).ok_or(Refusal::WrongState)?;
        refuse_if(now <= l.ready_by, Refusal::TooEarly)?;
        self.end(now, token, lease).map(drop)
    }

    /// A running lease past its end, or past a long silence.
    pub fn expire(&mut self, now: u64, token: &mut Token, lease: u64) -> Result<(), Refusal> {
        let l = self.lease(lease).filter(|l| l.state == LeaseState::Ready).ok_or(Refusal::WrongState)?;
        let silent = l.vouched_at + u64::from(self.terms.drop_after) + 1;
        refuse_if(now < l.end.min(silent), Refusal::TooEarly)?;
        self.end(now, token, lease).map(drop)
    }

    // ---- inside ----

    fn end(&mut self, now: u64, token: &mut Token, id: u64) -> Result<u128, Refusal> {
        let lease = self.expect_lease(id).clone();
        let earned = self.accrued_up(now, &lease);
        let (paid, refund) = (earned - lease.withdrawn, lease.escrow - earned);
        let record = Arc::make_mut(&mut self.records).entry(lease.provider).or_default();
        let vouched = now <= lease.vouched_at + u64::from(self.terms.grace);
        match lease.state {
            LeaseState::Ready if now >= lease.end || vouched => record.0 += 1,
            LeaseState::Ready => record.1 += 1,
            LeaseState::Requested if now > lease.ready_by => record.1 += 1,
            // Closing a request in time is nobody's failure.
            LeaseState::Requested | LeaseState::Closed => {}
        }
        let l = self.expect_lease(id);
        (l.state, l.escrow, l.withdrawn) = (LeaseState::Closed, earned, earned);
        self.expect_offer(lease.offer).used -= 1;
        self.tell_paid(lease.tenant, id, paid);
        let closed = ChainEventKind::LeaseClosed { lease: id, rent_total: Usdc(earned), refund: Usdc(refund) };
        self.told.push((lease.tenant, closed));
        token.transfer(self.at, lease.provider, paid)?;
        token.transfer(self.at, lease.tenant, refund)?;
        Ok(refund)
    }

    fn tell_paid(&mut self, tenant: Address, lease: u64, amount: u128) {
        if amount != 0 {
            self.told.push((tenant, ChainEventKind::RentPaid { lease, amount: Usdc(amount) }));
        }
    }

    fn own_offer(&mut self, who: Address, offer: u64) -> Result<&mut Offer, Refusal> {
        let index = usize::try_from(offer).ok().and_then(|id| id.checked_sub(1));
        index
            .and_then(|i| Arc::make_mut(&mut self.offers).get_mut(i))
            .filter(|o| o.provider == who)
            .ok_or(Refusal::NotProvider)
    }

    fn lease_mut(&mut self, id: u64) -> Option<&mut Lease> {
        usize::try_from(id).ok().and_then(|id| Arc::make_mut(&mut self.leases).get_mut(id.checked_sub(1)?))
    }

    fn expect_lease(&mut self, id: u64) -> &mut Lease {
        self.lease_mut(id).expect("looked up before")
    }

    fn expect_offer(&mut self, id: u64) -> &mut Offer {
        let index = usize::try_from(id).expect("a count of leases") - 1;
        &mut Arc::make_mut(&mut self.offers)[index]
    }
}
