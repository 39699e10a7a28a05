//! The model: treasury and lease market by the rules of the contracts, as far as they concern one agent.

use economy::{ChainEvent, ChainEventKind, LeaseView, Limits, OfferView, Output, Stage, Timers, Usdc, View};
use std::collections::BTreeMap;

#[derive(Clone)]
pub struct Lease {
    pub id: u64,
    pub offer: usize,
    pub provider: [u8; 20],
    pub price_e6: u64,
    pub term: u64,
    pub ready_by: u64,
    pub start: u64,
    pub end: u64,
    pub vouched_at: u64,
    /// Gross.
    pub escrow: u128,
    pub withdrawn: u128,
    pub open: bool,
    /// When the provider will make it ready; never after `ready_by`.
    pub ready_at: u64,
}

#[derive(Clone)]
pub struct Offer {
    pub provider: [u8; 20],
    pub price_e6: u64,
    pub capacity: u32,
    pub used: u32,
    pub served: u32,
    pub failed: u32,
}

pub type Payment = ([u8; 20], [u8; 32]);

/// Everything on chain; cloned for reorgs.
#[derive(Clone)]
pub struct World {
    pub timers: Timers,
    pub block_secs: u64,
    pub limits: Limits,
    pub number: u64,
    pub now: u64,
    pub stage: Stage,
    pub paused: bool,
    pub restoring: bool,
    pub epoch: u64,
    pub balance: u128,
    pub leases: Vec<Lease>,
    pub offers: Vec<Offer>,
    /// Lease ids, 0 for none.
    pub active: u64,
    pub standby: u64,
    pub draining: u64,
    pub announced: u64,
    pub announced_at: u64,
    pub seq: u64,
    pub last_heartbeat: u64,
    pub challenged_at: u64,
    pub wind_down_at: u64,
    pub mandate_until: u64,
    /// Nobody is operator.
    pub asleep: bool,
    pub payments: BTreeMap<Payment, (u128, u128)>,
    /// (time, amount) of gross commitments.
    pub spent: Vec<(u64, u128)>,
    pub rent_paid: u128,
    /// In order.
    pub events: Vec<ChainEvent>,
}

impl World {
    pub fn lease(&self, id: u64) -> Option<&Lease> {
        usize::try_from(id).ok().and_then(|i| self.leases.get(i.checked_sub(1)?))
    }

    fn lease_mut(&mut self, id: u64) -> &mut Lease {
        let index = usize::try_from(id).expect("small") - 1;
        &mut self.leases[index]
    }

    pub fn emit(&mut self, kind: ChainEventKind) {
        let index = self.events.last().filter(|e| e.block == self.number).map_or(0, |e| e.index + 1);
        self.events.push(ChainEvent { block: self.number, index, kind });
    }

    /// Rent earned so far.
    pub fn accrued(&self, lease: &Lease) -> u128 {
        if !lease.open {
            return lease.withdrawn;
        }
        if lease.start == 0 {
            return 0;
        }
        let until = self.now.min(lease.end).min(lease.vouched_at + u64::from(self.timers.grace)).max(lease.start);
        rent_up(lease.price_e6, until - lease.start).min(lease.escrow)
    }

    pub fn escrow_left(&self, id: u64) -> u128 {
        self.lease(id).filter(|l| l.open).map_or(0, |l| l.escrow - self.accrued(l))
    }

    pub fn escrow(&self) -> u128 {
        [self.active, self.standby, self.draining].into_iter().map(|id| self.escrow_left(id)).sum()
    }

    pub fn funds(&self) -> u128 {
        self.balance + self.escrow()
    }

    /// Over the last day, as the contract's ring counts it at most (25 slots of 24).
    pub fn spent_in_day(&self) -> u128 {
        let slot = u64::from(self.timers.day).div_ceil(24);
        let from = (self.now / slot).saturating_sub(24) * slot;
        self.spent.iter().filter(|(at, _)| *at >= from).map(|(_, amount)| amount).sum()
    }

    pub fn view(&self) -> View {
        let lease = |id: u64| {
            self.lease(id).map(|l| LeaseView {
                id: l.id,
                offer: u64::try_from(l.offer).expect("small"),
                provider: l.provider,
                price_e6: l.price_e6,
                start: l.start,
                end: l.end,
                ready_by: l.ready_by,
                ready: l.open && l.start != 0,
                escrow_left: Usdc(self.escrow_left(l.id)),
            })
        };
        let offers = (0u64..).zip(&self.offers).map(|(id, o)| OfferView {
            id,
            provider: o.provider,
            price_e6: o.price_e6,
            free: o.capacity - o.used,
            min_term: 1,
            max_term: u32::MAX,
            served: o.served,
            failed: o.failed,
        });
        View {
            number: self.number,
            timestamp: self.now,
            stage: self.stage,
            paused: self.paused,
            restoring: self.restoring,
            epoch: self.epoch,
            operator_is_me: !self.asleep,
            active: lease(self.active),
            standby: lease(self.standby),
            draining: lease(self.draining),
            announced: self.announced,
            announced_at: self.announced_at,
            checkpoint_seq: self.seq,
            last_heartbeat: self.last_heartbeat,
            challenged_at: self.challenged_at,
            balance: Usdc(self.balance),
            escrow: Usdc(self.escrow()),
            purse: Usdc::ZERO,
            spent_in_day: Usdc(self.spent_in_day()),
            operator_gas_wei: 10,
            relay_gas_wei: 10,
            treasury_gas_wei: 10,
            mandate_until: self.mandate_until,
            wind_down_at: self.wind_down_at,
            limits: self.limits,
            offers: offers.collect(),
        }
    }

    // ---- time ----

    /// The next block begins; providers make ready what is due.
    pub fn begin_block(&mut self) {
        self.number += 1;
        self.now += self.block_secs;
        for i in 0..self.leases.len() {
            let (now, l) = (self.now, &mut self.leases[i]);
            if l.open && l.start == 0 && now >= l.ready_at && now <= l.ready_by {
                (l.start, l.end, l.vouched_at) = (now, now + l.term, now);
            }
        }
    }

    pub fn settle(&mut self, payment: Payment, amount: u128) {
        self.balance += amount;
        self.payments.insert(payment, (amount, 0));
        self.emit(ChainEventKind::ExactSettled { payer: payment.0, nonce: payment.1, amount: Usdc(amount) });
    }

    pub fn transfer_in(&mut self, amount: u128) {
        self.balance += amount;
        self.emit(ChainEventKind::TransferIn { from: [7; 20], amount: Usdc(amount) });
    }

    // ---- the operator's calls ----

    /// Does what the contract would; an error names its check. `delay`: seconds the provider of a new lease needs.
    pub fn execute(&mut self, output: &Output, delay: u64) -> Result<(), &'static str> {
        let alive = self.stage == Stage::Alive;
        match *output {
            Output::Rent { offer, term, prepay } => {
                if !alive {
                    Err("WrongStage")
                } else if self.paused {
                    Err("IsPaused")
                } else if self.standby != 0 {
                    Err("SlotTaken")
                } else {
                    self.rent(offer, u64::from(term), prepay.0, delay)
                }
            }
            Output::TopUp { lease, amount } => self.top_up(lease, amount.0),
            Output::Release { lease } => self.release(lease),
            Output::Heartbeat { standby_answered } => {
                self.challenged_at = 0;
                if !self.restoring {
                    self.last_heartbeat = self.now;
                    let (active, draining, standby) = (self.active, self.draining, self.standby);
                    let vouched = [active, draining, if standby_answered { standby } else { 0 }];
                    for id in vouched.into_iter().filter(|id| *id != 0) {
                        let now = self.now;
                        let l = self.lease_mut(id);
                        if l.open && l.start != 0 && now <= l.end {
                            l.vouched_at = now;
                        }
                    }
                }
                Ok(())
            }
            Output::Checkpoint => {
                self.seq += 1;
                self.restoring = false;
                Ok(())
            }
            Output::Announce { lease } => {
                if !alive || self.restoring {
                    Err("WrongStage")
                } else if lease != self.standby || !self.is_ready(lease) {
                    Err("NotReady")
                } else {
                    (self.announced, self.announced_at) = (lease, self.now);
                    Ok(())
                }
            }
            Output::Handover { lease, valid_until } => self.handover(lease, valid_until),
            Output::Refuel => Ok(()),
            // Nor a market for gas.
            Output::BuyGas { .. } => Err("Off"),
            // Nobody here has a supplier.
            Output::FillPurse { .. } => Err("NotPayee"),
            // Nor an archivist.
            Output::AskArchivist | Output::PayArchivist { .. } | Output::Archive { .. } => Err("NotPayee"),
            Output::Refund { payer, nonce, amount } => self.refund((payer, nonce), amount.0),
            Output::WindDown => self.wind_down(),
            Output::Hibernate { until, .. } => self.hibernate(until),
            Output::Close => {
                if self.stage != Stage::WindingDown {
                    Err("WrongStage")
                } else if self.now < self.wind_down_at + u64::from(self.timers.refund_window) {
                    Err("TooEarly")
                } else {
                    self.stage = Stage::Closed;
                    for id in [self.active, self.standby, self.draining] {
                        self.end(id);
                    }
                    (self.active, self.standby, self.draining) = (0, 0, 0);
                    Ok(())
                }
            }
            Output::Serve { .. } | Output::StopServing { .. } | Output::Note(_) | Output::WakeAt(_) => Ok(()),
        }
    }

    fn is_ready(&self, id: u64) -> bool {
        self.lease(id).is_some_and(|l| l.open && l.start != 0 && self.now < l.end)
    }

    fn spend(&mut self, amount: u128) -> Result<(), &'static str> {
        if self.spent_in_day() + amount > self.limits.day_limit.0 {
            return Err("OverDayLimit");
        }
        if amount > self.balance {
            return Err("NoMoney");
        }
        self.spent.push((self.now, amount));
        self.balance -= amount;
        Ok(())
    }

    /// Into the standby slot.
    pub fn rent(&mut self, offer: u64, term: u64, prepay: u128, delay: u64) -> Result<(), &'static str> {
        let index = usize::try_from(offer).expect("small");
        let o = self.offers.get(index).cloned().ok_or("UnknownOffer")?;
        if o.used >= o.capacity {
            return Err("NoCapacity");
        }
        if o.price_e6 > self.limits.price_e6_max {
            return Err("OverPriceCap");
        }
        if prepay > rent_up(o.price_e6, u64::from(self.limits.prepay_max)) || prepay > rent_up(o.price_e6, term) {
            return Err("OverPrepay");
        }
        if self.lease(self.active).is_some_and(|l| l.provider == o.provider) {
            return Err("SameOwner");
        }
        self.spend(prepay)?;
        self.offers[index].used += 1;
        let id = u64::try_from(self.leases.len()).expect("small") + 1;
        self.leases.push(Lease {
            id,
            offer: index,
            provider: o.provider,
            price_e6: o.price_e6,
            term,
            ready_by: self.now + u64::from(self.timers.ready_within),
            start: 0,
            end: 0,
            vouched_at: 0,
            escrow: prepay,
            withdrawn: 0,
            open: true,
            ready_at: self.now + delay,
        });
        self.standby = id;
        self.emit(ChainEventKind::Rented { lease: id, prepay: Usdc(prepay) });
        Ok(())
    }

    fn top_up(&mut self, id: u64, amount: u128) -> Result<(), &'static str> {
        if self.stage != Stage::Alive || self.restoring {
            return Err("WrongStage");
        }
        if self.paused {
            return Err("IsPaused");
        }
        if id == 0 || ![self.active, self.standby, self.draining].contains(&id) {
            return Err("NotOurLease");
        }
        let l = self.lease(id).cloned().ok_or("NotOurLease")?;
        if !l.open {
            return Err("NotReady");
        }
        if self.escrow_left(id) + amount > rent_up(l.price_e6, u64::from(self.limits.prepay_max)) {
            return Err("OverPrepay");
        }
        if l.escrow + amount > rent_up(l.price_e6, l.term) {
            return Err("OverEscrow");
        }
        self.spend(amount)?;
        self.lease_mut(id).escrow += amount;
        self.emit(ChainEventKind::ToppedUp { lease: id, amount: Usdc(amount) });
        Ok(())
    }

    fn release(&mut self, id: u64) -> Result<(), &'static str> {
        if id != 0 && id == self.standby {
            self.clear_standby();
        } else if id != 0 && id == self.draining {
            self.draining = 0;
        } else {
            return Err("NotOurLease");
        }
        self.end(id);
        Ok(())
    }

    fn clear_standby(&mut self) {
        (self.standby, self.announced, self.announced_at) = (0, 0, 0);
    }

    fn handover(&mut self, id: u64, valid_until: u64) -> Result<(), &'static str> {
        if self.stage != Stage::Alive || self.restoring {
            return Err("WrongStage");
        }
        if id == 0 || id != self.announced || id != self.standby || !self.is_ready(id) {
            return Err("NotAnnounced");
        }
        if self.now < self.announced_at + u64::from(self.timers.handover_notice) {
            return Err("TooEarly");
        }
        if self.now > valid_until {
            return Err("TooLate");
        }
        let drained = self.draining;
        (self.draining, self.active) = (self.active, id);
        self.clear_standby();
        self.succeed();
        self.end(drained);
        Ok(())
    }

    fn succeed(&mut self) {
        self.epoch += 1;
        (self.last_heartbeat, self.challenged_at) = (self.now, 0);
    }

    /// The standby's node after an unanswered challenge.
    pub fn takeover(&mut self) {
        let (old, drained) = (self.active, self.draining);
        (self.active, self.draining) = (self.standby, 0);
        self.clear_standby();
        self.succeed();
        self.restoring = true;
        self.end(old);
        self.end(drained);
    }

    fn hibernate(&mut self, until: u64) -> Result<(), &'static str> {
        if self.stage != Stage::Alive || self.restoring {
            return Err("WrongStage");
        }
        if self.paused {
            return Err("IsPaused");
        }
        if until <= self.now || until > self.mandate_until {
            return Err("TooEarlyOrLate");
        }
        let leases = [self.active, self.standby, self.draining];
        self.clear_standby();
        (self.active, self.draining, self.asleep) = (0, 0, true);
        self.succeed();
        leases.into_iter().filter(|id| *id != 0).for_each(|id| self.end(id));
        Ok(())
    }

    /// The quorum's, on the first offer, whose provider makes it ready in the next block; then its node takes over.
    pub fn rescue(&mut self) {
        let offer = self.offers[0].clone();
        let prepay = rent_up(offer.price_e6, u64::from(self.limits.prepay_max));
        self.rent(0, u64::from(self.limits.term_max), prepay, 0).expect("it was funded");
        self.begin_block();
        self.takeover();
        self.asleep = false;
    }

    fn refund(&mut self, payment: Payment, amount: u128) -> Result<(), &'static str> {
        if self.paused {
            return Err("IsPaused");
        }
        if self.stage != Stage::Alive && self.stage != Stage::WindingDown {
            return Err("WrongStage");
        }
        let (paid, back) = self.payments.get(&payment).copied().ok_or("OverRecorded")?;
        if back + amount > paid {
            return Err("OverRecorded");
        }
        if self.stage == Stage::Alive {
            self.spend(amount)?;
        } else if amount > self.balance {
            return Err("NoMoney");
        } else {
            self.balance -= amount;
        }
        self.payments.insert(payment, (paid, back + amount));
        self.emit(ChainEventKind::ExactRefunded { payer: payment.0, nonce: payment.1, amount: Usdc(amount) });
        Ok(())
    }

    fn wind_down(&mut self) -> Result<(), &'static str> {
        let starved = self.funds() < self.limits.starve_floor.0 && !self.paused && !self.restoring;
        match self.stage {
            Stage::Stopped => {}
            Stage::Alive if self.now > self.mandate_until || starved => {}
            Stage::Alive => return Err("NotStarved"),
            _ => return Err("WrongStage"),
        }
        (self.stage, self.wind_down_at, self.challenged_at) = (Stage::WindingDown, self.now, 0);
        let standby = self.standby;
        self.clear_standby();
        self.end(standby);
        Ok(())
    }

    /// Pays what accrued to the provider, the rest back.
    fn end(&mut self, id: u64) {
        let Some(l) = self.lease(id).filter(|l| l.open).cloned() else { return };
        let earned = self.accrued(&l);
        let (paid, refund) = (earned - l.withdrawn, l.escrow - earned);
        let lease = self.lease_mut(id);
        (lease.open, lease.withdrawn) = (false, earned);
        self.offers[l.offer].used -= 1;
        if l.start != 0 {
            self.offers[l.offer].served += 1;
        } else if self.now > l.ready_by {
            self.offers[l.offer].failed += 1;
        }
        self.rent_paid += paid;
        self.balance += refund;
        if paid > 0 {
            self.emit(ChainEventKind::RentPaid { lease: id, amount: Usdc(paid) });
        }
        self.emit(ChainEventKind::LeaseClosed { lease: id, rent_total: Usdc(earned), refund: Usdc(refund) });
    }

    /// A provider takes what it earned, as daemons do now and then.
    pub fn withdraw(&mut self, id: u64) {
        let Some(l) = self.lease(id).filter(|l| l.open && l.start != 0).cloned() else { return };
        let paid = self.accrued(&l) - l.withdrawn;
        if paid > 0 {
            self.lease_mut(id).withdrawn += paid;
            self.rent_paid += paid;
            self.emit(ChainEventKind::RentPaid { lease: id, amount: Usdc(paid) });
        }
    }
}

pub fn rent_up(price_e6: u64, secs: u64) -> u128 {
    (u128::from(price_e6) * u128::from(secs)).div_ceil(1_000_000)
}
