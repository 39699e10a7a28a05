//! Whole lives against a small model of chain and market, written apart from the crate: weeks of chain time, with
//! failing transactions, lost answers, dying hosts, reorgs, restarts and takeovers, all from one seed.

#[path = "../../../sim/src/chance.rs"]
#[allow(dead_code, reason = "the simulator draws in more ways")]
mod chance;
mod life;
mod lives;
mod prices;
mod world;
