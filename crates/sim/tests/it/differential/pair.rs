//! One world, twice: every call goes to the contracts and to the model, and what both say is compared at once.

use super::bug::{Bug, Of};
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolValue};
use chain::bindings::{LeaseMarket, LeaseStatus, State, Treasury as Contract};
use chain::market::calls as market_calls;
use chain::treasury::calls;
use economy::rules::{self, LeaseState, Market, MarketTerms, Offer, Refusal, Token, Treasury};
use economy::{Agent, ChainEvent, ChainEventKind, Genesis, Input, Policy, Stage, Timers, Usdc, Wishes};
use sim::audit::{Audit, Call};
use sim::world::STAKE;
use sim::{Chance, Outcome, Terms, World, key};
use std::fmt::Write;
use std::sync::LazyLock;

/// Seconds of these worlds' days: a real one, one that 24 does not divide, a fast one.
const DAYS: [u32; 3] = [86_400, 1_000, 60];
/// Micro-USDC x 1e-6 per second: rents that round.
const PRICE_E6: u64 = 12_345_678;
const PRICE_E6_MAX: u64 = 20_000_000;
/// Of the last calls that a difference is told with.
const TOLD: usize = 12;

/// The people of all these worlds. Node keys are few, so that some come twice.
struct People {
    creator: Address,
    providers: [Address; 3],
    customers: [PrivateKeySigner; 2],
    nodes: [Address; 5],
    stranger: Address,
    steward: Address,
    beneficiary: Address,
}

static PEOPLE: LazyLock<People> = LazyLock::new(|| People {
    creator: sim::world::creator(),
    providers: ["provider-1", "provider-2", "provider-3"].map(|name| key(name).address()),
    customers: ["customer-1", "customer-2"].map(key),
    nodes: [0xa1, 0xa2, 0xa3, 0xa4, 0xa5].map(Address::repeat_byte),
    stranger: Address::repeat_byte(0x5e),
    steward: key("steward-1").address(),
    beneficiary: key("beneficiary").address(),
});

/// Contracts deployed, once for each length of a day.
static FRESH: LazyLock<Vec<World>> = LazyLock::new(|| DAYS.iter().map(|day| World::new(terms(*day))).collect());

/// A day limit of one and a half prepayments: rent, top-ups and refunds soon meet it.
fn terms(day: u32) -> Terms {
    let plain = Terms::plain();
    let (timers, _) = Timers::scaled(day);
    let prepay = Usdc::rent_up(PRICE_E6, 2 * u64::from(day)).micro();
    let policy = chain::bindings::Policy {
        dayLimit: prepay * 3 / 2,
        priceE6Max: PRICE_E6_MAX,
        termMax: 30 * day,
        prepayMax: 2 * day,
        starveFloor: prepay,
        ..plain.policy
    };
    Terms { timers, policy, seed: 6 * prepay, ..plain }
}

fn raw(address: Address) -> economy::Address {
    address.into_array()
}

pub struct Pair {
    seed: u64,
    chance: Chance,
    world: World,
    model: Treasury,
    /// Hears what the model tells and sees what the contracts show: its ledger must agree with both.
    agent: Agent,
    audit: Audit,
    /// What the treasury said after the last call.
    shown: State,
    lsn: u64,
    /// Where the next event stands: block and index.
    place: (u64, u32),
    /// (payer, nonce, micro-USDC), settled or tried.
    payments: Vec<(usize, B256, u128)>,
    offers: u64,
    /// Every call and what became of it.
    pub tally: Vec<(&'static str, Result<(), Refusal>)>,
    told: Vec<String>,
    /// Planted in the model.
    bug: Option<Bug>,
}

impl Pair {
    /// Providers, a treasury on the first one's host, activated: each of it a call to both.
    pub fn born(seed: u64) -> Self {
        Self::born_with(seed, None)
    }

    /// The same with a model that is wrong.
    pub fn with_bug(seed: u64, bug: Bug) -> Self {
        Self::born_with(seed, Some(bug))
    }

    fn born_with(seed: u64, bug: Option<Bug>) -> Self {
        let mut chance = Chance::new(seed);
        let mut world = chance.pick(&FRESH[..]);
        world.create();
        let model = model_of(&world, bug);
        let agent = Agent::new(genesis(&world));
        let place = (world.evm.number(), 0);
        let audit = Audit::new(world.treasury, world.terms.timers.day.into(), world.terms.policy.dayLimit);
        let shown = world.state();
        let mut pair = Self {
            seed,
            chance,
            world,
            model,
            agent,
            audit,
            shown,
            lsn: 0,
            place,
            payments: Vec::new(),
            offers: 0,
            tally: Vec::new(),
            told: Vec::new(),
            bug,
        };
        pair.settle_in();
        pair
    }

    fn settle_in(&mut self) {
        let people = &*PEOPLE;
        let purse = 20 * self.world.terms.seed;
        let everybody = people.providers.into_iter().chain(people.customers.iter().map(|c| c.address()));
        for who in everybody.chain([people.stranger]) {
            self.world.mint(who, STAKE + purse);
            self.world.approve_market(who, u128::MAX);
            self.model.token.mint(raw(who), STAKE + purse);
        }
        for who in people.providers {
            self.register(who, STAKE);
            let price = PRICE_E6 + self.chance.below(1_000_000);
            self.post(who, price, 2);
        }
        let day = self.day();
        let bargain = (1, 5 * self.world.terms.timers.day, Usdc::rent_down(PRICE_E6, day).micro());
        let modelled = self.model.birth_rent(self.now(), raw(people.creator), bargain).map(drop);
        self.check("birthRent", PEOPLE.creator, calls::birth_rent(bargain.0, bargain.1, bargain.2), modelled);
        self.ready(1, people.providers[0], people.nodes[0]);
        let modelled = self.model.activate(self.now(), raw(PEOPLE.creator), 1);
        self.check("activate", PEOPLE.creator, calls::activate(1), modelled);
        assert_eq!(self.model.stage, Stage::Alive, "{}", self.story());
    }

    // ---- one step ----

    /// Something that somebody does, or time that passes.
    pub fn step(&mut self) {
        match self.chance.below(100) {
            0..24 => self.wait(),
            24..34 => self.by_operator(),
            34..46 => self.lease_work(),
            46..54 => self.move_on(),
            54..62 => self.pay(),
            62..70 => self.by_provider(),
            70..78 => self.by_anyone(),
            78..84 => self.in_silence(),
            84..92 => self.by_quorum(),
            92..95 => self.go_to_the_end(),
            _ => self.beat(),
        }
    }

    /// A little, a lot, or to just before, at or after a moment from which something is possible.
    fn wait(&mut self) {
        let (now, day) = (self.now(), self.day());
        let edges: Vec<u64> = self.edges().into_iter().filter(|at| *at + 1 > now && *at < now + 8 * day).collect();
        let secs = match self.chance.below(10) {
            0..3 => 1 + self.chance.below(5),
            3..5 => 1 + self.chance.below(day / 4),
            5 => 1 + self.chance.below(2 * day),
            _ if edges.is_empty() => 1,
            _ => (self.chance.pick(&edges) + self.chance.below(3)).saturating_sub(now + 1).max(1),
        };
        self.world.evm.warp(secs);
        self.told.push(format!("  {secs} s later: {}", self.now()));
        self.compare();
    }

    fn edges(&self) -> Vec<u64> {
        let (model, timers) = (&self.model, &self.world.terms.timers);
        let t = |secs: u32| u64::from(secs);
        let slot = t(timers.day.div_ceil(24));
        let mut edges = vec![
            model.announced_at + t(timers.handover_notice),
            model.challenged_at + t(timers.answer_time),
            model.last_challenge_at + t(timers.answer_time),
            model.taken_over_at + t(timers.restore_timeout),
            model.last_heartbeat + t(timers.silence),
            model.last_heartbeat + t(timers.starve_timeout),
            model.starve_notice_at + t(timers.silence),
            model.wind_down_at + t(timers.refund_window),
            model.hibernate_until,
            (self.now() / slot + 1) * slot,
            (self.now() / slot + 25) * slot,
        ];
        for lease in (1..=model.market.lease_count()).filter_map(|id| model.market.lease(id)).filter(|l| l.is_open()) {
            let vouched = lease.vouched_at;
            edges.extend([lease.ready_by, lease.end, vouched + t(timers.grace), vouched + t(timers.drop_after)]);
        }
        edges
    }

    fn by_operator(&mut self) {
        let (who, now) = (self.operator(), self.now());
        match self.chance.below(40) {
            0 => {
                let until = now + self.chance.below(4 * self.day());
                let modelled = self.model.hibernate(now, raw(who), until);
                self.check("hibernate", who, calls::hibernate(until), modelled);
            }
            1..8 => {
                let seq = self.model.checkpoint_seq + u64::from(!self.chance.of_1000(200));
                let data = self.world.commit(B256::repeat_byte(1), &self.world.quorum());
                // Only the right sequence number can be acknowledged; a wrong one must fail before that is looked at.
                if seq == self.model.checkpoint_seq + 1 {
                    let modelled = self.model.commit(raw(who), seq);
                    self.check("commit", who, data, modelled);
                } else {
                    let modelled = self.model.commit(raw(who), seq);
                    self.check("commit", who, calls::commit(seq, B256::ZERO, B256::ZERO, Vec::new()), modelled);
                }
            }
            _ => self.beat(),
        }
    }

    fn beat(&mut self) {
        let (who, answered) = (self.operator(), self.chance.of_1000(700));
        let modelled = self.model.heartbeat(self.now(), raw(who), answered);
        self.check("heartbeat", who, calls::heartbeat(B256::ZERO, B256::ZERO, answered), modelled);
    }

    fn lease_work(&mut self) {
        let who = self.operator();
        match self.chance.below(4) {
            0 | 1 if self.model.standby == 0 || self.chance.of_1000(100) => {
                let (offer, term, prepay) = self.bargain();
                let now = self.now();
                let rent = |t: &mut Treasury| t.rent(now, raw(who), (offer, term, prepay)).map(drop);
                let modelled = self.modelled("rent", Of::Lease(0), rent);
                self.check("rent", who, calls::rent(offer, term, prepay), modelled);
            }
            0..3 => {
                let lease = self.lease();
                let amount = self.amount(lease);
                let modelled = self.model.top_up(self.now(), raw(who), lease, amount);
                self.check("topUp", who, calls::top_up(lease, amount), modelled);
            }
            _ => {
                let lease = self.lease();
                let now = self.now();
                let modelled = self.modelled("release", Of::Lease(lease), |t| t.release(now, raw(who), lease));
                self.check("release", who, calls::release(lease), modelled);
            }
        }
    }

    /// Ready, announce, wait, hand over: many steps in a row, so each is likely where it fits.
    fn move_on(&mut self) {
        let (who, standby) = (self.operator(), self.model.standby);
        let state = self.model.market.lease(standby).map(|l| l.state);
        match state {
            Some(LeaseState::Requested) if self.chance.of_1000(850) => {
                let provider = self.provider_of(standby);
                let node = self.node();
                self.ready(standby, provider, node);
            }
            _ if self.model.announced == 0 || self.chance.of_1000(100) => {
                let lease = if self.chance.of_1000(900) { standby } else { self.lease() };
                let modelled = self.model.announce(self.now(), raw(who), lease);
                self.check("announce", who, calls::announce(lease), modelled);
            }
            _ => {
                let wrong = u64::from(self.chance.of_1000(50));
                let seq = self.model.checkpoint_seq + wrong;
                let until = self.now() + self.chance.below(3) - 1;
                let lease = self.model.announced;
                let modelled = self.model.handover(self.now(), raw(who), lease, seq, until);
                self.check("handover", who, calls::handover(lease, seq, 0, until), modelled);
            }
        }
    }

    fn pay(&mut self) {
        if self.payments.is_empty() || self.chance.of_1000(450) {
            let customer = usize::from(self.chance.of_1000(300));
            let signer = &PEOPLE.customers[customer];
            let value = u128::from(self.chance.below(5)) * u128::from(self.chance.below(1_000_000)) + 1;
            let (nonce, value) = match self.chance.below(20) {
                // The same authorisation again.
                0 if !self.payments.is_empty() => {
                    let (_, nonce, value) = self.chance.pick(&self.payments);
                    (nonce, value)
                }
                1 => (B256::from(U256::from(self.payments.len() + 1)), 0),
                2 => (B256::from(U256::from(self.payments.len() + 1)), u128::MAX),
                _ => (B256::from(U256::from(self.payments.len() + 1)), value),
            };
            let data = calls::settle_exact(&self.world.payment(signer, value, nonce));
            let modelled = self.model.settle_exact(raw(signer.address()), nonce.0, value);
            self.payments.push((customer, nonce, value));
            self.check("settleExact", PEOPLE.stranger, data, modelled);
            return;
        }
        let (customer, nonce, value) = self.chance.pick(&self.payments);
        let (who, payer) = (self.operator(), PEOPLE.customers[customer].address());
        let (paid, back) = self.model.recorded(raw(payer), nonce.0);
        let day_left = self.day_left();
        let amount = self.chance.pick(&[value / 3, paid - back, paid - back + 1, day_left, 1, 0]);
        let (now, of) = (self.now(), Of::Payer(raw(payer)));
        let refund = |t: &mut Treasury| t.refund_exact(now, raw(who), raw(payer), nonce.0, amount);
        let modelled = self.modelled("refundExact", of, refund);
        self.check("refundExact", who, calls::refund_exact(payer, nonce, amount), modelled);
    }

    fn by_provider(&mut self) {
        let who = self.chance.pick(&PEOPLE.providers);
        let (lease, offer) = (self.lease(), 1 + self.chance.below(self.offers + 1));
        match self.chance.below(16) {
            0 => {
                let price = self.price();
                self.post(who, price, 1);
            }
            1 => {
                let stake = self.chance.pick(&[0, 1, STAKE, u128::MAX / 2]);
                self.register(who, stake);
            }
            2 => {
                let t = &mut self.model;
                let modelled = t.market.unregister(&mut t.token, raw(who));
                self.check_market("unregister", who, market_calls::unregister(), modelled);
            }
            3 | 4 => {
                let price = self.price();
                let modelled = self.model.market.reprice(raw(who), offer, price);
                self.check_market("reprice", who, market_calls::reprice(offer, price), modelled);
            }
            5 => {
                let capacity = u32::try_from(self.chance.below(4)).expect("small");
                let modelled = self.model.market.set_capacity(raw(who), offer, capacity);
                self.check_market("setCapacity", who, market_calls::set_capacity(offer, capacity), modelled);
            }
            6..11 => {
                let provider = if self.chance.of_1000(900) { self.provider_of(lease) } else { who };
                let node = self.node();
                self.ready(lease, provider, node);
            }
            _ => {
                let (now, provider) = (self.now(), self.provider_of(lease));
                let t = &mut self.model;
                let modelled = t.market.withdraw(now, &mut t.token, raw(provider), lease);
                self.check_market("withdraw", provider, market_calls::withdraw(lease), modelled);
            }
        }
    }

    fn by_anyone(&mut self) {
        let (now, who, lease) = (self.now(), PEOPLE.stranger, self.lease());
        let at = self.world.at.market;
        match self.chance.below(12) {
            0..2 => {
                let amount = self.chance.below(2_000_000);
                self.model.gift(raw(who), amount.into());
                let data = chain::usdc::calls::mint(self.world.treasury, amount.into());
                let outcome = self.world.evm.call(who, self.world.at.usdc, data, 0);
                self.same("gift", who, outcome, Ok(()));
            }
            2..5 => {
                let amount = self.amount(lease);
                let t = &mut self.model;
                let modelled = t.market.top_up(&mut t.token, raw(who), lease, amount);
                self.check_market("market.topUp", who, market_calls::top_up(lease, amount), modelled);
            }
            5 | 6 => {
                let t = &mut self.model;
                let modelled = t.market.reclaim(now, &mut t.token, lease);
                self.check_market("reclaim", who, market_calls::reclaim(lease), modelled);
            }
            7 | 8 => {
                let t = &mut self.model;
                let modelled = t.market.expire(now, &mut t.token, lease);
                self.check_market("expire", who, market_calls::expire(lease), modelled);
            }
            9 => {
                let (offer, term, prepay) = self.bargain();
                let t = &mut self.model;
                let modelled = t.market.rent(now, &mut t.token, raw(who), (offer, term, prepay)).map(drop);
                let call = LeaseMarket::rentCall { offer: U256::from(offer), term, codeHash: B256::ZERO, prepay };
                let outcome = self.world.evm.call(who, at, call.abi_encode(), 0);
                self.same("market.rent", who, outcome, modelled);
            }
            10 => {
                let modelled = self.model.market.vouch(now, raw(who), lease).map(drop);
                let call = LeaseMarket::vouchCall { lease: U256::from(lease) };
                let outcome = self.world.evm.call(who, at, call.abi_encode(), 0);
                self.same("market.vouch", who, outcome, modelled);
            }
            _ => {
                let t = &mut self.model;
                let modelled = t.market.close(now, &mut t.token, raw(who), lease).map(drop);
                let call = LeaseMarket::closeCall { lease: U256::from(lease) };
                let outcome = self.world.evm.call(who, at, call.abi_encode(), 0);
                self.same("market.close", who, outcome, modelled);
            }
        }
    }

    /// A few percent off some limits; now and then more than there is, nothing, or another floor.
    fn tighten(&mut self) {
        let mut policy = self.world.terms.policy.clone();
        let part = |chance: &mut Chance| match chance.below(40) {
            0 => 0,
            1 => 101,
            2..12 => 90 + chance.below(10),
            _ => 100,
        };
        policy.dayLimit = policy.dayLimit * u128::from(part(&mut self.chance)) / 100;
        policy.priceE6Max = policy.priceE6Max * part(&mut self.chance) / 100;
        let secs = |secs: u32, part: u64| u32::try_from(u64::from(secs) * part / 100).expect("a few percent more");
        policy.termMax = secs(policy.termMax, part(&mut self.chance));
        policy.prepayMax = secs(policy.prepayMax, part(&mut self.chance));
        policy.starveFloor += u128::from(self.chance.of_1000(50));
        let argument = U256::from_be_bytes(keccak256(policy.abi_encode()).0);
        let data = calls::tighten(policy.clone(), self.world.order("tighten", argument, &self.world.quorum()));
        let modelled = self.modelled("tighten", Of::Limits, |model| model.tighten(&sim::world::limits(&policy)));
        if modelled.is_ok() {
            self.world.terms.policy = policy;
        }
        self.check("tighten", PEOPLE.stranger, data, modelled);
    }

    fn in_silence(&mut self) {
        let now = self.now();
        let standby_key = self.model.market.lease(self.model.standby).map_or(PEOPLE.stranger, |l| l.node_key.into());
        let who = self.chance.pick(&[PEOPLE.steward, standby_key, standby_key, standby_key, PEOPLE.stranger]);
        if self.chance.of_1000(400) {
            let modelled = self.model.challenge(now, raw(who));
            self.check("challenge", who, calls::challenge(), modelled);
        } else {
            let modelled = self.model.takeover(now, raw(who));
            self.check("takeover", who, calls::takeover(), modelled);
        }
    }

    fn by_quorum(&mut self) {
        let (now, quorum) = (self.now(), self.world.quorum());
        let order = |pair: &Self, action: &str, argument| pair.world.order(action, argument, &quorum);
        match self.chance.below(20) {
            0..3 => {
                let modelled = self.model.pause();
                self.check("pause", PEOPLE.stranger, calls::pause(order(self, "pause", U256::ZERO)), modelled);
            }
            3..8 => {
                let modelled = self.model.resume();
                self.check("resume", PEOPLE.stranger, calls::resume(order(self, "resume", U256::ZERO)), modelled);
            }
            8 if self.chance.of_1000(200) => {
                let modelled = self.model.stop();
                self.check("stop", PEOPLE.stranger, calls::stop(order(self, "stop", U256::ZERO)), modelled);
            }
            8 | 9 => {
                let data = calls::open_refunds(order(self, "openRefunds", U256::ZERO));
                let modelled = self.model.open_refunds();
                self.check("openRefunds", PEOPLE.stranger, data, modelled);
            }
            10..13 => {
                let keep = self.chance.pick(&[0, self.model.active, self.model.standby, self.model.draining]);
                let data = calls::evict(keep, order(self, "evict", U256::from(keep)));
                let modelled = self.model.evict(now, keep);
                self.check("evict", PEOPLE.stranger, data, modelled);
            }
            14 if self.chance.of_1000(400) => self.tighten(),
            13 | 14 => {
                let provider = self.chance.pick(&PEOPLE.providers);
                let data =
                    calls::clear_bar(provider, order(self, "clearBar", U256::from_be_slice(provider.as_slice())));
                let modelled = self.model.clear_bar(raw(provider));
                self.check("clearBar", PEOPLE.stranger, data, modelled);
            }
            _ => {
                let (offer, term, prepay) = self.bargain();
                let argument = chain::orders::rescue_argument(offer, term, prepay);
                let data = calls::rescue(offer, term, prepay, order(self, "rescue", argument));
                let modelled = self.model.rescue(now, (offer, term, prepay)).map(drop);
                self.check("rescue", PEOPLE.stranger, data, modelled);
            }
        }
    }

    fn go_to_the_end(&mut self) {
        match self.chance.below(6) {
            0..3 => {
                let who = if self.chance.of_1000(300) { self.operator() } else { PEOPLE.stranger };
                self.wind_down(who);
            }
            3 | 4 => self.close(),
            _ => {
                let who = self.chance.pick(&[PEOPLE.beneficiary, PEOPLE.beneficiary, PEOPLE.stranger]);
                self.withdraw(who);
            }
        }
    }

    fn register(&mut self, who: Address, stake: u128) {
        let t = &mut self.model;
        let modelled = t.market.register(&mut t.token, raw(who), stake);
        self.check_market("register", who, market_calls::register(stake), modelled);
    }

    fn post(&mut self, who: Address, price_e6: u64, capacity: u32) {
        let offer = self.world.offer(who, price_e6, capacity);
        let modelled = self.model.market.post_offer(Offer {
            provider: raw(who),
            price_e6,
            capacity,
            used: 0,
            min_term: offer.minTerm,
            max_term: offer.maxTerm,
        });
        self.offers += u64::from(modelled.is_ok());
        self.check_market("postOffer", who, market_calls::post_offer(&offer), modelled.map(drop));
    }

    fn ready(&mut self, lease: u64, who: Address, node: Address) {
        let modelled = self.model.market.ready(self.now(), raw(who), lease, raw(node));
        self.check_market("ready", who, market_calls::ready(lease, node, "", B256::ZERO), modelled);
    }

    // ---- choosing ----

    /// Mostly the operator; now and then somebody who is not, or not any more.
    fn operator(&mut self) -> Address {
        if self.model.operator != [0; 20] && !self.chance.of_1000(60) {
            return self.model.operator.into();
        }
        let node = self.node();
        self.chance.pick(&[node, PEOPLE.stranger, PEOPLE.creator])
    }

    fn node(&mut self) -> Address {
        if self.chance.of_1000(700) {
            // A fresh one: no two leases share it.
            let n = self.tally.len() + 1;
            return Address::from_word(B256::from(U256::from(0x4e0d_e000_0000 + n)));
        }
        self.chance.pick(&PEOPLE.nodes)
    }

    /// One of ours, or any.
    fn lease(&mut self) -> u64 {
        let any = self.chance.below(self.model.market.lease_count() + 2);
        let model = &self.model;
        self.chance.pick(&[model.active, model.active, model.standby, model.standby, model.draining, any])
    }

    fn provider_of(&self, lease: u64) -> Address {
        self.model.market.lease(lease).map_or(PEOPLE.stranger, |l| l.provider.into())
    }

    fn price(&mut self) -> u64 {
        let around = PRICE_E6 / 2 + self.chance.below(PRICE_E6);
        self.chance.pick(&[around, around, PRICE_E6_MAX, PRICE_E6_MAX + 1, 1, 0])
    }

    /// Offer, term and prepayment: mostly a good one, often at the edge of something.
    fn bargain(&mut self) -> (u64, u32, u128) {
        let day = self.world.terms.timers.day;
        let unknown = u64::from(self.chance.of_1000(50));
        let offer = 1 + self.chance.below(self.offers + unknown);
        let usual = day * u32::try_from(2 + self.chance.below(9)).expect("small");
        let term = match self.chance.below(20) {
            0 => self.chance.pick(&[0, day / 24 - 1, 30 * day + 1]),
            1..4 => self.chance.pick(&[day / 24, day, 30 * day]),
            _ => usual,
        };
        let price = self.model.market.offer(offer).map_or(PRICE_E6, |o| o.price_e6);
        let full = Usdc::rent_up(price, 2 * u64::from(day)).micro();
        let whole = Usdc::rent_up(price, term.into()).micro();
        let left = self.day_left();
        let prepay = match self.chance.below(10) {
            0 => self.chance.pick(&[full + 1, whole + 1, left + 1, u128::MAX / 4]),
            1 => self.chance.pick(&[0, 1, full, whole, left]),
            2..4 => left.min(full).min(whole),
            _ => (full / 4).min(whole),
        };
        (offer, term, prepay)
    }

    /// For a top-up of this lease.
    fn amount(&mut self, lease: u64) -> u128 {
        let day = u64::from(self.world.terms.timers.day);
        let (price, term, escrow) =
            self.model.market.lease(lease).map_or((PRICE_E6, 0, 0), |l| (l.price_e6, l.term, l.escrow));
        let room = Usdc::rent_up(price, 2 * day).micro().saturating_sub(self.model.escrow_left(self.now(), lease));
        let whole = Usdc::rent_up(price, term.into()).micro().saturating_sub(escrow);
        let left = self.day_left();
        match self.chance.below(10) {
            0 => self.chance.pick(&[room + 1, whole + 1, left + 1, u128::MAX]),
            1 => self.chance.pick(&[0, 1, room, whole, left]),
            _ => room.min(whole).min(left) / u128::from(1 + self.chance.below(4)),
        }
    }

    fn day_left(&self) -> u128 {
        self.world.terms.policy.dayLimit.saturating_sub(self.model.spent_in_day(self.now()))
    }

    fn now(&self) -> u64 {
        self.world.evm.now()
    }

    fn day(&self) -> u64 {
        self.world.terms.timers.day.into()
    }

    // ---- comparing ----

    /// What the model says, the planted bug included.
    fn modelled(
        &mut self,
        name: &str,
        of: Of,
        body: impl FnOnce(&mut Treasury) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        match self.bug {
            Some(bug) => bug.around(name, &mut self.model, self.world.evm.now(), of, body),
            None => body(&mut self.model),
        }
    }

    fn check(&mut self, name: &'static str, from: Address, data: Bytes, modelled: Result<(), Refusal>) {
        let outcome = self.world.act(from, data);
        self.same(name, from, outcome, modelled);
    }

    fn check_market(&mut self, name: &'static str, from: Address, data: Bytes, modelled: Result<(), Refusal>) {
        let outcome = self.world.evm.call(from, self.world.at.market, data, 0);
        self.same(name, from, outcome, modelled);
    }

    fn same(&mut self, name: &'static str, from: Address, outcome: Outcome, modelled: Result<(), Refusal>) {
        let said = match &outcome {
            Ok(_) => "done".to_owned(),
            Err(revert) => revert.text.clone(),
        };
        self.told.push(format!("{name} by {from}: {said}"));
        self.tally.push((name, modelled));
        let logs = outcome.as_ref().map_or_else(|_| Vec::new(), |done| done.logs.clone());
        let chain = outcome.map(drop).map_err(|revert| revert.name);
        let model = modelled.map_err(Refusal::name);
        assert_eq!(chain, model, "the contract (left) and the model (right) disagree about {name}\n{}", self.story());
        self.model.listen();
        let before = self.shown.clone();
        self.compare();
        if modelled.is_ok() {
            let (now, after) = (self.now(), &self.shown);
            let heard = self.audit.hear(&Call { name, from, now, logs: &logs, before: &before, after });
            if let Err(broken) = heard {
                panic!("{broken}\n{}", self.story());
            }
        }
    }

    /// To the end, whatever happened before: nothing of the agent's money may be left where nobody gets it (I6).
    pub fn end(&mut self) {
        let until = |pair: &mut Self, at: u64| {
            let now = pair.now();
            if at > now {
                pair.world.evm.warp(at - now);
            }
        };
        if self.model.stage != Stage::WindingDown && self.model.stage != Stage::Closed {
            until(self, self.shown.mandateUntil + 1);
            self.wind_down(PEOPLE.stranger);
        }
        if self.model.stage == Stage::WindingDown {
            until(self, self.model.wind_down_at + u64::from(self.world.terms.timers.refund_window));
            self.close();
        }
        self.withdraw(PEOPLE.beneficiary);
        let open = (1..=self.model.market.lease_count()).map(|lease| self.world.lease(lease));
        let stranded = open.filter(|l| l.tenant == self.world.treasury && l.status() != LeaseStatus::Closed).count();
        let left = (self.shown.stage(), self.world.usdc(self.world.treasury), stranded);
        assert_eq!(left, (chain::Stage::Closed, 0, 0), "I6: something is stranded\n{}", self.story());
    }

    fn wind_down(&mut self, who: Address) {
        let modelled = self.model.wind_down(self.now(), raw(who));
        self.check("windDown", who, calls::wind_down(), modelled);
    }

    fn close(&mut self) {
        let modelled = self.model.close(self.now());
        self.check("close", PEOPLE.stranger, calls::close(), modelled);
    }

    fn withdraw(&mut self, who: Address) {
        let modelled = self.model.withdraw(raw(who));
        self.check("withdrawal", who, calls::withdraw(), modelled);
    }

    /// What changes with every call or second.
    fn compare(&mut self) {
        let (now, state) = (self.now(), self.world.state());
        let mut differences = String::new();
        let mut differ = |what: &str, chain: u128, model: u128| {
            if chain != model {
                writeln!(differences, "{what}: the contract says {chain}, the model {model}").expect("a String");
            }
        };
        let model = &self.model;
        differ("balance", state.balance.to(), model.balance());
        differ("escrow", state.escrow.to(), model.escrow(now));
        differ("spent in the day", state.spentInDay, model.spent_in_day(now));
        for (what, chain, model) in [
            ("stage", state.stage.into(), model.stage as u64),
            ("paused", state.paused.into(), model.paused.into()),
            ("restoring", state.restoring.into(), model.restoring.into()),
            ("epoch", state.epoch, model.epoch),
            ("active", state.activeLease.to(), model.active),
            ("standby", state.standbyLease.to(), model.standby),
            ("draining", state.drainingLease.to(), model.draining),
            ("announced", state.announcedLease.to(), model.announced),
            ("announced at", state.announcedAt, model.announced_at),
            ("checkpoint", state.checkpointSeq, model.checkpoint_seq),
            ("last heartbeat", state.lastHeartbeat, model.last_heartbeat),
            ("challenged at", state.challengedAt, model.challenged_at),
            ("taken over at", state.takenOverAt, model.taken_over_at),
            ("wind-down at", state.windDownAt, model.wind_down_at),
            ("operator", state.operator.into_word()[31].into(), model.operator[19].into()),
        ] {
            differ(what, chain.into(), model.into());
        }
        for lease in [model.active, model.standby, model.draining].into_iter().filter(|lease| *lease != 0) {
            compare_lease(&self.world, model, lease, &mut differ);
        }
        assert!(differences.is_empty(), "{differences}{}", self.story());
        self.compare_ledger(&state);
        self.shown = state;
    }

    /// The agent hears the model's events and sees the contracts' state.
    fn compare_ledger(&mut self, state: &State) {
        let number = self.world.evm.number();
        if self.place.0 != number {
            self.place = (number, 0);
        }
        let mut kinds = std::mem::take(&mut self.model.told);
        if self.bug == Some(Bug::LedgerMissesRefunds) {
            kinds.retain(|kind| !matches!(kind, ChainEventKind::ExactRefunded { .. }));
        }
        let events: Vec<ChainEvent> = kinds
            .into_iter()
            .map(|kind| {
                self.place.1 += 1;
                ChainEvent { block: number, index: self.place.1, kind }
            })
            .collect();
        let view = self.world.view(state);
        for input in [Input::Chain(events), Input::Block(Box::new(view))] {
            self.lsn += 1;
            self.agent.step(self.now(), self.lsn, input);
        }
        if self.model.stage == Stage::Unborn {
            return;
        }
        let ledger = self.agent.ledger();
        let signed = |amount: U256| i128::try_from(amount.to::<u128>()).expect("fits");
        let chain = (signed(state.balance), signed(state.escrow));
        let books = (ledger.balance(), ledger.escrow(), ledger.is_balanced());
        assert_eq!((chain.0, chain.1, true), books, "contracts (left), ledger (right)\n{}", self.story());
    }

    /// What changes seldom, once at the end.
    pub fn compare_everything(&self) {
        let (world, model) = (&self.world, &self.model);
        let mut differences = String::new();
        let mut differ = |what: &str, chain: u128, model: u128| {
            if chain != model {
                writeln!(differences, "{what}: the contract says {chain}, the model {model}").expect("a String");
            }
        };
        let people = &*PEOPLE;
        let customers = people.customers.iter().map(PrivateKeySigner::address);
        let accounts = people.providers.into_iter().chain(customers);
        for who in accounts.chain([people.stranger, people.beneficiary, world.treasury, world.at.market]) {
            differ(&format!("balance of {who}"), world.usdc(who), model.token.of(raw(who)));
        }
        differ("the market's account", model.token.of(model.market.at), model.market.held());
        for lease in 1..=model.market.lease_count() {
            compare_lease(world, model, lease, &mut differ);
        }
        for provider in people.providers {
            let ask = |data| world.evm.ask(world.at.market, &data).expect("a market");
            let record = ask(LeaseMarket::recordOfCall { provider });
            differ("served", record.served.into(), model.market.record(raw(provider)).0.into());
            differ("failed", record.failed.into(), model.market.record(raw(provider)).1.into());
            let stake = world.evm.ask(world.at.market, &LeaseMarket::stakeOfCall { provider }).expect("a market");
            differ("stake", stake.to(), model.market.stake(raw(provider)));
            let barred = world.evm.ask(world.treasury, &Contract::isBarredCall { provider }).expect("a treasury");
            differ("barred", barred.into(), model.is_barred(raw(provider)).into());
        }
        for offer in 1..=self.offers {
            let call = LeaseMarket::offerOfCall { offer: U256::from(offer) };
            let chain = world.evm.ask(world.at.market, &call).expect("a market");
            let model = model.market.offer(offer).expect("counted");
            differ("price", chain.priceE6.into(), model.price_e6.into());
            differ("used", chain.used.into(), model.used.into());
        }
        assert!(differences.is_empty(), "{differences}{}", self.story());
    }

    /// The last calls, and how to repeat them.
    pub fn story(&self) -> String {
        let last = &self.told[self.told.len().saturating_sub(TOLD)..];
        format!(
            "seed {}, after {} calls; the last ones:\n{}\nrepeat: VIVARIUM_SEED={} cargo test -p sim --test it differential",
            self.seed,
            self.tally.len(),
            last.join("\n"),
            self.seed
        )
    }
}

fn compare_lease(world: &World, model: &Treasury, id: u64, differ: &mut impl FnMut(&str, u128, u128)) {
    let (chain, modelled) = (world.lease(id), model.market.lease(id).expect("counted"));
    let state = match chain.status() {
        LeaseStatus::None => 0,
        LeaseStatus::Requested => 1,
        LeaseStatus::Ready => 2,
        LeaseStatus::Closed => 3,
    };
    let expected = match modelled.state {
        LeaseState::Requested => 1,
        LeaseState::Ready => 2,
        LeaseState::Closed => 3,
    };
    for (what, chain, model) in [
        ("state", state, expected),
        ("escrow", chain.escrow, modelled.escrow),
        ("withdrawn", chain.withdrawn, modelled.withdrawn),
        ("accrued", world.accrued(id), model.market.accrued_up(world.evm.now(), modelled)),
        ("start", chain.start.into(), modelled.start.into()),
        ("end", chain.end.into(), modelled.end.into()),
        ("vouched at", chain.vouchedAt.into(), modelled.vouched_at.into()),
        ("ready by", chain.readyBy.into(), modelled.ready_by.into()),
    ] {
        differ(&format!("lease {id}, {what}"), chain, model);
    }
}

fn model_of(world: &World, bug: Option<Bug>) -> Treasury {
    let (birth, timers) = (world.birth(), world.terms.timers);
    let mut terms = rules::Terms {
        creator: raw(birth.creator),
        beneficiary: raw(birth.beneficiary),
        stewards: birth.stewards.iter().map(|steward| raw(*steward)).collect(),
        timers,
        day_limit: birth.policy.dayLimit,
        price_e6_max: birth.policy.priceE6Max,
        term_max: birth.policy.termMax,
        prepay_max: birth.policy.prepayMax,
        starve_floor: birth.policy.starveFloor,
        mandate_until: birth.mandateUntil,
    };
    let mut market = MarketTerms {
        stake_min: STAKE,
        ready_within: timers.ready_within,
        grace: timers.grace,
        drop_after: timers.drop_after,
    };
    if let Some(bug) = bug {
        bug.in_terms(&mut terms);
        bug.in_market(&mut market);
    }
    let market = Market::new(raw(world.at.market), market);
    let mut model = Treasury::new(raw(world.treasury), terms, world.evm.now(), Token::default(), market);
    model.gift(raw(PEOPLE.creator), world.terms.seed);
    model
}

fn genesis(world: &World) -> Genesis {
    let timers = world.terms.timers;
    let wishes = Wishes {
        term: 5 * timers.day,
        prepay_secs: world.terms.policy.prepayMax,
        margin_pct: 20,
        min_call: Usdc(1_000),
        max_call: Usdc(50_000),
        block_secs: 2,
    };
    Genesis {
        chain_id: chain::anvil::DEV_CHAIN_ID,
        treasury: raw(world.treasury),
        timers,
        policy: Policy::new(wishes, &timers),
    }
}
