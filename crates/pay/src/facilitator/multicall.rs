//! Several calls in one transaction, by Multicall3: the same contract at the same address on most chains. It owns
//! nothing and calls on nobody's behalf, so only calls that anyone may make go through it.

use alloy::primitives::{Address, Bytes, address};
use alloy::sol_types::SolCall;

/// Where every chain that has it has it; the official facilitator reads through it, too.
pub const MULTICALL3: Address = address!("cA11bde05977b3631167028862bE2a173976CA11");

mod abi {
    alloy::sol! {
        struct Call { address target; bytes callData; }
        struct Result { bool success; bytes returnData; }
        function tryAggregate(bool requireSuccess, Call[] calls) external payable returns (Result[] returnData);
    }
}

/// One call of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub to: Address,
    pub data: Bytes,
}

/// All of them, or none.
pub fn all(calls: Vec<Call>) -> Bytes {
    encode(calls, true)
}

/// Each for itself: one that fails leaves the others alone.
pub fn each(calls: Vec<Call>) -> Bytes {
    encode(calls, false)
}

fn encode(calls: Vec<Call>, all_or_none: bool) -> Bytes {
    let calls = calls.into_iter().map(|call| abi::Call { target: call.to, callData: call.data }).collect();
    abi::tryAggregateCall { requireSuccess: all_or_none, calls }.abi_encode().into()
}

/// Of [`each`], simulated: what went through. `None`: not this contract's answer.
pub fn succeeded(answer: &[u8]) -> Option<Vec<bool>> {
    let results = abi::tryAggregateCall::abi_decode_returns(answer).ok()?;
    Some(results.into_iter().map(|result| result.success).collect())
}
