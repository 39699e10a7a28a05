//! One agent's year: the shipped `economy::Agent` decides, `economy::rules` does what the contracts would, and in between
//! stands what a node, a provider and a steward do on a good day.
//!
//! A day is one look, and more looks while something is under way. What happens between two looks of a quiet day is taken
//! as done: heartbeats every five hours, each vouching for hosts that are there.

use super::demand::{COMPLETION_TOKENS, PEAK_PCT, PROMPT_TOKENS, Trade};
use super::hosts::Hosts;
use crate::Chance;
use economy::rules::{LeaseState, Market, MarketTerms, Offer, Refusal, Terms, Token, Treasury};
use economy::{
    Address, Agent, ChainEvent, ChainEventKind, DAY_SECS, Genesis, Input, LeaseView, Level, Limits, Outcome, Output,
    OutputId, Policy, Price, Stage, Timers, USDC, Usdc, View, Wishes,
};

/// What an agent is born with, micro-USDC: DESIGN's hundred dollars.
pub const SEED: u128 = 100 * USDC;
/// Chain seconds at which a year begins, and of a block as the agent counts them here.
const BEGIN: u64 = 1_800_000_000;
const BLOCK_SECS: u64 = 300;
const TERM: u32 = 30 * DAY_SECS;
const PREPAY_SECS: u32 = 2 * DAY_SECS;
/// A provider's time to start a node, and of leases that it never gets ready, per mille. A guess.
const READY_SECS: u64 = 900;
const NEVER_READY_PERMILLE: u64 = 20;
/// Days until stewards have rescued an agent that lost both hosts: one to three. A guess.
const RESCUE_DAYS: u64 = 3;
/// Over how many days earnings and costs are compared.
pub const WINDOW_DAYS: usize = 28;
/// Of one host, percent of its day's calls that a takeover costs: silence, answer time, restoring.
const TAKEOVER_COSTS_PCT: u64 = 40;

const CREATOR: Address = [0xc0; 20];
const STEWARD: Address = [0x57; 20];
const MARKET: Address = [0x3a; 20];
const TREASURY: Address = [0x7e; 20];

/// Why an agent wound down. In the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Both hosts left, and what money there was did not rent another.
    LostHosts,
    /// In no four weeks of its life did it earn its hosts' rent.
    NeverEarnedItsRent,
    /// It did once. Since then mostly: it could not sell on many days,
    HostsFailed,
    /// rent rose,
    RentRose,
    /// its trade's demand fell,
    DemandFell,
    /// others took its customers, or its own price drove them away.
    Outcompeted,
}

impl Cause {
    pub const ALL: [Self; 6] = [
        Self::NeverEarnedItsRent,
        Self::DemandFell,
        Self::Outcompeted,
        Self::RentRose,
        Self::HostsFailed,
        Self::LostHosts,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::LostHosts => "lost both hosts, too poor for a third",
            Self::NeverEarnedItsRent => "never earned its rent",
            Self::HostsFailed => "hosts failed too often",
            Self::RentRose => "rent rose",
            Self::DemandFell => "demand for its trade fell",
            Self::Outcompeted => "others took its customers",
        }
    }
}

/// One day in the books.
#[derive(Clone, Copy, Debug, Default)]
struct Day {
    earned: u128,
    rent: u128,
    /// Of the trade, per mille of its mean.
    level: u64,
    sold: bool,
}

/// Sums over [`WINDOW_DAYS`].
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    days: u64,
    earned: u128,
    rent: u128,
    level: u64,
    unsold: u64,
}

/// What is left of an agent when its year is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub trade: Trade,
    /// Per mille of the median's.
    pub skill: u64,
    pub born_day: u64,
    /// Of the wind-down.
    pub died_day: Option<u64>,
    pub cause: Option<Cause>,
    /// Micro-USDC, all of its life.
    pub earned: u128,
    pub rent: u128,
    /// Treasury and escrow at the end.
    pub left: u128,
    pub calls: u64,
    pub tokens: u64,
    /// Days on which it sold nothing after its first.
    pub unsold_days: u64,
    pub moves: u32,
    pub takeovers: u32,
    pub rescues: u32,
    /// Days spent at each level of hunger, fed first.
    pub level_days: [u64; 5],
    /// Changes of price.
    pub repricings: u32,
}

#[derive(Clone, Debug)]
pub struct Life {
    chance: Chance,
    agent: Agent,
    treasury: Treasury,
    now: u64,
    lsn: u64,
    place: (u64, u32),
    events: Vec<ChainEvent>,
    todo: Vec<(OutputId, Output)>,
    /// By lease id - 1: the host, whether it will get ready, whether its place was given back.
    leases: Vec<(usize, bool, bool)>,
    /// By host: its offer in this agent's market.
    offers: Vec<(usize, u64)>,
    homeless_days: u64,
    rescue_after: u64,
    days: Vec<Day>,
    best: Window,
    price: Option<Price>,
    pub record: Record,
}

const LIMITS: Limits = Limits {
    day_limit: Usdc(20 * USDC),
    price_e6_max: 4 * 1_000_000_000_000 / DAY_SECS as u64,
    term_max: TERM,
    prepay_max: PREPAY_SECS,
    // Gas is not counted here.
    gas_day_max_wei: 0,
    gas_target_wei: 0,
    starve_floor: Usdc(USDC),
};

fn genesis() -> Genesis {
    let timers = Timers::real();
    let wishes = Wishes {
        term: TERM,
        prepay_secs: PREPAY_SECS,
        margin_pct: 20,
        // A tenth of what `up` writes into a manifest, so that the controller sets the price and not the least one.
        min_call: Usdc(100),
        max_call: Usdc(50_000),
        block_secs: u32::try_from(BLOCK_SECS).expect("small"),
    };
    Genesis { chain_id: 1, treasury: TREASURY, timers, policy: Policy::new(wishes, &timers) }
}

impl Life {
    /// Born on `day` on the cheapest host that is free; `None` when none is.
    pub fn born(seed: u64, day: u64, trade: Trade, skill: u64, hosts: &mut Hosts) -> Option<Self> {
        let host = hosts.cheapest()?;
        let genesis = genesis();
        let timers = genesis.timers;
        let now = BEGIN + day * u64::from(DAY_SECS);
        let terms = Terms {
            creator: CREATOR,
            beneficiary: CREATOR,
            stewards: [STEWARD].into(),
            timers,
            day_limit: LIMITS.day_limit.0,
            price_e6_max: LIMITS.price_e6_max,
            term_max: TERM,
            prepay_max: PREPAY_SECS,
            starve_floor: LIMITS.starve_floor.0,
            mandate_until: u64::MAX / 2,
        };
        let market = MarketTerms {
            stake_min: 1,
            ready_within: timers.ready_within,
            grace: timers.grace,
            drop_after: timers.drop_after,
        };
        let treasury = Treasury::new(TREASURY, terms, now, Token::default(), Market::new(MARKET, market));
        let record = Record {
            trade,
            skill,
            born_day: day,
            died_day: None,
            cause: None,
            earned: 0,
            rent: 0,
            left: 0,
            calls: 0,
            tokens: 0,
            unsold_days: 0,
            moves: 0,
            takeovers: 0,
            rescues: 0,
            level_days: [0; 5],
            repricings: 0,
        };
        let mut life = Self {
            chance: Chance::new(seed),
            agent: Agent::new(genesis),
            treasury,
            now,
            lsn: 0,
            place: (0, 0),
            events: Vec::new(),
            todo: Vec::new(),
            leases: Vec::new(),
            offers: Vec::new(),
            homeless_days: 0,
            rescue_after: 0,
            days: Vec::new(),
            best: Window::default(),
            price: None,
            record,
        };
        life.treasury.gift(CREATOR, SEED);
        let offer = life.offer(host, hosts);
        let prepay = Usdc::rent_down(hosts.host(host).price_e6, PREPAY_SECS.into()).0;
        let lease = life.treasury.birth_rent(now, CREATOR, (offer, TERM, prepay)).ok()?;
        hosts.take(host);
        life.leases.push((host, true, false));
        life.make_ready(lease);
        life.treasury.activate(now, CREATOR, lease).expect("in time, on a ready host");
        life.hear(hosts);
        life.boots(false, hosts);
        life.looks(hosts);
        Some(life)
    }

    /// Whether anything can still happen.
    pub fn is_over(&self) -> bool {
        self.treasury.stage == Stage::Closed
    }

    /// Closing its affairs, or closed.
    fn is_dying(&self) -> bool {
        matches!(self.treasury.stage, Stage::WindingDown | Stage::Closed)
    }

    /// What one call costs today; `None`: it sells nothing.
    pub fn call_price(&self) -> Option<u64> {
        if self.homeless_days > 0 {
            return None;
        }
        let quote = self.price?.quote_up(PROMPT_TOKENS, COMPLETION_TOKENS);
        u64::try_from(quote.0).ok()
    }

    /// Lives this day, on which `calls` came and the trade stood at `level`; the year's day is `day`.
    pub fn day(&mut self, day: u64, calls: u64, level: u64, hosts: &mut Hosts) {
        if self.is_over() {
            return;
        }
        // Income comes in while the day goes on: the agent hears of it before it next looks at the chain.
        let earned = self.sell(calls, hosts);
        self.now = BEGIN + (day + 1) * u64::from(DAY_SECS);
        let rent = self.rent_of_a_day();
        self.days.push(Day { earned, rent, level, sold: earned > 0 });
        self.record.unsold_days += u64::from(earned == 0 && !self.is_dying());
        self.record.level_days[match self.agent.level() {
            Level::Fed => 0,
            Level::Under7Days => 1,
            Level::Under3Days => 2,
            Level::Frugal => 3,
            Level::Final => 4,
        }] += 1;
        let window = self.window();
        let is_full = self.days.len() >= WINDOW_DAYS;
        if is_full && window.earned * self.best.rent.max(1) > self.best.earned * window.rent.max(1) {
            self.best = window;
        }
        self.beat_between_looks(hosts);
        if self.has_host(hosts) || self.succeeds(hosts) {
            self.homeless_days = 0;
            self.looks(hosts);
        } else {
            self.waits_for_rescue(hosts);
        }
        if self.is_dying() && self.record.died_day.is_none() {
            self.record.died_day = Some(day);
            self.record.cause = Some(self.cause());
        }
        self.record.left = self.treasury.balance() + self.treasury.escrow(self.now);
        let market = &self.treasury.market;
        let leases = (1..=market.lease_count()).filter_map(|lease| market.lease(lease));
        self.record.rent = leases.map(|lease| market.accrued_up(self.now, lease)).sum();
    }

    // ---- earning ----

    fn sell(&mut self, calls: u64, hosts: &Hosts) -> u128 {
        let Some(call) = self.call_price() else { return 0 };
        let lease = usize::try_from(self.treasury.active).expect("small");
        let Some((host, ..)) = lease.checked_sub(1).map(|index| self.leases[index]) else { return 0 };
        let host = hosts.host(host);
        let tokens_day = host.milli_tokens_per_sec * u64::from(DAY_SECS) / 1_000;
        let gone_pct = if host.is_gone { TAKEOVER_COSTS_PCT } else { 0 };
        let fits = tokens_day * PEAK_PCT / 100 * (100 - gone_pct) / 100 / COMPLETION_TOKENS;
        let served = calls.min(fits);
        if served == 0 {
            return 0;
        }
        let (tokens, sum) = (served * COMPLETION_TOKENS, Usdc(u128::from(served) * u128::from(call)));
        self.record.calls += served;
        self.record.tokens += tokens;
        self.record.earned += sum.0;
        let lsn = self.lsn + 1;
        self.feed(Input::Earned { first_lsn: lsn, last_lsn: lsn, count: served, tokens, sum });
        // Vouchers are claimed the same day: rules leave channels out, so the money is put there.
        self.treasury.token.mint(TREASURY, sum.0);
        self.treasury.told.push(ChainEventKind::ChannelsSettled { amount: sum });
        sum.0
    }

    fn rent_of_a_day(&self) -> u128 {
        let leases = [self.treasury.active, self.treasury.standby, self.treasury.draining];
        let open = leases.into_iter().filter_map(|lease| self.treasury.market.lease(lease)).filter(|l| l.is_open());
        open.map(|l| Usdc::rent_up(l.price_e6, DAY_SECS.into()).0).sum()
    }

    fn window(&self) -> Window {
        let from = self.days.len().saturating_sub(WINDOW_DAYS);
        self.days[from..].iter().fold(Window::default(), |sum, day| Window {
            days: sum.days + 1,
            earned: sum.earned + day.earned,
            rent: sum.rent + day.rent,
            level: sum.level + day.level,
            unsold: sum.unsold + u64::from(!day.sold),
        })
    }

    /// By comparing the best four weeks with the last: the factor that changed most for the worse.
    fn cause(&self) -> Cause {
        let (best, last) = (self.best, self.window());
        if self.homeless_days > 0 {
            return Cause::LostHosts;
        }
        if best.earned < best.rent || best.days == 0 {
            return Cause::NeverEarnedItsRent;
        }
        // Per mille of the best four weeks.
        let ratio = |now: u128, then: u128| now * 1_000 / then.max(1);
        let sold = 1_000 * u128::from(last.days - last.unsold) / u128::from(last.days.max(1));
        let demand = ratio(last.level.into(), best.level.into());
        let rent = ratio(best.rent, last.rent);
        let share = ratio(last.earned, best.earned) * 1_000 / demand.max(1) * 1_000 / sold.max(1);
        let changes = [
            (sold, Cause::HostsFailed),
            (rent, Cause::RentRose),
            (demand, Cause::DemandFell),
            (share, Cause::Outcompeted),
        ];
        changes.into_iter().min_by_key(|(kept, _)| *kept).map_or(Cause::Outcompeted, |(_, cause)| cause)
    }

    // ---- hosts ----

    fn host_of(&self, lease: u64) -> Option<usize> {
        usize::try_from(lease).ok()?.checked_sub(1).map(|index| self.leases[index].0)
    }

    fn is_there(&self, lease: u64, hosts: &Hosts) -> bool {
        self.host_of(lease).is_some_and(|host| !hosts.host(host).is_gone)
    }

    fn is_ready(&self, lease: u64) -> bool {
        self.treasury.market.lease(lease).is_some_and(|l| l.state == LeaseState::Ready && self.now < l.end)
    }

    fn has_host(&self, hosts: &Hosts) -> bool {
        let (active, has_node) = (self.treasury.active, self.homeless_days == 0);
        (self.is_dying() && has_node) || (self.is_there(active, hosts) && self.is_ready(active))
    }

    /// The offer of a host in this agent's own market, at today's price.
    fn offer(&mut self, host: usize, hosts: &Hosts) -> u64 {
        let h = hosts.host(host);
        let t = &mut self.treasury;
        if let Some((_, offer)) = self.offers.iter().find(|(index, _)| *index == host) {
            t.market.reprice(h.provider, *offer, h.price_e6).expect("its own offer");
            return *offer;
        }
        t.token.mint(h.provider, 1);
        t.market.register(&mut t.token, h.provider, 1).expect("has the stake");
        let offer = t.market.post_offer(Offer {
            provider: h.provider,
            price_e6: h.price_e6,
            // The town counts.
            capacity: u32::MAX,
            used: 0,
            min_term: 1,
            max_term: TERM,
        });
        let offer = offer.expect("is staked");
        self.offers.push((host, offer));
        offer
    }

    /// Its provider starts a node under a key of its own.
    fn make_ready(&mut self, lease: u64) {
        let provider = self.treasury.market.lease(lease).expect("rented").provider;
        let mut key = [0x0d; 20];
        key[12..].copy_from_slice(&lease.to_be_bytes());
        self.treasury.market.ready(self.now, provider, lease, key).ok();
    }

    /// Of the hours since the last look: each heartbeat vouched for what was there.
    fn beat_between_looks(&mut self, hosts: &Hosts) {
        let (active, last) = (self.treasury.active, self.now - u64::from(Timers::real().heartbeat_every));
        if self.is_dying() || !self.is_there(active, hosts) || !self.is_ready(active) {
            return;
        }
        for lease in [active, self.treasury.standby, self.treasury.draining] {
            if lease != 0 && self.is_there(lease, hosts) {
                self.treasury.market.vouch(last, TREASURY, lease).ok();
            }
        }
        self.treasury.last_heartbeat = last;
    }

    /// The active host is gone: the standby's node challenges, nobody answers, it takes over. False if there is none.
    fn succeeds(&mut self, hosts: &mut Hosts) -> bool {
        let standby = self.treasury.standby;
        if self.treasury.stage != Stage::Alive || !self.is_there(standby, hosts) || !self.is_ready(standby) {
            return false;
        }
        let key = self.treasury.market.lease(standby).expect("ready").node_key;
        if self.treasury.challenge(self.now, key).is_err() {
            return false;
        }
        self.now += u64::from(Timers::real().answer_time) + 1;
        if self.treasury.takeover(self.now, key).is_err() {
            return false;
        }
        self.record.takeovers += 1;
        self.hear(hosts);
        self.boots(true, hosts);
        true
    }

    /// Nobody can act for it: stewards rent the cheapest host, if its money pays half a day there.
    fn waits_for_rescue(&mut self, hosts: &mut Hosts) {
        if self.is_dying() {
            // Its operator is dead: anybody closes it.
            self.treasury.close(self.now).ok();
            return self.hear(hosts);
        }
        if self.homeless_days == 0 {
            self.rescue_after = 1 + self.chance.below(RESCUE_DAYS);
        }
        self.homeless_days += 1;
        if self.homeless_days < self.rescue_after {
            return;
        }
        let Some(host) = hosts.cheapest() else { return };
        let rent = Usdc::rent_down(hosts.host(host).price_e6, DAY_SECS.into()).0;
        let prepay = rent.min(self.treasury.balance());
        if prepay < rent / 2 {
            // A notice the first time, the end a silence later.
            self.treasury.wind_down(self.now, STEWARD).ok();
            return self.hear(hosts);
        }
        let offer = self.offer(host, hosts);
        let Ok(lease) = self.treasury.rescue(self.now, (offer, TERM, prepay)) else { return };
        hosts.take(host);
        self.leases.push((host, true, false));
        self.make_ready(lease);
        let key = self.treasury.market.lease(lease).expect("rented").node_key;
        self.treasury.takeover(self.now, key).expect("a rescued node needs no challenge");
        self.record.rescues += 1;
        self.hear(hosts);
        self.boots(true, hosts);
        self.homeless_days = 0;
        self.looks(hosts);
    }

    // ---- the node ----

    fn boots(&mut self, restored: bool, hosts: &Hosts) {
        self.todo.clear();
        let (epoch, lease) = (self.treasury.epoch, self.treasury.active);
        self.feed(Input::Booted { epoch, lease, restored });
        let host = self.host_of(lease).expect("boots on a host");
        self.feed(Input::Throughput { milli_tokens_per_sec: hosts.host(host).milli_tokens_per_sec });
    }

    fn feed(&mut self, input: Input) {
        self.lsn += 1;
        let lsn = self.lsn;
        for (index, output) in (0u32..).zip(self.agent.step(self.now, lsn, input)) {
            if output.task().is_some() {
                self.todo.push((OutputId { lsn, index }, output));
                continue;
            }
            match output {
                Output::Serve { price } => {
                    self.record.repricings += u32::from(self.price.is_some());
                    self.price = Some(price);
                }
                Output::StopServing { .. } => {
                    self.price = None;
                    // Channels' customers hold what they did not spend: nothing is owed.
                    self.feed(Input::Owed(Vec::new()));
                }
                _ => {}
            }
        }
    }

    /// Takes in what chain and market told, and gives back the places of leases that ended.
    fn hear(&mut self, hosts: &mut Hosts) {
        self.treasury.listen();
        let block = (self.now - BEGIN) / BLOCK_SECS + 1;
        if self.place.0 != block {
            self.place = (block, 0);
        }
        for kind in std::mem::take(&mut self.treasury.told) {
            if let ChainEventKind::LeaseClosed { lease, .. } = kind {
                let index = usize::try_from(lease).expect("small") - 1;
                let (host, _, given_back) = &mut self.leases[index];
                if !std::mem::replace(given_back, true) {
                    let served = self.treasury.market.lease(lease).is_some_and(|l| l.start != 0);
                    hosts.give_back(*host, served && !hosts.host(*host).is_gone);
                }
            }
            self.place.1 += 1;
            self.events.push(ChainEvent { block, index: self.place.1, kind });
        }
    }

    /// Looks at the chain and does what the agent asks for, until nothing is under way any more.
    fn looks(&mut self, hosts: &mut Hosts) {
        let day_ends = self.now + u64::from(DAY_SECS) - 2 * BLOCK_SECS;
        loop {
            self.hear(hosts);
            let standby = self.treasury.standby;
            if standby != 0 && self.is_there(standby, hosts) && self.is_ready(standby) {
                self.feed(Input::StandbyAnswered { lease: standby, ready: true });
            }
            let events = std::mem::take(&mut self.events);
            if !events.is_empty() {
                self.feed(Input::Chain(events));
            }
            let view = self.view(hosts);
            self.feed(Input::Block(Box::new(view)));
            let busy = self.work(hosts);
            let Some(step) = self.next_look(busy, hosts).filter(|step| self.now + step < day_ends) else { return };
            self.now += step;
            self.providers(hosts);
        }
    }

    /// Seconds until there is something to see; `None`: nothing before tomorrow.
    fn next_look(&self, busy: bool, hosts: &Hosts) -> Option<u64> {
        let t = &self.treasury;
        if t.stage == Stage::Closed {
            return None;
        }
        let standby = t.market.lease(t.standby);
        match standby {
            _ if busy || t.restoring => Some(BLOCK_SECS),
            Some(l) if l.state == LeaseState::Requested => {
                let (_, gets_ready, _) = self.leases[usize::try_from(t.standby).ok()? - 1];
                Some(if gets_ready { READY_SECS } else { l.ready_by + 1 - self.now.min(l.ready_by) })
            }
            // Silence is heard by listening.
            Some(_) if !self.is_there(t.standby, hosts) => Some(u64::from(DAY_SECS) / 12),
            Some(_) if t.announced != 0 => Some(BLOCK_SECS),
            _ => None,
        }
    }

    fn providers(&mut self, hosts: &Hosts) {
        let standby = self.treasury.standby;
        let requested = self.treasury.market.lease(standby).is_some_and(|l| l.state == LeaseState::Requested);
        if requested && self.leases[usize::try_from(standby).expect("small") - 1].1 && self.is_there(standby, hosts) {
            self.make_ready(standby);
        }
    }

    /// Whether there was something that the next block will show a consequence of.
    fn work(&mut self, hosts: &mut Hosts) -> bool {
        let mut busy = false;
        while !self.todo.is_empty() {
            for (id, output) in std::mem::take(&mut self.todo) {
                let routine = matches!(output, Output::Heartbeat { .. } | Output::TopUp { .. } | Output::Refuel)
                    || (matches!(output, Output::Checkpoint) && self.agent.ending().is_none());
                busy |= !routine;
                let epoch = self.treasury.epoch;
                let done = self.execute(&output, hosts);
                if self.treasury.epoch != epoch && self.treasury.stage == Stage::Alive {
                    self.record.moves += 1;
                    self.hear(hosts);
                    self.boots(false, hosts);
                    return true;
                }
                let outcome = match done {
                    Ok(()) => Outcome::Done { block: (self.now - BEGIN) / BLOCK_SECS + 1 },
                    Err(why) => Outcome::Failed { reason: why.name() },
                };
                self.feed(Input::Done { id, outcome });
            }
        }
        busy
    }

    fn execute(&mut self, output: &Output, hosts: &mut Hosts) -> Result<(), Refusal> {
        let (now, who) = (self.now, self.treasury.operator);
        match *output {
            Output::Rent { offer, term, prepay } => {
                let host = usize::try_from(offer).expect("an index");
                if !hosts.host(host).is_free() {
                    return Err(Refusal::NoCapacity);
                }
                let offer = self.offer(host, hosts);
                self.treasury.rent(now, who, (offer, term, prepay.0))?;
                hosts.take(host);
                self.leases.push((host, !self.chance.of_1000(NEVER_READY_PERMILLE), false));
                Ok(())
            }
            Output::TopUp { lease, amount } => self.treasury.top_up(now, who, lease, amount.0),
            Output::Release { lease } => self.treasury.release(now, who, lease),
            Output::Heartbeat { standby_answered } => self.treasury.heartbeat(now, who, standby_answered),
            Output::Checkpoint => self.treasury.commit(who, self.treasury.checkpoint_seq + 1),
            Output::Announce { lease } => self.treasury.announce(now, who, lease),
            Output::Handover { lease, valid_until } => {
                self.treasury.handover(now, who, lease, self.treasury.checkpoint_seq, valid_until)
            }
            Output::Refund { payer, nonce, amount } => self.treasury.refund_exact(now, who, payer, nonce, amount.0),
            Output::WindDown => self.treasury.wind_down(now, who),
            Output::Close => self.treasury.close(now),
            Output::Hibernate { until, .. } => self.treasury.hibernate(now, who, until),
            // Gas is not counted here.
            Output::Refuel | Output::BuyGas { .. } => Ok(()),
            // Nobody here has a supplier.
            Output::FillPurse { .. } => Ok(()),
            // Nor an archivist.
            Output::AskArchivist | Output::PayArchivist { .. } | Output::Archive { .. } => Ok(()),
            Output::Serve { .. } | Output::StopServing { .. } | Output::Note(_) | Output::WakeAt(_) => Ok(()),
        }
    }

    fn view(&self, hosts: &mut Hosts) -> View {
        let (t, now) = (&self.treasury, self.now);
        let lease = |id: u64| {
            t.market.lease(id).filter(|_| id != 0).map(|l| LeaseView {
                id,
                // By the town's numbers.
                offer: u64::try_from(self.host_of(id).expect("ours")).expect("small"),
                provider: l.provider,
                price_e6: l.price_e6,
                start: l.start,
                end: l.end,
                ready_by: l.ready_by,
                ready: l.state == LeaseState::Ready,
                escrow_left: Usdc(t.escrow_left(now, id)),
            })
        };
        View {
            number: (now - BEGIN) / BLOCK_SECS + 1,
            timestamp: now,
            stage: t.stage,
            paused: t.paused,
            restoring: t.restoring,
            epoch: t.epoch,
            operator_is_me: t.stage != Stage::Closed,
            active: lease(t.active),
            standby: lease(t.standby),
            draining: lease(t.draining),
            announced: t.announced,
            announced_at: t.announced_at,
            checkpoint_seq: t.checkpoint_seq,
            last_heartbeat: t.last_heartbeat,
            challenged_at: t.challenged_at,
            balance: Usdc(t.balance()),
            escrow: Usdc(t.escrow(now)),
            purse: Usdc::ZERO,
            spent_in_day: Usdc(t.spent_in_day(now)),
            operator_gas_wei: 1,
            relay_gas_wei: 1,
            treasury_gas_wei: 1,
            mandate_until: u64::MAX / 2,
            wind_down_at: t.wind_down_at,
            limits: LIMITS,
            offers: hosts.offers().to_vec(),
        }
    }

    /// Whether ledger and treasury agree to the micro-USDC.
    pub fn books_balance(&self) -> bool {
        self.agent.books_balance()
    }
}
