use super::UPTO;
use super::types::{Permit2Domain, Permit2Payment, Proxy};
use crate::scheme::exact::Hash;
use crate::wire::{self, PaymentPayload, PaymentRequirements};
use crate::{Reason, Refusal};
use alloy::primitives::{Address, U256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;

/// Signs a Permit2 payment of exactly (`exact`) or at most (`upto`) the offer's amount.
///
/// `nonce` is the caller's chance: 256 bits never used before by this payer. The caller has checked payee, asset,
/// network and limit; this signs what it is given.
///
/// # Errors
/// The offer is `upto` and names no facilitator, or is on no EVM network.
pub fn sign(
    signer: &PrivateKeySigner,
    offer: &PaymentRequirements,
    chain_now: u64,
    nonce: Hash,
) -> Result<PaymentPayload, Refusal> {
    let chain_id = wire::chain_id(offer.network())
        .ok_or_else(|| Refusal::new(Reason::InvalidNetwork, format!("{:?} is not eip155", offer.network())))?;
    let proxy = match offer.scheme() {
        UPTO => {
            let facilitator = offer.extra_text("facilitatorAddress").ok_or_else(|| {
                Refusal::new(Reason::InvalidPaymentRequirements, "the offer's `extra.facilitatorAddress` is missing")
            })?;
            Proxy::Upto { facilitator: wire::address(facilitator)?.into_array() }
        }
        _ => Proxy::Exact,
    };
    let mut payment = Permit2Payment {
        proxy,
        payer: signer.address().into_array(),
        token: offer.asset().into_array(),
        pay_to: offer.pay_to().into_array(),
        amount: offer.amount(),
        nonce,
        valid_after: 0,
        deadline: chain_now.saturating_add(offer.max_timeout_secs()),
        signature: Vec::new(),
        is_signed_by_key: true,
        permit: None,
    };
    let digest = Permit2Domain { chain_id }.digest(&payment);
    payment.signature = signer
        .sign_hash_sync(&digest)
        .map_err(|e| Refusal::new(Reason::Permit2Signature, format!("cannot sign: {e}")))?
        .as_bytes()
        .to_vec();
    let text = |bytes: [u8; 20]| Address::from(bytes).to_checksum(None);
    let mut witness = json!({ "to": text(payment.pay_to), "validAfter": "0" });
    if let Proxy::Upto { facilitator } = proxy {
        witness["facilitator"] = text(facilitator).into();
    }
    let payload = json!({
        "signature": format!("0x{}", hex::encode(&payment.signature)),
        "permit2Authorization": {
            "from": text(payment.payer),
            "permitted": { "token": text(payment.token), "amount": payment.amount.micro().to_string() },
            "spender": proxy.address().to_checksum(None),
            "nonce": U256::from_be_bytes(nonce).to_string(),
            "deadline": payment.deadline.to_string(),
            "witness": witness,
        },
    });
    Ok(PaymentPayload { payload, resource: None, accepted: offer.json().clone(), extensions: None })
}
