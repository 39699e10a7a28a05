//! Where the agent lives: one active host, always one standby of another owner, and the move between them.
//!
//! Leases leapfrog. Each is standby first and active later, so at a move it has already used part of its term. A move
//! is due at 60 % of the active lease's term, and a standby is fit for it when 60 % of its own term is still left.
//! A standby rented right after a move has used, at the next one, what the active lease had left until its 60 %: with
//! equal terms the two settle around 30 % each. Only the first standby of a life is as old as its active lease; it is
//! replaced halfway. So a standby is always young enough to carry on after a takeover, too.

use crate::input::{LeaseView, OfferView, Stage, View};
use crate::money::{Address, Usdc};
use crate::note::{Level, MoveWaits, NoHost, Note, StandbyGone};
use crate::output::{Output, Task};
use crate::timers::{MOVE_ATTEMPTS, MOVE_BLOCKS, RENEW_PCT};
use crate::{Agent, Turn};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeMap;

/// Calls served that a newcomer is credited with when records are compared. A guess.
const TRUST: u128 = 4;
/// Providers whose measured throughput is remembered.
const HOSTS_KEPT: usize = 64;
/// A standby too old for the next move is replaced this share of the active term before it, percent.
const REFRESH_LEAD_PCT: u64 = 30;
/// Committing before a handover may take this much longer than the notice; then the move goes on without: the last
/// acknowledged checkpoint serves, and missing acknowledgements never delay a planned move.
const CHECKPOINT_BLOCKS: u64 = 10;
/// A move is announced, and then made, only to a standby whose last word is no older than so many blocks and says that it is
/// able: it is asked about once a second. A guess, unmeasured.
const ABLE_BLOCKS: u64 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Standby {
    lease: u64,
    seen_at: u64,
    ready_at: Option<u64>,
    /// When its node last said that it is able to lead.
    answered_at: Option<u64>,
    /// Its last word said so.
    is_able: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Penalty {
    fails: u32,
    until: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) struct Hosting {
    standby: Option<Standby>,
    /// Silence counts from here at the earliest: a node that just began has asked nobody yet.
    listening_since: u64,
    draining: Option<(u64, u64)>,
    penalties: BTreeMap<Address, Penalty>,
    /// Measured tokens x 1e-3 per second.
    throughput: BTreeMap<Address, u64>,
    no_host: Option<NoHost>,
    waits: Option<MoveWaits>,
    moving_to: Option<u64>,
}

impl Hosting {
    pub fn listen_from(&mut self, now: u64) {
        self.listening_since = now;
    }

    pub fn answered(&mut self, lease: u64, ready: bool, now: u64) {
        let Some(standby) = self.standby.as_mut().filter(|s| s.lease == lease) else { return };
        standby.is_able = ready;
        if ready {
            standby.answered_at = Some(now);
        }
    }

    pub fn measured(&mut self, provider: Address, milli_tokens_per_sec: u64) {
        self.throughput.insert(provider, milli_tokens_per_sec.max(1));
        while self.throughput.len() > HOSTS_KEPT {
            self.throughput.pop_first();
        }
    }

    /// Not rented from until some time has passed, longer with each failure in a row.
    pub fn penalise(&mut self, provider: Address, now: u64, first: u64, longest: u64) {
        let penalty = self.penalties.entry(provider).or_default();
        penalty.until = now.saturating_add(first.saturating_mul(1 << penalty.fails.min(20)).min(longest));
        penalty.fails = penalty.fails.saturating_add(1);
    }

    /// Whether the standby answered within so many seconds.
    fn recent(&self, lease: u64, now: u64, within: u64) -> bool {
        let answered = self.standby.filter(|s| s.lease == lease).and_then(|s| s.answered_at);
        answered.is_some_and(|at| now <= at.saturating_add(within))
    }

    /// What keeps a move to this standby waiting.
    fn unable(&self, lease: u64, now: u64, within: u64) -> Option<MoveWaits> {
        match self.standby.filter(|s| s.lease == lease) {
            _ if !self.recent(lease, now, within) => Some(MoveWaits::Silent),
            Some(standby) if !standby.is_able => Some(MoveWaits::Unable),
            _ => None,
        }
    }
}

/// When the lease's host should be left.
pub(crate) fn renewal_at(lease: &LeaseView) -> u64 {
    lease.start + lease.end.saturating_sub(lease.start) * u64::from(RENEW_PCT) / 100
}

/// Share of the term left at `at`, percent, rounded down.
fn left_pct(lease: &LeaseView, at: u64) -> u64 {
    lease.end.saturating_sub(at) * 100 / lease.end.saturating_sub(lease.start).max(1)
}

impl Agent {
    /// Whether the standby's node answered within the fence: a heartbeat then vouches for its rent. One that has been silent
    /// for longer would have stopped itself.
    pub(crate) fn standby_answered(&self, view: &View, now: u64) -> bool {
        let fence = u64::from(self.genesis.timers.fence);
        view.standby.as_ref().is_some_and(|s| s.ready && self.hosting.recent(s.id, now, fence))
    }

    /// Everything about hosts but their rent. `spend`: money may leave.
    pub(crate) fn host(&mut self, view: &View, spend: bool, turn: &mut Turn) {
        self.watch_standby(view, turn);
        self.drain(view, turn);
        let Some(active) = view.active.as_ref() else { return };
        if view.stage != Stage::Alive || view.paused || self.life.is_ending() {
            return;
        }
        let due = turn.now >= renewal_at(active);
        match &view.standby {
            None => {
                if self.wants_standby(active, turn.now) {
                    self.rent(view, active, spend, turn);
                }
                if due {
                    self.wait(active, MoveWaits::NoStandby, turn);
                }
            }
            Some(standby) => match self.standby_gone(view, active, standby, spend, turn.now) {
                Some(why) => self.release_standby(standby, why, turn),
                None if due => self.proceed(view, active, standby, turn),
                None => self.hosting.waits = None,
            },
        }
    }

    /// A standby costs as much as it may save: a frugal agent takes one only for a move.
    fn wants_standby(&self, active: &LeaseView, now: u64) -> bool {
        self.life.level() < Level::Frugal || now >= renewal_at(active)
    }

    fn watch_standby(&mut self, view: &View, turn: &mut Turn) {
        let now = turn.now;
        let Some(lease) = &view.standby else {
            self.hosting.standby = None;
            return;
        };
        let mut standby = match self.hosting.standby {
            Some(standby) if standby.lease == lease.id => standby,
            _ => Standby { lease: lease.id, seen_at: now, ready_at: None, answered_at: None, is_able: false },
        };
        if lease.ready && standby.ready_at.is_none() {
            standby.ready_at = Some(now);
            self.hosting.penalties.remove(&lease.provider);
            turn.note(Note::StandbyReady { lease: lease.id, after_secs: now.saturating_sub(standby.seen_at) });
        }
        self.hosting.standby = Some(standby);
    }

    /// The lease left behind is released once its node had time to finish.
    fn drain(&mut self, view: &View, turn: &mut Turn) {
        let Some(draining) = &view.draining else {
            self.hosting.draining = None;
            return;
        };
        let since = match self.hosting.draining {
            Some((lease, since)) if lease == draining.id => since,
            _ => turn.now,
        };
        self.hosting.draining = Some((draining.id, since));
        let finished = turn.now >= since + 2 * u64::from(self.genesis.timers.handover_notice);
        if finished && self.ask(Output::Release { lease: draining.id }, turn) {
            turn.note(Note::DrainOver { lease: draining.id });
        }
    }

    /// Why the standby should be released now, if it should.
    fn standby_gone(
        &self,
        view: &View,
        active: &LeaseView,
        standby: &LeaseView,
        spend: bool,
        now: u64,
    ) -> Option<StandbyGone> {
        if standby.provider == active.provider {
            return Some(StandbyGone::SameOwner);
        }
        if !standby.ready {
            return (now > standby.ready_by).then_some(StandbyGone::NeverReady);
        }
        if standby.end <= now {
            return Some(StandbyGone::Ended);
        }
        let silent = now.saturating_sub(self.heard_at(standby.id));
        if silent > self.silence_max() {
            return Some(StandbyGone::Silent { secs: silent });
        }
        if !self.wants_standby(active, now) {
            return Some(StandbyGone::Hunger);
        }
        let renewal = renewal_at(active);
        let left = left_pct(standby, now.max(renewal));
        let lead = active.end.saturating_sub(active.start) * REFRESH_LEAD_PCT / 100;
        let too_old = left < u64::from(self.genesis.policy.standby_fit_pct) && now + lead >= renewal;
        // Better an old standby than none: time for a fresh one to get ready, money and an offer must be there.
        let can_wait = active.end.saturating_sub(now) > self.replacing_secs(now) || standby.end <= active.end;
        let replaceable =
            || self.choose(view, active, Some(standby), now).is_ok() && self.can_rent(view, active, spend);
        if too_old && can_wait && self.hosting.moving_to != Some(standby.id) && replaceable() {
            // Percentages fit.
            return Some(StandbyGone::TooOld { left_pct: u32::try_from(left).unwrap_or(0) });
        }
        None
    }

    fn heard_at(&self, lease: u64) -> u64 {
        let standby = self.hosting.standby.filter(|s| s.lease == lease);
        let heard = standby.map_or(0, |s| s.answered_at.max(s.ready_at).unwrap_or(s.seen_at));
        heard.max(self.hosting.listening_since)
    }

    /// Seconds without an answer after which a standby is given up: as long as stewards wait for an operator.
    fn silence_max(&self) -> u64 {
        u64::from(self.genesis.timers.silence)
    }

    /// Seconds to rent a fresh standby, wait for it at most as long as it may take lately, and try to move thrice.
    fn replacing_secs(&self, now: u64) -> u64 {
        let timers = &self.genesis.timers;
        let block = u64::from(self.genesis.policy.wishes.block_secs);
        let attempt = u64::from(timers.handover_notice) + u64::from(MOVE_BLOCKS) * block;
        let ready = self.hosting.standby.map_or(0, |s| s.ready_at.unwrap_or(now).saturating_sub(s.seen_at));
        ready + 2 * block + u64::from(MOVE_ATTEMPTS) * attempt
    }

    fn release_standby(&mut self, standby: &LeaseView, why: StandbyGone, turn: &mut Turn) {
        if !self.ask(Output::Release { lease: standby.id }, turn) {
            return;
        }
        if matches!(why, StandbyGone::NeverReady | StandbyGone::Silent { .. }) {
            self.penalise(standby.provider, turn.now);
        }
        self.hosting.moving_to = None;
        turn.note(Note::StandbyGone { lease: standby.id, why });
    }

    pub(crate) fn penalise(&mut self, provider: Address, now: u64) {
        let (timers, wishes) = (&self.genesis.timers, &self.genesis.policy.wishes);
        let first = 5 * u64::from(wishes.block_secs);
        self.hosting.penalise(provider, now, first, (u64::from(timers.day) / 4).max(first));
    }

    // ---- the move ----

    /// Announce, commit while the notice runs, hand over. Each step waits for the view to show the one before.
    fn proceed(&mut self, view: &View, active: &LeaseView, standby: &LeaseView, turn: &mut Turn) {
        let timers = self.genesis.timers;
        if !standby.ready {
            return self.wait(active, MoveWaits::NotReady, turn);
        }
        let block = u64::from(self.genesis.policy.wishes.block_secs);
        if let Some(why) = self.hosting.unable(standby.id, turn.now, ABLE_BLOCKS * block) {
            return self.wait(active, why, turn);
        }
        self.hosting.waits = None;
        if view.announced != standby.id {
            if self.ask(Output::Announce { lease: standby.id }, turn) && self.hosting.moving_to != Some(standby.id) {
                self.hosting.moving_to = Some(standby.id);
                let used = u32::try_from(100 - left_pct(active, turn.now)).unwrap_or(100);
                turn.note(Note::MoveBegins { from: active.id, to: standby.id, used_pct: used });
            }
            return;
        }
        self.hosting.moving_to = Some(standby.id);
        let notice_over = view.announced_at + u64::from(timers.handover_notice);
        let committed = self.checkpoint.at > view.announced_at && !self.flights.busy(Task::Checkpoint);
        let patience_over =
            turn.now >= notice_over + CHECKPOINT_BLOCKS * block || self.flights.fails(Task::Checkpoint) > 1;
        if turn.now >= notice_over && view.checkpoint_seq > 0 && (committed || patience_over) {
            let valid = u64::from(self.genesis.policy.handover_valid_blocks) * block;
            self.ask(Output::Handover { lease: standby.id, valid_until: turn.now + valid }, turn);
        }
    }

    /// Whether a commit is wanted for the move that was announced.
    pub(crate) fn move_needs_checkpoint(&self, view: &View) -> bool {
        let to_standby = view.standby.as_ref().is_some_and(|s| s.id == view.announced);
        to_standby && self.hosting.moving_to == Some(view.announced) && self.checkpoint.at <= view.announced_at
    }

    /// What the WakeAt of this turn must not miss.
    pub(crate) fn hosting_wakes(&self, view: &View, now: u64) -> Vec<u64> {
        let timers = &self.genesis.timers;
        let mut at = Vec::new();
        if let Some(active) = &view.active {
            let renewal = renewal_at(active);
            let lead = active.end.saturating_sub(active.start) * REFRESH_LEAD_PCT / 100;
            at.extend([renewal, renewal.saturating_sub(lead)]);
        }
        if let Some(standby) = &view.standby {
            at.extend([standby.ready_by + 1, standby.end]);
            at.push(self.heard_at(standby.id) + self.silence_max() + 1);
        }
        if view.announced != 0 {
            let notice_over = view.announced_at + u64::from(timers.handover_notice);
            at.push(notice_over);
            let block = u64::from(self.genesis.policy.wishes.block_secs);
            at.push(notice_over + CHECKPOINT_BLOCKS * block);
        }
        at.extend(self.hosting.draining.map(|(_, since)| since + 2 * u64::from(timers.handover_notice)));
        at.extend(self.hosting.penalties.values().map(|p| p.until));
        at.retain(|t| *t > now);
        at
    }

    fn wait(&mut self, active: &LeaseView, why: MoveWaits, turn: &mut Turn) {
        if self.hosting.waits != Some(why) {
            self.hosting.waits = Some(why);
            turn.note(Note::MoveWaits { lease: active.id, why });
        }
    }

    pub(crate) fn moved(&mut self) {
        self.hosting.moving_to = None;
        self.hosting.waits = None;
        self.hosting.no_host = None;
    }

    // ---- renting ----

    fn rent(&mut self, view: &View, active: &LeaseView, spend: bool, turn: &mut Turn) {
        if !spend || !self.flights.may(Task::Rent, turn.now) {
            return;
        }
        let (offer, of) = match self.choose(view, active, None, turn.now) {
            Ok(chosen) => chosen,
            Err(why) => return self.no_host(why, turn),
        };
        let (policy, limits) = (&self.genesis.policy, &view.limits);
        let term = policy.term(limits);
        let secs = u64::from(policy.prepay_secs(limits).min(term));
        let full = Usdc::rent_down(offer.price_e6, secs);
        let half = Usdc::rent_down(offer.price_e6, secs / 2);
        let (day, money) = self.room_beside_active(view, active, turn.now);
        let prepay = full.min(day).min(money);
        if prepay < half {
            return self.no_host(if day < half { NoHost::DayLimit } else { NoHost::Money }, turn);
        }
        let rent = Output::Rent { offer: offer.id, term, prepay };
        let rent_day = Usdc::rent_up(offer.price_e6, u64::from(self.genesis.timers.day));
        let note = Note::ChoseHost {
            offer: offer.id,
            provider: offer.provider,
            rent_day,
            of,
            penalised: offer.failed > 0,
            newcomer: offer.served == 0 && offer.failed == 0,
        };
        if self.ask(rent, turn) {
            self.hosting.no_host = None;
            turn.note(note);
        }
    }

    fn no_host(&mut self, why: NoHost, turn: &mut Turn) {
        if self.hosting.no_host != Some(why) {
            self.hosting.no_host = Some(why);
            turn.note(Note::NoHost { why });
        }
    }

    /// Room for a new commitment in the day limit and in the balance, after what the active host will need today.
    fn room_beside_active(&self, view: &View, active: &LeaseView, now: u64) -> (Usdc, Usdc) {
        let ahead = active.escrow_left.secs_down(active.price_e6);
        let needed_secs = u64::from(self.genesis.timers.day).min(active.end.saturating_sub(now)).saturating_sub(ahead);
        let reserve = Usdc::rent_up(active.price_e6, needed_secs);
        let (day, money) = self.room(view);
        (day.saturating_sub(reserve), money.saturating_sub(reserve))
    }

    /// Of the balance, what the active host's day and the beginning of another lease leave.
    pub(crate) fn beside_hosts(&self, view: &View) -> Usdc {
        let Some(active) = &view.active else { return self.room(view).1 };
        let (_, money) = self.room_beside_active(view, active, view.timestamp);
        money.saturating_sub(self.new_lease_least(view, active))
    }

    fn can_rent(&self, view: &View, active: &LeaseView, spend: bool) -> bool {
        let (day, money) = self.room_beside_active(view, active, view.timestamp);
        spend && day.min(money) >= self.new_lease_least(view, active)
    }

    /// The least that a new lease is begun with, at twice the price of the active one.
    fn new_lease_least(&self, view: &View, active: &LeaseView) -> Usdc {
        let price = view.limits.price_e6_max.min(active.price_e6.saturating_mul(2));
        Usdc::rent_down(price, u64::from(self.genesis.policy.prepay_secs(&view.limits) / 2))
    }

    /// What may go back to customers while alive: (in the day limit, of the balance). The day limit is hosting's first:
    /// up to half of it is left for what the active host will need today and for a standby where there is none, so that
    /// nobody stops an agent by paying in and asking for it back.
    pub fn refund_room(&self, view: &View) -> (Usdc, Usdc) {
        let (day, money) = self.room(view);
        let Some(active) = &view.active else { return (day, money) };
        let (beside, _) = self.room_beside_active(view, active, view.timestamp);
        let standby = if view.standby.is_some() { Usdc::ZERO } else { self.new_lease_least(view, active) };
        let half = Usdc(view.limits.day_limit.0 / 2);
        let reserve = day.saturating_sub(beside).saturating_add(standby).min(half);
        (day.saturating_sub(reserve), money)
    }

    /// Whether a lease of this offer keeps the price cap and the term.
    fn within_limits(&self, view: &View, offer: &OfferView) -> bool {
        let term = self.genesis.policy.term(&view.limits);
        offer.price_e6 <= view.limits.price_e6_max && (offer.min_term..=offer.max_term).contains(&term)
    }

    /// By rent alone, of the offers that a lease may be taken on: free, within the cap, for the term.
    pub(crate) fn cheapest<'v>(&self, view: &'v View, count: usize) -> Vec<&'v OfferView> {
        let fits = |o: &&OfferView| o.free > 0 && self.within_limits(view, o);
        let mut fitting: Vec<&OfferView> = view.offers.iter().filter(fits).collect();
        fitting.sort_by_key(|o| (o.price_e6, o.id));
        fitting.truncate(count);
        fitting
    }

    /// The offer with the lowest cost per served token, and of how many it was chosen. `replacing`: the standby whose
    /// place would be free.
    fn choose<'v>(
        &self,
        view: &'v View,
        active: &LeaseView,
        replacing: Option<&LeaseView>,
        now: u64,
    ) -> Result<(&'v OfferView, u32), NoHost> {
        let freed = replacing.map(|s| s.offer);
        let fits = |o: &&OfferView| (o.free > 0 || freed == Some(o.id)) && self.within_limits(view, o);
        let fitting: Vec<&OfferView> = view.offers.iter().filter(fits).collect();
        if fitting.is_empty() {
            return Err(NoHost::NoneFits);
        }
        let others: Vec<&OfferView> = fitting.into_iter().filter(|o| o.provider != active.provider).collect();
        if others.is_empty() {
            return Err(NoHost::SameOwner);
        }
        let willing = others.iter().filter(|o| self.hosting.penalties.get(&o.provider).is_none_or(|p| p.until <= now));
        let best = willing.min_by_key(|o| (self.cost_per_token(o), o.id)).copied();
        let of = u32::try_from(others.len()).unwrap_or(u32::MAX);
        best.map(|offer| (offer, of)).ok_or(NoHost::AllFailed)
    }

    /// Price over throughput, weighed by the record: each failure on the market costs as if that share of the time
    /// were paid for nothing, each failure seen here a quarter more. Only for comparing.
    fn cost_per_token(&self, offer: &OfferView) -> u128 {
        let throughput = self.hosting.throughput.get(&offer.provider).copied();
        let throughput = u128::from(throughput.unwrap_or_else(|| self.pricing.throughput()).max(1));
        let served = u128::from(offer.served) + TRUST;
        let all = served + u128::from(offer.failed);
        let own = 4 + u128::from(self.hosting.penalties.get(&offer.provider).map_or(0, |p| p.fails.min(16)));
        // Below 2^64 x 2^34 x 2^5 x 10^6: fits.
        u128::from(offer.price_e6) * all * own * 1_000_000 / (served * 4 * throughput)
    }
}

#[cfg(test)]
pub(crate) mod tests;
