use super::{DayLimit, LeaseState, Market, Refusal, Token, refuse_if};
use crate::input::{ChainEventKind, Stage};
use crate::money::{Address, Usdc};
use crate::policy::Limits;
use crate::timers::Timers;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nobody's account.
const NOBODY: Address = [0; 20];

/// What birth fixes; a quorum may lower the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub creator: Address,
    pub beneficiary: Address,
    pub stewards: BTreeSet<Address>,
    pub timers: Timers,
    /// Micro-USDC committed in any day.
    pub day_limit: u128,
    /// Micro-USDC x 1e-6 per second.
    pub price_e6_max: u64,
    /// Seconds.
    pub term_max: u32,
    /// Seconds of rent in escrow ahead of now.
    pub prepay_max: u32,
    /// Micro-USDC; balance + escrow under it: starved.
    pub starve_floor: u128,
    pub mandate_until: u64,
}

/// A payment that was settled, and how much of it went back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Payment {
    amount: u128,
    refunded: u128,
}

/// One agent's treasury, on one market. Leases are ids, 0 for none; times are chain seconds, 0 for never.
///
/// Each entry takes the time and who calls; a quorum's orders take no caller, as if k stewards had signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Treasury {
    /// Its own account.
    pub at: Address,
    terms: Arc<Terms>,
    pub stage: Stage,
    pub paused: bool,
    pub restoring: bool,
    pub refunds_open: bool,
    /// The standby came by `rescue`: its node key needs no challenge.
    rescued: bool,
    born_at: u64,
    pub epoch: u64,
    /// [0; 20]: nobody.
    pub operator: Address,
    pub active: u64,
    pub standby: u64,
    pub draining: u64,
    pub announced: u64,
    pub announced_at: u64,
    pub checkpoint_seq: u64,
    pub last_heartbeat: u64,
    pub challenged_at: u64,
    pub last_challenge_at: u64,
    pub taken_over_at: u64,
    pub wind_down_at: u64,
    pub hibernate_until: u64,
    pub starve_notice_at: u64,
    spent: DayLimit,
    payments: Arc<BTreeMap<(Address, [u8; 32]), Payment>>,
    barred: Arc<BTreeSet<Address>>,
    was_operator: Arc<BTreeSet<Address>>,
    pub token: Token,
    pub market: Market,
    /// What its own events told since somebody listened, in order with the market's of its leases.
    pub told: Vec<ChainEventKind>,
}

impl Treasury {
    /// Created at `now`, with nothing.
    pub fn new(at: Address, terms: Terms, now: u64, token: Token, market: Market) -> Self {
        Self {
            at,
            terms: Arc::new(terms),
            stage: Stage::Unborn,
            paused: false,
            restoring: false,
            refunds_open: false,
            rescued: false,
            born_at: now,
            epoch: 0,
            operator: NOBODY,
            active: 0,
            standby: 0,
            draining: 0,
            announced: 0,
            announced_at: 0,
            checkpoint_seq: 0,
            last_heartbeat: 0,
            challenged_at: 0,
            last_challenge_at: 0,
            taken_over_at: 0,
            wind_down_at: 0,
            hibernate_until: 0,
            starve_notice_at: 0,
            spent: DayLimit::default(),
            payments: Arc::default(),
            barred: Arc::default(),
            was_operator: Arc::default(),
            token,
            market,
            told: Vec::new(),
        }
    }

    // ---- reading ----

    pub fn balance(&self) -> u128 {
        self.token.of(self.at)
    }

    /// Escrow less accrued rent, all open leases.
    pub fn escrow(&self, now: u64) -> u128 {
        self.slots().into_iter().map(|lease| self.escrow_left(now, lease)).sum()
    }

    /// The same of one lease.
    pub fn escrow_left(&self, now: u64, lease: u64) -> u128 {
        let open = self.market.lease(lease).filter(|l| l.is_open());
        open.map_or(0, |l| l.escrow - self.market.accrued_up(now, l))
    }

    /// Of the day limit, micro-USDC.
    pub fn spent_in_day(&self, now: u64) -> u128 {
        self.spent.spent(now, self.terms.timers.day)
    }

    pub fn is_barred(&self, provider: Address) -> bool {
        self.barred.contains(&provider)
    }

    /// (amount, refunded) of a payment, micro-USDC.
    pub fn recorded(&self, payer: Address, nonce: [u8; 32]) -> (u128, u128) {
        let payment = self.payments.get(&(payer, nonce)).copied().unwrap_or_default();
        (payment.amount, payment.refunded)
    }

    fn slots(&self) -> [u64; 3] {
        [self.active, self.standby, self.draining]
    }

    // ---- birth ----

    pub fn birth_rent(&mut self, now: u64, who: Address, bargain: (u64, u32, u128)) -> Result<u64, Refusal> {
        self.entry(|t| {
            t.only(Stage::Unborn)?;
            refuse_if(who != t.terms.creator, Refusal::NotCreator)?;
            refuse_if(t.active != 0, Refusal::SlotTaken)?;
            t.active = t.rent_by_policy(now, bargain)?;
            Ok(t.active)
        })
    }

    pub fn activate(&mut self, now: u64, who: Address, lease: u64) -> Result<(), Refusal> {
        self.entry(|t| {
            t.only(Stage::Unborn)?;
            refuse_if(who != t.terms.creator, Refusal::NotCreator)?;
            refuse_if(lease == 0 || lease != t.active, Refusal::NotOurLease)?;
            refuse_if(now > t.born_at + u64::from(t.terms.timers.activate_within), Refusal::TooLate)?;
            let node_key = t.ready_key(now, lease)?;
            t.stage = Stage::Alive;
            t.succeed(now, node_key)?;
            t.told.push(ChainEventKind::Activated { lease });
            Ok(())
        })
    }

    // ---- rent ----

    /// The standby.
    pub fn rent(&mut self, now: u64, who: Address, bargain: (u64, u32, u128)) -> Result<u64, Refusal> {
        self.entry(|t| {
            t.spending(who)?;
            refuse_if(t.standby != 0, Refusal::SlotTaken)?;
            t.spend(now, bargain.2)?;
            let host = t.market.lease(t.active).map_or(NOBODY, |l| l.provider);
            let provider = t.market.offer(bargain.0).map_or(NOBODY, |o| o.provider);
            refuse_if(provider == host, Refusal::SameOwner)?;
            t.standby = t.rent_by_policy(now, bargain)?;
            Ok(t.standby)
        })
    }

    pub fn top_up(&mut self, now: u64, who: Address, lease: u64, amount: u128) -> Result<(), Refusal> {
        self.entry(|t| {
            t.spending(who)?;
            refuse_if(lease == 0 || !t.slots().contains(&lease), Refusal::NotOurLease)?;
            let l = t.market.lease(lease).filter(|l| l.is_open()).ok_or(Refusal::NotReady)?;
            let ahead = (l.escrow - t.market.accrued_up(now, l)).saturating_add(amount);
            refuse_if(ahead > t.prepay_max_up(l.price_e6), Refusal::OverPrepay)?;
            t.spend(now, amount)?;
            let at = t.at;
            t.market.top_up(&mut t.token, at, lease, amount)?;
            t.told.push(ChainEventKind::ToppedUp { lease, amount: Usdc(amount) });
            Ok(())
        })
    }

    pub fn release(&mut self, now: u64, who: Address, lease: u64) -> Result<(), Refusal> {
        self.entry(|t| {
            t.operating(who)?;
            refuse_if(t.restoring, Refusal::IsRestoring)?;
            if lease != 0 && lease == t.standby {
                t.clear_standby();
            } else if lease != 0 && lease == t.draining {
                t.draining = 0;
            } else if lease != 0 && lease == t.active && t.stage == Stage::WindingDown {
                t.active = 0;
            } else {
                return Err(Refusal::NotOurLease);
            }
            t.close_lease(now, lease)
        })
    }

    // ---- life ----

    pub fn heartbeat(&mut self, now: u64, who: Address, standby_answered: bool) -> Result<(), Refusal> {
        self.entry(|t| {
            t.operating(who)?;
            t.challenged_at = 0;
            if t.restoring {
                return Ok(());
            }
            t.heard(now);
            let standby = if standby_answered { t.standby } else { 0 };
            for lease in [t.active, t.draining, standby].into_iter().filter(|lease| *lease != 0) {
                t.market.vouch(now, t.at, lease)?;
            }
            Ok(())
        })
    }

    /// With k acknowledgements.
    pub fn commit(&mut self, who: Address, seq: u64) -> Result<(), Refusal> {
        self.entry(|t| {
            t.operating(who)?;
            refuse_if(seq != t.checkpoint_seq + 1, Refusal::BadSequence)?;
            (t.checkpoint_seq, t.restoring) = (seq, false);
            Ok(())
        })
    }

    pub fn announce(&mut self, now: u64, who: Address, lease: u64) -> Result<(), Refusal> {
        self.entry(|t| {
            t.moving(who)?;
            refuse_if(lease == 0 || lease != t.standby, Refusal::NotOurLease)?;
            t.ready_key(now, lease)?;
            (t.announced, t.announced_at) = (lease, now);
            Ok(())
        })
    }

    pub fn handover(&mut self, now: u64, who: Address, lease: u64, seq: u64, valid_until: u64) -> Result<(), Refusal> {
        self.entry(|t| {
            t.moving(who)?;
            refuse_if(lease == 0 || lease != t.announced || lease != t.standby, Refusal::NotAnnounced)?;
            refuse_if(now < t.announced_at + u64::from(t.terms.timers.handover_notice), Refusal::TooEarly)?;
            refuse_if(now > valid_until, Refusal::TooLate)?;
            refuse_if(seq != t.checkpoint_seq, Refusal::BadSequence)?;
            let node_key = t.ready_key(now, lease)?;
            let drained = t.draining;
            (t.draining, t.active) = (t.active, lease);
            t.clear_standby();
            t.succeed(now, node_key)?;
            t.close_lease(now, drained)
        })
    }

    pub fn hibernate(&mut self, now: u64, who: Address, until: u64) -> Result<(), Refusal> {
        self.entry(|t| {
            t.spending(who)?;
            refuse_if(until <= now, Refusal::TooEarly)?;
            refuse_if(until > t.terms.mandate_until, Refusal::TooLate)?;
            let leases = t.take_leases();
            t.succeed(now, NOBODY)?;
            t.hibernate_until = until;
            leases.into_iter().try_for_each(|lease| t.close_lease(now, lease))
        })
    }

    // ---- when the operator is silent ----

    pub fn challenge(&mut self, now: u64, who: Address) -> Result<(), Refusal> {
        self.entry(|t| {
            t.only(Stage::Alive)?;
            if !t.terms.stewards.contains(&who) {
                refuse_if(t.standby == 0 || who != t.ready_key(now, t.standby)?, Refusal::NotSteward)?;
            }
            let next = t.last_challenge_at + u64::from(t.terms.timers.answer_time);
            let too_early = t.challenged_at != 0 || (t.last_challenge_at != 0 && now < next);
            refuse_if(too_early, Refusal::TooEarly)?;
            (t.challenged_at, t.last_challenge_at) = (now, now);
            Ok(())
        })
    }

    pub fn takeover(&mut self, now: u64, who: Address) -> Result<(), Refusal> {
        self.entry(|t| {
            t.only(Stage::Alive)?;
            refuse_if(t.standby == 0 || who != t.ready_key(now, t.standby)?, Refusal::NotNodeKey)?;
            if !t.rescued {
                refuse_if(t.challenged_at == 0, Refusal::NotChallenged)?;
                refuse_if(now <= t.challenged_at + u64::from(t.terms.timers.answer_time), Refusal::TooEarly)?;
            }
            let (lease, old, drained) = (t.standby, t.active, t.draining);
            (t.active, t.draining) = (lease, 0);
            t.clear_standby();
            t.succeed(now, who)?;
            (t.restoring, t.taken_over_at) = (true, now);
            t.close_lease(now, old)?;
            t.close_lease(now, drained)
        })
    }

    // ---- income ----

    /// A payment that `payer` authorised, settled by anyone.
    pub fn settle_exact(&mut self, payer: Address, nonce: [u8; 32], amount: u128) -> Result<(), Refusal> {
        self.entry(|t| {
            t.living()?;
            refuse_if(amount == 0, Refusal::ZeroAmount)?;
            t.token.authorised(payer, t.at, amount, nonce)?;
            Arc::make_mut(&mut t.payments).insert((payer, nonce), Payment { amount, refunded: 0 });
            t.told.push(ChainEventKind::ExactSettled { payer, nonce, amount: Usdc(amount) });
            Ok(())
        })
    }

    pub fn refund_exact(
        &mut self,
        now: u64,
        who: Address,
        payer: Address,
        nonce: [u8; 32],
        amount: u128,
    ) -> Result<(), Refusal> {
        self.entry(|t| {
            refuse_if(who != t.operator, Refusal::NotOperator)?;
            refuse_if(t.restoring, Refusal::IsRestoring)?;
            refuse_if(t.paused && !t.refunds_open, Refusal::IsPaused)?;
            refuse_if(!matches!(t.stage, Stage::Alive | Stage::WindingDown), Refusal::WrongStage)?;
            refuse_if(amount == 0, Refusal::ZeroAmount)?;
            let (paid, refunded) = t.recorded(payer, nonce);
            refuse_if(amount > paid - refunded, Refusal::OverRecorded)?;
            if t.stage == Stage::Alive {
                t.spend(now, amount)?;
            }
            Arc::make_mut(&mut t.payments)
                .insert((payer, nonce), Payment { amount: paid, refunded: refunded + amount });
            t.token.transfer(t.at, payer, amount)?;
            t.told.push(ChainEventKind::ExactRefunded { payer, nonce, amount: Usdc(amount) });
            Ok(())
        })
    }

    /// Money that nobody announced: the seed before `activate`, a gift after it.
    pub fn gift(&mut self, from: Address, amount: u128) {
        self.token.mint(self.at, amount);
        self.told.push(ChainEventKind::TransferIn { from, amount: Usdc(amount) });
    }

    // ---- a quorum's orders ----

    pub fn pause(&mut self) -> Result<(), Refusal> {
        self.entry(|t| {
            t.living()?;
            refuse_if(t.paused, Refusal::IsPaused)?;
            t.paused = true;
            Ok(())
        })
    }

    /// Lowers what may be spent; the limits for gas are not of this model.
    pub fn tighten(&mut self, to: &Limits) -> Result<(), Refusal> {
        self.entry(|t| {
            t.living()?;
            let now = &t.terms;
            refuse_if(to.term_max == 0 || to.term_max > 30 * now.timers.day, Refusal::OverTerm)?;
            refuse_if(to.day_limit.is_zero() || to.price_e6_max == 0 || to.prepay_max == 0, Refusal::BadPolicy)?;
            let below = to.day_limit.0 <= now.day_limit
                && to.price_e6_max <= now.price_e6_max
                && to.term_max <= now.term_max
                && to.prepay_max <= now.prepay_max;
            refuse_if(!below || to.starve_floor.0 != now.starve_floor, Refusal::BadPolicy)?;
            let terms = Arc::make_mut(&mut t.terms);
            (terms.day_limit, terms.price_e6_max) = (to.day_limit.0, to.price_e6_max);
            (terms.term_max, terms.prepay_max) = (to.term_max, to.prepay_max);
            Ok(())
        })
    }

    pub fn resume(&mut self) -> Result<(), Refusal> {
        self.entry(|t| {
            t.living()?;
            refuse_if(!t.paused, Refusal::NotPaused)?;
            (t.paused, t.refunds_open) = (false, false);
            Ok(())
        })
    }

    pub fn stop(&mut self) -> Result<(), Refusal> {
        self.entry(|t| {
            t.only(Stage::Alive)?;
            t.stage = Stage::Stopped;
            Ok(())
        })
    }

    pub fn open_refunds(&mut self) -> Result<(), Refusal> {
        self.entry(|t| {
            t.living()?;
            t.refunds_open = true;
            Ok(())
        })
    }

    pub fn evict(&mut self, now: u64, keep: u64) -> Result<(), Refusal> {
        self.entry(|t| {
            t.living()?;
            refuse_if(keep != 0 && keep != t.active && keep != t.standby, Refusal::NotOurLease)?;
            let node_key = if keep == 0 { NOBODY } else { t.ready_key(now, keep)? };
            let spared = t.market.lease(keep).map(|l| l.provider);
            // A standby with the operator's key is another host: it must show that it has the memory.
            let same = keep != 0 && keep == t.active && node_key == t.operator;
            let leases = t.take_leases();
            let was_restoring = t.restoring;
            t.active = keep;
            if same {
                Arc::make_mut(&mut t.was_operator).remove(&node_key);
            }
            t.succeed(now, node_key)?;
            if keep != 0 && (!same || was_restoring) {
                (t.restoring, t.taken_over_at) = (true, now);
            }
            for lease in leases.into_iter().filter(|lease| *lease != 0 && *lease != keep) {
                let provider = t.market.lease(lease).map(|l| l.provider);
                Arc::make_mut(&mut t.barred).extend(provider.filter(|provider| Some(*provider) != spared));
                t.close_lease(now, lease)?;
            }
            Ok(())
        })
    }

    pub fn clear_bar(&mut self, provider: Address) -> Result<(), Refusal> {
        self.entry(|t| {
            t.living()?;
            Arc::make_mut(&mut t.barred).remove(&provider);
            Ok(())
        })
    }

    pub fn rescue(&mut self, now: u64, bargain: (u64, u32, u128)) -> Result<u64, Refusal> {
        self.entry(|t| {
            t.only(Stage::Alive)?;
            let stuck = t.restoring && now > t.taken_over_at + u64::from(t.terms.timers.restore_timeout);
            let silent = t.is_silent_for(now, t.terms.timers.silence);
            refuse_if(t.operator != NOBODY && !stuck && !silent, Refusal::TooEarly)?;
            let replaced = t.standby;
            t.clear_standby();
            (t.hibernate_until, t.starve_notice_at) = (0, 0);
            t.spend(now, bargain.2)?;
            t.close_lease(now, replaced)?;
            t.standby = t.rent_by_policy(now, bargain)?;
            t.rescued = true;
            Ok(t.standby)
        })
    }

    // ---- the end ----

    pub fn wind_down(&mut self, now: u64, who: Address) -> Result<(), Refusal> {
        self.entry(|t| {
            let Some(starved) = t.is_ending(now, who) else {
                t.only(Stage::Alive)?;
                refuse_if(t.starve_notice_at == 0, Refusal::NotStarved)?;
                t.starve_notice_at = 0;
                return Ok(());
            };
            if starved && who != t.operator {
                if t.starve_notice_at == 0 {
                    t.starve_notice_at = now;
                    return Ok(());
                }
                let from = t.starve_notice_at + u64::from(t.terms.timers.silence);
                refuse_if(now < from, Refusal::TooEarly)?;
            }
            let standby = t.standby;
            (t.stage, t.wind_down_at, t.challenged_at) = (Stage::WindingDown, now, 0);
            t.clear_standby();
            t.close_lease(now, standby)
        })
    }

    pub fn close(&mut self, now: u64) -> Result<(), Refusal> {
        self.entry(|t| {
            t.only(Stage::WindingDown)?;
            refuse_if(now < t.wind_down_at + u64::from(t.terms.timers.refund_window), Refusal::TooEarly)?;
            (t.stage, t.operator) = (Stage::Closed, NOBODY);
            t.take_leases().into_iter().try_for_each(|lease| t.close_lease(now, lease))
        })
    }

    pub fn withdraw(&mut self, who: Address) -> Result<(), Refusal> {
        self.entry(|t| {
            t.only(Stage::Closed)?;
            refuse_if(who != t.terms.beneficiary, Refusal::NotBeneficiary)?;
            let amount = t.balance();
            t.token.transfer(t.at, who, amount)?;
            t.told.push(ChainEventKind::Withdrawn { amount: Usdc(amount) });
            Ok(())
        })
    }

    // ---- inside: who and when ----

    /// All or nothing, and what the market told of our leases comes in its place.
    fn entry<R>(&mut self, body: impl FnOnce(&mut Self) -> Result<R, Refusal>) -> Result<R, Refusal> {
        let before = self.clone();
        let done = body(self);
        match done {
            Ok(_) => self.listen(),
            Err(_) => *self = before,
        }
        done
    }

    /// Takes what the market told of our leases into our own events.
    pub fn listen(&mut self) {
        let (at, told) = (self.at, std::mem::take(&mut self.market.told));
        self.told.extend(told.into_iter().filter(|(tenant, _)| *tenant == at).map(|(_, kind)| kind));
    }

    fn only(&self, stage: Stage) -> Result<(), Refusal> {
        refuse_if(self.stage != stage, Refusal::WrongStage)
    }

    fn living(&self) -> Result<(), Refusal> {
        refuse_if(matches!(self.stage, Stage::Unborn | Stage::Closed), Refusal::WrongStage)
    }

    fn operating(&self, who: Address) -> Result<(), Refusal> {
        refuse_if(who != self.operator, Refusal::NotOperator)?;
        self.living()
    }

    fn moving(&self, who: Address) -> Result<(), Refusal> {
        refuse_if(who != self.operator, Refusal::NotOperator)?;
        self.only(Stage::Alive)?;
        refuse_if(self.restoring, Refusal::IsRestoring)
    }

    fn spending(&self, who: Address) -> Result<(), Refusal> {
        refuse_if(who != self.operator, Refusal::NotOperator)?;
        self.only(Stage::Alive)?;
        refuse_if(self.paused, Refusal::IsPaused)?;
        refuse_if(self.restoring, Refusal::IsRestoring)
    }

    fn is_silent_for(&self, now: u64, time: u32) -> bool {
        now > self.last_heartbeat + u64::from(time)
    }

    /// Whether `windDown` finds a reason, and whether it is that of a starved one, who gets a notice first.
    fn is_ending(&self, now: u64, who: Address) -> Option<bool> {
        if self.stage == Stage::Stopped {
            return Some(false);
        }
        if self.stage != Stage::Alive {
            return None;
        }
        if now > self.terms.mandate_until {
            return Some(false);
        }
        let own = who == self.operator && !self.paused && !self.restoring;
        let awake = now > self.hibernate_until && (own || self.is_silent_for(now, self.terms.timers.starve_timeout));
        let poor = self.balance() + self.escrow(now) < self.terms.starve_floor;
        (awake && poor).then_some(true)
    }

    // ---- inside: leases and succession ----

    /// Everything that policy asks of a new lease, but the day limit.
    fn rent_by_policy(&mut self, now: u64, bargain: (u64, u32, u128)) -> Result<u64, Refusal> {
        let (offer, term, prepay) = bargain;
        let (provider, price_e6) = self.market.offer(offer).map_or((NOBODY, 0), |o| (o.provider, o.price_e6));
        refuse_if(self.is_barred(provider), Refusal::Barred)?;
        refuse_if(price_e6 > self.terms.price_e6_max, Refusal::OverPriceCap)?;
        refuse_if(term > self.terms.term_max, Refusal::OverTerm)?;
        refuse_if(prepay > self.prepay_max_up(price_e6), Refusal::OverPrepay)?;
        self.market.rent(now, &mut self.token, self.at, bargain)
    }

    fn prepay_max_up(&self, price_e6: u64) -> u128 {
        Usdc::rent_up(price_e6, u64::from(self.terms.prepay_max)).0
    }

    fn ready_key(&self, now: u64, lease: u64) -> Result<Address, Refusal> {
        let ready = self.market.lease(lease).filter(|l| l.state == LeaseState::Ready && now < l.end);
        ready.map(|l| l.node_key).ok_or(Refusal::NotReady)
    }

    /// In whatever state it is; one that is closed already is passed over.
    fn close_lease(&mut self, now: u64, lease: u64) -> Result<(), Refusal> {
        if !self.market.lease(lease).is_some_and(|l| l.is_open()) {
            return Ok(());
        }
        self.market.close(now, &mut self.token, self.at, lease).map(drop)
    }

    fn take_leases(&mut self) -> [u64; 3] {
        let leases = self.slots();
        (self.active, self.draining) = (0, 0);
        self.clear_standby();
        leases
    }

    fn clear_standby(&mut self) {
        (self.standby, self.rescued, self.announced, self.announced_at) = (0, false, 0, 0);
    }

    /// A key serves one epoch only.
    fn succeed(&mut self, now: u64, operator: Address) -> Result<(), Refusal> {
        if operator != NOBODY {
            refuse_if(!Arc::make_mut(&mut self.was_operator).insert(operator), Refusal::KeyUsed)?;
            self.hibernate_until = 0;
        }
        self.epoch += 1;
        (self.operator, self.restoring, self.challenged_at) = (operator, false, 0);
        self.heard(now);
        Ok(())
    }

    fn heard(&mut self, now: u64) {
        (self.last_heartbeat, self.starve_notice_at) = (now, 0);
    }

    // ---- inside: money ----

    /// Counts a gross commitment. What comes back later never makes room again.
    fn spend(&mut self, now: u64, amount: u128) -> Result<(), Refusal> {
        let left = self.terms.day_limit.saturating_sub(self.spent_in_day(now));
        refuse_if(amount > left, Refusal::OverDayLimit)?;
        self.spent.add(now, self.terms.timers.day, amount);
        Ok(())
    }
}
