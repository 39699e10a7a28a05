//! When a steward acts by itself: challenge a silent operator, prepare a rescue when nobody is left. Pure: it is
//! told each block and what became of its orders, and says what to do next.
//!
//! Several stewards watch the same agent. Each waits longer than the one before it ([`STEP_SECS`] per place), so
//! that as a rule one of them acts and the others see that it has. All times are chain seconds.

use crate::again::{Again, Waits};
use crate::suspicion::{Change, Finding, Proposal, Suspicion};
use alloy::primitives::Address;
use economy::Usdc;
use std::collections::{BTreeMap, BTreeSet};

/// Chain seconds by which each steward lets the one before it go first. A guess: two blocks on a fast chain to
/// see the other's transaction, and a little for its peers to answer.
pub const STEP_SECS: u64 = 4;
/// How long an order's signatures stay good. Long enough for a slow chain, short enough to be forgotten soon.
pub const ORDER_SECS: u64 = 600;
/// A failed attempt is repeated after this long, the next one after twice that. A guess.
pub const RETRY_SECS: u64 = 8;
/// Calls that this steward pays for: what changes nothing on chain is repeated once a day in the end.
const CALLS: Waits = Waits { least: RETRY_SECS, most: 86_400 };
/// A rescue costs nothing while its signatures are missing, and a life when it comes too late.
const RESCUES: Waits = Waits { least: RETRY_SECS, most: ORDER_SECS };

/// What the steward saw in one block; with two endpoints configured, what both of them say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockView {
    pub number: u64,
    pub timestamp: u64,
    /// Only treasuries in which this steward is one.
    pub treasuries: Vec<TreasuryView>,
    /// What each may be rescued on, by treasury: markets are of a creator's choice, and offers of one are no others'.
    pub offers: BTreeMap<Address, Vec<OfferView>>,
    /// Those that could not be read at this block: what is known of them stays.
    pub unread: BTreeSet<Address>,
}

impl BlockView {
    fn has(&self, treasury: &Address) -> bool {
        self.unread.contains(treasury) || self.treasuries.iter().any(|view| view.treasury == *treasury)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreasuryView {
    pub treasury: Address,
    pub alive: bool,
    /// False: the quorum revoked it, and nothing can be rented until there is other code.
    pub has_code: bool,
    pub restoring: bool,
    /// None: nobody, after an eviction or a hibernation.
    pub operator: Option<Address>,
    pub epoch: u64,
    pub order_nonce: u64,
    pub last_heartbeat: u64,
    /// 0: no open challenge.
    pub challenged_at: u64,
    pub taken_over_at: u64,
    pub timers: Timers,
    pub policy: Policy,
    pub active: Option<LeaseView>,
    pub standby: Option<LeaseView>,
    /// It hibernates, and the time for which it does is not over.
    pub asleep: bool,
    pub balance_uusdc: u128,
    /// Micro-USDC that may still be committed: the smaller of the balance and what the day limit leaves.
    pub spendable_uusdc: u128,
    /// Providers that an eviction barred.
    pub barred: Vec<Address>,
    /// This steward's place in the treasury's list, or among the owners of the Safe that is one, from 0.
    pub my_place: u64,
    /// This key is a steward's on chain, so it may challenge. Where a Safe is the steward, daemons' keys are not.
    pub may_challenge: bool,
    /// Birth lets the daemons rescue, this one among them, and no pause says otherwise. If not, people must.
    pub may_rescue: bool,
    pub checkpoint_seq: u64,
    /// From when on anyone may wind it down, chain seconds: stopped, past its mandate, or starved and silent.
    pub endable_at: Option<u64>,
    /// While winding down: from when on anyone may close the treasury, chain seconds.
    pub closable_at: Option<u64>,
}

/// The part of `ITreasury.Timers` that concerns a watcher, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    pub heartbeat_every: u64,
    pub fence: u64,
    pub answer_time: u64,
    pub restore_timeout: u64,
    pub silence: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub price_e6_max: u64,
    /// Seconds.
    pub term_max: u64,
    /// Seconds of rent.
    pub prepay_max: u64,
    pub starve_floor_uusdc: u128,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    pub id: u64,
    pub offer: u64,
    pub provider: Address,
    /// True: running. False: requested, and the provider has until `ready_by`. Closed leases are not shown.
    pub ready: bool,
    pub ready_by: u64,
    pub start: u64,
    pub end: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferView {
    pub id: u64,
    pub provider: Address,
    pub price_e6: u64,
    pub free: u32,
    pub min_term: u64,
    pub max_term: u64,
    pub staked: bool,
}

/// Providers whose rescued lease came to nothing, with how often.
pub type Disappointed = BTreeMap<Address, u32>;

/// An order that the quorum is asked to sign: the argument of `rescue` and of its EIP-712 struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescue {
    pub offer: u64,
    pub term: u64,
    pub prepay_uusdc: u128,
    pub nonce: u64,
    pub deadline: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Block(BlockView),
    /// `challenge` or `rescue` was not sent or was refused; the next try waits [`RETRY_SECS`] or longer ([`Again`]).
    Failed {
        treasury: Address,
    },
    /// What a look at the host of an epoch's lease found, or a checkpoint that its operator signed.
    Found {
        treasury: Address,
        /// Epoch and lease.
        office: (u64, u64),
        finding: Finding,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Challenge {
        treasury: Address,
    },
    /// Collect signatures from the peers and submit `rescue` when there are enough.
    Rescue {
        treasury: Address,
        order: Rescue,
    },
    /// A rescue is due and birth left it to people (or the agent is paused): tell them what they would sign.
    Prepared {
        treasury: Address,
        order: Rescue,
    },
    /// The agent did not begin its own end in time; anyone may.
    WindDown {
        treasury: Address,
    },
    /// The agent did not close its own affairs in time; anyone may.
    Close {
        treasury: Address,
    },
    /// A rescue is due and this steward cannot order one, for the reason named; said once for each reason.
    NoHost {
        treasury: Address,
        why: NoHost,
    },
    /// For the log, `/status` and the peers; said once when it begins and once when it ends.
    Alarm {
        treasury: Address,
        alarm: Alarm,
    },
    AllClear {
        treasury: Address,
    },
    /// People are to read what was found of a host and evict it, or not.
    Propose {
        treasury: Address,
        proposal: Proposal,
    },
    /// What was proposed is past: another host, another epoch, or it does again what it is paid for.
    Withdraw {
        treasury: Address,
    },
}

/// Why a steward is worried, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// No heartbeat for longer than the fence, with time to spare.
    Overdue,
    /// It hibernates by its own choice: nothing is wrong, and nobody acts for it.
    Asleep,
    /// A successor has not shown in time that it restored the memory.
    Stuck,
    /// No heartbeat for the length that permits a rescue.
    Silent,
    /// Nobody acts for the agent.
    NoOperator,
}

impl Alarm {
    pub const ALL: [Self; 5] = [Self::Overdue, Self::Asleep, Self::Stuck, Self::Silent, Self::NoOperator];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overdue => "overdue",
            Self::Asleep => "asleep",
            Self::Stuck => "stuck",
            Self::Silent => "silent",
            Self::NoOperator => "no_operator",
        }
    }
}

/// Why nobody can be rented for an agent that has no host. Its memory stays sealed until that changes, or until it has
/// starved for long enough that anyone may wind it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHost {
    /// No staked offer fits price cap and term, or all that do are barred: `loosen` raises the cap, `clear` lets hosts in.
    NoOffer,
    /// One does, and the treasury can pay nothing for it: anybody may fund it.
    NoMoney,
    /// It sleeps, and too little is there to wake it: anybody may fund it.
    Asleep,
}

impl NoHost {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoOffer => "no_offer",
            Self::NoMoney => "no_money",
            Self::Asleep => "asleep",
        }
    }
}

/// Why no rescue is due, as a refusal that can be shown to whoever asked for a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDue {
    NotAlive,
    /// The quorum revoked the code: no host would run anything.
    NoCode,
    /// It sleeps, and is not funded for a life on that offer.
    Asleep,
    /// This steward sees heartbeats.
    NoSilence,
    /// A lease has been rented and its provider still has time.
    StandbyComing,
    /// A standby is ready and has not had its chance to take over.
    StandbyReady,
}

impl NotDue {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAlive => "not_alive",
            Self::NoCode => "no_code",
            Self::Asleep => "asleep",
            Self::NoSilence => "no_silence",
            Self::StandbyComing => "standby_coming",
            Self::StandbyReady => "standby_ready",
        }
    }
}

impl TreasuryView {
    /// The worst thing that is wrong at chain time `now`.
    pub fn alarm(&self, now: u64) -> Option<Alarm> {
        let t = &self.timers;
        if !self.alive {
            return None;
        }
        if self.operator.is_none() {
            return Some(if self.asleep { Alarm::Asleep } else { Alarm::NoOperator });
        }
        if now > self.last_heartbeat.saturating_add(t.silence) {
            return Some(Alarm::Silent);
        }
        if self.restoring && now > self.taken_over_at.saturating_add(t.restore_timeout) {
            return Some(Alarm::Stuck);
        }
        (now > self.overdue_at()).then_some(Alarm::Overdue)
    }

    /// From when on the operator's silence is not just a late heartbeat: past the fence, and once more the time between
    /// heartbeat and fence.
    fn overdue_at(&self) -> u64 {
        let t = &self.timers;
        self.last_heartbeat.saturating_add(t.fence).saturating_add(t.fence.saturating_sub(t.heartbeat_every))
    }

    /// The standby, if its node could take over now or after a challenge.
    fn ready_standby(&self, now: u64) -> Option<&LeaseView> {
        self.standby.as_ref().filter(|s| s.ready && now < s.end)
    }

    /// Whether a rescue is due at chain time `now`: the same conditions as the contract's, and that no standby
    /// could help instead. For one that sleeps it also takes [`TreasuryView::is_funded_for`].
    pub fn rescue_due(&self, now: u64) -> Result<Alarm, NotDue> {
        if !self.alive {
            return Err(NotDue::NotAlive);
        }
        if !self.has_code {
            return Err(NotDue::NoCode);
        }
        let alarm = self.alarm(now).filter(|a| *a > Alarm::Overdue).ok_or(NotDue::NoSilence)?;
        if let Some(standby) = &self.standby {
            if !standby.ready && now <= standby.ready_by {
                return Err(NotDue::StandbyComing);
            }
            // A ready standby gets the time to answer and to restore, from when it may act: a rescued one needs
            // no challenge, but one that sleeps gets challenged all the same, which starts the clock.
            let acts_by = match self.challenged_at {
                0 => u64::MAX,
                at => at
                    .max(standby.start)
                    .saturating_add(self.timers.answer_time)
                    .saturating_add(self.timers.restore_timeout),
            };
            if self.ready_standby(now).is_some() && now <= acts_by {
                return Err(NotDue::StandbyReady);
            }
        }
        Ok(alarm)
    }

    /// Whether this agent may be rescued on `offer`, of all there are. The silent lease's own provider is the last resort:
    /// its host failed, but the contract takes it (docs/decisions/0009), and where it is the only one it is better than
    /// nobody.
    pub fn may_take(&self, offer: &OfferView, offers: &[OfferView]) -> bool {
        let is_silent_hosts = |o: &OfferView| self.active.as_ref().is_some_and(|a| a.provider == o.provider);
        let other_fits = || offers.iter().any(|o| self.allows(o) && !is_silent_hosts(o));
        self.allows(offer) && (!is_silent_hosts(offer) || !other_fits())
    }

    /// Whether the treasury would take `offer`: at a price and term that policy allows, of a provider that is not barred.
    fn allows(&self, offer: &OfferView) -> bool {
        let freed = u32::from(self.standby.as_ref().is_some_and(|s| s.offer == offer.id));
        offer.staked
            && offer.free.saturating_add(freed) > 0
            && offer.price_e6 <= self.policy.price_e6_max
            && offer.min_term <= self.policy.term_max
            && !self.barred.contains(&offer.provider)
    }

    /// Whether there is money for more than another fall asleep on this offer. Only one that sleeps needs it: whoever lost its
    /// host gets another for what there is.
    pub fn is_funded_for(&self, offer: &OfferView) -> bool {
        let floor = Usdc(self.policy.starve_floor_uusdc);
        !self.asleep || self.balance_uusdc >= economy::wakes_at(floor, self.prepay_for(offer)).0
    }

    /// Rounded up like the market's rent, so never above what the whole term costs.
    fn prepay_for(&self, offer: &OfferView) -> Usdc {
        let term = self.policy.term_max.min(offer.max_term);
        Usdc::rent_up(offer.price_e6, self.policy.prepay_max.min(term))
    }

    /// The cheapest offer of the providers that disappointed least; the older one of equals.
    fn choose<'a>(&self, offers: &'a [OfferView], disappointed: &Disappointed) -> Option<&'a OfferView> {
        let times = |offer: &OfferView| disappointed.get(&offer.provider).copied().unwrap_or(0);
        offers.iter().filter(|o| self.may_take(o, offers)).min_by_key(|o| (times(o), o.price_e6, o.id))
    }

    /// The offer of that id, if this steward signs a peer's order for it: its own choice, or the cheapest of all. A peer
    /// that was started since remembers no failures, and two that insist each on their own choice would rescue nobody.
    pub fn agreed_offer<'a>(
        &self,
        id: u64,
        offers: &'a [OfferView],
        disappointed: &Disappointed,
    ) -> Option<&'a OfferView> {
        let choices = [disappointed, &Disappointed::new()].map(|disappointed| self.choose(offers, disappointed));
        choices.into_iter().flatten().find(|offer| offer.id == id)
    }

    /// Whether a peer's order has the term that this steward would order on `offer`, and its prepayment but for a tenth
    /// less: what can be spent moves from block to block, and the peer may have seen another one. Less than that leaves
    /// the new host unpaid for what it begins.
    pub fn agrees_to(&self, asked: &Rescue, offer: &OfferView) -> bool {
        let Some(own) = self.order(offer, 0) else { return false };
        let (least, most) = (own.prepay_uusdc - own.prepay_uusdc / 10, self.prepay_for(offer).0);
        asked.term == own.term && (least..=most).contains(&asked.prepay_uusdc)
    }

    /// The order for `offer`, or None if the treasury cannot pay anything for it.
    fn order(&self, offer: &OfferView, now: u64) -> Option<Rescue> {
        let term = self.policy.term_max.min(offer.max_term);
        let prepay_uusdc = self.prepay_for(offer).0.min(self.spendable_uusdc);
        (prepay_uusdc > 0).then_some(Rescue {
            offer: offer.id,
            term,
            prepay_uusdc,
            nonce: self.order_nonce,
            deadline: now.saturating_add(ORDER_SECS),
        })
    }
}

/// One steward's watch over all its treasuries.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    watched: BTreeMap<Address, Watched>,
    /// What is held against the hosts, with the last view of each agent.
    suspicions: BTreeMap<Address, (TreasuryView, Suspicion)>,
    /// Chain seconds of the last block.
    now: u64,
}

#[derive(Clone, Debug, Default)]
struct Watched {
    alarm: Option<Alarm>,
    /// When this steward first saw that a rescue is due.
    rescue_since: Option<u64>,
    tries: Tries,
    disappointed: Disappointed,
    /// Why the rescue that is due cannot be ordered.
    no_host: Option<NoHost>,
    /// The lease last seen in the standby place while a rescue was under way.
    rescued: Option<(u64, Address)>,
}

/// What was done for one agent, and when it is done again if nothing came of it.
#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    challenge: Again,
    wind_down: Again,
    close: Again,
    rescue: Again,
}

impl Watch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn handle(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Block(block) => {
                // An endpoint that jumps back is not news; a reorg of the last block is, so equal is let through.
                if block.timestamp < self.now {
                    return;
                }
                self.now = block.timestamp;
                self.watched.retain(|treasury, _| block.has(treasury));
                self.suspicions.retain(|treasury, _| block.has(treasury));
                for view in &block.treasuries {
                    let (seen, suspicion) =
                        self.suspicions.entry(view.treasury).or_insert_with(|| (view.clone(), Suspicion::default()));
                    seen.clone_from(view);
                    out.extend(suspicion.see(view).map(|change| output_of(view.treasury, change)));
                    let watched = self.watched.entry(view.treasury).or_default();
                    let offers = block.offers.get(&view.treasury).map_or(&[][..], Vec::as_slice);
                    watched.see(view, offers, block.timestamp, out);
                }
            }
            Input::Failed { treasury } => {
                if let Some(watched) = self.watched.get_mut(&treasury) {
                    watched.tries.rescue.failed(self.now);
                    watched.tries.challenge.failed(self.now);
                }
            }
            Input::Found { treasury, office, finding } => {
                if let Some((view, suspicion)) = self.suspicions.get_mut(&treasury) {
                    let change = suspicion.hear(view, self.now, office, finding);
                    out.extend(change.map(|change| output_of(treasury, change)));
                }
            }
        }
    }

    /// What is proposed to the quorum now, by treasury.
    pub fn proposals(&self) -> impl Iterator<Item = (Address, Proposal)> + '_ {
        self.suspicions.iter().filter_map(|(treasury, (_, s))| Some((*treasury, *s.proposed()?)))
    }

    /// What is wrong now, by treasury.
    pub fn alarms(&self) -> impl Iterator<Item = (Address, Alarm)> + '_ {
        self.watched.iter().filter_map(|(treasury, w)| Some((*treasury, w.alarm?)))
    }

    /// Providers that came to nothing, by treasury.
    pub fn disappointed(&self) -> BTreeMap<Address, Disappointed> {
        self.watched.iter().map(|(treasury, watched)| (*treasury, watched.disappointed.clone())).collect()
    }

    /// Agents that a rescue is due for and nobody can be rented.
    pub fn without_hosts(&self) -> impl Iterator<Item = (Address, NoHost)> + '_ {
        self.watched.iter().filter_map(|(treasury, watched)| Some((*treasury, watched.no_host?)))
    }
}

/// How many go before the steward at `place` has had its own time: itself counts.
fn turn(place: u64) -> u64 {
    place.saturating_add(1)
}

fn output_of(treasury: Address, change: Change) -> Output {
    match change {
        Change::Propose(proposal) => Output::Propose { treasury, proposal },
        Change::Withdraw => Output::Withdraw { treasury },
    }
}

impl Watched {
    fn see(&mut self, view: &TreasuryView, offers: &[OfferView], now: u64, out: &mut Vec<Output>) {
        let alarm = view.alarm(now);
        if alarm != self.alarm {
            out.push(match alarm {
                Some(alarm) => Output::Alarm { treasury: view.treasury, alarm },
                None => Output::AllClear { treasury: view.treasury },
            });
            self.alarm = alarm;
        }
        self.end(view, now, out);
        if alarm.is_none() {
            *self = Self { alarm, tries: self.tries, ..Self::default() };
            return;
        }
        self.challenge(view, now, out);
        self.rescue(view, offers, now, out);
    }

    /// An agent without a host can neither wind down nor close: its money would lie there for ever. It gets its own
    /// chance first, and each steward waits for those before it.
    fn end(&mut self, view: &TreasuryView, now: u64, out: &mut Vec<Output>) {
        let treasury = view.treasury;
        let (due, again, output) = match (view.closable_at, view.endable_at) {
            (Some(at), _) => (at, &mut self.tries.close, Output::Close { treasury }),
            (None, Some(at)) => (at, &mut self.tries.wind_down, Output::WindDown { treasury }),
            (None, None) => return,
        };
        let chance = view.timers.heartbeat_every.saturating_mul(3);
        let mine = due.saturating_add(turn(view.my_place).saturating_mul(chance));
        if now > mine && again.is_due(now) {
            again.tried(now, 0, CALLS);
            out.push(output);
        }
    }

    fn challenge(&mut self, view: &TreasuryView, now: u64, out: &mut Vec<Output>) {
        if view.challenged_at != 0 {
            self.tries.challenge = Again::default();
        }
        let Some(standby) = view.ready_standby(now) else { return };
        let t = &view.timers;
        let late = view.overdue_at().max(standby.start.saturating_add(t.fence));
        // The standby's own node goes first, then the stewards one by one.
        let mine = late.saturating_add(turn(view.my_place).saturating_mul(STEP_SECS));
        if !view.may_challenge || view.challenged_at != 0 || now <= mine || !self.tries.challenge.is_due(now) {
            return;
        }
        self.tries.challenge.tried(now, t.answer_time, CALLS);
        out.push(Output::Challenge { treasury: view.treasury });
    }

    fn rescue(&mut self, view: &TreasuryView, offers: &[OfferView], now: u64, out: &mut Vec<Output>) {
        if let Err(why) = view.rescue_due(now) {
            (self.rescue_since, self.no_host) = (None, None);
            if let (NotDue::StandbyComing | NotDue::StandbyReady, Some(standby)) = (why, &view.standby) {
                self.rescued = Some((standby.id, standby.provider));
            }
            return;
        }
        // A standby that was awaited and came to nothing: its provider is not the next choice.
        if let Some((_, provider)) = self.rescued.take() {
            let times = self.disappointed.entry(provider).or_default();
            *times = times.saturating_add(1);
        }
        let treasury = view.treasury;
        let chosen = view.choose(offers, &self.disappointed);
        if chosen.is_some_and(|offer| !view.is_funded_for(offer)) {
            // Whoever funds it does so for all stewards at once: they go one after the other from then on.
            self.rescue_since = None;
            self.tell(treasury, NoHost::Asleep, out);
            return;
        }
        let since = *self.rescue_since.get_or_insert(now);
        let mine = since.saturating_add(view.my_place.saturating_mul(STEP_SECS));
        if now < mine || !self.tries.rescue.is_due(now) {
            return;
        }
        let offer = chosen.ok_or(NoHost::NoOffer);
        let order = match offer.and_then(|offer| view.order(offer, now).ok_or(NoHost::NoMoney)) {
            Ok(order) => order,
            Err(why) => return self.tell(treasury, why, out),
        };
        self.no_host = None;
        let (answer, output) = if view.may_rescue {
            (4 * RETRY_SECS, Output::Rescue { treasury, order })
        } else {
            (ORDER_SECS, Output::Prepared { treasury, order })
        };
        self.tries.rescue.tried(now, answer, RESCUES);
        out.push(output);
    }

    /// Why it has no host, once for each reason.
    fn tell(&mut self, treasury: Address, why: NoHost, out: &mut Vec<Output>) {
        if self.no_host.replace(why) != Some(why) {
            out.push(Output::NoHost { treasury, why });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
