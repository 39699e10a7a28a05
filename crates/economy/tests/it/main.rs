//! Whole lives against a small model of chain and market, written apart from the crate: weeks of chain time, with
//! failing transactions, lost answers, dying hosts, reorgs, restarts and takeovers, all from one seed.

mod life;
mod lives;
mod rng;
mod world;
