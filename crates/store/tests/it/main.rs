//! The store from outside: public surface only, real files, real sockets on loopback.

mod blocks;
mod car;
mod checkpoint;
mod cli;
mod client;
mod fetch;
mod gateway;
mod seal;
mod support;
mod unixfs;
