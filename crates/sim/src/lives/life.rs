//! A life from birth to close, and what the auditor asks of it as a whole.

use super::chain::{BASE_FEE, Chain, DEPTH, Tx};
use super::channels::{Payer, read};
use super::moving::Follower;
use super::node::{Answer, CLOCK_STEP_MS, Cut, Endpoint, Given, Node, Seen};
use super::shares::{self, Shares};
use super::{Broken, Bug, Fault, Lived, Pace, Setting};
use crate::Chance;
use crate::audit::Audit;
use crate::world::{STAKE, Terms, World, creator, key, stage};
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use chain::bindings::{LeaseStatus, Offer, Options, TestUSDC};
use chain::market;
use chain::treasury::calls;
use economy::{Due, Genesis, Policy, Silence, Stage, Timers, Usdc, Wishes};
use pay::book::{AbortWhy, Ask, Decision, Delivery, Finish, Reservation, Timing};
use pay::scheme::channel::BATCH_SETTLEMENT;
use pay::{BookInput, RequestId, Settle, SettleExact, TransferMethod};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::OnceLock;
use store::checkpoint::ShareRequest;

/// Seconds between two looks while something is under way, and of a quiet block at most.
const BLOCK_SECS: u64 = 300;
const QUIET_SECS: u64 = 7_200;
/// The same, while everybody waits for a silence or an answer to run out.
const WAIT_SECS: u64 = 1_800;
/// Stewards who asked for a rescue in vain ask again after so long.
const RESCUE_AGAIN_SECS: u64 = 7_200;
/// After so many days without any host to be had stewards give a life up, and anybody winds it down.
const GIVE_UP_DAYS: u64 = 3;
/// What an agent may take to live again, beyond what its timers give.
const MARGIN_SECS: u64 = 60;
/// Of a thousand blocks: a payer takes its money out by itself, or asks the agent for the rest.
const LEAVES_PERMILLE: u64 = 3;
const ASKS_BACK_PERMILLE: u64 = 10;
/// Of a thousand handovers that are taken back, so many are forgotten by the pool.
const FORGOTTEN_PERMILLE: u64 = 500;
/// Of a thousand uses of an old key, so many are for a share of the memory key.
const BEGS_PERMILLE: u64 = 250;
/// What the node's clock does when it is wrong.
const CLOCK_STEPS_MS: [u64; 3] = [0, 60_000, 4 * 3_600_000];
const PROVIDERS: u64 = 5;
const CUSTOMERS: u64 = 3;
/// Customers with a channel.
const PAYERS: u64 = 2;
/// Micro-USDC.
const CUSTOMERS_HAVE: u128 = 1_000_000_000;
/// Of whoever is nobody's customer, and the most that it gives at once.
const STRANGER_HAS: u128 = 1_000_000;
const GIFT_MAX: u64 = 1_000;
/// Of whoever has a sleeping agent woken.
const PATRON_HAS: u128 = 1_000_000_000;
/// Micro-USDC that an agent that will sleep for want of money has beyond its floor: some hours of rent.
const HUNGRY_HAS: u128 = 150_000;
/// Of a thousand blocks in which an agent sleeps, in so many its patron thinks of it.
const PATRON_PERMILLE: u64 = 200;
/// How long these faults last in a whole life.
const DOWN_SECS: u64 = 4 * 3_600;
const FROZEN_SECS: u64 = 6 * 3_600;
const PAUSE_SECS: u64 = 12 * 3_600;
const SPIKE_SECS: u64 = 4 * 3_600;
const SILENT_SECS: u64 = 12 * 3_600;
const FULL_SECS: u64 = 4 * 3_600;
/// Wei a gas in a spike: what an outbox pays after it has looked again, and what none does.
const SPIKES: [u128; 2] = [1_000_000_000, 1_000_000_000_000];
/// Faults come so much more often in a short life, but in no more than so many of a thousand blocks, and are over so much
/// sooner.
const SHORT_FACTOR: u64 = 8;
const SHORT_PERMILLE_MAX: u64 = 250;
/// Calls for which an answer is on its way or unpaid at once, at most: what a lost host may cost.
const EXPOSURE_CALLS: u64 = 60;
/// Of the last events, so many are told.
const TOLD: usize = 24;
/// Blocks after which a life that does not end has gone wrong.
const BLOCKS: u64 = 20_000;

/// A node that handed over in one of the last blocks.
struct Former {
    node: Node,
    /// Its last record.
    closed: u64,
    /// The last record that its successor began with.
    knew: u64,
}

/// What a customer knows of one call.
#[derive(Clone, Copy, Debug)]
struct Bought {
    payer: Address,
    nonce: B256,
    authorised: u128,
    /// There is an answer for it.
    served: bool,
    /// It got that.
    delivered: bool,
}

/// How long something has been so.
#[derive(Clone, Copy, Debug, Default)]
struct Spell(Option<(u64, u64)>);

impl Spell {
    /// Seconds since it became so with this number; 0 while it is not.
    fn still(&mut self, number: Option<u64>, now: u64) -> u64 {
        let since = self.0.filter(|(of, _)| Some(*of) == number).map(|(_, since)| since);
        self.0 = number.map(|of| (of, since.unwrap_or(now)));
        since.map_or(0, |since| now - since)
    }
}

pub struct Life {
    setting: Setting,
    chance: Chance,
    /// For what changes nothing on chain, so that the rest of a life is the same with and without it.
    aside: Chance,
    chain: Chain,
    node: Node,
    /// Of nodes of the past: keys that somebody may still have.
    old_keys: Vec<Address>,
    /// Under which they were those of nodes.
    old_leases: Vec<u64>,
    customers: Vec<PrivateKeySigner>,
    bought: Vec<Bought>,
    payers: Vec<Payer>,
    minted: u128,
    /// Whoever may hold tokens here.
    holders: Vec<Address>,
    genesis: Genesis,
    /// The active host is gone since then.
    dead_since: Option<u64>,
    /// By lease: a standby that answers while the operator is gone.
    silent_standby: Spell,
    /// Standbys that tried to take over without a challenge, and those of whom the contract said that they may not.
    tried_unchallenged: BTreeSet<u64>,
    not_rescued: BTreeSet<u64>,
    /// By epoch: an operator that restores, and that nothing hinders.
    restoring: Spell,
    /// Deaths of its process and forgotten transactions so far, each of which may take a while of its own.
    troubles: u64,
    standbys_sleep: bool,
    /// The process dies in the next look.
    crash_comes: bool,
    rescue_again_at: u64,
    gone: BTreeSet<Address>,
    /// Leases that will not be made ready.
    lazy: BTreeSet<u64>,
    down_until: u64,
    paused_until: u64,
    frozen_until: u64,
    spike_until: u64,
    silent_until: u64,
    full_until: u64,
    shares: Shares,
    follower: Option<Follower>,
    former: Option<Former>,
    /// The last handover about which the pool was asked: until when it may be mined.
    kept_until: u64,
    /// Micro-USDC that a stranger had given, at most so far.
    given_max: u128,
    /// Nobody buys: it is to fall asleep.
    is_shunned: bool,
    /// Micro-USDC in channels, when they were looked at last.
    in_channels: u128,
    owes_secs: u64,
    happened: BTreeMap<Fault, u64>,
    crashes: BTreeMap<String, u64>,
    lived: Lived,
    told: VecDeque<String>,
    digest: Sha256,
    stopped: bool,
    planted: bool,
}

impl Life {
    pub fn born(setting: Setting) -> Self {
        let is_shunned = setting.faults.contains(&Fault::Hunger);
        let mut world = before_birth(setting.pace, is_shunned);
        let term = setting.pace.term_secs();
        let day = u64::from(world.terms.timers.day);
        let mut chance = Chance::new(setting.seed);
        let aside = Chance::new(setting.seed ^ 0xa51d_e000);
        for offer in 1..=PROVIDERS {
            let provider = world.offer_of(offer).provider;
            let price = (500_000 + chance.below(700_000)) * 1_000_000 / day;
            world.evm.call(provider, world.at.market, market::calls::reprice(offer, price), 0).expect("its own");
        }
        let customers: Vec<PrivateKeySigner> = (1..=CUSTOMERS).map(customer).collect();
        let price = world.offer_of(1).priceE6;
        world.move_in(1, term, Usdc::rent_down(price, (2 * day).min(term.into())).micro());
        let minted = u128::from(PROVIDERS) * STAKE
            + u128::from(CUSTOMERS + PAYERS) * CUSTOMERS_HAVE
            + STRANGER_HAS
            + PATRON_HAS
            + world.terms.seed;
        let genesis = genesis(&world, setting.pace, is_shunned);
        let mut audit = Audit::new(world.treasury, day, world.terms.policy.dayLimit);
        audit.begin(&world.state());
        let people = customers.iter().chain(&world.stewards).map(PrivateKeySigner::address);
        let people = people.chain((1..=PAYERS).map(|n| key(&format!("payer-{n}")).address()));
        let providers = (1..=PROVIDERS).map(|n| key(&format!("provider-{n}")).address());
        let payers: Vec<Payer> = (1..=PAYERS).map(|n| Payer::new(n, &world)).collect();
        let others = [
            world.treasury,
            BATCH_SETTLEMENT,
            world.at.market,
            world.standing().purse,
            creator(),
            key("beneficiary").address(),
            key("stranger").address(),
            key("patron").address(),
        ];
        let holders = people.chain(providers).chain(others).collect();
        let forks = [Fault::Reorg, Fault::RpcLag, Fault::UndoneMove].iter().any(|fault| setting.faults.contains(fault));
        let chain = Chain::new(world, audit, if forks { DEPTH } else { 0 });
        let node = Node::first(genesis.clone(), &chain, setting.bug == Some(Bug::DeafLedger));
        Self {
            setting,
            chance,
            aside,
            chain,
            node,
            old_keys: Vec::new(),
            old_leases: Vec::new(),
            customers,
            bought: Vec::new(),
            payers,
            minted,
            holders,
            genesis,
            dead_since: None,
            silent_standby: Spell::default(),
            tried_unchallenged: BTreeSet::new(),
            not_rescued: BTreeSet::new(),
            restoring: Spell::default(),
            troubles: 0,
            standbys_sleep: false,
            crash_comes: false,
            rescue_again_at: 0,
            gone: BTreeSet::new(),
            lazy: BTreeSet::new(),
            down_until: 0,
            paused_until: 0,
            frozen_until: 0,
            spike_until: 0,
            silent_until: 0,
            full_until: 0,
            shares: Shares::default(),
            follower: None,
            former: None,
            kept_until: 0,
            given_max: 0,
            is_shunned,
            in_channels: 0,
            owes_secs: 0,
            happened: BTreeMap::new(),
            crashes: BTreeMap::new(),
            lived: Lived::default(),
            told: VecDeque::new(),
            digest: Sha256::new(),
            stopped: false,
            planted: false,
        }
    }

    pub fn live(mut self) -> Result<Lived, Box<Broken>> {
        match self.live_on() {
            Ok(()) => {
                self.lived.secs = self.chain.now() - self.chain.blocks[0].head.timestamp;
                self.lived.faults = self.happened.into_iter().collect();
                self.lived.crashes = self.crashes.into_iter().collect();
                (self.lived.done, self.lived.refused) = (self.chain.done, self.chain.refused);
                self.lived.digest = self.digest.finalize().into();
                Ok(self.lived)
            }
            Err(what) => Err(Box::new(Broken { setting: self.setting, what, story: self.told.into() })),
        }
    }

    fn live_on(&mut self) -> Result<(), String> {
        let begin = self.chain.now();
        let end = begin + self.setting.life_secs();
        while self.stage() != Stage::Closed {
            self.lived.blocks += 1;
            if self.lived.blocks > BLOCKS {
                return Err(format!("I6: not closed after {BLOCKS} blocks"));
            }
            if !self.stopped && self.chain.now() >= end && self.dead_since.is_none() {
                self.tell("stewards stop it");
                self.stopped = true;
            }
            if self.stopped && self.stage() == Stage::Alive {
                self.stop();
            }
            self.block()?;
        }
        self.after_the_end()
    }

    fn stage(&self) -> Stage {
        stage(&self.chain.state)
    }

    fn tell(&mut self, what: impl Into<String>) {
        let day = u64::from(self.genesis.timers.day);
        let since = self.chain.now() - self.chain.blocks[0].head.timestamp;
        let line = format!(
            "day {} {:02}:{:02}, block {}: {}",
            since / day,
            since % day / 3_600,
            since % 3_600 / 60,
            self.chain.head().number,
            what.into()
        );
        self.digest.update(&line);
        self.told.push_back(line);
        if self.told.len() > TOLD {
            self.told.pop_front();
        }
    }

    /// A short life has as much to suffer as a whole one.
    fn permille(&self, fault: Fault) -> u64 {
        match (self.setting.pace, fault) {
            (Pace::Whole, _)
            | (_, Fault::RpcDrop | Fault::RpcLie | Fault::NeverReady | Fault::PeerDrop)
            | (_, Fault::UndoneMove | Fault::LateHandover) => fault.permille(),
            (Pace::Short, _) => (fault.permille() * SHORT_FACTOR).min(SHORT_PERMILLE_MAX),
        }
    }

    fn lasts(&self, secs: u64) -> u64 {
        match self.setting.pace {
            Pace::Whole => secs,
            Pace::Short => secs / SHORT_FACTOR,
        }
    }

    /// Whether this fault comes now.
    fn comes(&mut self, fault: Fault) -> bool {
        let comes = self.setting.faults.contains(&fault) && self.chance.of_1000(self.permille(fault));
        if comes {
            *self.happened.entry(fault).or_default() += 1;
        }
        comes
    }

    // ---- one block ----

    fn block(&mut self) -> Result<(), String> {
        self.rain()?;
        self.plant();
        if self.shares.careless {
            self.beg_as_nobody()?;
        }
        self.people();
        let secs = match self.dead_since {
            Some(_) => match self.patience_secs() {
                Some(secs) => secs.clamp(BLOCK_SECS, QUIET_SECS),
                None => BLOCK_SECS + self.chance.below(WAIT_SECS),
            },
            None if self.node.is_busy() || self.has_steps() => BLOCK_SECS,
            // A node does not sleep past its heartbeat.
            None => (BLOCK_SECS + self.chance.below(QUIET_SECS)).min(self.secs_to_heartbeat().max(BLOCK_SECS)),
        };
        let secs = secs + std::mem::take(&mut self.owes_secs);
        let epoch = self.chain.state.epoch;
        let mined = self.chain.mine(secs);
        for told in std::mem::take(&mut self.chain.told) {
            self.tell(told);
        }
        mined?;
        self.succession(epoch)?;
        self.works()?;
        self.lived.owed_blocks += u64::from(self.chain.owed != 0);
        self.books()?;
        self.is_in_time()?;
        self.money()
    }

    fn secs_to_heartbeat(&self) -> u64 {
        let due = self.chain.state.lastHeartbeat + u64::from(self.genesis.timers.heartbeat_every);
        due.saturating_sub(self.chain.now())
    }

    fn has_steps(&self) -> bool {
        let state = &self.chain.state;
        let standby = state.standbyLease.to::<u64>();
        let requested = standby != 0 && self.chain.lease(standby).status() == LeaseStatus::Requested;
        requested || !state.announcedLease.is_zero() || state.challengedAt != 0 || state.restoring || self.stopped
    }

    /// The node's part, while its host is there.
    fn works(&mut self) -> Result<(), String> {
        if self.dead_since.is_some() || self.stage() == Stage::Closed {
            return Ok(());
        }
        if self.shares.waits {
            self.restores()?;
            if self.shares.waits {
                return Ok(());
            }
        }
        let mut endpoint = Endpoint { is_down: self.chain.now() < self.down_until, ..Endpoint::default() };
        if self.comes(Fault::RpcLag) {
            endpoint.lag = 1 + usize::try_from(self.chance.below(3)).expect("small");
        }
        let rate =
            |life: &Self, fault: Fault| if life.setting.faults.contains(&fault) { life.permille(fault) } else { 0 };
        (endpoint.drops, endpoint.lies) = (rate(self, Fault::RpcDrop), rate(self, Fault::RpcLie));
        for fault in [Fault::RpcDrop, Fault::RpcLie] {
            if rate(self, fault) > 0 {
                // Each look asks many things.
                *self.happened.entry(fault).or_default() += 1;
            }
        }
        if std::mem::take(&mut self.crash_comes) {
            self.node.begins_to_keep();
            self.node.dies_after = Some(self.chance.below(4));
        } else if self.node.dies_after.is_none() && self.comes(Fault::Crash) {
            self.node.begins_to_keep();
            self.crash_comes = true;
        }
        if self.node.power_fails.is_none() && self.comes(Fault::TornTail) {
            self.node.begins_to_keep();
            let cut = if self.chance.of_1000(750) { Cut::Writing } else { Cut::Synced };
            self.node.power_fails = Some((self.chance.below(2), cut));
        }
        let announced = self.chain.state.announcedLease.to::<u64>();
        self.node.clock_step_ms =
            if self.comes(Fault::ClockSkew) { self.chance.pick(&CLOCK_STEPS_MS) } else { CLOCK_STEP_MS };
        let has_memory = |lease: u64| self.follower.as_ref().is_some_and(|f| f.lease == lease && f.has_memory);
        let standby = self.answering_standby().filter(|lease| *lease != announced || has_memory(*lease));
        if !self.node.looks(&mut self.chain, endpoint, standby, &mut self.chance)? {
            let moment = std::mem::take(&mut self.node.died_at);
            self.tell(format!("the node's process dies {moment}, and another one starts on the same host"));
            *self.crashes.entry(moment).or_default() += 1;
            self.damage()?;
            self.node.restarts(&self.chain)?;
        }
        for told in std::mem::take(&mut self.node.told) {
            self.tell(format!("the agent: {told}"));
        }
        if self.node.waits_for_nothing() {
            return Err("moving: no handover is on its way, and what is on the disk waits all the same".to_owned());
        }
        self.follows();
        self.hear_answers();
        Ok(())
    }

    /// Of a thousand messages between hosts, so many do not come as they were sent.
    fn bad_messages(&self) -> u64 {
        if self.node.hurries && self.node.hands_over.is_some() {
            return 1_000;
        }
        if self.setting.faults.contains(&Fault::PeerDrop) { self.permille(Fault::PeerDrop) } else { 0 }
    }

    /// The announced successor, while its host is there and the old one's answers.
    fn follows(&mut self) {
        let state = &self.chain.state;
        let (announced, seq) = (state.announcedLease.to::<u64>(), state.checkpointSeq);
        if announced == 0 || self.answering_standby() != Some(announced) || self.node.is_fenced {
            return;
        }
        if self.follower.as_ref().is_none_or(|follower| follower.lease != announced) {
            self.node.is_followed_anew();
            self.follower = Some(Follower::new(announced, &self.node, seq));
        }
        let bad = self.bad_messages();
        if bad > 0 {
            // Each time many messages are sent.
            *self.happened.entry(Fault::PeerDrop).or_default() += 1;
        }
        if let Some(follower) = &mut self.follower {
            follower.follows(&mut self.node, bad, &mut self.aside);
        }
    }

    /// What the successor has when the chain names it: the old node's last words, or what it followed until those did not
    /// come. One that never followed has it from the store, which keeps everything here.
    fn given(&mut self, lease: u64) -> Given {
        let Some(mut follower) = self.follower.take().filter(|follower| follower.lease == lease) else {
            return Given::Whole;
        };
        let bad = self.bad_messages();
        let is_there = self.dead_since.is_none() && !self.node.is_fenced;
        if is_there && follower.hears_the_last_words(&mut self.node, bad, &mut self.aside) {
            self.hear_answers();
            return Given::Whole;
        }
        self.hear_answers();
        self.lived.cut_short += 1;
        self.tell("the old node's last words do not come: its successor goes on with what it has");
        Given::Followed(follower.disk)
    }

    /// A start refuses a journal that is damaged where it had been whole.
    fn damage(&mut self) -> Result<(), String> {
        let tears = self.setting.faults.contains(&Fault::TornTail);
        match tears.then(|| self.node.disk.refuses_damage(&mut self.chance)).flatten() {
            Some(false) => Err("journal: a start goes on with records that were damaged".to_owned()),
            _ => Ok(()),
        }
    }

    fn answering_standby(&self) -> Option<u64> {
        let standby = self.chain.state.standbyLease.to::<u64>();
        if standby == 0 {
            return None;
        }
        let lease = self.chain.lease(standby);
        let runs = lease.status() == LeaseStatus::Ready && self.chain.now() < lease.end;
        (runs && !self.gone.contains(&lease.provider)).then_some(standby)
    }

    /// After a handover or takeover the successor's process begins.
    fn succession(&mut self, before: u64) -> Result<(), String> {
        let state = self.chain.state.clone();
        if state.epoch != before && state.operator.is_zero() && self.dead_since.is_none() {
            // Its leases are closed, so its host ends it, whatever becomes of that block.
            self.tell("it sleeps");
            *self.happened.entry(Fault::Hunger).or_default() += 1;
            self.dead_since = Some(self.chain.now());
        }
        if state.epoch == before || state.operator.is_zero() || state.operator == self.node.key {
            return Ok(());
        }
        self.is_shunned = false;
        let restored = state.restoring;
        self.old_keys.push(self.node.key);
        self.old_leases.push(self.node.lease);
        self.shares.waits = false;
        if restored && !state.checkpointDigest.is_zero() {
            self.shares.begins(&self.chain);
        }
        let given = match restored {
            true => Given::Checkpoint(state.checkpointSeq),
            false => self.given(state.activeLease.to()),
        };
        self.follower = None;
        let next = self.node.successor(&self.chain, given)?;
        let knew = next.began_with;
        let (hurries, is_there) = (self.node.hurries, self.dead_since.is_none() && !self.node.is_fenced);
        let node = std::mem::replace(&mut self.node, next);
        self.node.hurries = hurries;
        let closed = node.lsn();
        self.former = (!restored && is_there).then_some(Former { node, closed, knew });
        self.hear_answers();
        (self.dead_since, self.full_until) = (None, 0);
        match restored {
            true => self.lived.takeovers += 1,
            false => self.lived.moves += 1,
        }
        self.tell(format!("lease {} is the active one now, restored: {restored}", state.activeLease));
        Ok(())
    }

    // ---- people ----

    fn send(&mut self, from: Address, to: Address, data: impl Into<alloy::primitives::Bytes>) {
        self.chain.send(Tx::of_people(from, to, data.into()));
    }

    fn people(&mut self) {
        self.providers();
        self.standby_watches();
        self.patron();
        self.stewards();
        if !self.is_shunned {
            self.buy();
            self.buy_by_channel();
        }
        self.relay();
    }

    fn providers(&mut self) {
        let (treasury, at) = (self.chain.world.treasury, self.chain.world.at.market);
        let standby = self.chain.state.standbyLease.to::<u64>();
        if standby == 0 {
            return;
        }
        let lease = self.chain.lease(standby);
        let waits = lease.status() == LeaseStatus::Requested && lease.tenant == treasury;
        if waits && !self.lazy.contains(&standby) && !self.gone.contains(&lease.provider) {
            let known = self.chain.world.last_lease();
            if self.comes(Fault::NeverReady) {
                self.lazy.insert(known);
            } else {
                let data = market::calls::ready(standby, World::node(standby).address(), "http://node", B256::ZERO);
                self.send(lease.provider, at, data);
            }
        }
    }

    /// What the standby's node looks at, while its host is there.
    fn silence(&self) -> Option<(u64, Silence)> {
        let (state, timers, now) = (&self.chain.state, &self.genesis.timers, self.chain.now());
        let standby = self.answering_standby().filter(|_| stage(state) == Stage::Alive && !self.standbys_sleep)?;
        let silence = Silence {
            now,
            last_heartbeat: state.lastHeartbeat,
            challenged_at: state.challengedAt,
            fence: timers.fence.into(),
            answer_time: timers.answer_time.into(),
            silence: timers.silence.into(),
            is_vacant: state.operator.is_zero(),
            is_refused: self.not_rescued.contains(&standby),
        };
        Some((standby, silence))
    }

    /// Whoever is the operator, and wherever that is.
    fn standby_watches(&mut self) {
        let Some((standby, silence)) = self.silence() else { return };
        let data = match silence.due() {
            Due::Nothing => return,
            Due::Challenge => {
                self.lived.challenges += 1;
                calls::challenge()
            }
            Due::Takeover => {
                // Asked again, it was refused: what cannot be mined costs no node more than an estimate.
                if silence.challenged_at == 0 && !self.tried_unchallenged.insert(standby) {
                    self.not_rescued.insert(standby);
                }
                calls::takeover()
            }
        };
        self.send(World::node(standby).address(), self.chain.world.treasury, data);
    }

    /// Until a standby would act, if the operator stays silent.
    fn patience_secs(&self) -> Option<u64> {
        let (_, silence) = self.silence()?;
        let until = match silence.challenged_at {
            0 => silence.last_heartbeat + silence.fence,
            challenged => challenged + silence.answer_time,
        };
        Some((until + 1).saturating_sub(silence.now))
    }

    /// The daemons: they rescue who is silent and has no standby, and close the affairs of whoever cannot be rescued.
    fn stewards(&mut self) {
        let state = self.chain.state.clone();
        let (now, timers, treasury) = (self.chain.now(), self.genesis.timers, self.chain.world.treasury);
        let t = u64::from;
        let steward = self.chain.world.stewards[0].address();
        if self.paused_until != 0 && now >= self.paused_until && state.paused {
            let resume = calls::resume(self.chain.world.order("resume", U256::ZERO, &self.chain.world.quorum()));
            self.send(steward, treasury, resume);
            self.paused_until = 0;
        }
        let Some(dead_since) = self.dead_since else { return };
        match stage(&state) {
            Stage::Alive => {}
            Stage::Stopped => return self.send(steward, treasury, calls::wind_down()),
            Stage::WindingDown if now >= state.windDownAt + t(timers.refund_window) => {
                return self.send(steward, treasury, calls::close());
            }
            Stage::Unborn | Stage::WindingDown | Stage::Closed => return,
        }
        if !self.stopped && now > dead_since + GIVE_UP_DAYS * t(timers.day) {
            self.tell("stewards give it up: there is no host to be had");
            (self.stopped, self.lived.given_up) = (true, true);
        }
        let is_silent = now > state.lastHeartbeat + t(timers.silence) && !state.paused;
        let may_rescue = now >= self.silent_until && now >= self.rescue_again_at;
        let is_woken = state.operator.is_zero() && !state.paused && self.wants_of_patron() == Some(0);
        if (is_silent && !state.operator.is_zero() || is_woken) && may_rescue && self.answering_standby().is_none() {
            self.rescue_again_at = now + RESCUE_AGAIN_SECS;
            self.rescue(steward);
        }
    }

    /// What a sleeping agent lacks of what it is woken with, micro-USDC; `None`: there is no host to be had.
    fn wants_of_patron(&self) -> Option<u128> {
        let (world, policy) = (&self.chain.world, &self.chain.world.terms.policy);
        let (_, of) = self.rescuers_offer()?;
        let secs = policy.prepayMax.min(self.genesis.policy.wishes.term);
        let wakes_at = economy::wakes_at(Usdc(policy.starveFloor), Usdc::rent_up(of.priceE6, secs.into()));
        Some(wakes_at.micro().saturating_sub(world.usdc(world.treasury)))
    }

    /// Somebody who wants the agent back funds it, some time after it fell asleep.
    fn patron(&mut self) {
        let sleeps = self.chain.state.operator.is_zero() && self.stage() == Stage::Alive;
        let wants = if sleeps { self.wants_of_patron().unwrap_or(0) } else { 0 };
        if wants > 0 && self.chance.of_1000(PATRON_PERMILLE) {
            let (usdc, treasury) = (self.chain.world.at.usdc, self.chain.world.treasury);
            self.send(key("patron").address(), usdc, chain::usdc::calls::transfer(treasury, wants));
        }
    }

    /// The cheapest that may be taken.
    fn rescuers_offer(&self) -> Option<(u64, Offer)> {
        let world = &self.chain.world;
        let offers = (1..=world.offer_count()).map(|id| (id, world.offer_of(id)));
        let good = offers.filter(|(_, offer)| !self.gone.contains(&offer.provider) && offer.used < offer.capacity);
        let within = good.filter(|(_, offer)| offer.priceE6 <= world.terms.policy.priceE6Max);
        within.min_by_key(|(_, offer)| offer.priceE6)
    }

    /// Micro-USDC that came from strangers and a patron.
    fn gifts(&self) -> u128 {
        let has = |who: &str| self.chain.balance(key(who).address());
        STRANGER_HAS + PATRON_HAS - has("stranger") - has("patron")
    }

    fn rescue(&mut self, steward: Address) {
        let state = self.chain.state_now().clone();
        // A day's rent, and never more than the whole term's, which the market would refuse.
        let secs = self.genesis.timers.day.min(self.genesis.policy.wishes.term);
        let world = &self.chain.world;
        let standby = state.standbyLease.to::<u64>();
        if standby != 0 {
            let lease = self.chain.lease(standby);
            let waiting = lease.status() == LeaseStatus::Requested && self.chain.now() <= lease.readyBy;
            if waiting && !self.gone.contains(&lease.provider) && !self.lazy.contains(&standby) {
                return;
            }
        }
        let Some((offer, of)) = self.rescuers_offer() else { return };
        let left = world.terms.policy.dayLimit.saturating_sub(state.spentInDay);
        let prepay = Usdc::rent_down(of.priceE6, secs.into()).micro().min(left).min(state.balance.to());
        let (term, argument) = (
            self.genesis.policy.wishes.term,
            chain::orders::rescue_argument(offer, self.genesis.policy.wishes.term, prepay),
        );
        let order = world.order("rescue", argument, &world.quorum());
        let (treasury, data) = (world.treasury, calls::rescue(offer, term, prepay, order));
        self.lived.rescues += 1;
        self.send(steward, treasury, data);
    }

    /// Until it is mined; a pause is lifted first.
    fn stop(&mut self) {
        let world = &self.chain.world;
        let quorum = world.quorum();
        let order = match self.chain.state.paused {
            true => calls::resume(world.order("resume", U256::ZERO, &quorum)),
            false => calls::stop(world.order("stop", U256::ZERO, &quorum)),
        };
        let (steward, treasury) = (world.stewards[0].address(), world.treasury);
        self.paused_until = 0;
        self.send(steward, treasury, order);
    }

    // ---- customers ----

    /// One of them asks, now and then.
    fn buy(&mut self) {
        let open = u64::from(self.node.book.open());
        let Some(price) = self.node.call_price() else { return };
        let serving = self.dead_since.is_none() && self.stage() == Stage::Alive && open < EXPOSURE_CALLS;
        if !serving || !self.chance.of_1000(500) {
            return;
        }
        self.lived.calls += 1;
        let now = self.chain.now();
        let customer = self.chance.pick(&self.customers);
        let nonce = keccak256([b"call".as_slice(), &self.lived.calls.to_be_bytes()].concat());
        let value = if self.setting.bug == Some(Bug::Overcharge) { Usdc(2 * price.micro()) } else { price };
        let payment = self.chain.world.payment(&customer, value.micro(), nonce);
        let unserved = self.comes(Fault::Unserved);
        let ask = Ask {
            method: TransferMethod::Eip3009,
            payer: customer.address().into_array(),
            nonce: nonce.0,
            route: "POST /v1/chat/completions".to_owned(),
            body_digest: nonce.0,
            identifier: None,
            fresh: true,
        };
        if self.node.book.decide(&ask, now) != Decision::New {
            return;
        }
        let request = RequestId::of_payment(ask.method, &ask.payer, &ask.nonce);
        let settlement = SettleExact {
            payer: ask.payer,
            value,
            valid_after: 0,
            // The world's payments hold for ever; a book counts in 64 bits.
            valid_before: u64::MAX,
            nonce: nonce.0,
            signature: payment.signature.to_vec(),
            is_signed_by_key: true,
        };
        let reservation = Reservation {
            request,
            settlement: Settle::Exact(settlement),
            timing: Timing::AtOnce,
            route: ask.route,
            body_digest: ask.body_digest,
            identifier: None,
            prompt_tokens: 200,
            max_tokens: 100,
            run: String::new(),
            at: now,
        };
        let delivered = whole_answer(now);
        let lies = self.setting.bug == Some(Bug::ChargedForNothing);
        let ends = match unserved && !lies {
            true => BookInput::Aborted { request, why: AbortWhy::Engine },
            false => BookInput::Delivered { request, delivery: delivered, amount: price },
        };
        // The payment leaves with the request, before anybody knows how the answer ends.
        for input in [BookInput::Reserved(reservation), BookInput::SettleSent { request }, ends] {
            let tasks = self.node.pay(now, input);
            self.node.submit_all(tasks, &self.chain);
            if !self.node.syncs() {
                return;
            }
        }
        let (payer, authorised) = (customer.address(), price.micro());
        self.chain.audit.authorises(payer, nonce, authorised);
        let (served, number) = (!(unserved || lies), self.bought.len());
        self.bought.push(Bought { payer, nonce, authorised, served, delivered: false });
        self.node.answers(Answer::Exact { request, number });
        self.hear_answers();
    }

    /// What left the node arrives.
    fn hear_answers(&mut self) {
        for answer in std::mem::take(&mut self.node.left) {
            match answer {
                Answer::Exact { number, .. } => self.bought[number].delivered = self.bought[number].served,
                // The customer of a greedy agent gets nothing for it.
                Answer::Channel { .. } if self.setting.bug == Some(Bug::GreedyClaim) => {}
                Answer::Channel { channel, price, total } => {
                    let payer = self.payers.iter_mut().find(|payer| payer.id == channel);
                    payer.expect("one of these").hears(price, total);
                }
            }
        }
    }

    /// Customers with channels: a call, now and then the rest back, and sometimes out without a word.
    fn buy_by_channel(&mut self) {
        let now = self.chain.now();
        let serving = self.dead_since.is_none() && self.stage() == Stage::Alive && !self.node.is_fenced;
        let price = self.node.call_price().filter(|_| serving);
        for index in 0..self.payers.len() {
            if let Some(data) = self.payers[index].takes_out(now) {
                self.send(self.payers[index].address(), BATCH_SETTLEMENT, data);
            }
            if self.chance.of_1000(LEAVES_PERMILLE)
                && let Some(data) = self.payers[index].leaves(&self.chain)
            {
                self.tell(format!("payer {} takes out what is not claimed", index + 1));
                self.send(self.payers[index].address(), BATCH_SETTLEMENT, data);
            }
            let (asks, asks_back) = (self.chance.of_1000(350), self.chance.of_1000(ASKS_BACK_PERMILLE));
            if self.payers[index].leaving_since.is_some() {
                continue;
            }
            if asks_back && serving {
                self.payers[index].asks_back(&mut self.node, &self.chain);
            } else if let Some(price) = price.filter(|_| asks) {
                let fails = self.comes(Fault::Unserved);
                let served = self.payers[index].asks(&mut self.node, &self.chain, price, fails);
                self.lived.channel_calls += u64::from(served);
            }
            self.node.syncs();
            self.hear_answers();
        }
    }

    /// Sends what is due, again and again until the chain shows it.
    fn relay(&mut self) {
        if self.dead_since.is_some() || self.node.is_fenced {
            return;
        }
        let treasury = self.chain.world.treasury;
        for payment in self.due() {
            if !self.comes(Fault::RpcDrop) {
                self.send(key("relay").address(), treasury, calls::settle_exact(&payment));
            }
        }
        for deposit in self.node.deposits() {
            if !self.comes(Fault::RpcDrop) {
                self.send(key("relay").address(), BATCH_SETTLEMENT, deposit);
            }
        }
        // While the token refuses, that shows without a transaction.
        if self.frozen_until == 0 && !self.node.agent.ledger().at_market().is_zero() && !self.comes(Fault::RpcDrop) {
            self.send(key("relay").address(), self.chain.world.at.market, market::calls::collect(treasury));
        }
    }

    /// Payments that left their customers, and are not settled yet.
    fn due(&self) -> Vec<calls::ExactAuthorization> {
        if self.dead_since.is_some() || self.node.is_fenced {
            return Vec::new();
        }
        let held = &self.node.held;
        let due = self.node.book.unsettled().filter(|(request, _)| !held.contains(*request)).take(8);
        let payments = due.filter_map(|(_, entry)| match &entry.reservation.settlement {
            Settle::Exact(s) => Some(calls::ExactAuthorization {
                payer: s.payer.into(),
                value: U256::from(s.value.micro()),
                valid_after: U256::ZERO,
                valid_before: U256::MAX,
                nonce: s.nonce.into(),
                signature: s.signature.clone().into(),
            }),
            Settle::Permit2(_) => None,
        });
        payments.collect()
    }

    // ---- faults ----

    fn rain(&mut self) -> Result<(), String> {
        let now = self.chain.now();
        let state = self.chain.state.clone();
        let (treasury, alive) = (self.chain.world.treasury, stage(&state) == Stage::Alive);
        let steward = self.chain.world.stewards[0].address();
        if self.frozen_until != 0 && now >= self.frozen_until {
            self.freeze(false);
            self.frozen_until = 0;
        }
        if now >= self.spike_until {
            self.chain.base_fee = BASE_FEE;
        }
        self.chain.stewards_are_silent = now < self.silent_until;
        self.node.disk.is_full = now < self.full_until;
        let depth = 1 + usize::try_from(self.chance.below(3)).expect("small");
        if depth <= DEPTH && self.chain.can_branch(depth) && self.comes(Fault::Reorg) {
            self.tell(format!("the last {depth} blocks never happened"));
            self.owes_secs += self.chain.branch(depth);
            (self.silent_standby, self.restoring) = (Spell::default(), Spell::default());
        }
        self.undo_move()?;
        if self.stopped || !alive {
            return Ok(());
        }
        self.keep_handover();
        if now >= self.down_until && self.comes(Fault::RpcDown) {
            self.tell("the endpoint is gone for hours");
            self.down_until = now + self.lasts(DOWN_SECS);
        }
        if self.paused_until == 0 && !state.paused && self.comes(Fault::Pause) {
            self.tell("stewards pause it for a while");
            let order = self.chain.world.order("pause", U256::ZERO, &self.chain.world.quorum());
            self.send(steward, treasury, calls::pause(order));
            self.paused_until = now + self.lasts(PAUSE_SECS);
        }
        if self.frozen_until == 0 && self.comes(Fault::Frozen) {
            self.tell("the token freezes the treasury for hours");
            self.freeze(true);
            self.frozen_until = now + self.lasts(FROZEN_SECS);
        }
        if now >= self.spike_until && self.comes(Fault::FeeSpike) {
            self.chain.base_fee = self.chance.pick(&SPIKES);
            self.tell(format!("gas costs {} wei for hours", self.chain.base_fee));
            self.spike_until = now + self.lasts(SPIKE_SECS);
        }
        if now >= self.silent_until && self.comes(Fault::StewardsSilent) {
            self.tell("stewards fall silent for half a day");
            self.silent_until = now + self.lasts(SILENT_SECS);
        }
        if now >= self.full_until && self.dead_since.is_none() && self.comes(Fault::FullDisk) {
            self.tell("the disk of the active host is full for hours");
            self.full_until = now + self.lasts(FULL_SECS);
            self.node.begins_to_keep();
            self.node.disk.is_full = true;
        }
        if self.chain.has_next(self.node.key) && self.comes(Fault::NonceGap) {
            self.tell("the pool forgets the agent's next transaction");
            self.chain.forgets(self.node.key);
        }
        if self.comes(Fault::ThirdParty) {
            self.meddle();
        }
        if self.comes(Fault::PriceRaise) {
            let offer = 1 + self.chance.below(PROVIDERS);
            let of = self.chain.world.offer_of(offer);
            self.tell(format!("offer {offer} costs twice as much from now on"));
            let data = market::calls::reprice(offer, of.priceE6 * 2);
            self.send(of.provider, self.chain.world.at.market, data);
        }
        self.lose_hosts();
        self.use_old_keys()
    }

    /// The block of the last handover never happened: the old node is operator again, and what its successor did in the
    /// blocks since binds nobody. The handover waits in the pool, or is forgotten there and sent again.
    fn undo_move(&mut self) -> Result<(), String> {
        let Some(depth) = self.chain.succession_depth() else {
            self.former = None;
            return Ok(());
        };
        let host = |life: &Self, former: &Former| life.chain.lease(former.node.lease).provider;
        let may_be = self.former.as_ref().is_some_and(|former| !self.gone.contains(&host(self, former)));
        if !may_be || self.dead_since.is_some() || !self.comes(Fault::UndoneMove) {
            return Ok(());
        }
        let Some(Former { mut node, closed, knew }) = self.former.take() else { return Ok(()) };
        self.tell(format!("the last {depth} blocks never happened, and with them the move"));
        self.owes_secs += self.chain.branch(depth);
        if self.setting.bug == Some(Bug::ForgottenOffice) {
            node.forgets_all_but(self.chain.state.checkpointSeq);
        }
        if node.lsn() < closed {
            return Err(format!("moving: it was operator up to record {closed}, and goes on from {}", node.lsn()));
        }
        node.reinstated(&self.chain, knew);
        if self.chance.of_1000(FORGOTTEN_PERMILLE) {
            self.chain.forgets(node.key);
        }
        (self.node, self.follower, self.full_until) = (node, None, 0);
        self.old_keys.pop();
        self.old_leases.pop();
        (self.lived.moves, self.lived.undone) = (self.lived.moves - 1, self.lived.undone + 1);
        Ok(())
    }

    /// The pool keeps the agent's handover, and whatever it sends after that, until it is too late for it.
    fn keep_handover(&mut self) {
        let Some((_, valid_until)) = self.node.agent.handover() else { return };
        let is_new = std::mem::replace(&mut self.kept_until, valid_until) != valid_until;
        if is_new && self.comes(Fault::LateHandover) {
            self.tell("the pool keeps the agent's handover until it is too late for it");
            self.chain.held_back = Some((self.node.key, valid_until));
        }
    }

    /// What anybody may do.
    fn meddle(&mut self) {
        let (stranger, at, treasury) = (key("stranger").address(), self.chain.world.at, self.chain.world.treasury);
        match self.chance.below(4) {
            0 => {
                let amount = u128::from(1 + self.chance.below(GIFT_MAX));
                self.send(stranger, at.usdc, chain::usdc::calls::transfer(treasury, amount));
            }
            1 => {
                let due = self.due();
                due.first().map(calls::settle_exact).into_iter().for_each(|data| self.send(stranger, treasury, data));
            }
            2 if !self.bought.is_empty() => {
                let Bought { payer, nonce, authorised, .. } = self.chance.pick(&self.bought);
                let customer =
                    self.customers.iter().find(|customer| customer.address() == payer).expect("one of these");
                let payment = self.chain.world.payment(customer, authorised, nonce);
                self.send(stranger, treasury, calls::settle_exact(&payment));
            }
            _ => self.send(stranger, at.market, market::calls::collect(treasury)),
        }
    }

    fn freeze(&mut self, frozen: bool) {
        let (account, token) = (self.chain.world.treasury, self.chain.world.at.usdc);
        let call = TestUSDC::setFrozenCall { account, frozen };
        self.send(creator(), token, call.abi_encode());
    }

    fn lose_hosts(&mut self) {
        let state = self.chain.state.clone();
        // Two providers stay: whoever has nobody left to go to shows nothing.
        let can_lose = u64::try_from(self.gone.len()).expect("few") + 2 < PROVIDERS;
        if can_lose && self.dead_since.is_none() && !state.restoring && self.comes(Fault::HostGone) {
            self.tell(format!("the host of lease {} is gone, with everything on it", state.activeLease));
            self.lose_active();
        }
        let standby = state.standbyLease.to::<u64>();
        if can_lose && standby != 0 && self.comes(Fault::StandbyGone) {
            let provider = self.chain.lease(standby).provider;
            let active = self.chain.lease(state.activeLease.to()).provider;
            if provider != active {
                self.tell(format!("the standby's host of lease {standby} falls silent"));
                self.gone.insert(provider);
            }
        }
    }

    fn lose_active(&mut self) {
        self.gone.insert(self.chain.lease(self.chain.state.activeLease.to()).provider);
        self.dead_since = Some(self.chain.now());
    }

    /// Whoever kept a key of a former epoch tries what it could have done then.
    fn use_old_keys(&mut self) -> Result<(), String> {
        if self.old_keys.is_empty() || !self.comes(Fault::OldKey) {
            return Ok(());
        }
        let from = self.chance.pick(&self.old_keys);
        let state = self.chain.state.clone();
        let (treasury, term) = (self.chain.world.treasury, self.genesis.policy.wishes.term);
        let lease = state.activeLease.to();
        let tries = [
            calls::heartbeat(B256::ZERO, B256::ZERO, true),
            calls::top_up(lease, 100_000),
            calls::rent(1, term, 100_000),
            self.chain.world.commit(B256::repeat_byte(0xbd), &self.chain.world.quorum()),
            calls::release(state.standbyLease.to()),
        ];
        let data = self.chance.pick(&tries);
        self.send(from, treasury, data);
        if self.aside.of_1000(BEGS_PERMILLE) { self.beg() } else { Ok(()) }
    }

    /// A stranger, once, with a key that never was anything.
    fn beg_as_nobody(&mut self) -> Result<(), String> {
        let lease = self.chain.state.activeLease.to();
        let request = shares::request(&self.chain, lease, &key("usurper"));
        self.ask_for_share(0, &request).map(|_| ())
    }

    /// Whoever would like to have a share of the memory key: who was the operator, who is not yet, who overheard the last
    /// request and sends it again, or with another recipient.
    fn beg(&mut self) -> Result<(), String> {
        let state = &self.chain.state;
        let (lease, standby) = (state.activeLease.to(), state.standbyLease.to());
        let overheard = self.shares.request.clone();
        let thief = World::node(self.old_leases[self.old_leases.len() - 1]);
        let request = match (self.aside.below(4), overheard) {
            (0, Some(request)) => request,
            (1, Some(request)) => ShareRequest { recipient: thief.address().to_string(), ..request },
            (2, _) => shares::request(&self.chain, standby, &World::node(standby)),
            _ => shares::request(&self.chain, lease, &thief),
        };
        let stewards: Vec<usize> = (0..self.chain.world.stewards.len()).collect();
        let steward = self.aside.pick(&stewards);
        self.ask_for_share(steward, &request).map(|_| ())
    }

    /// One steward's answer, and the auditor's word on it.
    fn ask_for_share(&mut self, steward: usize, request: &ShareRequest) -> Result<bool, String> {
        if !self.shares.gives(&self.chain, request) {
            self.lived.shares_refused += 1;
            return Ok(false);
        }
        self.lived.shares += 1;
        self.chain.audit.share(steward, shares::recipient(request))?;
        Ok(true)
    }

    /// The operator asks those for their shares that it has none of.
    fn restores(&mut self) -> Result<(), String> {
        let silent = self.chain.stewards_are_silent;
        let threshold = usize::from(self.chain.world.terms.threshold);
        let there = if silent { threshold - 1 } else { self.chain.world.stewards.len() };
        let request = self.shares.request.clone().expect("an operator that has to restore asks");
        let lost = if self.setting.faults.contains(&Fault::RpcDrop) { self.permille(Fault::RpcDrop) } else { 0 };
        for steward in 0..there {
            let known = self.shares.given.contains(&steward) || self.shares.are_enough(&self.chain);
            if !known && !self.aside.of_1000(lost) && self.ask_for_share(steward, &request)? {
                self.shares.given.insert(steward);
            }
        }
        if self.shares.are_enough(&self.chain) {
            self.chain.audit.restored(threshold)?;
            self.shares.waits = false;
            self.tell(format!("{} stewards gave their shares to the operator", self.shares.given.len()));
        }
        Ok(())
    }

    // ---- planted bugs ----

    /// On the third day, once.
    fn plant(&mut self) {
        let since = self.chain.now() - self.chain.blocks[0].head.timestamp;
        let ready = since > 2 * u64::from(self.genesis.timers.day);
        let Some(bug) = self.setting.bug.filter(|_| ready && !self.planted) else { return };
        let state = self.chain.state.clone();
        let treasury = self.chain.world.treasury;
        let closes = self.chain.waits(state.operator, &calls::close());
        let world = &mut self.chain.world;
        match bug {
            Bug::MadeMoney => {
                world.evm.call(creator(), world.at.usdc, chain::usdc::calls::mint(creator(), 1), 0).expect("mints");
                world.evm.take_logs();
            }
            Bug::UsurpedKey => {
                let usurper = key("usurper").address();
                overwrite(world, treasury, state.operator.as_slice(), usurper.as_slice());
                self.send(usurper, treasury, calls::heartbeat(B256::ZERO, B256::ZERO, false));
            }
            Bug::LooseDayLimit => {
                let limit = world.terms.policy.dayLimit;
                overwrite(world, treasury, &limit.to_be_bytes(), &u128::from(u64::MAX).to_be_bytes());
                self.spend_too_much();
            }
            Bug::ForgottenCheckpoint => {
                let seq = state.checkpointSeq;
                if seq < 3 {
                    return;
                }
                let heartbeat: [u8; 8] = state.lastHeartbeat.to_be_bytes();
                let old = [heartbeat, seq.to_be_bytes()].concat();
                let new = [heartbeat, (seq - 2).to_be_bytes()].concat();
                overwrite(world, treasury, &old, &new);
            }
            Bug::StrandedLease => {
                if !closes {
                    return;
                }
                // Operator, relay, purse and the active lease lie in a row.
                let at = word_with(world, treasury, state.operator.as_slice()).expect("an operator") + 3;
                assert_eq!(world.evm.slot(treasury, at), state.activeLease, "the treasury's layout changed");
                world.evm.set_slot(treasury, at, U256::ZERO);
            }
            Bug::UnheldPause => {
                if !state.paused {
                    let order = world.order("pause", U256::ZERO, &world.quorum());
                    return self.send(creator(), treasury, calls::pause(order));
                }
                // From the right: who gave birth, when, the stage (1: alive), paused (1), restoring, rescued.
                let born = [&[1, 1][..], &self.chain.blocks[0].head.timestamp.to_be_bytes()[..4]].concat();
                overwrite(world, treasury, &born, &[&[0, 1][..], &born[2..]].concat());
                self.send(state.operator, treasury, calls::top_up(state.activeLease.to(), 1_000));
            }
            Bug::EarlyOutput => self.node.leaks = true,
            Bug::ForgetfulDisk => {
                self.node.disk.forgets_the_last_write();
                self.node.begins_to_keep();
                self.node.power_fails = Some((0, Cut::Writing));
            }
            Bug::HurriedMove => self.node.hurries = true,
            Bug::SleepingStandby => {
                self.standbys_sleep = true;
                self.lose_active();
            }
            Bug::ShutGate => self.node.stays_shut = true,
            Bug::CarelessStewards => self.shares.careless = true,
            Bug::OneShareOpens => {
                self.shares.hasty = true;
                self.lose_active();
            }
            Bug::DeafLedger | Bug::ChargedForNothing | Bug::Overcharge | Bug::GreedyClaim | Bug::ForgottenOffice => {}
        }
        self.planted = true;
        self.chain.look_again();
    }

    /// Rents and releases as the operator, at the price cap, until more is committed than a day may hold.
    fn spend_too_much(&mut self) {
        let world = &self.chain.world;
        let (state, policy, treasury) = (self.chain.state.clone(), world.terms.policy.clone(), world.treasury);
        let host = world.lease(state.activeLease.to()).provider;
        let offers = (1..=world.offer_count()).map(|id| (id, world.offer_of(id).provider));
        let (offer, provider) = offers.clone().find(|(_, provider)| *provider != host).expect("others offer, too");
        let prepay = Usdc::rent_down(policy.priceE6Max, policy.prepayMax.into()).micro();
        let (at, next, operator) = (world.at.market, world.last_lease() + 1, state.operator);
        self.send(provider, at, market::calls::reprice(offer, policy.priceE6Max));
        self.send(operator, treasury, calls::release(state.standbyLease.to()));
        for lease in next..=next + u64::try_from(policy.dayLimit / prepay).expect("few") {
            self.send(operator, treasury, calls::rent(offer, self.genesis.policy.wishes.term, prepay));
            self.send(operator, treasury, calls::release(lease));
        }
    }

    // ---- the auditor's part that needs the whole ----

    /// After each block: a standby that answered all the while since its operator's host was gone is the operator by now,
    /// and one that could restore has.
    fn is_in_time(&mut self) -> Result<(), String> {
        let (now, t) = (self.chain.now(), u64::from);
        let timers = &self.genesis.timers;
        let standby = self.answering_standby().filter(|_| self.dead_since.is_some() && self.stage() == Stage::Alive);
        let alive_within = t(timers.fence) + t(timers.answer_time) + 4 * BLOCK_SECS + MARGIN_SECS;
        // The pool may still have had a heartbeat of the dead.
        let waits = self.silent_standby.still(standby, now).min(now - self.chain.state.lastHeartbeat);
        if waits > alive_within {
            return Err(format!(
                "takeover: lease {standby:?} stands by and has waited for {waits} of {alive_within} s"
            ));
        }
        let troubles = self.crashes.values().sum::<u64>() + self.happened.get(&Fault::NonceGap).copied().unwrap_or(0);
        let is_hindered = std::mem::replace(&mut self.troubles, troubles) != troubles
            || now < self.silent_until.max(self.down_until).max(self.full_until).max(self.spike_until);
        let state = &self.chain.state;
        let restoring =
            (state.restoring && self.dead_since.is_none() && !is_hindered && !self.stopped).then_some(state.epoch);
        let restored_within = t(timers.restore_timeout) + MARGIN_SECS;
        match self.restoring.still(restoring, now) {
            waits if waits > restored_within => {
                Err(format!("takeover: the operator has been restoring for {waits} of {restored_within} s"))
            }
            _ => Ok(()),
        }
    }

    /// I1, after each block: no money is made or lost.
    fn money(&mut self) -> Result<(), String> {
        if !self.chain.moved_money {
            return Ok(());
        }
        let in_channels = self.chain.balance(BATCH_SETTLEMENT);
        if std::mem::replace(&mut self.in_channels, in_channels) != in_channels {
            self.claims()?;
        }
        let sum: u128 = self.holders.iter().map(|account| self.chain.balance(*account)).sum();
        match sum == self.minted {
            true => Ok(()),
            false => Err(format!("I1: {} micro-USDC were minted, the people here hold {sum}", self.minted)),
        }
    }

    /// I3, after each block that moved money of channels: nothing is claimed beyond what was signed or delivered.
    fn claims(&self) -> Result<(), String> {
        for (index, Payer { id, signed, delivered, .. }) in self.payers.iter().enumerate() {
            let claimed = read(&self.chain, id, 0).claimed.micro();
            if claimed > *signed || claimed > *delivered {
                return Err(format!(
                    "I3: {claimed} claimed from payer {} for {delivered} of {signed} signed",
                    index + 1
                ));
            }
        }
        Ok(())
    }

    /// I1, after each look of the agent: its books say to the micro-USDC what the chain showed it, however late that was,
    /// and call nothing a gift, for nobody gives here.
    fn books(&mut self) -> Result<(), String> {
        let Some(Seen { balance, escrow, owed }) = self.node.seen.take() else { return Ok(()) };
        let signed = |amount: u128| i128::try_from(amount).expect("USDC's whole supply fits 64 bits");
        let ledger = self.node.agent.ledger();
        let books = (ledger.balance(), ledger.escrow(), signed(ledger.at_market().micro()));
        let chain = (signed(balance.micro()), signed(escrow.micro()), signed(owed));
        let gives = [Fault::ThirdParty, Fault::Hunger].iter().any(|fault| self.setting.faults.contains(fault));
        // A branch may have taken a gift back that is still in the books.
        let given = if gives { self.gifts().max(self.given_max) } else { 0 };
        self.given_max = given;
        match books == chain && ledger.gifts().micro() <= given {
            true => Ok(()),
            false => Err(format!(
                "I1: (balance, escrow, owed by the market) on chain {chain:?}, in the ledger {books:?}, gifts {}",
                ledger.gifts()
            )),
        }
    }

    /// I1 of the last look, I3 and I6, once: who paid got an answer or its money, and nothing lies where nobody gets it.
    fn after_the_end(&mut self) -> Result<(), String> {
        if self.frozen_until != 0 {
            self.freeze(false);
        }
        self.chain.mine(BLOCK_SECS)?;
        let mut books: Result<(), String> = Ok(());
        if self.dead_since.is_none() {
            // What a bad endpoint hid so long shows now.
            (self.node.dies_after, self.node.power_fails, self.node.disk.is_full) = (None, None, false);
            self.node.looks(&mut self.chain, Endpoint::default(), None, &mut self.chance)?;
            if self.node.seen.is_none() {
                return Err("I1: it never saw its end".to_owned());
            }
            books = self.books();
            let given = self.gifts();
            let gifts = self.node.agent.ledger().gifts().micro();
            if gifts != given {
                return Err(format!("I1: {given} micro-USDC were given, the ledger says {gifts}"));
            }
        }
        let world = &mut self.chain.world;
        world.act(creator(), calls::sweep()).map_err(|revert| format!("I6: sweep: {}", revert.text))?;
        let beneficiary = key("beneficiary").address();
        world.act(beneficiary, calls::withdraw()).map_err(|revert| format!("I6: withdraw: {}", revert.text))?;
        let open = (1..=world.last_lease()).map(|lease| (lease, world.lease(lease)));
        let stranded: Vec<u64> = open
            .filter(|(_, l)| l.tenant == world.treasury && l.status() != LeaseStatus::Closed && l.escrow != 0)
            .map(|(lease, _)| lease)
            .collect();
        let left = world.usdc(world.treasury);
        self.channels_end()?;
        self.chain.look_again();
        if !stranded.is_empty() || left != 0 || self.chain.owed != 0 {
            return Err(format!("I6: stranded: leases {stranded:?}, {left} in the treasury"));
        }
        books?;
        let world = &self.chain.world;
        let (mut unanswered, mut unpaid) = (0, 0);
        for call in &self.bought {
            let asked = chain::bindings::Treasury::recordedCall { payer: call.payer, nonce: call.nonce };
            let recorded = world.evm.ask(world.treasury, &asked).expect("a treasury");
            let (paid, back): (u128, u128) = (recorded.amount.saturating_to(), recorded.refunded.saturating_to());
            if paid > call.authorised || back > paid {
                return Err(format!("I3: {paid} charged and {back} given back of {} authorised", call.authorised));
            }
            unanswered += u64::from(!call.delivered && paid > back);
            unpaid += u64::from(call.delivered && paid == 0);
        }
        // A host that is lost takes what was not in the last checkpoint with it.
        let excused = self.lost() * EXPOSURE_CALLS;
        if unanswered > excused || unpaid > excused + EXPOSURE_CALLS {
            return Err(format!(
                "I3: {unanswered} calls were paid, not answered and not refunded, {unpaid} answered and not paid; \
                 {} lost hosts excuse {excused}",
                self.lost()
            ));
        }
        Ok(())
    }
}

/// I3 and I6 of channels: nothing claimed beyond what was signed or delivered, nothing delivered and left unclaimed but
/// what lost hosts excuse, and payers have the rest, by themselves.
impl Life {
    /// Hosts whose records were lost, at least in part; those that served in blocks which never happened among them.
    fn lost(&self) -> u64 {
        self.lived.takeovers + self.lived.cut_short + self.lived.undone + u64::from(self.dead_since.is_some())
    }

    fn channels_end(&mut self) -> Result<(), String> {
        let excused = u128::from(self.lost() * EXPOSURE_CALLS) * self.genesis.policy.wishes.max_call.micro();
        self.claims()?;
        let mut unclaimed = 0;
        for index in 0..self.payers.len() {
            let Payer { id, delivered, .. } = self.payers[index];
            let state = read(&self.chain, &id, 0);
            let claimed = state.claimed.micro();
            self.lived.left_in_channels += state.balance.micro() - claimed;
            unclaimed += delivered - claimed;
            self.takes_the_rest(index)?;
        }
        if unclaimed > excused {
            return Err(format!(
                "I3: {unclaimed} micro-USDC were delivered on channels and not claimed; excused {excused}"
            ));
        }
        let stranded = self.chain.balance(BATCH_SETTLEMENT);
        if stranded != 0 {
            return Err(format!("I6: {stranded} micro-USDC stay in the channel contract"));
        }
        Ok(())
    }

    /// A payer's own way out, which needs nobody. Twice: a deposit may have come in since it asked for the first time.
    fn takes_the_rest(&mut self, index: usize) -> Result<(), String> {
        let (payer, delay) = (self.payers[index].address(), self.payers[index].delay_secs());
        for _ in 0..2 {
            if let Some(data) = self.payers[index].leaves(&self.chain) {
                self.chain.world.evm.call(payer, BATCH_SETTLEMENT, data, 0).map_err(|r| format!("I6: {}", r.text))?;
            }
            self.chain.world.evm.next_block(delay + 3_700);
            let now = self.chain.world.evm.now();
            if let Some(data) = self.payers[index].takes_out(now) {
                // Taken out before, perhaps.
                let _ = self.chain.world.evm.call(payer, BATCH_SETTLEMENT, data, 0);
            }
        }
        Ok(())
    }
}

fn customer(n: u64) -> PrivateKeySigner {
    key(&format!("customer-{n}"))
}

/// The world into which every life is born, its treasury made and funded: set up once. `hungry`: under a floor that is hardly
/// below what it is born with.
fn before_birth(pace: Pace, hungry: bool) -> World {
    static WORLDS: [[OnceLock<World>; 2]; 2] = [const { [const { OnceLock::new() }; 2] }; 2];
    let made = || {
        let mut terms = terms(pace);
        if hungry {
            terms.policy.starveFloor = terms.seed - HUNGRY_HAS;
        }
        let mut world = World::new(terms);
        world.evm.takes_stand_ins = true;
        for n in 1..=PROVIDERS {
            world.provider(&format!("provider-{n}"), 1, 4);
        }
        for n in 1..=CUSTOMERS {
            world.mint(customer(n).address(), CUSTOMERS_HAVE);
        }
        for n in 1..=PAYERS {
            world.mint(key(&format!("payer-{n}")).address(), CUSTOMERS_HAVE);
        }
        world.mint(key("stranger").address(), STRANGER_HAS);
        world.mint(key("patron").address(), PATRON_HAS);
        world.create();
        world
    };
    WORLDS[usize::from(hungry)][usize::from(pace == Pace::Short)].get_or_init(made).clone()
}

/// Half the time for heartbeats and answers, so that a takeover fits into a lease of twelve hours; and nobody has a whole day
/// for refunds.
fn short(real: Timers) -> Timers {
    Timers {
        heartbeat_every: real.heartbeat_every / 2,
        fence: real.fence / 2,
        answer_time: real.answer_time / 2,
        silence: real.silence / 2,
        refund_window: 7_200,
        ..real
    }
}

/// Real timers, or those of a short life.
fn terms(pace: Pace) -> Terms {
    let plain = Terms::plain();
    let timers = &plain.timers;
    // Longer than a takeover and a rescue take: what vouchers promise can be claimed before a payer is gone.
    let withdraw_delay = timers.answer_time + timers.restore_timeout + timers.silence + timers.day;
    let options = Options { channels: BATCH_SETTLEMENT, withdrawDelay: withdraw_delay, ..Options::default() };
    let plain = Terms { options, ..plain };
    match pace {
        Pace::Whole => plain,
        Pace::Short => Terms { timers: short(plain.timers), ..plain },
    }
}

fn genesis(world: &World, pace: Pace, hibernates: bool) -> Genesis {
    let (timers, birth): (Timers, _) = (world.terms.timers, &world.terms.policy);
    let wishes = Wishes {
        term: pace.term_secs(),
        prepay_secs: birth.prepayMax,
        margin_pct: 20,
        min_call: Usdc(20_000),
        max_call: Usdc(50_000),
        block_secs: u32::try_from(BLOCK_SECS).expect("small"),
    };
    timers.check(wishes.term, wishes.block_secs).expect("the timers fit");
    let mut policy = Policy { hibernates, ..Policy::new(wishes, &timers) };
    // There is no store here, so no segments either: a checkpoint stands for what a successor would read of them.
    policy.checkpoint_every = if pace == Pace::Short { 3 * 3_600 } else { 3_600 };
    Genesis { chain_id: chain::anvil::DEV_CHAIN_ID, treasury: world.treasury.into_array(), timers, policy }
}

/// What is delivered for a call when nothing goes wrong, however it is paid.
pub(super) fn whole_answer(at: u64) -> Delivery {
    Delivery {
        cached_tokens: 0,
        completion_tokens: 100,
        bytes: 400,
        output_digest: [1; 32],
        finish: Finish::Length,
        at,
        confirmed: true,
    }
}

/// Words in which the treasury keeps birth and life; mappings lie elsewhere.
const WORDS: u64 = 64;

fn word_with(world: &World, treasury: Address, bytes: &[u8]) -> Option<u64> {
    let word = |index: &u64| world.evm.slot(treasury, *index).to_be_bytes::<32>();
    (0..WORDS).find(|index| word(index).windows(bytes.len()).any(|window| window == bytes))
}

/// Replaces the first place in the treasury's storage where these bytes stand, inside one word.
fn overwrite(world: &mut World, treasury: Address, old: &[u8], new: &[u8]) {
    let index = word_with(world, treasury, old).expect("what is planted has a place");
    let mut word = world.evm.slot(treasury, index).to_be_bytes::<32>();
    let at = word.windows(old.len()).position(|window| window == old).expect("found just now");
    word[at..at + new.len()].copy_from_slice(new);
    world.evm.set_slot(treasury, index, U256::from_be_bytes(word));
}
