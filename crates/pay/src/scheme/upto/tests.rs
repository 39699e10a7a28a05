//! The official client's own `upto` messages, verified; and what can be wrong with them.

use super::server::verify;
use super::*;
use crate::Reason;
use crate::wire::{PaymentPayload, PaymentRequirements, parse_json};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};

/// Requests of a recorded exchange of the official client with the official server on chain 84532.
const EXCHANGE: &[u8] = include_bytes!("../../../tests/golden/upto.json");
const DOMAIN: Permit2Domain = Permit2Domain { chain_id: 84532 };
/// Before the recorded deadline.
const NOW: u64 = 1_795_454_000;

fn payments() -> Vec<(PaymentPayload, PaymentRequirements)> {
    let Value::Array(exchange) = parse_json(EXCHANGE).unwrap() else { panic!("a list") };
    let sent = exchange.iter().filter_map(|step| step.get("PAYMENT-SIGNATURE"));
    sent.map(|sent| {
        let payment = PaymentPayload::from_json(sent.clone()).unwrap();
        (payment, PaymentRequirements::from_json(sent["accepted"].clone()).unwrap())
    })
    .collect()
}

#[test]
fn the_official_clients_messages_hold_and_ours_are_the_same() {
    // anvil's second development key made the exchange.
    let signer: PrivateKeySigner =
        "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d".parse().unwrap();
    let payments = payments();
    assert_eq!(payments.len(), 3);
    for (payment, offer) in payments {
        let verified = verify(DOMAIN, &payment, &offer, |_, _| Some(NOW)).unwrap();
        assert_eq!((verified.payer, verified.amount), (signer.address().into_array(), offer.amount()));
        let signed_at = verified.deadline - offer.max_timeout_secs();
        let ours = client::sign(&signer, &offer, signed_at, verified.nonce).unwrap();
        assert_eq!(ours.payload, payment.payload);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let (payment, offer) = payments().remove(0);
    let other = json!("0x00000000000000000000000000000000000000ff");
    for (path, value, expected) in [
        ("/permit2Authorization/spender", other.clone(), Reason::Permit2Spender),
        ("/permit2Authorization/witness/to", other.clone(), Reason::Permit2Recipient),
        ("/permit2Authorization/witness/facilitator", other.clone(), Reason::UptoFacilitator),
        ("/permit2Authorization/permitted/token", other.clone(), Reason::Permit2Token),
        ("/permit2Authorization/permitted/amount", json!("999"), Reason::Permit2Amount),
        ("/permit2Authorization/deadline", json!((NOW + 5).to_string()), Reason::Permit2Deadline),
        ("/permit2Authorization/witness/validAfter", json!((NOW + 1).to_string()), Reason::Permit2NotYetValid),
        ("/permit2Authorization/from", other, Reason::Permit2Signature),
        ("/permit2Authorization/nonce", json!("12"), Reason::Permit2Signature),
        ("/permit2Authorization/nonce", json!("0x12"), Reason::InvalidPayload),
        ("/signature", json!("0x12"), Reason::Permit2Signature),
    ] {
        let mut wrong = payment.clone();
        *wrong.payload.pointer_mut(path).unwrap() = value.clone();
        assert_eq!(verify(DOMAIN, &wrong, &offer, |_, _| Some(NOW)).unwrap_err().reason, expected, "{path} {value}");
    }
}

#[test]
fn a_settlement_is_recognised_by_its_bytes_and_a_nonce_by_its_bit() {
    use super::facilitator::{nonce_is_spent, settle_call, settles};
    use crate::Usdc;
    use crate::scheme::permit2::Permit2612;
    use alloy::primitives::U256;
    let (payment, offer) = payments().remove(0);
    let upto = verify(DOMAIN, &payment, &offer, |_, _| Some(NOW)).unwrap();
    let exact = Permit2Payment { proxy: Proxy::Exact, ..upto.clone() };
    for payment in [upto, exact] {
        let other = Permit2Payment { nonce: [1; 32], ..payment.clone() };
        let signed = Permit2612 { amount: payment.amount, deadline: 1, signature: [27; 65] };
        for way in [payment.clone(), Permit2Payment { permit: Some(signed), ..payment.clone() }] {
            let data = settle_call(&way, Usdc(1));
            assert!(settles(&payment.payer, &payment.nonce, &data) && !settles(&other.payer, &other.nonce, &data));
            for cut in [&data[..data.len() - 33], b""] {
                assert!(!settles(&payment.payer, &payment.nonce, cut));
            }
        }
        let bit = usize::from(payment.nonce[31]);
        let word = |bitmap: U256| bitmap.to_be_bytes::<32>();
        assert_eq!(nonce_is_spent(&payment, &word(U256::ONE << bit)), Some(true));
        assert_eq!(nonce_is_spent(&payment, &word(!(U256::ONE << bit))), Some(false));
        assert_eq!(nonce_is_spent(&payment, b"x"), None);
    }
}
