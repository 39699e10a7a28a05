//! What goes to the proxies, as bytes: the caller simulates, sends from the relay key and reads the receipt.

use super::types::{Permit2Payment, Proxy};
use crate::Usdc;
use crate::scheme::exact::Hash;
use crate::scheme::signature::of_deployed;
use alloy::primitives::{Address, U256};
use alloy::sol_types::SolCall;

mod exact {
    alloy::sol! {
        struct TokenPermissions { address token; uint256 amount; }
        struct PermitTransferFrom { TokenPermissions permitted; uint256 nonce; uint256 deadline; }
        struct EIP2612Permit { uint256 value; uint256 deadline; bytes32 r; bytes32 s; uint8 v; }
        struct Witness { address to; uint256 validAfter; }
        function settle(PermitTransferFrom permit, address owner, Witness witness, bytes signature) external;
        function settleWithPermit(
            EIP2612Permit permit2612, PermitTransferFrom permit, address owner, Witness witness, bytes signature
        ) external;
    }
}

mod upto {
    alloy::sol! {
        struct TokenPermissions { address token; uint256 amount; }
        struct PermitTransferFrom { TokenPermissions permitted; uint256 nonce; uint256 deadline; }
        struct EIP2612Permit { uint256 value; uint256 deadline; bytes32 r; bytes32 s; uint8 v; }
        struct Witness { address to; address facilitator; uint256 validAfter; }
        function settle(
            PermitTransferFrom permit, uint256 amount, address owner, Witness witness, bytes signature
        ) external;
        function settleWithPermit(
            EIP2612Permit permit2612, PermitTransferFrom permit, uint256 amount, address owner, Witness witness,
            bytes signature
        ) external;
    }
}

/// Settles `amount` of a payment; `exact` ignores `amount` and moves all of it. To [`Proxy::address`], from the
/// facilitator that the payment names.
pub fn settle_call(payment: &Permit2Payment, amount: Usdc) -> Vec<u8> {
    match payment.proxy {
        Proxy::Exact => exact_call(payment),
        Proxy::Upto { facilitator } => upto_call(payment, facilitator, amount),
    }
}

fn exact_call(payment: &Permit2Payment) -> Vec<u8> {
    let permit = exact::PermitTransferFrom {
        permitted: exact::TokenPermissions { token: payment.token.into(), amount: U256::from(payment.amount.micro()) },
        nonce: U256::from_be_bytes(payment.nonce),
        deadline: U256::from(payment.deadline),
    };
    let witness = exact::Witness { to: payment.pay_to.into(), validAfter: U256::from(payment.valid_after) };
    let (owner, signature) = (payment.payer.into(), of_deployed(&payment.signature));
    match &payment.permit {
        None => exact::settleCall { permit, owner, witness, signature }.abi_encode(),
        Some(p) => {
            let (value, deadline) = (U256::from(p.amount.micro()), U256::from(p.deadline));
            let permit2612 = exact::EIP2612Permit { value, deadline, r: p.r(), s: p.s(), v: p.v() };
            exact::settleWithPermitCall { permit2612, permit, owner, witness, signature }.abi_encode()
        }
    }
}

fn upto_call(payment: &Permit2Payment, facilitator: [u8; 20], amount: Usdc) -> Vec<u8> {
    let permit = upto::PermitTransferFrom {
        permitted: upto::TokenPermissions { token: payment.token.into(), amount: U256::from(payment.amount.micro()) },
        nonce: U256::from_be_bytes(payment.nonce),
        deadline: U256::from(payment.deadline),
    };
    let witness = upto::Witness {
        to: payment.pay_to.into(),
        facilitator: facilitator.into(),
        validAfter: U256::from(payment.valid_after),
    };
    let (owner, signature) = (payment.payer.into(), of_deployed(&payment.signature));
    let amount = U256::from(amount.micro());
    match &payment.permit {
        None => upto::settleCall { permit, amount, owner, witness, signature }.abi_encode(),
        Some(p) => {
            let (value, deadline) = (U256::from(p.amount.micro()), U256::from(p.deadline));
            let permit2612 = upto::EIP2612Permit { value, deadline, r: p.r(), s: p.s(), v: p.v() };
            upto::settleWithPermitCall { permit2612, permit, amount, owner, witness, signature }.abi_encode()
        }
    }
}

mod nonces {
    alloy::sol! {
        function nonceBitmap(address owner, uint256 word) external view returns (uint256);
    }
}

/// Asks Permit2, to [`PERMIT2`](crate::scheme::permit2::PERMIT2), for the nonces of the payment's payer around its own.
pub fn nonce_call(payment: &Permit2Payment) -> Vec<u8> {
    let word = U256::from_be_bytes(payment.nonce) >> 8;
    nonces::nonceBitmapCall { owner: payment.payer.into(), word }.abi_encode()
}

/// Whether the payment's nonce is spent, by the answer to [`nonce_call`]: it paid, somebody or something else was paid
/// with it, or the payer withdrew it. `None` for what is no answer.
pub fn nonce_is_spent(payment: &Permit2Payment, answer: &[u8]) -> Option<bool> {
    let bitmap = nonces::nonceBitmapCall::abi_decode_returns(answer).ok()?;
    Some(bitmap.bit(usize::from(payment.nonce[31])))
}

/// Whether these bytes, sent to a proxy, settle the payment of this payer with this nonce, by whichever entry of
/// whichever proxy. A nonce is one for both of them, and each has entries that the other one lacks.
pub fn settles(payer: &[u8; 20], nonce: &Hash, data: &[u8]) -> bool {
    let ours = |owner: Address, of: U256| owner == *payer && of == U256::from_be_bytes(*nonce);
    exact::settleCall::abi_decode(data).is_ok_and(|call| ours(call.owner, call.permit.nonce))
        || exact::settleWithPermitCall::abi_decode(data).is_ok_and(|call| ours(call.owner, call.permit.nonce))
        || upto::settleCall::abi_decode(data).is_ok_and(|call| ours(call.owner, call.permit.nonce))
        || upto::settleWithPermitCall::abi_decode(data).is_ok_and(|call| ours(call.owner, call.permit.nonce))
}

/// What these bytes, sent to the proxy of `upto`, settle: payer, nonce and the amount taken. `None`: they are not its.
pub fn upto_settled(data: &[u8]) -> Option<(Address, Hash, Usdc)> {
    let (owner, nonce, amount) = match upto::settleCall::abi_decode(data) {
        Ok(call) => (call.owner, call.permit.nonce, call.amount),
        Err(_) => {
            let call = upto::settleWithPermitCall::abi_decode(data).ok()?;
            (call.owner, call.permit.nonce, call.amount)
        }
    };
    Some((owner, nonce.to_be_bytes(), Usdc(amount.try_into().ok()?)))
}
