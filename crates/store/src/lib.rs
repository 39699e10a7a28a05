//! The content store: everything is a CID, every byte is checked against it on arrival.
//!
//! [`Blocks`] is a folder of blocks. [`unixfs`] turns files and directories into blocks and back, [`car`] moves
//! them as one stream, [`gateway`] serves them to anybody and [`fetch`] gathers them from sources that nobody
//! needs to trust. [`client`] is the small end of the same protocol: put some bytes, get some bytes.
//! [`seal`] closes bytes to a key and splits that key k of n; [`checkpoint`] holds the signed objects that say
//! which sealed bytes are an agent's memory.
//!
//! **Invariant:** no block is handed out that does not hash to its CID, whoever it came from, this disk included.
//! **Invariant:** nothing here knows a treasury, a price or a lease beyond the numbers it signs.

pub mod arweave;
pub mod blocks;
pub mod car;
pub mod checkpoint;
pub mod cid;
pub mod cli;
pub mod client;
pub mod dag;
mod error;
pub mod fetch;
pub mod gateway;
pub mod kubo;
mod place;
mod protobuf;
pub mod seal;
mod serve;
mod signed;
pub mod unixfs;
pub mod walk;

pub use blocks::Blocks;
pub use client::StoreClient;
pub use error::{Error, Kind, Result};
pub use fetch::Fetcher;
pub use serve::serve;
