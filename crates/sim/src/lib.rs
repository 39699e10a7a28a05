//! Whole worlds in simulated time, from one seed: the contracts run as bytecode in this process, time is an argument,
//! and nothing here has a socket, a clock or a thread.
//!
//! Read in this order: [`evm`] (a small chain), [`world`] (one agent on it, among its people), [`chance`] (a seed); [`lives`] (a life while faults rain) and
//! [`audit`] (what must hold); [`darwin`] is another scale: thousands of agents for a
//! year, without a chain.

pub mod audit;
pub mod bindings;
pub mod chance;
pub mod darwin;
pub mod evm;
mod glance;
pub mod lives;
pub mod world;

pub use chance::Chance;
pub use evm::{Done, Evm, Outcome};
pub use world::{Terms, World, key};
