//! What goes to the channel contract and what it says, as bytes: the caller sends and reads.
//!
//! Deposits are sent by the relay key, claims and refunds by receiver or receiverAuthorizer (the treasury calls the
//! same entries itself).

use super::types::{ChannelConfig, ChannelId, ChannelState, ClaimRow, Deposit, Withdrawal};
use crate::Usdc;
use alloy::primitives::{Address, B256, Bytes, aliases::U40};
use alloy::sol_types::SolCall;

/// The part of the published interface that is called here.
mod abi {
    alloy::sol! {
        struct ChannelConfig {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }
        struct Voucher {
            ChannelConfig channel;
            uint128 maxClaimableAmount;
        }
        struct VoucherClaim {
            Voucher voucher;
            bytes signature;
            uint128 totalClaimed;
        }
        function multicall(bytes[] data) external returns (bytes[] results);
        function deposit(ChannelConfig config, uint128 amount, address collector, bytes collectorData) external;
        function claim(VoucherClaim[] voucherClaims) external;
        function settle(address receiver, address token) external;
        function refund(ChannelConfig config, uint128 amount) external;
        function initiateWithdraw(ChannelConfig config, uint128 amount) external;
        function finalizeWithdraw(ChannelConfig config) external;
        function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed);
        function pendingWithdrawals(bytes32 channelId) external view returns (uint128 amount, uint40 initiatedAt);
        function refundNonce(bytes32 channelId) external view returns (uint256 nonce);
    }
}

/// Puts a deposit in. Simulate it first: its own signature, balance and allowance only the chain can judge.
pub fn deposit_call(config: &ChannelConfig, deposit: &Deposit) -> Vec<u8> {
    abi::depositCall {
        config: config_of(config),
        amount: deposit.amount.micro(),
        collector: deposit.collector(),
        collectorData: Bytes::from(deposit.collector_data()),
    }
    .abi_encode()
}

/// Claims what was charged. In the published contract one bad row reverts them all: see
/// [`crate::book::Channels::due_claims`] for how rows are kept apart.
pub fn claim_call(rows: &[ClaimRow]) -> Vec<u8> {
    let voucher_claims = rows.iter().map(|row| abi::VoucherClaim {
        voucher: abi::Voucher { channel: config_of(&row.config), maxClaimableAmount: row.voucher.max.micro() },
        signature: Bytes::copy_from_slice(&row.voucher.signature),
        totalClaimed: row.total.micro(),
    });
    abi::claimCall { voucherClaims: voucher_claims.collect() }.abi_encode()
}

/// Pays the receiver what was claimed for it.
pub fn settle_call(receiver: Address, token: Address) -> Vec<u8> {
    abi::settleCall { receiver, token }.abi_encode()
}

/// Gives back `amount`. The contract protects only what is claimed: what was charged is claimed before, in the same
/// transaction ([`all_calls`]).
pub fn refund_call(config: &ChannelConfig, amount: Usdc) -> Vec<u8> {
    abi::refundCall { config: config_of(config), amount: amount.micro() }.abi_encode()
}

/// Several calls, all or nothing.
pub fn all_calls(calls: Vec<Vec<u8>>) -> Vec<u8> {
    abi::multicallCall { data: calls.into_iter().map(Bytes::from).collect() }.abi_encode()
}

/// The payer's way out, for tests and for customers.
pub fn initiate_withdraw_call(config: &ChannelConfig, amount: Usdc) -> Vec<u8> {
    abi::initiateWithdrawCall { config: config_of(config), amount: amount.micro() }.abi_encode()
}

pub fn finalize_withdraw_call(config: &ChannelConfig) -> Vec<u8> {
    abi::finalizeWithdrawCall { config: config_of(config) }.abi_encode()
}

/// The three reads that make a [`ChannelState`], to be answered at one block.
pub fn state_calls(channel: &ChannelId) -> [Vec<u8>; 3] {
    let id = B256::from(channel.0);
    [
        abi::channelsCall { channelId: id }.abi_encode(),
        abi::pendingWithdrawalsCall { channelId: id }.abi_encode(),
        abi::refundNonceCall { channelId: id }.abi_encode(),
    ]
}

/// The answers to [`state_calls`], or `None` if they are not this contract's.
pub fn read_state(answers: &[Vec<u8>; 3], block: u64) -> Option<ChannelState> {
    let channel = abi::channelsCall::abi_decode_returns(&answers[0]).ok()?;
    let pending = abi::pendingWithdrawalsCall::abi_decode_returns(&answers[1]).ok()?;
    let nonce = abi::refundNonceCall::abi_decode_returns(&answers[2]).ok()?;
    let since = pending.initiatedAt.to::<u64>();
    Some(ChannelState {
        balance: Usdc(channel.balance),
        claimed: Usdc(channel.totalClaimed),
        withdrawal: (since != 0).then_some(Withdrawal { amount: Usdc(pending.amount), since }),
        refund_nonce: nonce.try_into().ok()?,
        block,
    })
}

fn config_of(config: &ChannelConfig) -> abi::ChannelConfig {
    abi::ChannelConfig {
        payer: config.payer.into(),
        payerAuthorizer: config.payer_authorizer.into(),
        receiver: config.receiver.into(),
        receiverAuthorizer: config.receiver_authorizer.into(),
        token: config.token.into(),
        withdrawDelay: U40::wrapping_from(config.withdraw_delay_secs),
        salt: config.salt.into(),
    }
}
