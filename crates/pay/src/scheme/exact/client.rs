use super::types::{Domain, SettleExact, TransferWithAuthorization, message};
use crate::wire::{PaymentPayload, PaymentRequirements};
use crate::{Reason, Refusal};
use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolValue;
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
    sign_from(signer.address(), signer, offer, (chain_now, nonce)).map(|(_, terms)| payment_of(&terms, offer))
}

/// The same of a purse's money (`contracts/src/Purse.sol`): it takes the signature of the treasury's operator, with
/// every field beside it, for this one message.
pub fn sign_for_purse(
    purse: Address,
    operator: &PrivateKeySigner,
    offer: &PaymentRequirements,
    chain_now: u64,
    nonce: B256,
) -> Result<PaymentPayload, Refusal> {
    let (message, terms) = sign_from(purse, operator, offer, (chain_now, nonce))?;
    let signature = Bytes::from(terms.signature);
    let fields = (message.to, message.value, message.validAfter, message.validBefore, message.nonce, signature);
    let terms = SettleExact { signature: fields.abi_encode_params(), is_signed_by_key: false, ..terms };
    Ok(payment_of(&terms, offer))
}

fn sign_from(
    payer: Address,
    signer: &PrivateKeySigner,
    offer: &PaymentRequirements,
    (chain_now, nonce): (u64, B256),
) -> Result<(TransferWithAuthorization, SettleExact), Refusal> {
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
    let message = message(payer, offer.pay_to(), offer.amount(), (0, valid_before), nonce);
    let signature = signer
        .sign_hash_sync(&domain.digest(&message))
        .map_err(|e| Refusal::new(Reason::Signature, format!("cannot sign: {e}")))?;
    let terms = SettleExact {
        payer: payer.into_array(),
        value: offer.amount(),
        valid_after: 0,
        valid_before,
        nonce: nonce.0,
        signature: signature.as_bytes().to_vec(),
        is_signed_by_key: true,
    };
    Ok((message, terms))
}

/// The payment that a signed authorisation was, for `offer`: to be handed on to another facilitator.
pub fn payment_of(terms: &SettleExact, offer: &PaymentRequirements) -> PaymentPayload {
    let authorization = json!({
        "from": checksummed(terms.payer.into()),
        "to": checksummed(offer.pay_to()),
        "value": terms.value.micro().to_string(),
        "validAfter": terms.valid_after.to_string(),
        "validBefore": terms.valid_before.to_string(),
        "nonce": format!("0x{}", hex::encode(terms.nonce)),
    });
    let payload = json!({
        "authorization": authorization,
        "signature": format!("0x{}", hex::encode(&terms.signature)),
    });
    PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None }
}

fn checksummed(address: Address) -> Value {
    address.to_checksum(None).into()
}
