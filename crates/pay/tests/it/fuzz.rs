//! Every parser of what strangers send, on bytes that were once right: no panic, no quadratic time, and what is taken
//! is taken again after it was printed. Deterministic: a failure names its seed.

#[path = "../../../../tests/fuzz.rs"]
mod changes;

use alloy::primitives::Address;
use changes::Chance;
use pay::scheme::channel::{ChannelDomain, server as channel};
use pay::scheme::exact::{Domain, server as exact};
use pay::scheme::upto::{Permit2Domain, server as upto};
use pay::wire::{
    HEADER_BYTES_MAX, PaymentPayload, PaymentRequired, PaymentRequirements, SettlementResponse, amount, decode_header,
    encode_header, parse_json,
};
use serde_json::Value;

/// Enough to find what a day of it found; ten million with VIVARIUM_DEEP=1.
fn runs() -> u64 {
    changes::runs(40_000, 10_000_000)
}

/// Messages of the recorded exchanges: payments, offers and settlements of all three schemes.
fn seeds() -> Vec<Value> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/");
    let mut seeds = Vec::new();
    for name in ["batch-settlement.json", "upto.json", "exact-paid.json", "exact-no-funds.json"] {
        let json: Value = serde_json::from_slice(&std::fs::read(format!("{golden}{name}")).unwrap()).unwrap();
        collect(&json, &mut seeds);
    }
    assert!(seeds.len() > 15, "{}", seeds.len());
    seeds
}

fn collect(json: &Value, seeds: &mut Vec<Value>) {
    match json {
        Value::Object(fields) => {
            let is_message = fields.contains_key("x402Version") || fields.contains_key("success");
            if is_message {
                seeds.push(json.clone());
            }
            fields.values().for_each(|value| collect(value, seeds));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, seeds)),
        _ => {}
    }
}

const TOKENS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "1e3",
    "340282366920938463463374607431768211456",
    "null",
    "true",
    "\"\"",
    "{}",
    "[]",
    "0x",
    "0X00",
    "\\u0000",
    "\"payload\":",
    "\"accepted\":",
    "\"amount\":\"1\",",
    "}",
    "]",
    ",",
    "\u{feff}",
    "é",
    "NaN",
    "\"type\":\"refund\"",
    "115792089237316195423570985008687907853269984665640564039457584007913129639936",
];

fn mutate(bytes: &mut Vec<u8>, chance: &mut Chance) {
    changes::mutate(bytes, chance, &TOKENS, 40);
}

#[test]
fn strangers_bytes_break_no_parser() {
    let seeds = seeds();
    let channels = ChannelDomain::new(84532);
    let token = Domain::new("USD Coin", "2", 84532, Address::repeat_byte(1));
    let (mut read, mut verified) = (0u64, 0u64);
    for seed in 0..runs() {
        let mut chance = Chance(seed);
        let mut bytes = seeds[chance.below(seeds.len())].to_string().into_bytes();
        // One in eight is left as it was: the parsers must take that.
        if seed % 8 != 0 {
            mutate(&mut bytes, &mut chance);
        }
        let Ok(json) = parse_json(&bytes) else { continue };
        if let Ok(payment) = PaymentPayload::from_json(json.clone()) {
            read += 1;
            assert_eq!(PaymentPayload::from_header(&payment.to_header()), Ok(payment.clone()), "seed {seed}");
            if let Ok(offer) = PaymentRequirements::from_json(payment.accepted.clone()) {
                assert_eq!(offer.json(), &payment.accepted, "seed {seed}: echoed untouched");
                let now = 1_795_453_700;
                verified += u64::from(channel::verify(&channels, &token, &payment, &offer, now).is_ok());
                let domain = Permit2Domain { chain_id: 84532 };
                verified += u64::from(upto::verify(domain, &payment, &offer, |_, _| Some(now)).is_ok());
                verified += u64::from(exact::verify(&payment, &offer, now).is_ok());
            }
        }
        if let Ok(offer) = PaymentRequired::from_json(json.clone()) {
            assert_eq!(PaymentRequired::from_header(&offer.to_header()), Ok(offer), "seed {seed}");
        }
        if let Ok(settlement) = SettlementResponse::from_json(json) {
            assert_eq!(SettlementResponse::from_header(&settlement.to_header()), Ok(settlement), "seed {seed}");
        }
    }
    assert!(read > runs() / 20 && verified > runs() / 200, "{read} payments read, {verified} verified");
}

#[test]
fn strangers_headers_break_no_parser() {
    let seeds: Vec<String> = seeds().iter().map(encode_header).collect();
    for seed in 0..runs() {
        let mut chance = Chance(seed);
        let mut bytes = seeds[chance.below(seeds.len())].clone().into_bytes();
        mutate(&mut bytes, &mut chance);
        let Ok(text) = String::from_utf8(bytes) else { continue };
        if let Ok(json) = decode_header(&text) {
            // One header, one meaning: standard base64 has one form of the same bytes.
            assert!(text.len() <= HEADER_BYTES_MAX && parse_json(json.to_string().as_bytes()).is_ok(), "seed {seed}");
        }
    }
    assert!(decode_header(&"A".repeat(HEADER_BYTES_MAX + 4)).is_err());
}

#[test]
fn strangers_amounts_have_one_form() {
    for seed in 0..runs() {
        let mut chance = Chance(seed);
        let value = u128::from(chance.draw()) << chance.below(65) | u128::from(chance.draw());
        let mut text = value.to_string().into_bytes();
        assert_eq!(amount(std::str::from_utf8(&text).unwrap()).unwrap().micro(), value);
        mutate(&mut text, &mut chance);
        let Ok(text) = String::from_utf8(text) else { continue };
        if let Ok(read) = amount(&text) {
            assert_eq!(read.micro().to_string(), text, "seed {seed}");
        }
    }
    for wrong in
        ["", "00", "01", "+1", "-0", "1.0", "1e3", " 1", "1 ", "0x1", "１", "340282366920938463463374607431768211456"]
    {
        assert!(amount(wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(amount("340282366920938463463374607431768211455").unwrap().micro(), u128::MAX);
}
