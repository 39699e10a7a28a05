//! Thousands of agents for a year: who lives, and what the others die of.
//!
//! Agents live in towns of a hundred, with hosts, customers and competitors of their own; a town is the same whoever else
//! is simulated, so any number of threads gives the same bytes. Traffic is added up by the day. What decides is shipped:
//! `economy::Agent` (price, runway, hunger, hosts, moves, the end), on `economy::rules`, which the contracts are held
//! against. What is assumed stands beside each number, in [`demand`], [`hosts`] and [`life`], with its source or as a guess.
//!
//! Read in this order: [`demand`] and [`hosts`] (the world), [`life`] (one agent), this file, [`report`].

pub mod demand;
pub mod fixed;
pub mod hosts;
pub mod life;
pub mod report;

use crate::Chance;
use demand::{Demand, Seller, Trade};
use hosts::Hosts;
use life::{Life, Record};

/// Agents that share hosts and customers.
const TOWN: u64 = 100;
/// Births are spread over these first days.
const BIRTH_DAYS: u64 = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    pub agents: u64,
    pub days: u64,
    pub seed: u64,
}

/// What became of one town.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Town {
    pub records: Vec<Record>,
    /// By day: agents alive, and what the host that half are cheaper than costs, micro-USDC a day.
    pub alive: Vec<u64>,
    pub rent_day: Vec<u64>,
}

impl Setting {
    pub fn towns(&self) -> u64 {
        self.agents.div_ceil(TOWN)
    }

    /// Lives the whole time of the town with this number, from 0.
    ///
    /// # Panics
    /// The books of an agent and its treasury differ: money was made or lost.
    pub fn town(&self, number: u64) -> Town {
        let agents = self.agents.saturating_sub(number * TOWN).min(TOWN);
        let mut chance = Chance::new(Chance::new(self.seed).draw() ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut hosts = Hosts::new(&mut chance, agents);
        let born = |day: u64| day % BIRTH_DAYS.min(self.days.max(1));
        let mut waiting: Vec<(u64, Trade, u64, u64)> = (0..agents)
            .map(|n| (born(n), chance.pick(&Trade::ALL), demand::skill(&mut chance), chance.draw()))
            .collect();
        waiting.sort_by_key(|(day, ..)| *day);
        let mut demand = Demand::new(waiting.iter().map(|(_, trade, ..)| *trade));
        let mut lives: Vec<Life> = Vec::new();
        let (mut alive, mut rent_day) = (Vec::new(), Vec::new());
        let mut waiting = waiting.into_iter().peekable();
        for day in 0..self.days {
            hosts.new_day(day, &mut chance);
            demand.new_day(day, &mut chance);
            while let Some((_, trade, skill, seed)) = waiting.next_if(|(due, ..)| *due <= day) {
                lives.extend(Life::born(seed, day, trade, skill, &mut hosts));
            }
            let calls = calls_of(&lives, &demand, day, &mut chance);
            for (life, calls) in lives.iter_mut().zip(calls) {
                let level = demand.level(life.record.trade);
                life.day(day, calls, level, &mut hosts);
                assert!(life.books_balance(), "town {number}, day {day}: the books do not balance");
            }
            alive.push(lives.iter().map(|life| u64::from(life.record.died_day.is_none())).sum());
            rent_day.push(hosts.median_rent_day());
        }
        Town { records: lives.into_iter().map(|life| life.record).collect(), alive, rent_day }
    }

    /// All towns, one after the other. Whoever has more threads calls [`Setting::town`] from them, and keeps the order.
    pub fn run(&self) -> Vec<Town> {
        (0..self.towns()).map(|number| self.town(number)).collect()
    }
}

/// In the lives' order; 0 for whoever sells nothing.
fn calls_of(lives: &[Life], demand: &Demand, day: u64, chance: &mut Chance) -> Vec<u64> {
    let seller = |life: &Life| {
        let (trade, skill, days) = (life.record.trade, life.record.skill, day - life.record.born_day);
        life.call_price().map(|call| Seller { trade, skill, days, call })
    };
    let sellers: Vec<(usize, Seller)> =
        lives.iter().enumerate().filter_map(|(index, life)| Some((index, seller(life)?))).collect();
    let only: Vec<Seller> = sellers.iter().map(|(_, seller)| *seller).collect();
    let mut calls = vec![0; lives.len()];
    for ((index, _), come) in sellers.iter().zip(demand.share_out(&only, chance)) {
        calls[*index] = come;
    }
    calls
}
