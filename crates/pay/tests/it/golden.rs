//! Exchanges between the official client and the official server, recorded on anvil: we read, verify, sign and
//! print them to the byte.

use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use pay::scheme::exact::{client, server};
use pay::wire::{PaymentPayload, PaymentRequired, SettlementResponse, decode_header, encode_header};
use pay::{Reason, Usdc};
use serde_json::Value;
use std::collections::BTreeMap;

struct Exchange {
    headers: Value,
    decoded: Value,
}

impl Exchange {
    fn read(name: &str) -> Self {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        Self { headers: json["headers"].take(), decoded: json["decoded"].take() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].as_str().unwrap()
    }
}

/// anvil's public default keys 1 and 3.
const PAYERS: [(&str, &str); 2] = [
    ("exact-paid.json", "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"),
    ("exact-no-funds.json", "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"),
];

#[test]
fn every_header_is_read_and_printed_to_the_byte() {
    for (name, _) in PAYERS {
        let exchange = Exchange::read(name);
        for (header, text) in exchange.headers.as_object().unwrap() {
            let text = text.as_str().unwrap();
            let json = decode_header(text).unwrap();
            assert_eq!(json, exchange.decoded[header], "{name} {header}");
            assert_eq!(encode_header(&json), text, "{name} {header}");
            let printed = match header.as_str() {
                "payment-signature" => PaymentPayload::from_header(text).unwrap().to_header(),
                "payment-response" => SettlementResponse::from_header(text).unwrap().to_header(),
                _ => PaymentRequired::from_header(text).unwrap().to_header(),
            };
            assert_eq!(printed, text, "{name} {header}");
        }
    }
}

/// The recordings of these two keep the messages, not the headers, and the official packages have no one order for an
/// envelope's members (a refund's differs from a payment's). So: nothing that a message says is lost, and each member is
/// printed as it came, to the byte.
#[test]
fn messages_of_channels_and_upto_are_read_and_printed_as_they_came() {
    for name in ["batch-settlement.json", "upto.json"] {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        let steps: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut found = 0;
        for step in &steps {
            let recorded = step.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("PAYMENT-"));
            for (header, json) in recorded {
                let text = encode_header(json);
                let printed = match header.as_str() {
                    "PAYMENT-SIGNATURE" => PaymentPayload::from_header(&text).unwrap().to_header(),
                    "PAYMENT-RESPONSE" => SettlementResponse::from_header(&text).unwrap().to_header(),
                    _ => PaymentRequired::from_header(&text).unwrap().to_header(),
                };
                let members = |json: &Value| {
                    let members = json.as_object().unwrap().iter();
                    // A voucher's answer has an empty amount: nothing was moved.
                    let said = members.filter(|(name, value)| *name != "amount" || *value != "");
                    said.map(|(name, value)| (name.clone(), value.to_string())).collect::<BTreeMap<String, String>>()
                };
                assert_eq!(members(&decode_header(&printed).unwrap()), members(json), "{name} {header}");
                found += 1;
            }
        }
        assert!(found >= 9, "{name}: {found}");
    }
}

#[test]
fn the_official_signature_verifies_and_ours_is_the_same_one() {
    for (name, key) in PAYERS {
        let exchange = Exchange::read(name);
        let offer = PaymentRequired::from_header(exchange.header("payment-required")).unwrap();
        let [chosen] = &offer.accepts[..] else { panic!("one offer") };
        let payment = PaymentPayload::from_header(exchange.header("payment-signature")).unwrap();
        let authorization = &payment.payload["authorization"];
        let valid_before: u64 = authorization["validBefore"].as_str().unwrap().parse().unwrap();
        let now = valid_before - chosen.max_timeout_secs();

        let verified = server::verify(&payment, chosen, now).unwrap();
        assert_eq!((verified.value, verified.valid_before), (Usdc(1234), valid_before));
        let late = server::verify(&payment, chosen, valid_before).unwrap_err();
        assert_eq!(late.reason, Reason::ValidBefore);

        // Both sides sign deterministically (RFC 6979): the same key, offer, time and nonce give the same bytes.
        let signer: PrivateKeySigner = key.parse().unwrap();
        assert_eq!(verified.payer, signer.address());
        let nonce: B256 = authorization["nonce"].as_str().unwrap().parse().unwrap();
        let mut ours = client::sign(&signer, chosen, now, nonce).unwrap();
        ours.resource = Some(offer.resource.clone());
        assert_eq!(ours.to_header(), exchange.header("payment-signature"), "{name}");
    }
}

#[test]
fn a_settlement_names_payer_and_transaction() {
    let exchange = Exchange::read("exact-paid.json");
    let settlement = SettlementResponse::from_header(exchange.header("payment-response")).unwrap();
    assert!(settlement.success);
    assert_eq!(settlement.network, "eip155:31337");
    assert!(settlement.transaction.parse::<B256>().is_ok());
    assert!(settlement.payer.unwrap().parse::<Address>().is_ok());
    let refused = Exchange::read("exact-no-funds.json");
    let offer = PaymentRequired::from_header(refused.header("refused-payment-required")).unwrap();
    assert_eq!(offer.error, "invalid_exact_evm_transaction_simulation_failed");
}
