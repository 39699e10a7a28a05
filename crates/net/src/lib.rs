//! One HTTP client for the whole project: hyper's pooled client over TCP, with TLS (rustls) where the address says so.
//!
//! Every crate that leaves the process by HTTP goes through [`Client`], and the chain's RPC client through [`pool`], so
//! that there is one place for deadlines, size limits and (for a simulated network) the connector. reqwest is
//! deliberately absent here: it hides its connector.

mod client;
mod connect;
mod error;

pub use client::{Body, Client, Pool, Response, SEND_BUFFER_BYTES, is_http, pool, send_as_read, send_at_once};
pub use connect::{Connection, Connector, Dial, Wire};
pub use error::{Error, Kind, chain_of};
