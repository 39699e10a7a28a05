//! Permit2's signature transfer with a witness: what `exact` (for tokens without EIP-3009), `upto` and channel
//! deposits are signed over. Source: Permit2's `PermitHash`, EIP-712.

use crate::scheme::exact::Hash;
use crate::{Refusal, Usdc, wire};
use alloy::primitives::{Address, B256, U256, address, keccak256};
use alloy::sol_types::{SolValue, eip712_domain};
use borsh::{BorshDeserialize, BorshSerialize};
use serde_json::Value;

/// Permit2, at the same address on every chain.
pub const PERMIT2: Address = address!("000000000022D473030F116dDEE9F6B43aC78BA3");

/// One permission to transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    pub token: Address,
    /// The most that may be taken, in the token's units.
    pub amount: Usdc,
    /// Who may take it: a proxy or a collector.
    pub spender: Address,
    pub nonce: U256,
    /// Chain seconds, inclusive.
    pub deadline: u64,
}

/// What the owner signs. `witness_type` is the tail of the type string, from the witness's own field on;
/// `witness` its struct hash.
pub fn digest(chain_id: u64, witness_type: &str, witness: B256, permit: &Permit) -> B256 {
    let domain = eip712_domain! { name: "Permit2", chain_id: chain_id, verifying_contract: PERMIT2, };
    let kind = [
        "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,",
        witness_type,
    ]
    .concat();
    let permissions = keccak256("TokenPermissions(address token,uint256 amount)");
    let permitted = keccak256((permissions, permit.token, U256::from(permit.amount.micro())).abi_encode());
    let fields =
        (keccak256(kind), permitted, permit.spender, permit.nonce, U256::from(permit.deadline), witness).abi_encode();
    let mut preimage = [0; 66];
    preimage[..2].copy_from_slice(&[0x19, 0x01]);
    preimage[2..34].copy_from_slice(domain.separator().as_slice());
    preimage[34..].copy_from_slice(keccak256(fields).as_slice());
    keccak256(preimage)
}

/// A Permit2 nonce: 256 bits as decimal digits, big-endian here.
pub fn nonce(text: &str) -> Result<Hash, Refusal> {
    let plain = !text.is_empty() && text.len() <= 78 && text.bytes().all(|b| b.is_ascii_digit());
    plain
        .then(|| U256::from_str_radix(text, 10).ok())
        .flatten()
        .map(|nonce| nonce.to_be_bytes())
        .ok_or_else(|| wire::invalid("a Permit2 nonce is a decimal integer below 2^256"))
}

/// Reads `info` of x402 extension `eip2612GasSponsoring`: an EIP-2612 permission for Permit2. Whether its signature
/// holds, only the token knows; a wrong one makes the transfer fail when it is simulated.
pub fn read_2612(info: &Value, owner: Address, token: Address) -> Result<Permit2612, Refusal> {
    let text = |name: &str| {
        info.get(name)
            .and_then(Value::as_str)
            .ok_or_else(|| wire::invalid(format!("eip2612GasSponsoring: `{name}` is not a text")))
    };
    for (name, wanted) in [("from", owner), ("asset", token), ("spender", PERMIT2)] {
        if wire::address(text(name)?)? != wanted {
            return Err(wire::invalid(format!("eip2612GasSponsoring: `{name}` is not {wanted}")));
        }
    }
    Ok(Permit2612 {
        amount: wire::amount(text("amount")?)?,
        deadline: wire::seconds(text("deadline")?)?,
        signature: wire::bytes(text("signature")?)
            .ok_or_else(|| wire::invalid("eip2612GasSponsoring: a signature is 0x and 130 digits"))?,
    })
}

/// An EIP-2612 permission for Permit2, so that the payer needs no transaction at all (x402 extension
/// `eip2612GasSponsoring`).
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Permit2612 {
    pub amount: Usdc,
    /// Chain seconds.
    pub deadline: u64,
    /// r, s, v.
    pub signature: [u8; 65],
}

impl Permit2612 {
    pub fn r(&self) -> B256 {
        B256::from_slice(&self.signature[..32])
    }

    pub fn s(&self) -> B256 {
        B256::from_slice(&self.signature[32..64])
    }

    pub fn v(&self) -> u8 {
        self.signature[64]
    }
}
