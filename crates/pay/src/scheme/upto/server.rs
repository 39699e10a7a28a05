use super::UPTO;
use super::types::{self, Permit2Domain, Permit2Payment, Proxy};
use crate::scheme::channel::server::recover;
use crate::scheme::check_terms;
use crate::scheme::exact::{EXACT, Hash};
use crate::scheme::permit2;
use crate::scheme::signature;
use crate::wire::{self, PaymentPayload, PaymentRequirements, invalid, seconds};
use crate::{Reason, Refusal};
use alloy::primitives::Address;
use serde_json::Value;

/// A permission must outlive now by this much, or its settlement may come too late; the official facilitator asks for
/// the same 6 s.
pub const DEADLINE_MARGIN_SECS: u64 = 6;

/// Checks a Permit2 payment against an offer of `upto`, or of `exact` with `assetTransferMethod` `permit2`: one
/// recovery, no I/O. `now_for(payer, nonce)` gives the timestamp of the newest block, or `None` for a payment that was
/// taken before: a client that asks again for its answer may do so after the deadline.
///
/// Refusals carry the official packages' name of the first thing that is wrong, in this order: terms, shape, spender,
/// payee, facilitator, token, amount, times, signature.
pub fn verify(
    domain: Permit2Domain,
    payment: &PaymentPayload,
    offered: &PaymentRequirements,
    now_for: impl Fn(&[u8; 20], &Hash) -> Option<u64>,
) -> Result<Permit2Payment, Refusal> {
    match verify_any(domain, payment, offered, now_for)? {
        (found, Ok(())) => Ok(found),
        (_, Err(not_by_key)) => Err(not_by_key),
    }
}

/// [`verify`] for a caller that takes contracts as payers too: all but the signature was checked. Beside it: that the
/// payer's key signed, or why it did not; then the caller simulates the settlement before it believes anything.
pub fn verify_any(
    domain: Permit2Domain,
    payment: &PaymentPayload,
    offered: &PaymentRequirements,
    now_for: impl Fn(&[u8; 20], &Hash) -> Option<u64>,
) -> Result<(Permit2Payment, Result<(), Refusal>), Refusal> {
    check_terms(payment, offered)?;
    let mut found = read(payment, offered)?;
    if found.pay_to != offered.pay_to() {
        let message = format!("signed for {}, payTo is {}", Address::from(found.pay_to), offered.pay_to());
        return Err(Refusal::new(Reason::Permit2Recipient, message));
    }
    if let Proxy::Upto { facilitator } = found.proxy
        && offered.extra_text("facilitatorAddress").map(wire::address).transpose()? != Some(facilitator.into())
    {
        let message = format!("the witness names facilitator {}, not the offer's", Address::from(facilitator));
        return Err(Refusal::new(Reason::UptoFacilitator, message));
    }
    if found.token != offered.asset() {
        let message = format!("permitted token is {}, the asset is {}", Address::from(found.token), offered.asset());
        return Err(Refusal::new(Reason::Permit2Token, message));
    }
    if found.amount != offered.amount() {
        let message = format!("permitted {}, the offer is {}", found.amount, offered.amount());
        return Err(Refusal::new(Reason::Permit2Amount, message));
    }
    if let Some(chain_now) = now_for(&found.payer, &found.nonce) {
        check_times(&found, chain_now)?;
    }
    found.permit = permit_of(payment, &found)?;
    let by_key = signed_by_key(domain, &found);
    found.is_signed_by_key = by_key.is_ok();
    Ok((found, by_key))
}

fn signed_by_key(domain: Permit2Domain, found: &Permit2Payment) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(Reason::Permit2Signature, message));
    let Ok(signature) = <[u8; 65]>::try_from(found.signature.as_slice()) else {
        let bytes = found.signature.len();
        return refuse(format!("a key's signature is 0x and 130 digits (r, s, v), this one has {bytes} bytes"));
    };
    match recover(&signature, domain.digest(found)) {
        Ok(signer) if signer == found.payer => Ok(()),
        Ok(signer) => refuse(format!("the signature is {signer}'s, not {}'s", Address::from(found.payer))),
        Err(message) => refuse(message),
    }
}

fn check_times(found: &Permit2Payment, chain_now: u64) -> Result<(), Refusal> {
    if found.deadline < chain_now.saturating_add(DEADLINE_MARGIN_SECS) {
        let message = format!("the deadline is {}, chain time is {chain_now}", found.deadline);
        return Err(Refusal::new(Reason::Permit2Deadline, message));
    }
    if found.valid_after > chain_now {
        let message = format!("valid after {}, chain time is {chain_now}", found.valid_after);
        return Err(Refusal::new(Reason::Permit2NotYetValid, message));
    }
    Ok(())
}

fn read(payment: &PaymentPayload, offered: &PaymentRequirements) -> Result<Permit2Payment, Refusal> {
    let payload = &payment.payload;
    let fields = member(payload, "permit2Authorization")?;
    let (permitted, witness) = (member(fields, "permitted")?, member(fields, "witness")?);
    let address = |value, name| Ok::<_, Refusal>(wire::address(text(value, name)?)?.into_array());
    let proxy = match offered.scheme() {
        UPTO => Proxy::Upto { facilitator: address(witness, "facilitator")? },
        EXACT => Proxy::Exact,
        other => return Err(Refusal::new(Reason::InvalidScheme, format!("{other:?} is not paid by Permit2"))),
    };
    if address(fields, "spender")? != proxy.address() {
        let message = format!("the spender is not the {} proxy {}", offered.scheme(), proxy.address());
        return Err(Refusal::new(Reason::Permit2Spender, message));
    }
    Ok(types::Permit2Payment {
        proxy,
        payer: address(fields, "from")?,
        token: address(permitted, "token")?,
        pay_to: address(witness, "to")?,
        amount: wire::amount(text(permitted, "amount")?)?,
        nonce: permit2::nonce(text(fields, "nonce")?)?,
        valid_after: seconds(text(witness, "validAfter")?)?,
        deadline: seconds(text(fields, "deadline")?)?,
        signature: signature::parse(text(payload, "signature")?).ok_or_else(|| {
            let message = "a signature is 0x and hexadecimal digits, at most 4 KiB";
            Refusal::new(Reason::Permit2Signature, message)
        })?,
        is_signed_by_key: false,
        permit: None,
    })
}

fn permit_of(payment: &PaymentPayload, found: &Permit2Payment) -> Result<Option<permit2::Permit2612>, Refusal> {
    let info = payment.extensions.as_ref().and_then(|e| e.get("eip2612GasSponsoring")).and_then(|e| e.get("info"));
    // Clients that sign none echo the offer's own extension: without a signature it is nobody's.
    let Some(info) = info.filter(|info| info.get("signature").is_some()) else { return Ok(None) };
    let permit = permit2::read_2612(info, found.payer.into(), found.token.into())?;
    if permit.amount != found.amount {
        let message = format!("the permit is for {}, the payment is {}", permit.amount, found.amount);
        return Err(Refusal::new(Reason::Permit2Amount, message));
    }
    Ok(Some(permit))
}

fn member<'v>(value: &'v Value, name: &str) -> Result<&'v Value, Refusal> {
    value.get(name).filter(|v| v.is_object()).ok_or_else(|| invalid(format!("`{name}` is not an object")))
}

fn text<'v>(value: &'v Value, name: &str) -> Result<&'v str, Refusal> {
    value.get(name).and_then(Value::as_str).ok_or_else(|| invalid(format!("`{name}` is not a text")))
}
