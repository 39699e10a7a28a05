use super::types::{Domain, Verified, message};
use crate::scheme::check_terms;
use crate::scheme::signature;
use crate::wire::{self, PaymentPayload, PaymentRequirements, bytes, seconds};
use crate::{Reason, Refusal, Usdc};
use alloy::consensus::crypto::secp256k1::recover_signer;
use alloy::primitives::{Address, B256, Signature};
use serde_json::Value;

/// An authorisation must outlive now by this much, or its settlement may come too late: three blocks of two seconds.
/// The official facilitator asks for the same 6 s.
pub const VALID_BEFORE_MARGIN_SECS: u64 = 6;

/// Checks a payment against the offer: one recovery, no I/O.
///
/// `chain_now` is the timestamp of the newest block. Refusals carry the specification's name of the first thing that
/// is wrong, in this order: scheme, network, terms, shape, payee, value, times, signature. The domain is computed;
/// a seller that verifies many payments keeps one and calls [`verify_in`].
pub fn verify(payment: &PaymentPayload, offered: &PaymentRequirements, chain_now: u64) -> Result<Verified, Refusal> {
    verify_in(&Domain::of(offered)?, payment, offered, |_, _| Some(chain_now))
}

/// [`verify`] with the token's domain at hand.
///
/// `now_for(payer, nonce)` gives the chain time to check the authorisation's times against, or `None` for a payment
/// that was taken before: a client that asks again for its answer may do so after the authorisation expired.
pub fn verify_in(
    domain: &Domain,
    payment: &PaymentPayload,
    offered: &PaymentRequirements,
    now_for: impl Fn(&Address, &B256) -> Option<u64>,
) -> Result<Verified, Refusal> {
    match verify_any_in(domain, payment, offered, now_for)? {
        (verified, Ok(())) => Ok(verified),
        (_, Err(not_by_key)) => Err(not_by_key),
    }
}

/// [`verify_in`] for a caller that takes contracts as payers too: all but the signature was checked. Beside it: that
/// the payer's key signed, or why it did not; then the caller simulates the settlement before it believes anything.
pub fn verify_any_in(
    domain: &Domain,
    payment: &PaymentPayload,
    offered: &PaymentRequirements,
    now_for: impl Fn(&Address, &B256) -> Option<u64>,
) -> Result<(Verified, Result<(), Refusal>), Refusal> {
    check_terms(payment, offered)?;
    let fields = Fields::read(&payment.payload)?;
    if fields.to != offered.pay_to() {
        let message = format!("signed for {}, payTo is {}", fields.to, offered.pay_to());
        return Err(Refusal::new(Reason::Recipient, message));
    }
    if fields.value != offered.amount() {
        let message = format!("signed {}, the price is exactly {}", fields.value, offered.amount());
        return Err(Refusal::new(Reason::ValueMismatch, message));
    }
    if let Some(chain_now) = now_for(&fields.from, &fields.nonce) {
        check_times(&fields, chain_now)?;
    }
    let window = (fields.valid_after, fields.valid_before);
    let digest = domain.digest(&message(fields.from, fields.to, fields.value, window, fields.nonce));
    let by_key = signed_by_key(&fields, digest);
    let verified = Verified {
        payer: fields.from,
        nonce: fields.nonce,
        value: fields.value,
        valid_after: fields.valid_after,
        valid_before: fields.valid_before,
        signature: fields.signature,
        is_signed_by_key: by_key.is_ok(),
    };
    Ok((verified, by_key))
}

/// The token itself takes only v 27 and 28 and only low s (refused by `recover_signer`, EIP-2): anything else would
/// verify here and revert there.
fn signed_by_key(fields: &Fields, digest: B256) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(Reason::Signature, message));
    let Ok(signature) = <[u8; 65]>::try_from(fields.signature.as_slice()) else {
        return refuse(format!(
            "a key's signature is 0x and 130 digits (r, s, v), this one has {} bytes",
            fields.signature.len()
        ));
    };
    let parity = match signature[64] {
        27 => false,
        28 => true,
        v => return refuse(format!("v is {v}; the token takes 27 or 28")),
    };
    let signature = Signature::from_bytes_and_parity(&signature[..64], parity);
    match recover_signer(&signature, digest) {
        Ok(signer) if signer == fields.from => Ok(()),
        Ok(signer) => refuse(format!(
            "the signature is {signer}'s, not {}'s; check the token's EIP-712 name and version, the chain id and each field",
            fields.from
        )),
        Err(e) => refuse(format!("no key made this signature: {e}")),
    }
}

/// The token wants validAfter < block time < validBefore, and the block comes after now.
fn check_times(fields: &Fields, chain_now: u64) -> Result<(), Refusal> {
    if fields.valid_after > chain_now {
        let message = format!("valid after {}, chain time is {chain_now}", fields.valid_after);
        return Err(Refusal::new(Reason::ValidAfter, message));
    }
    if fields.valid_before < chain_now.saturating_add(VALID_BEFORE_MARGIN_SECS) {
        let before = fields.valid_before;
        let message = format!(
            "valid before {before}, chain time is {chain_now}, settling takes up to {VALID_BEFORE_MARGIN_SECS} s"
        );
        return Err(Refusal::new(Reason::ValidBefore, message));
    }
    Ok(())
}

/// `payload` of the envelope, read strictly.
struct Fields {
    from: Address,
    to: Address,
    value: Usdc,
    valid_after: u64,
    valid_before: u64,
    nonce: B256,
    signature: Vec<u8>,
}

impl Fields {
    fn read(payload: &Value) -> Result<Self, Refusal> {
        let authorization = payload.get("authorization").filter(|a| a.is_object()).ok_or_else(|| {
            let other = if payload.get("permit2Authorization").is_some() { " (Permit2 was not offered)" } else { "" };
            wire::invalid(format!("`payload.authorization` is missing{other}"))
        })?;
        let text = |name: &str| {
            authorization
                .get(name)
                .and_then(Value::as_str)
                .ok_or_else(|| wire::invalid(format!("`authorization.{name}` is not a text")))
        };
        let signature = payload
            .get("signature")
            .and_then(Value::as_str)
            .ok_or_else(|| Refusal::new(Reason::Signature, "`payload.signature` is missing"))?;
        Ok(Self {
            from: wire::address(text("from")?)?,
            to: wire::address(text("to")?)?,
            value: wire::amount(text("value")?)?,
            valid_after: seconds(text("validAfter")?)?,
            valid_before: seconds(text("validBefore")?)?,
            nonce: B256::from(bytes(text("nonce")?).ok_or_else(|| wire::invalid("`nonce` is not 0x and 64 digits"))?),
            signature: signature::parse(signature).ok_or_else(|| {
                Refusal::new(Reason::Signature, "a signature is 0x and hexadecimal digits, at most 4 KiB")
            })?,
        })
    }
}
