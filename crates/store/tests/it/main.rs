//! The store from outside: public surface only, real files, real sockets on loopback.

mod arweave;
mod blocks;
mod car;
mod checkpoint;
mod cli;
mod client;
mod fetch;
mod fuzz;
mod gateway;
mod kubo;
mod network;
mod place;
mod seal;
mod support;
mod unixfs;

#[path = "../../../../tests/simulated.rs"]
mod simulated;
