//! Scheme `exact` on EVM by EIP-3009: the customer signs one `TransferWithAuthorization` of exactly the price.
//!
//! Anyone may submit the authorisation; the treasury's `settleExact` does, and records (payer, nonce) so that it can
//! be refunded. Source: x402 `scheme_exact_evm`, EIP-3009, EIP-712.

pub mod client;
pub mod facilitator;
pub mod server;
mod types;

pub use types::{Domain, Hash, SettleExact, TransferWithAuthorization, Verified};

/// The scheme's name on the wire.
pub const EXACT: &str = "exact";

#[cfg(test)]
mod tests;
