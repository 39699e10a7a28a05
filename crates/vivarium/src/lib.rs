//! Whole worlds of real processes, for `vivarium up`, the end-to-end tests and the benchmarks.
//!
//! A world is a folder, a development chain, a content store, stewards, providers and one agent that was born
//! there. [`world::World`] starts it, keeps its files current and stops it in order.

pub mod archivist;
mod books;
pub mod facilitator;
pub mod proxy;
pub mod world;
