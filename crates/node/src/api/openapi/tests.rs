use super::*;
use crate::export::ExportRequest;
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use expect_test::expect_file;
use pay::book::AbortWhy;
use pay::receipt::refund::RefundNote;
use pay::receipt::run::Run;
use pay::receipt::{PaidBy, Receipt};
use pay::wire::{PaymentRequired, PaymentRequirements, Resource};
use pay::{RequestId, Usdc};
use std::collections::BTreeSet;

/// `UPDATE_EXPECT=1 cargo test -p node openapi` writes it.
#[test]
fn the_committed_document_is_fresh() {
    let text = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
    expect_file!["../../../../../docs/reference/openapi.json"].assert_eq(&text);
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(name)) = fields.get("$ref") {
                found.insert(name.trim_start_matches("#/components/schemas/").to_owned());
            }
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_schema_that_is_named_is_there_and_every_one_is_used() {
    let document = document();
    let mut named = BTreeSet::new();
    references(&document, &mut named);
    let there: BTreeSet<String> = document["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(named, there);
}

/// The names of a JSON object's fields are those of the schema; its optional ones may be missing.
fn is(name: &str, value: &Value) {
    let schema = &document()["components"]["schemas"][name];
    let fields: BTreeSet<&String> = value.as_object().unwrap().keys().collect();
    let known: BTreeSet<&String> = schema["properties"].as_object().unwrap().keys().collect();
    let unknown: Vec<_> = fields.difference(&known).collect();
    assert!(unknown.is_empty(), "{name} has no {unknown:?}");
    for required in schema["required"].as_array().unwrap() {
        assert!(value.get(required.as_str().unwrap()).is_some(), "{name} lacks {required}");
    }
}

#[test]
fn what_is_signed_and_paid_has_the_fields_that_are_said() {
    let key = PrivateKeySigner::random();
    let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let receipt = Receipt {
        agent: Address::ZERO,
        chain_id: 1,
        epoch: 1,
        request: RequestId([1; 16]),
        payer: Address::ZERO,
        model: [1; 32],
        adapter: [0; 32],
        run: Run::of(r#"{"a":1}"#),
        prompt: [1; 32],
        output: [1; 32],
        prompt_tokens: 0,
        cached_tokens: 0,
        completion_tokens: 0,
        embedding_tokens: 7,
        amount: Usdc(1),
        paid_by: PaidBy::Voucher { channel: [1; 32], charged: Usdc(1) },
        issued_at: 1,
    };
    for paid_by in [receipt.paid_by, PaidBy::Authorization { nonce: [1; 32], transaction: [1; 32] }] {
        is("Receipt", &json(Receipt { paid_by, ..receipt.clone() }.sign(&key).unwrap().to_json()));
    }
    let note = RefundNote {
        agent: receipt.agent,
        chain_id: 1,
        epoch: 1,
        request: receipt.request,
        payer: receipt.payer,
        nonce: [1; 32],
        amount: Usdc(1),
        reason: AbortWhy::Engine,
        issued_at: 1,
    };
    is("RefundNote", &json(note.sign(&key).unwrap().to_json()));
    let export = ExportRequest::signed(receipt.agent, 1, 1, &key).unwrap();
    is("ExportRequest", &serde_json::to_value(export).unwrap());
    let offer = PaymentRequirements::new(("exact", "eip155:1"), Usdc(1), (receipt.agent, receipt.agent), 60, json!({}));
    let resource = Resource { url: "u".into(), description: "d".into(), mime_type: JSON.into() };
    let required = PaymentRequired::new("e", &resource, vec![offer]).to_json();
    is("PaymentRequired", &required);
    let offers = &document()["components"]["schemas"]["PaymentRequired"]["properties"]["accepts"]["items"];
    let fields: Vec<&String> = offers["properties"].as_object().unwrap().keys().collect();
    let real: Vec<&String> = required["accepts"][0].as_object().unwrap().keys().collect();
    assert_eq!(fields, real);
}
