use super::facilitator::{Expected, Log, Outcome, classify, classify_unused};
use super::server::{VALID_BEFORE_MARGIN_SECS, verify};
use super::*;
use crate::wire::{PaymentPayload, PaymentRequirements};
use crate::{Reason, Usdc};
use alloy::primitives::{Address, B256, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use expect_test::expect;
use proptest::prelude::*;
use serde_json::{Value, json};

const NOW: u64 = 1_795_453_140;

fn payer() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&keccak256(b"payer")).unwrap()
}

fn offer(amount: u128) -> PaymentRequirements {
    let extra = json!({"name": "USD Coin", "version": "2"});
    let places = (Address::repeat_byte(0xa5), Address::repeat_byte(0x77));
    PaymentRequirements::new((EXACT, "eip155:31337"), Usdc(amount), places, 60, extra)
}

fn signed() -> PaymentPayload {
    client::sign(&payer(), &offer(1234), NOW, B256::repeat_byte(9)).unwrap()
}

#[test]
fn what_the_client_signs_the_server_takes() {
    let verified = verify(&signed(), &offer(1234), NOW).unwrap();
    assert_eq!(verified.payer, payer().address());
    assert_eq!(verified.nonce, B256::repeat_byte(9));
    assert_eq!((verified.value, verified.valid_after, verified.valid_before), (Usdc(1234), 0, NOW + 60));
    let intent = verified.settlement();
    assert_eq!(borsh::from_slice::<SettleExact>(&borsh::to_vec(&intent).unwrap()).unwrap(), intent);
}

/// Type hash of EIP-3009 and a domain separator computed with viem 2.57.
#[test]
fn hashes_are_those_of_the_standard() {
    use alloy::sol_types::SolStruct;
    let message = types::message(Address::ZERO, Address::ZERO, Usdc(0), (0, 0), B256::ZERO);
    expect!["0x7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267"]
        .assert_eq(&message.eip712_type_hash().to_string());
}

#[test]
fn refusals_carry_the_specifications_names() {
    let check = |path: &str, value: Value, reason: Reason| {
        let mut json = signed().to_json();
        *json.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
        let payment = PaymentPayload::from_json(json).unwrap();
        assert_eq!(verify(&payment, &offer(1234), NOW).unwrap_err().reason, reason, "{path}");
    };
    let a = "/payload/authorization";
    let other = json!("0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc");
    check("/accepted/scheme", json!("upto"), Reason::InvalidScheme);
    check("/accepted/network", json!("eip155:1"), Reason::InvalidNetwork);
    check("/accepted/amount", json!("1233"), Reason::InvalidPaymentRequirements);
    check("/accepted/payTo", other.clone(), Reason::InvalidPaymentRequirements);
    check("/accepted/extra/version", json!("1"), Reason::InvalidPaymentRequirements);
    check(&format!("{a}/to"), other.clone(), Reason::Recipient);
    check(&format!("{a}/value"), json!("1233"), Reason::ValueMismatch);
    check(&format!("{a}/value"), json!("1235"), Reason::ValueMismatch);
    check(&format!("{a}/value"), json!(1234), Reason::InvalidPayload);
    check(&format!("{a}/value"), json!("01234"), Reason::InvalidPayload);
    check(&format!("{a}/validAfter"), json!((NOW + 1).to_string()), Reason::ValidAfter);
    check(&format!("{a}/validBefore"), json!((NOW + VALID_BEFORE_MARGIN_SECS - 1).to_string()), Reason::ValidBefore);
    check(&format!("{a}/validBefore"), json!("18446744073709551616"), Reason::InvalidPayload);
    // Signed fields changed: another key's address comes out.
    check(&format!("{a}/validBefore"), json!((NOW + 61).to_string()), Reason::Signature);
    check(&format!("{a}/from"), other, Reason::Signature);
    check(&format!("{a}/nonce"), json!(format!("0x{}", "08".repeat(32))), Reason::Signature);
    check(&format!("{a}/nonce"), json!("0x08"), Reason::InvalidPayload);
    check("/payload/authorization", json!(null), Reason::InvalidPayload);
    check("/payload/signature", json!("0x"), Reason::Signature);
    check("/payload/signature", json!(null), Reason::Signature);
    // An ERC-6492 wrapper is longer than 65 bytes.
    check("/payload/signature", json!(format!("0x{}", "ab".repeat(200))), Reason::Signature);
}

#[test]
fn the_offer_binds_chain_and_token() {
    let extra = json!({"name": "USD Coin", "version": "2"});
    let places = (Address::repeat_byte(0xa5), Address::repeat_byte(0x77));
    // Same terms on the face of it, signed for another chain: a replay from elsewhere.
    let elsewhere = PaymentRequirements::new((EXACT, "eip155:1"), Usdc(1234), places, 60, extra);
    let mut payment = client::sign(&payer(), &elsewhere, NOW, B256::ZERO).unwrap();
    payment.accepted = offer(1234).json().clone();
    assert_eq!(verify(&payment, &offer(1234), NOW).unwrap_err().reason, Reason::Signature);
}

/// Each signature has a twin with high s. USDC refuses it, so it must not verify here.
#[test]
fn only_low_s_and_v_27_or_28() {
    let verified = verify(&signed(), &offer(1234), NOW).unwrap();
    let order = U256::from_str_radix("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16).unwrap();
    let mut twin: [u8; 65] = verified.signature.try_into().unwrap();
    let mut bare = twin;
    let s = order - U256::from_be_slice(&twin[32..64]);
    twin[32..64].copy_from_slice(&s.to_be_bytes::<32>());
    twin[64] = 55 - twin[64];
    bare[64] -= 27;
    for signature in [twin, bare, [0; 65], [0xff; 65]] {
        let mut payment = signed();
        payment.payload["signature"] = json!(format!("0x{}", hex::encode(signature)));
        assert_eq!(verify(&payment, &offer(1234), NOW).unwrap_err().reason, Reason::Signature);
    }
}

/// A payer that is not a key: everything else is checked, and nobody takes it for proved.
#[test]
fn signatures_that_are_no_keys_are_handed_on_as_unproven() {
    let mut payment = signed();
    payment.payload["signature"] = json!(format!("0x{}", "01".repeat(66)));
    assert_eq!(verify(&payment, &offer(1234), NOW).unwrap_err().reason, Reason::Signature);
    let domain = Domain::of(&offer(1234)).unwrap();
    let (found, by_key) = server::verify_any_in(&domain, &payment, &offer(1234), |_, _| Some(NOW)).unwrap();
    assert_eq!((found.signature.len(), found.is_signed_by_key), (66, false));
    assert_eq!(by_key.unwrap_err().reason, Reason::Signature);
    payment.payload["authorization"]["value"] = json!("1233");
    let refused = server::verify_any_in(&domain, &payment, &offer(1234), |_, _| Some(NOW)).unwrap_err();
    assert_eq!(refused.reason, Reason::ValueMismatch);
}

#[test]
fn the_client_signs_only_what_it_understands() {
    let permit2 = json!({"name": "USD Coin", "version": "2", "assetTransferMethod": "permit2"});
    let places = (Address::ZERO, Address::ZERO);
    for (kind, extra, reason) in [
        (("upto", "eip155:1"), json!({}), Reason::InvalidScheme),
        ((EXACT, "eip155:1"), permit2, Reason::InvalidScheme),
        ((EXACT, "solana:x"), json!({"name": "n", "version": "1"}), Reason::InvalidNetwork),
        ((EXACT, "eip155:1"), json!({"name": "n"}), Reason::InvalidPaymentRequirements),
    ] {
        let offer = PaymentRequirements::new(kind, Usdc(1), places, 60, extra);
        assert_eq!(client::sign(&payer(), &offer, NOW, B256::ZERO).unwrap_err().reason, reason, "{kind:?}");
    }
}

const TOKEN: [u8; 20] = [1; 20];
const PAYER: [u8; 20] = [2; 20];
const TREASURY: [u8; 20] = [3; 20];

fn used(nonce: u8) -> Log {
    Log::Used { token: TOKEN, authorizer: PAYER, nonce: [nonce; 32] }
}

fn transfer(to: [u8; 20], value: u128) -> Log {
    Log::Transfer { token: TOKEN, from: PAYER, to, value: Usdc(value) }
}

#[test]
fn a_payment_is_paid_by_its_own_transfer_only() {
    let expected = Expected { token: TOKEN, payer: PAYER, pay_to: TREASURY, nonce: [7; 32], value: Usdc(5) };
    let fake = Log::Transfer { token: [9; 20], from: PAYER, to: TREASURY, value: Usdc(5) };
    let canceled = Log::Canceled { token: TOKEN, authorizer: PAYER, nonce: [7; 32] };
    for (logs, outcome) in [
        (vec![], Outcome::Unknown),
        (vec![used(7), transfer(TREASURY, 5)], Outcome::Paid),
        (vec![fake, used(7), fake, transfer(TREASURY, 5)], Outcome::Paid),
        (vec![transfer(TREASURY, 5)], Outcome::Unknown),
        (vec![used(8), transfer(TREASURY, 5)], Outcome::Unknown),
        (vec![used(7), transfer(TREASURY, 4)], Outcome::Unpaid),
        (vec![used(7), transfer(PAYER, 5)], Outcome::Unpaid),
        (vec![used(7), fake], Outcome::Unpaid),
        (vec![canceled], Outcome::Unpaid),
        // One transfer, two authorisations: it belongs to the second.
        (vec![used(7), used(8), transfer(TREASURY, 5)], Outcome::Unpaid),
        (vec![used(7), transfer([4; 20], 5), used(8), transfer(TREASURY, 5)], Outcome::Unpaid),
        (vec![used(8), transfer([4; 20], 5), used(7), transfer(TREASURY, 5)], Outcome::Paid),
    ] {
        assert_eq!(classify(&expected, &logs), outcome, "{logs:?}");
    }
}

#[test]
fn an_unused_authorisation_is_unpaid_only_when_it_expired() {
    assert_eq!(classify_unused(100, 99, false), Outcome::Unknown);
    assert_eq!(classify_unused(100, 100, false), Outcome::Unpaid);
    assert_eq!(classify_unused(100, 200, true), Outcome::Unknown);
}

proptest! {
    /// No single changed byte of the payload verifies as the same or another payment.
    #[test]
    fn any_change_is_refused(at in 0usize..600, byte in 0x20u8..0x7f) {
        let mut text = signed().payload.to_string().into_bytes();
        let at = at % text.len();
        prop_assume!(!text[at].eq_ignore_ascii_case(&byte));
        text[at] = byte;
        if let Ok(Value::Object(payload)) = crate::wire::parse_json(&text) {
            let payment = PaymentPayload { payload: Value::Object(payload), ..signed() };
            prop_assert!(verify(&payment, &offer(1234), NOW).is_err());
        }
    }

    #[test]
    fn every_amount_and_time_verifies(amount in 1u128.., now in 0u64..1 << 40, nonce in any::<[u8; 32]>()) {
        let payment = client::sign(&payer(), &offer(amount), now, B256::from(nonce)).unwrap();
        let payment = PaymentPayload::from_header(&payment.to_header()).unwrap();
        prop_assert_eq!(verify(&payment, &offer(amount), now).unwrap().value, Usdc(amount));
        prop_assert!(verify(&payment, &offer(amount ^ 1), now).is_err());
    }
}
