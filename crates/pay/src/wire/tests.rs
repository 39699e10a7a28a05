use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

fn check(header: &str, expect: Expect) {
    let said = match PaymentPayload::from_header(header) {
        Ok(payment) => format!("ok {}", payment.payload),
        Err(refusal) => refusal.to_string(),
    };
    expect.assert_eq(&said);
}

fn header(json: &str) -> String {
    STANDARD.encode(json)
}

#[test]
fn a_payment_is_read_and_printed_as_it_came() {
    let json =
        r#"{"x402Version":2,"payload":{"a":1},"resource":{"url":"u"},"accepted":{"z":1,"a":"0xAb"},"extensions":{}}"#;
    let payment = PaymentPayload::from_header(&header(json)).unwrap();
    assert_eq!(payment.to_json().to_string(), json);
    assert_eq!(payment.to_header(), header(json));
}

#[test]
fn strangers_headers_are_refused_by_name() {
    check(&header(r#"{"x402Version":2,"payload":{},"accepted":{}}"#), expect!["ok {}"]);
    check("", expect!["invalid_payload: not strict JSON: EOF while parsing a value at line 1 column 0"]);
    check("!", expect!["invalid_payload: not standard base64 with padding: Invalid symbol 33, offset 0."]);
    let padded = header(r#"{"x402Version":2,"payload":{},"accepted":{}  }"#);
    assert!(PaymentPayload::from_header(&padded).is_ok());
    let bare = padded.trim_end_matches('=');
    assert_ne!(bare, padded, "the example has padding to lose");
    assert_eq!(PaymentPayload::from_header(bare).unwrap_err().reason, Reason::InvalidPayload);
    // URL-safe alphabet: `>>>` is `Pj4+` here and `Pj4-` there.
    check("Pj4-", expect!["invalid_payload: not standard base64 with padding: Invalid symbol 45, offset 3."]);
    check(&header("[]"), expect!["invalid_payload: the payment is not a JSON object"]);
    check(&header("{}"), expect!["invalid_x402_version: x402Version is missing; 2 is spoken here"]);
    check(
        &header(r#"{"x402Version":1,"scheme":"exact","network":"base","payload":{}}"#),
        expect![
            "invalid_x402_version: x402 version 1 is not spoken here: send version 2 in PAYMENT-SIGNATURE (packages @x402/* 2.x)"
        ],
    );
    check(&header(r#"{"x402Version":3}"#), expect!["invalid_x402_version: x402Version is 3; 2 is spoken here"]);
    check(
        &header(r#"{"x402Version":"2"}"#),
        expect![[r#"invalid_x402_version: x402Version is "2"; 2 is spoken here"#]],
    );
    check(&header(r#"{"x402Version":2.0}"#), expect!["invalid_x402_version: x402Version is 2.0; 2 is spoken here"]);
    check(&header(r#"{"x402Version":2,"payload":{}}"#), expect!["invalid_payload: `accepted` is missing"]);
    check(
        &header(r#"{"x402Version":2,"payload":[],"accepted":{}}"#),
        expect!["invalid_payload: `payload` is not an object"],
    );
    check(
        &header(r#"{"x402Version":2,"x402Version":2,"payload":{},"accepted":{}}"#),
        expect![[r#"invalid_payload: not strict JSON: key "x402Version" twice at line 1 column 32"#]],
    );
    check(
        &header(r#"{"x402Version":2,"payload":{"to":"a","to":"b"},"accepted":{}}"#),
        expect![[r#"invalid_payload: not strict JSON: key "to" twice at line 1 column 46"#]],
    );
    check(
        &header(r#"{"x402Version":2,"payload":{},"accepted":{}} x"#),
        expect!["invalid_payload: not strict JSON: trailing characters at line 1 column 46"],
    );
    check(
        &"A".repeat(HEADER_BYTES_MAX + 1),
        expect!["invalid_payload: the header is 16385 bytes long; at most 16384 are read"],
    );
    let deep = format!(r#"{{"x402Version":2,"payload":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    assert!(PaymentPayload::from_header(&header(&deep)).unwrap_err().message.contains("recursion"));
}

#[test]
fn amounts_are_decimal_digits_below_2_to_the_128() {
    assert_eq!(amount("0"), Ok(Usdc(0)));
    assert_eq!(amount("340282366920938463463374607431768211455"), Ok(Usdc(u128::MAX)));
    for text in ["", "-1", "+1", "1.0", "1e6", "01", " 1", "0x1", "１", "340282366920938463463374607431768211456"] {
        assert_eq!(amount(text).unwrap_err().reason, Reason::InvalidPayload, "{text:?}");
    }
}

#[test]
fn addresses_in_any_case_networks_in_one() {
    let lower = "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc";
    assert_eq!(address(lower), address("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"));
    assert_eq!(address(lower), address("0x3C44CDDDB6A900FA2B585DD299E03D12FA4293BC"));
    for text in [
        "",
        "0x",
        "3c44cdddb6a900fa2b585dd299e03d12fa4293bc",
        "0x3c44",
        "0xg",
        &format!("{lower}00"),
        &format!("{lower} "),
    ] {
        assert!(address(text).is_err(), "{text:?}");
    }
    assert_eq!(chain_id("eip155:31337"), Some(31337));
    for text in [
        "eip155:",
        "eip155:0",
        "eip155:01",
        "eip155:-1",
        "EIP155:1",
        "eip155:*",
        "solana:1",
        "eip155:99999999999999999999",
    ] {
        assert_eq!(chain_id(text), None, "{text:?}");
    }
}

#[test]
fn terms_are_compared_as_json_and_addresses_without_case() {
    let offered = json!({"asset": "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC", "amount": "10", "extra": {"name": "USD Coin", "n": [1, 2]}});
    let same = json!({"extra": {"n": [1, 2], "name": "USD Coin"}, "amount": "10", "asset": "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc"});
    assert!(same_terms(&same, &offered));
    for (path, value) in [
        ("/amount", json!("11")),
        ("/amount", json!(10)),
        ("/extra/name", json!("usd coin")),
        ("/extra/n", json!([2, 1])),
        ("/extra/n", json!([1])),
        ("/asset", json!("0x3c44cdddb6a900fa2b585dd299e03d12fa4293bd")),
    ] {
        let mut other = same.clone();
        *other.pointer_mut(path).unwrap() = value;
        assert!(!same_terms(&other, &offered), "{path}");
    }
    let mut more = same.clone();
    more["tip"] = json!(1);
    assert!(!same_terms(&more, &offered) && !same_terms(&offered, &more));
}

#[test]
fn offers_of_unknown_schemes_are_left_out_not_fatal() {
    let offer = json!({"x402Version": 2, "error": "Payment required", "resource": {"url": "u"}, "accepts": [
        {"scheme": "exact", "network": "solana:x", "amount": "1", "asset": "EPjF", "payTo": "9xQe", "maxTimeoutSeconds": 60},
        {"scheme": "exact", "network": "eip155:1", "amount": "1", "asset": "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc",
         "payTo": "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc", "maxTimeoutSeconds": 60},
        "what",
    ]});
    let read = PaymentRequired::from_json(offer.clone()).unwrap();
    assert_eq!(read.accepts.len(), 1);
    assert_eq!(read.accepts[0].json(), &offer["accepts"][1]);
}

#[test]
fn a_settlement_keeps_what_it_does_not_know() {
    let json = r#"{"success":true,"transaction":"0x1","network":"eip155:1","payer":"0x2","amount":"7","extra":{"channelState":{"balance":"9"}}}"#;
    let settlement = SettlementResponse::from_header(&header(json)).unwrap();
    assert_eq!(settlement.amount, Some(Usdc(7)));
    assert_eq!(settlement.to_json().to_string(), json);
    // The HTTP transport's example of a failure.
    let failed = r#"{"success":false,"errorReason":"insufficient_funds","network":"eip155:84532"}"#;
    let settlement = SettlementResponse::from_header(&header(failed)).unwrap();
    assert_eq!((settlement.success, settlement.error_reason.as_deref()), (false, Some("insufficient_funds")));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(".{0,6}", inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_header_stops_the_process(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
        for header in [String::from_utf8_lossy(&bytes).into_owned(), STANDARD.encode(&bytes), STANDARD.encode(&text), text] {
            let _ = PaymentPayload::from_header(&header);
            let _ = PaymentRequired::from_header(&header);
            let _ = SettlementResponse::from_header(&header);
        }
    }

    #[test]
    fn any_json_is_read_or_refused_and_read_the_same_again(payload in any_json(), accepted in any_json(), cut in 0usize..400) {
        let json = json!({"x402Version": 2, "payload": payload, "accepted": accepted});
        let text = encode_header(&json);
        prop_assert_eq!(decode_header(&text).unwrap(), json.clone());
        match PaymentPayload::from_header(&text) {
            Ok(payment) => prop_assert_eq!(payment.to_json(), json),
            Err(_) => prop_assert!(!payload.is_object() || !accepted.is_object()),
        }
        let _ = PaymentPayload::from_header(&text[..cut.min(text.len())]);
        let _ = PaymentRequired::from_header(&text);
        let _ = SettlementResponse::from_header(&text);
    }

    #[test]
    fn amounts_read_back(n in any::<u128>()) {
        prop_assert_eq!(amount(&n.to_string()), Ok(Usdc(n)));
    }

    #[test]
    fn amounts_of_anything(text in ".{0,45}") {
        if let Ok(n) = amount(&text) {
            prop_assert_eq!(n.micro().to_string(), text);
        }
    }

    #[test]
    fn terms_equal_themselves(a in any_json(), b in any_json()) {
        prop_assert!(same_terms(&a, &a));
        prop_assert_eq!(same_terms(&a, &b), same_terms(&b, &a));
    }
}

/// What is echoed is what came. Without `float_roundtrip` serde_json reads a neighbour of the last one.
#[test]
fn fractions_are_kept() {
    for kept in ["0.5", "-1.25e-3", "6.25e20", "0.1", "63402823669209384634633746074317682114560"] {
        let json = parse_json(kept.as_bytes()).unwrap();
        assert_eq!(parse_json(json.to_string().as_bytes()), Ok(json), "{kept}");
    }
    assert!(parse_json(b"1e999").is_err());
}
