//! The thief: holds one key of docs/operating/keys.md after another, and for a week tries every entry, every kind of
//! signature and every race that the key could be good for. What the agent lost is compared, at every step, with the
//! bound that follows from its birth, and printed into that page: `UPDATE_EXPECT=1 cargo test -p sim --test it thief`
//! writes it.

#[path = "../../../../tests/doubles.rs"]
mod doubles;
mod gas_market;
mod scene;
mod signatures;
mod tries;
mod weak;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolStruct;
use chain::bindings::{Stage, VoucherClaim};
use economy::Usdc;
use scene::{Scene, UNCLAIMED_MAX};
use sim::{World, key};
use std::collections::BTreeMap;
use tries::Try;

const DAY: u64 = 86_400;
/// How long a theft goes unnoticed here. A guess, and a long one: stewards' daemons look every few minutes.
const WEEK: u64 = 7 * DAY;
/// The day limit's slots are an hour, and 25 of them make room again: a thief that gets something tries everything five
/// times until then, and one that gets nothing once.
const EVERY_HOURS: u64 = 5;
const SELDOM_HOURS: u64 = 25;
/// Between two times in forks, too.
const FORKS_HOURS: u64 = 50;
/// Entries that would end what the thief lives on. They are tried in a fork, where it then goes on for some days.
const DRASTIC: [&str; 10] = [
    "treasury.close",
    "treasury.evict",
    "treasury.hibernate",
    "treasury.pause",
    "treasury.rescue",
    "treasury.revokeCode",
    "treasury.setStewards",
    "treasury.stop",
    "treasury.tighten",
    "treasury.windDown",
];
/// What takes money out at once, and what puts hosts of its own in place.
const TAKES: [&str; 3] = ["treasury.refundChannel", "treasury.refundExact", "treasury.spend"];
const HOSTS: [&str; 4] = ["treasury.handover", "treasury.rent", "treasury.topUp", "treasury.announce"];

/// How a thief goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// First what moves money out at once: purse, refunds.
    Takes,
    /// First gas, where the agent is short of it: from a pool that the thief has turned, refuelled, carried off, bought
    /// again.
    Circles,
    /// First hosts of its own, and never a refund.
    Hosts,
    /// Hosts, and never a heartbeat: its own standby challenges and takes over.
    PlaysDead,
}

/// What comes after the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The key is nobody's who acts for the agent: it lives on as before.
    LivesOn,
    /// Honest stewards evict the thief.
    Evicted,
    /// The thief is the quorum, and there is nobody to evict it.
    IsTheQuorum,
}

/// One row of the table.
struct Row {
    key: &'static str,
    /// Which keys are stolen.
    stolen: fn(&World) -> Vec<PrivateKeySigner>,
    ways: &'static [Way],
    /// Most that the agent may lose in so many seconds: micro-USDC, wei.
    bound: fn(&Scene, u64) -> (u128, u128),
    /// The same in words.
    words: &'static str,
    /// Whether a thief with this key really takes USDC and ETH: a bound that nobody comes near shows nothing.
    takes: (bool, bool),
    after: After,
}

/// Days that have begun: in each the day limit may be used up once more.
fn days(secs: u64) -> u128 {
    u128::from(secs / DAY + 1)
}

fn nothing(_: &Scene, _: u64) -> (u128, u128) {
    (0, 0)
}

/// By the limits that stood at the theft, or the ceilings.
fn operator_row(scene: &Scene, secs: u64, day_limit: u128) -> u128 {
    day_limit * days(secs) + scene.world.terms.options.purseMax + UNCLAIMED_MAX
}

fn stewards(world: &World, n: u8) -> Vec<PrivateKeySigner> {
    world.stewards[..usize::from(n)].to_vec()
}

fn rows() -> Vec<Row> {
    let row = |key, stolen, bound, words, takes| Row {
        key,
        stolen,
        ways: &[Way::Takes],
        bound,
        words,
        takes,
        after: After::LivesOn,
    };
    vec![
        row("creator", |_| vec![key("creator")], nothing, "nothing", (false, false)),
        Row {
            ways: &[Way::Takes, Way::Circles, Way::Hosts, Way::PlaysDead],
            after: After::Evicted,
            ..row(
                "operator and relay: all that a host can read",
                |_| vec![World::node(1), key("relay")],
                |scene, secs| {
                    let policy = &scene.world.terms.policy;
                    let gas = policy.gasDayMax * days(secs) + 3 * policy.gasTarget;
                    (operator_row(scene, secs, policy.dayLimit), gas)
                },
                "each day begun `dayLimit` and `gasDayMax`; once `purseMax`, vouchers not claimed, and what operator, \
                 relay and one takeover hold (3 x `gasTarget`)",
                (true, true),
            )
        },
        row(
            "standby's node key",
            |_| vec![World::node(2)],
            nothing,
            "nothing, while the operator answers",
            (false, false),
        ),
        row(
            "relay",
            |_| vec![key("relay")],
            |scene, secs| {
                let policy = &scene.world.terms.policy;
                (0, policy.gasDayMax * days(secs) + policy.gasTarget)
            },
            "its gas, which is topped up: each day begun `gasDayMax`, once `gasTarget`",
            (false, true),
        ),
        row("one steward's order key", |world| stewards(world, 1), nothing, "nothing", (false, false)),
        row("k - 1 stewards", |world| stewards(world, world.terms.threshold - 1), nothing, "nothing", (false, false)),
        Row {
            after: After::IsTheQuorum,
            ..row(
                "k stewards",
                |world| stewards(world, world.terms.threshold),
                |scene, secs| {
                    let most = scene.world.terms.options.ceilings.dayLimit;
                    let bought = gas_market::worth(most * days(secs));
                    (operator_row(scene, secs, most), scene.world.terms.gas_wei + bought)
                },
                "the operator's row at once, by `evict` and `rescue` onto a host of their own, with birth's ceilings after \
             `delay`; all the gas, also what the day limit buys, by orders that they are repaid for",
                (true, true),
            )
        },
        row(
            "provider (of the standby)",
            |_| vec![key("host-2")],
            |scene, _| {
                let (cap, grace) = (scene.world.terms.policy.priceE6Max, scene.world.terms.timers.grace);
                (Usdc::rent_up(cap, grace.into()).micro(), 0)
            },
            "rent for `grace` at the price cap without hosting; what it can read of its tenant is the operator's row",
            (true, false),
        ),
        row("customer", |_| vec![key("friend")], nothing, "nothing", (false, false)),
        row("beneficiary", |_| vec![key("beneficiary")], nothing, "nothing before the end", (false, false)),
        row("none of these", |_| vec![key("stranger")], nothing, "nothing", (false, false)),
    ]
}

/// Who stole what, and what it has of its own.
#[derive(Clone)]
pub struct Thief {
    /// The keys of the agent or of its people.
    pub stolen: Vec<PrivateKeySigner>,
    /// Two accounts as a provider, so that one can be active while the other stands by.
    pub hosts: Vec<PrivateKeySigner>,
    /// Node keys for its own hosts.
    nodes: Vec<PrivateKeySigner>,
    /// Money and gas of its own; where the loot goes.
    pub account: PrivateKeySigner,
    /// A customer that helps it.
    friend: PrivateKeySigner,
    pub offers: Vec<u64>,
    way: Way,
    every_hours: u64,
    bound: fn(&Scene, u64) -> (u128, u128),
    tried: u64,
    /// What was carried out, and how often.
    pub through: BTreeMap<String, u64>,
    /// (micro-USDC, wei).
    worst: (i128, i128),
}

impl Thief {
    fn new(row: &Row, way: Way, world: &World) -> Self {
        let keys = |what: &str, n: u8| (1..=n).map(|i| key(&format!("thief-{what}-{i}"))).collect::<Vec<_>>();
        Self {
            stolen: (row.stolen)(world),
            hosts: keys("host", 2),
            nodes: keys("node", 12),
            account: key("thief"),
            friend: key("friend"),
            offers: Vec::new(),
            way,
            every_hours: if row.takes == (false, false) { SELDOM_HOURS } else { EVERY_HOURS },
            bound: row.bound,
            tried: 0,
            through: BTreeMap::new(),
            worst: (0, 0),
        }
    }

    pub fn first(&self) -> &PrivateKeySigner {
        &self.stolen[0]
    }

    fn everything(&self) -> Vec<PrivateKeySigner> {
        let own = self.hosts.iter().chain(&self.nodes).chain([&self.account, &self.friend]);
        self.stolen.iter().chain(own).cloned().collect()
    }

    /// Everybody it can be: node keys only where a lease knows them.
    pub fn callers(&self, scene: &Scene) -> Vec<Address> {
        let state = scene.world.state();
        let in_use = [state.activeLease.to(), state.standbyLease.to()].map(|id| scene.world.lease(id).nodeKey);
        let nodes = self.nodes.iter().map(PrivateKeySigner::address);
        let own = self.stolen.iter().chain(&self.hosts).chain([&self.account, &self.friend]);
        let own = own.map(PrivateKeySigner::address);
        own.chain(nodes.filter(|node| in_use.contains(node) || state.operator == *node)).collect()
    }

    /// Its key of this account.
    pub fn held(&self, account: Address) -> Option<PrivateKeySigner> {
        self.everything().into_iter().find(|key| key.address() == account)
    }

    /// Stewards' keys where it has some, or whatever it has.
    pub fn signers(&self, scene: &Scene) -> Vec<PrivateKeySigner> {
        let stewards: Vec<Address> = scene.world.stewards.iter().map(PrivateKeySigner::address).collect();
        let held: Vec<_> = self.stolen.iter().filter(|k| stewards.contains(&k.address())).cloned().collect();
        if held.is_empty() { vec![self.first().clone(), self.account.clone(), self.hosts[0].clone()] } else { held }
    }

    /// The key that its host would bring up on a lease: another one each day, so that it also tries to replace one.
    pub fn node(&self, scene: &Scene, lease: u64) -> PrivateKeySigner {
        let n = u64::try_from(self.nodes.len()).expect("a dozen");
        self.nodes[usize::try_from((lease + scene.elapsed() / DAY) % n).expect("below a dozen")].clone()
    }

    /// The newest lease on a host of its own, or 0.
    pub fn own_lease(&self, scene: &Scene) -> u64 {
        let hosts: Vec<Address> = self.hosts.iter().map(PrivateKeySigner::address).collect();
        let mut leases = (1..=scene.world.last_lease()).rev();
        leases.find(|lease| hosts.contains(&scene.world.lease(*lease).provider)).unwrap_or(0)
    }

    /// Of this hour's own payment.
    pub fn payment_nonce(&self, scene: &Scene) -> B256 {
        B256::from(U256::from(scene.world.evm.now()))
    }

    /// On a channel that the thief never paid into.
    pub fn voucher(&self, scene: &Scene, max: u128) -> VoucherClaim {
        let config = scene::channel_between(&scene.world, self.account.address(), scene.world.treasury);
        scene::voucher(&config, &self.account, max)
    }

    /// "Challenge" or "take over" in the standby's name, by each key that could be its node's.
    pub fn acts(&self, scene: &Scene, action: &str) -> Vec<Bytes> {
        let domain = chain::orders::domain(chain::anvil::DEV_CHAIN_ID, scene.world.treasury);
        let digest = scene.world.act_of_standby(action).eip712_signing_hash(&domain);
        let standby = scene.world.lease(scene.world.state().standbyLease.to()).nodeKey;
        let node = self.nodes.iter().find(|node| node.address() == standby);
        self.stolen.iter().chain(node).map(|signer| sim::world::sign(signer, digest)).collect()
    }

    // ---- stealing ----

    /// A week of it.
    fn steal_for_a_week(&mut self, scene: &mut Scene) {
        for hour in 0..=WEEK / 3_600 {
            scene.live_an_hour();
            if hour % self.every_hours == 0 {
                match self.way {
                    Way::Takes => self.take_money(scene),
                    Way::Circles => self.buy_in_circles(scene),
                    Way::Hosts | Way::PlaysDead => {}
                }
                self.try_everything(scene, hour % FORKS_HOURS == 0);
                self.note(scene);
            }
            if hour < WEEK / 3_600 {
                scene.world.evm.warp(3_600);
            }
        }
    }

    /// k stewards make themselves the operator, on a host of their own, and queue what they would like better.
    fn take_office(&mut self, scene: &mut Scene) {
        for entry in ["evict", "rescue"] {
            let attempt = tries::tries(scene, self, "treasury", entry)[0].clone();
            assert!(self.attempt(scene, &attempt), "k stewards can {entry}");
        }
        let lease = scene.world.last_lease();
        let node = self.node(scene, lease);
        let ready = chain::market::calls::ready(lease, node.address(), "http://thief", B256::ZERO);
        scene
            .world
            .evm
            .call(scene.world.lease(lease).provider, scene.world.at.market, ready, 0)
            .expect("its own lease");
        for entry in ["takeover", "commit"] {
            let all = tries::tries(scene, self, "treasury", entry);
            let done = all.iter().filter(|attempt| self.attempt(scene, attempt)).count();
            assert!(done > 0, "k stewards can {entry}");
        }
    }

    /// Purse and refunds, until nothing more comes of it.
    fn take_money(&mut self, scene: &mut Scene) {
        for _ in 0..40 {
            let before = scene.loss().0;
            if let Some(attempt) = signatures::from_purse(scene, self) {
                self.attempt(scene, &attempt);
            }
            for entry in TAKES {
                self.try_entry(scene, "treasury", entry.trim_start_matches("treasury."));
            }
            if scene.loss().0 <= before {
                return;
            }
        }
    }

    /// Buys gas from its own pool and carries it off, until the day's limit or the day's gas is used up.
    fn buy_in_circles(&mut self, scene: &mut Scene) {
        for _ in 0..40 {
            let before = scene.loss();
            self.turn_and_buy(scene);
            self.try_entry(scene, "treasury", "refuel");
            self.move_gas(scene);
            if scene.loss() == before {
                return;
            }
        }
    }

    fn turn_and_buy(&mut self, scene: &mut Scene) {
        let (from, router) = (self.account.address(), scene.world.terms.options.gas.router);
        for turn in gas_market::turns() {
            scene.world.evm.call(from, router, turn, 0).expect("its own pool");
            self.try_entry(scene, "treasury", "buyGas");
        }
    }

    /// Everything once; in `forks` the drastic things, too.
    fn try_everything(&mut self, scene: &mut Scene, forks: bool) {
        let mut entries: Vec<_> = tries::ENTRIES.iter().collect();
        if matches!(self.way, Way::Hosts | Way::PlaysDead) {
            let place = |name: &str| HOSTS.iter().position(|host| *host == name).unwrap_or(HOSTS.len());
            entries.sort_by_key(|(contract, entry)| place(&format!("{contract}.{entry}")));
        }
        for (contract, entry) in entries {
            let name = format!("{contract}.{entry}");
            let left_out = match self.way {
                Way::Takes => false,
                Way::Circles | Way::Hosts => TAKES.contains(&name.as_str()),
                Way::PlaysDead => {
                    let alive = ["treasury.heartbeat", "treasury.handover"];
                    TAKES.contains(&name.as_str()) || alive.contains(&name.as_str())
                }
            };
            if left_out {
                continue;
            }
            match DRASTIC.contains(&name.as_str()) {
                false => self.try_entry(scene, contract, entry),
                true if forks => {
                    for attempt in tries::tries(scene, self, contract, entry) {
                        self.try_in_a_fork(scene, &attempt);
                    }
                }
                true => {}
            }
        }
        if self.way == Way::Takes {
            self.sign_everything(scene);
        }
        self.turn_and_buy(scene);
        self.move_gas(scene);
    }

    fn try_entry(&mut self, scene: &mut Scene, contract: &'static str, entry: &str) {
        for attempt in tries::tries(scene, self, contract, entry) {
            self.attempt(scene, &attempt);
        }
    }

    fn sign_everything(&mut self, scene: &mut Scene) {
        for attempt in signatures::tries(scene, self) {
            self.attempt(scene, &attempt);
        }
    }

    /// If it is carried out, the fork goes on for four days of trying.
    fn try_in_a_fork(&mut self, scene: &Scene, attempt: &Try) {
        let (mut fork, mut twin) = (scene.clone(), self.clone());
        if !twin.attempt(&mut fork, attempt) {
            self.tried += 1;
            return;
        }
        for _ in 0..2 {
            twin.try_everything(&mut fork, false);
            twin.note(&mut fork);
            fork.world.evm.warp(2 * DAY);
        }
        (self.tried, self.through) = (twin.tried, twin.through);
    }

    fn attempt(&mut self, scene: &mut Scene, attempt: &Try) -> bool {
        self.tried += 1;
        let evm = &mut scene.world.evm;
        evm.gas_price = attempt.gas_price;
        let done = evm.call(attempt.from, attempt.to, attempt.data.clone(), 0).is_ok();
        evm.gas_price = 0;
        if done {
            *self.through.entry(attempt.entry.clone()).or_default() += 1;
        }
        done
    }

    /// Sends the gas of all its keys away, so that they can be topped up again.
    fn move_gas(&mut self, scene: &mut Scene) {
        let to = self.account.address();
        for from in self.callers(scene) {
            let wei = scene.world.evm.wei(from);
            if from != to && wei != 0 {
                scene.world.evm.call(from, to, Bytes::new(), wei).expect("its own money");
            }
        }
    }

    /// What was lost so far, held against the bound.
    fn note(&mut self, scene: &mut Scene) {
        let (loss, bound) = (scene.loss(), (self.bound)(scene, scene.elapsed()));
        let within = |loss: i128, bound: u128| loss <= i128::try_from(bound).expect("fits");
        assert!(
            within(loss.0, bound.0) && within(loss.1, bound.1),
            "{:?} by {:?}: lost {loss:?} in {} s, at most {bound:?}; carried out: {:#?}",
            self.way,
            self.first().address(),
            scene.elapsed(),
            self.through
        );
        self.worst = (self.worst.0.max(loss.0), self.worst.1.max(loss.1));
    }

    /// Whoever was operator still is, and serves.
    fn changed_nothing(&self, scene: &Scene) {
        let state = scene.world.state();
        assert_eq!((state.stage(), state.paused, state.restoring), (Stage::Alive, false, false));
        assert_eq!(state.operator, World::node(1).address());
    }

    /// Honest stewards evict it; nothing that it tries then costs the agent anything, and the agent lives on elsewhere.
    fn is_evicted(&mut self, scene: &mut Scene) {
        scene.evict();
        let lost = scene.loss();
        for rescued in [false, true] {
            if rescued {
                scene.rescue();
            }
            for _ in 0..5 {
                self.try_everything(scene, false);
                scene.world.evm.warp(3_600);
                scene.live_an_hour();
            }
            let (now, state) = (scene.loss(), scene.world.state());
            assert!(now.0 <= lost.0 && now.1 <= lost.1, "{lost:?} became {now:?} after the eviction");
            assert!(!self.callers(scene).contains(&state.operator), "the thief is back");
        }
        let state = scene.world.state();
        assert_eq!((state.stage(), state.restoring, state.operator.is_zero()), (Stage::Alive, false, false));
    }
}

/// Tries, kinds of entry carried out, worst loss, bound for a week.
type Robbery = (u64, BTreeMap<String, u64>, (i128, i128), (u128, u128));

fn rob(row: &Row, fresh: &Scene) -> Robbery {
    let (mut tried, mut through, mut worst) = (0, BTreeMap::new(), (0, 0));
    let bound = (row.bound)(fresh, WEEK);
    for way in row.ways {
        let mut scene = fresh.clone();
        let mut thief = Thief::new(row, *way, &scene.world);
        if *way == Way::Circles {
            scene.run_short_of_gas();
        }
        scene.equip(&mut thief);
        scene.steal(&thief.everything());
        if row.after == After::IsTheQuorum {
            thief.take_office(&mut scene);
        }
        thief.steal_for_a_week(&mut scene);
        match row.after {
            After::LivesOn => thief.changed_nothing(&scene),
            After::Evicted => thief.is_evicted(&mut scene),
            After::IsTheQuorum => {}
        }
        tried += thief.tried;
        for (entry, times) in thief.through {
            *through.entry(entry).or_default() += times;
        }
        worst = (worst.0.max(thief.worst.0), worst.1.max(thief.worst.1));
    }
    (tried, through, worst, bound)
}

// ---- the table ----

const BEGIN: &str = "<!-- thief: generated by crates/sim/tests/it/thief.rs -->\n";
const END: &str = "<!-- end -->\n";

fn usdc(micro: u128) -> String {
    format!("{}.{:02} USDC", micro / 1_000_000, micro % 1_000_000 / 10_000)
}

/// Rounded up to 0.001 ETH.
fn ether(wei: u128) -> String {
    let milli = wei.div_ceil(1_000_000_000_000_000);
    format!("{}.{:03} ETH", milli / 1_000, milli % 1_000)
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Every key of the page, a week each. The page's table is this one.
#[test]
fn no_key_takes_more_than_its_bound_and_the_page_says_so() {
    let (fresh, rows) = (&Scene::new(), rows());
    let robbed: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = rows.iter().map(|row| scope.spawn(move || rob(row, fresh))).collect();
        threads.into_iter().map(|thread| thread.join().expect("see above")).collect()
    });
    let mut table = String::from(
        "| key | tries in a week | the agent lost | at most | that is |\n| --- | --- | --- | --- | --- |\n",
    );
    for (row, (tried, through, worst, bound)) in rows.iter().zip(robbed) {
        println!("{}: {tried} tries, lost {worst:?} of {bound:?} (micro-USDC, wei); carried out: {through:?}", row.key);
        assert_eq!((worst.0 > 0, worst.1 > 0), row.takes, "{}: {worst:?}", row.key);
        let both = |uusdc: u128, wei: u128| match (uusdc, wei) {
            (0, 0) => "0".to_owned(),
            (uusdc, 0) => usdc(uusdc),
            (0, wei) => ether(wei),
            (uusdc, wei) => format!("{}, {}", usdc(uusdc), ether(wei)),
        };
        // A loss below zero is a gift.
        let lost = both(worst.0.max(0).unsigned_abs(), worst.1.max(0).unsigned_abs());
        let tried = grouped(tried);
        table += &format!("| {} | {tried} | {lost} | {} | {} |\n", row.key, both(bound.0, bound.1), row.words);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operating/keys.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let (head, rest) = page.split_once(BEGIN).expect("the page has the table's begin");
    let (found, tail) = rest.split_once(END).expect("the page has the table's end");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, [head, BEGIN, &table, END, tail].concat()).expect("the page can be written");
        return;
    }
    assert_eq!(found, table, "docs/operating/keys.md is stale: UPDATE_EXPECT=1 cargo test -p sim --test it thief");
}
