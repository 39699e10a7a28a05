//! Whole worlds in simulated time, from one seed: the contracts run as bytecode in this process, time is an argument,
//! and nothing here has a socket, a clock or a thread.
//!
//! Read in this order: [`evm`] (a small chain), [`world`] (one agent on it, among its people), [`chance`] (a seed).

pub mod bindings;
pub mod chance;
pub mod evm;
pub mod world;

pub use chance::Chance;
pub use evm::{Done, Evm, Outcome};
pub use world::{Terms, World, key};
