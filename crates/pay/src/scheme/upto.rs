//! Payments by Permit2: scheme `upto` (the customer signs a ceiling, the seller settles what was delivered) and scheme
//! `exact` for tokens without EIP-3009.
//!
//! An `upto` payment can be settled only by the facilitator that it names, in one transaction a request: the relay key
//! does it, before the last byte. Both proxies are called by the relay key and by no other.
//!
//! Source: x402 `scheme_upto_evm` and `scheme_exact_evm` (Permit2) as the official packages 2.27 speak them.

pub mod client;
pub mod facilitator;
pub mod server;
mod types;

pub use types::{EXACT_PROXY, Permit2Domain, Permit2Payment, Proxy, UPTO_PROXY};

/// The scheme's name on the wire.
pub const UPTO: &str = "upto";

#[cfg(test)]
mod tests;
