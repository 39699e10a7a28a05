//! Scheme `batch-settlement` on EVM: a payment channel. The customer deposits once, then signs *vouchers*, each a
//! ceiling over all it will ever owe on the channel; the seller charges what it delivered and claims the sum now and
//! then. A call costs no transaction.
//!
//! **Invariant:** a voucher is cumulative, so an older one never takes anything back and a replayed one adds nothing.
//! **Invariant:** the contract pays what was charged (`totalClaimed`), never what was allowed (`maxClaimableAmount`).
//!
//! Vouchers are taken from keys alone: a contract that signs for itself (ERC-1271) could declare its voucher void
//! after it was served. Contracts pay by naming a key as `payerAuthorizer`; their deposits are judged by the chain.
//!
//! Source: x402 `scheme_batch_settlement_evm` as the official packages 2.27 speak it; tests/golden holds exchanges.

pub mod client;
pub mod facilitator;
pub mod server;
mod types;

pub use types::{
    ChannelConfig, ChannelDomain, ChannelId, ChannelState, ClaimRow, Deposit, DepositMethod, HeldVoucher, Withdrawal,
};

use alloy::primitives::{Address, address};

/// The scheme's name on the wire.
pub const CHANNEL: &str = "batch-settlement";

/// In an offer's `extra`, where `amount` has room for a call before: the most that the call at hand will be charged. News
/// and no term: a customer may leave it out of `accepted`, and only `amount` binds.
pub const CALL_CEILING: &str = "callCeiling";

/// The contract, at the same address on every chain.
pub const BATCH_SETTLEMENT: Address = address!("4020074e9dF2ce1deE5A9C1b5c3f541D02a10003");
/// Its collector of EIP-3009 deposits.
pub const COLLECTOR_3009: Address = address!("4020806089470a89826cB9fB1f4059150b550004");
/// Its collector of Permit2 deposits.
pub const COLLECTOR_PERMIT2: Address = address!("4020425FAf3B746C082C2f942b4E5159887B0005");

/// Bounds of `withdrawDelay`, in seconds; the contract enforces them.
pub const WITHDRAW_DELAY_SECS_MIN: u64 = 900;
pub const WITHDRAW_DELAY_SECS_MAX: u64 = 30 * 86_400;

#[cfg(test)]
mod tests;
