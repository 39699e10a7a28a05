use super::types::{Domain, message};
use crate::wire::{PaymentPayload, PaymentRequirements};
use crate::{Reason, Refusal};
use alloy::primitives::{Address, B256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};

/// Signs a payment of exactly `offer`'s amount, valid from always until `chain_now` + the offer's timeout.
///
/// `nonce` is the caller's chance: 32 random bytes, never used before by this payer. The caller has checked payee,
/// asset, network and limit; this signs what it is given. Fails if the offer is not `exact` on an EVM network.
pub fn sign(
    signer: &PrivateKeySigner,
    offer: &PaymentRequirements,
    chain_now: u64,
    nonce: B256,
) -> Result<PaymentPayload, Refusal> {
    if offer.scheme() != super::EXACT {
        let message = format!("scheme {:?} is not signed here, only `exact`", offer.scheme());
        return Err(Refusal::new(Reason::InvalidScheme, message));
    }
    if let Some(method) = offer.extra_text("assetTransferMethod").filter(|m| *m != "eip3009") {
        let message = format!("the offer wants to be paid by {method:?}, only eip3009 is signed here");
        return Err(Refusal::new(Reason::InvalidScheme, message));
    }
    let domain = Domain::of(offer)?;
    let valid_before = chain_now.saturating_add(offer.max_timeout_secs());
    let message = message(signer.address(), offer.pay_to(), offer.amount(), (0, valid_before), nonce);
    let signature = signer
        .sign_hash_sync(&domain.digest(&message))
        .map_err(|e| Refusal::new(Reason::Signature, format!("cannot sign: {e}")))?;
    let authorization = json!({
        "from": checksummed(signer.address()),
        "to": checksummed(offer.pay_to()),
        "value": offer.amount().micro().to_string(),
        "validAfter": "0",
        "validBefore": valid_before.to_string(),
        "nonce": format!("0x{}", hex::encode(nonce)),
    });
    let payload = json!({
        "authorization": authorization,
        "signature": format!("0x{}", hex::encode(signature.as_bytes())),
    });
    Ok(PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None })
}

fn checksummed(address: Address) -> Value {
    address.to_checksum(None).into()
}
