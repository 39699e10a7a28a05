//! One HTTP client for the whole project: hyper's pooled client over a plain TCP connector.
//!
//! Every crate that leaves the process by HTTP goes through [`Client`], so that there is one place for
//! deadlines, size limits and (for a simulated network) the connector. The chain's RPC client uses the same
//! hyper stack. reqwest is deliberately absent here: it hides its connector.

mod client;
mod error;

pub use client::{Body, Client, Response};
pub use error::{Error, Kind, chain_of};
