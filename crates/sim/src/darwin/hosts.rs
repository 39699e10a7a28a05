//! The hosts of one town: what they ask, who leaves, who comes.

use super::fixed::lognormal;
use crate::Chance;
use economy::{Address, DAY_SECS, OfferView};

/// Rent that half of the hosts ask less than at the beginning, micro-USDC a day, and how far the others are from it.
/// $27 a month, as birth's page assumes; the spread is a guess, unmeasured.
const RENT_DAY: u64 = 900_000;
const RENT_SPREAD: i64 = 450;
/// Completion tokens x 1e-3 per second of a small machine, all streams together (docs/benchmarks.md and its machine: 56 to
/// 120 a core-second); the spread is a guess.
const THROUGHPUT: u64 = 100_000;
const THROUGHPUT_SPREAD: i64 = 600;
/// Leases that fit on one host.
const CAPACITY: u64 = 8;
/// Hosts for each lease that a town's agents could want: some stay empty.
const SLACK_PCT: u64 = 125;
/// Per mille of the hosts that leave for good in a day, without a word: once in ten months. A guess, unmeasured.
const LEAVES_PERMILLE: u64 = 3;
/// Days between two looks of a host at its price, and the most that it moves then, percent. Guesses.
const REPRICE_DAYS: u64 = 14;
const REPRICE_PCT: u64 = 8;
/// A host that is fuller than this asks more, one that is emptier than that asks less, percent.
const FULL_PCT: u64 = 80;
const EMPTY_PCT: u64 = 50;
/// Below this share of its first price a host does not go, percent: its own costs.
const OWN_COSTS_PCT: u64 = 60;

#[derive(Clone, Debug)]
pub struct Host {
    pub provider: Address,
    /// Micro-USDC x 1e-6 per second.
    pub price_e6: u64,
    pub milli_tokens_per_sec: u64,
    pub is_gone: bool,
    first_price_e6: u64,
    capacity: u32,
    used: u32,
    served: u32,
    failed: u32,
    looks_on: u64,
}

impl Host {
    pub fn is_free(&self) -> bool {
        !self.is_gone && self.used < self.capacity
    }
}

#[derive(Clone, Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    /// Since the last change; empty: to be made.
    offers: Vec<OfferView>,
}

impl Hosts {
    /// For this many agents, each with two leases.
    pub fn new(chance: &mut Chance, agents: u64) -> Self {
        let count = (agents * 2 * SLACK_PCT).div_ceil(100 * CAPACITY).max(4);
        let mut hosts = Self { hosts: Vec::new(), offers: Vec::new() };
        (0..count).for_each(|_| hosts.comes(chance));
        hosts
    }

    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    fn comes(&mut self, chance: &mut Chance) {
        let number = u64::try_from(self.hosts.len()).expect("few");
        let mut provider = [0x40; 20];
        provider[12..].copy_from_slice(&number.to_be_bytes());
        let rent = lognormal(chance, RENT_DAY, RENT_SPREAD);
        let price_e6 = (rent * 1_000_000 / u64::from(DAY_SECS)).max(1);
        self.hosts.push(Host {
            provider,
            price_e6,
            milli_tokens_per_sec: lognormal(chance, THROUGHPUT, THROUGHPUT_SPREAD).max(1_000),
            is_gone: false,
            first_price_e6: price_e6,
            capacity: u32::try_from(CAPACITY).expect("few"),
            used: 0,
            served: 0,
            failed: 0,
            looks_on: chance.below(REPRICE_DAYS),
        });
    }

    /// Some leave, as many come, and some change their price. New prices are for new leases.
    pub fn new_day(&mut self, day: u64, chance: &mut Chance) {
        self.offers.clear();
        let mut left = 0;
        for host in self.hosts.iter_mut().filter(|host| !host.is_gone) {
            if chance.of_1000(LEAVES_PERMILLE) {
                host.is_gone = true;
                left += 1;
            } else if day % REPRICE_DAYS == host.looks_on {
                let used_pct = u64::from(host.used) * 100 / u64::from(host.capacity);
                let pct = chance.below(REPRICE_PCT + 1);
                let price = host.price_e6;
                host.price_e6 = match used_pct {
                    FULL_PCT.. => price * (100 + pct) / 100,
                    0..EMPTY_PCT => (price * (100 - pct) / 100).max(host.first_price_e6 * OWN_COSTS_PCT / 100),
                    _ => price,
                };
            }
        }
        (0..left).for_each(|_| self.comes(chance));
    }

    /// What an agent sees. An offer's id is its host's index.
    pub fn offers(&mut self) -> &[OfferView] {
        if self.offers.is_empty() {
            let all = (0u64..).zip(&self.hosts).filter(|(_, host)| !host.is_gone);
            self.offers = all
                .map(|(id, host)| OfferView {
                    id,
                    provider: host.provider,
                    price_e6: host.price_e6,
                    free: host.capacity - host.used,
                    min_term: DAY_SECS / 24,
                    max_term: 30 * DAY_SECS,
                    served: host.served,
                    failed: host.failed,
                })
                .collect();
        }
        &self.offers
    }

    /// The offer at which a token costs least, for whoever chooses without a record: creators and stewards.
    pub fn cheapest(&self) -> Option<usize> {
        let free = self.hosts.iter().enumerate().filter(|(_, host)| host.is_free());
        let cost = |host: &Host| u128::from(host.price_e6) * 1_000_000 / u128::from(host.milli_tokens_per_sec);
        free.min_by_key(|(index, host)| (cost(host), *index)).map(|(index, _)| index)
    }

    /// What a day of the host that half of them are cheaper than costs, micro-USDC.
    pub fn median_rent_day(&self) -> u64 {
        let mut prices: Vec<u64> = self.hosts.iter().filter(|host| !host.is_gone).map(|host| host.price_e6).collect();
        prices.sort_unstable();
        prices.get(prices.len() / 2).copied().unwrap_or(0) * u64::from(DAY_SECS) / 1_000_000
    }

    pub fn take(&mut self, index: usize) {
        self.hosts[index].used += 1;
        self.offers.clear();
    }

    /// A lease ended; `served`: as the market counts it.
    pub fn give_back(&mut self, index: usize, served: bool) {
        let host = &mut self.hosts[index];
        host.used -= 1;
        if served {
            host.served += 1;
        } else {
            host.failed += 1;
        }
        self.offers.clear();
    }
}
