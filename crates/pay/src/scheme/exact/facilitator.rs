//! What goes to the token, and what the chain says about a settlement. Pure: the caller sends and reads receipts.

use super::types::{Hash, SettleExact};
use crate::Usdc;
use crate::scheme::signature::of_deployed;
use alloy::primitives::{Address, B256, U256};
use alloy::sol_types::SolCall;

mod abi {
    alloy::sol! {
        /// EIP-3009: every token that has it.
        function transferWithAuthorization(
            address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce,
            uint8 v, bytes32 r, bytes32 s
        ) external;
    }
    pub mod of_contracts {
        alloy::sol! {
            /// USDC from version 2.2 on: signatures of contracts too.
            function transferWithAuthorization(
                address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce,
                bytes signature
            ) external;
        }
    }
}

/// The transfer itself, by anyone, for a payee that keeps no record of its own. (A treasury has `settleExact`.)
pub fn transfer_call(terms: &SettleExact, pay_to: Address) -> Vec<u8> {
    let (from, to, value) = (terms.payer.into(), pay_to, U256::from(terms.value.micro()));
    let (valid_after, valid_before) = (U256::from(terms.valid_after), U256::from(terms.valid_before));
    let nonce = B256::from(terms.nonce);
    match <[u8; 65]>::try_from(terms.signature.as_slice()) {
        Ok(key) if terms.is_signed_by_key => abi::transferWithAuthorizationCall {
            from,
            to,
            value,
            validAfter: valid_after,
            validBefore: valid_before,
            nonce,
            v: key[64],
            r: B256::from_slice(&key[..32]),
            s: B256::from_slice(&key[32..64]),
        }
        .abi_encode(),
        _ => abi::of_contracts::transferWithAuthorizationCall {
            from,
            to,
            value,
            validAfter: valid_after,
            validBefore: valid_before,
            nonce,
            signature: of_deployed(&terms.signature),
        }
        .abi_encode(),
    }
}

/// The payment looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub token: [u8; 20],
    pub payer: [u8; 20],
    pub pay_to: [u8; 20],
    pub nonce: Hash,
    pub value: Usdc,
}

/// One decoded log of the token, in the receipt's order. Other logs are left out by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// `AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce)`
    Used { token: [u8; 20], authorizer: [u8; 20], nonce: Hash },
    /// `AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce)`
    Canceled { token: [u8; 20], authorizer: [u8; 20], nonce: Hash },
    /// `Transfer(address indexed from, address indexed to, uint256 value)`
    Transfer { token: [u8; 20], from: [u8; 20], to: [u8; 20], value: Usdc },
}

/// A payment has three outcomes, and `Unknown` is one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The authorisation was used and its transfer reached us, in one receipt.
    Paid,
    /// The authorisation can never pay us any more.
    Unpaid,
    /// Ask the chain again before anything is charged or served on this.
    Unknown,
}

/// Classifies the logs of one successful transaction (a reverted one has none and stays `Unknown`: another
/// transaction may still use the authorisation).
///
/// The transfer that belongs to an `AuthorizationUsed` is the next transfer of the token, before any other
/// authorisation is used. Without that rule a batch of two authorisations, one of them paying somebody else, would
/// count one transfer twice.
pub fn classify(expected: &Expected, logs: &[Log]) -> Outcome {
    let is_ours = |token: [u8; 20], authorizer: [u8; 20], nonce: Hash| {
        token == expected.token && authorizer == expected.payer && nonce == expected.nonce
    };
    let mut rest = logs.iter();
    loop {
        match rest.next() {
            None => return Outcome::Unknown,
            Some(Log::Canceled { token, authorizer, nonce }) if is_ours(*token, *authorizer, *nonce) => {
                return Outcome::Unpaid;
            }
            Some(Log::Used { token, authorizer, nonce }) if is_ours(*token, *authorizer, *nonce) => break,
            Some(_) => {}
        }
    }
    let paid =
        rest.take_while(|log| !matches!(log, Log::Used { token, .. } if *token == expected.token)).find_map(|log| {
            match log {
                Log::Transfer { token, from, to, value } if *token == expected.token => {
                    Some(*from == expected.payer && *to == expected.pay_to && *value == expected.value)
                }
                _ => None,
            }
        });
    // Used without paying us: the payer signed two authorisations with one nonce and the other one won.
    if paid == Some(true) { Outcome::Paid } else { Outcome::Unpaid }
}

/// Outcome of an authorisation that no transaction is known to have used: `used` is the token's
/// `authorizationState` read at a block with time `chain_now`, at the wanted finality.
pub fn classify_unused(valid_before: u64, chain_now: u64, used: bool) -> Outcome {
    if !used && chain_now >= valid_before { Outcome::Unpaid } else { Outcome::Unknown }
}
