//! A name that a customer gives its request, so that however often it sends it, it is answered and charged once: x402
//! extension `payment-identifier`, or the header `Idempotency-Key`.
//!
//! The name counts within one payer, whatever payment comes along: a client that lost an answer signs anew. Only its
//! digest is kept. Source: `@x402/extensions` 2.27 (16 to 128 letters, digits, hyphens and underscores).

use crate::Refusal;
use crate::scheme::exact::Hash;
use crate::wire::{self, PaymentPayload};
use http::{HeaderMap, HeaderName};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The extension's name on the wire.
pub const IDENTIFIER: &str = "payment-identifier";
/// The same in a header, for programs that do not make their payments themselves.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const LENGTH_MIN: usize = 16;
const LENGTH_MAX: usize = 128;
/// A header's name may be shorter (many SDKs number theirs), never longer.
const HEADER_LENGTH_MAX: usize = 255;

/// What a 402 says of it: a name is welcome, none is required. Word for word as the official package declares it.
pub fn declaration() -> Value {
    json!({
        "info": { "required": false },
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "required": { "type": "boolean" },
                "id": {
                    "type": "string",
                    "minLength": LENGTH_MIN,
                    "maxLength": LENGTH_MAX,
                    "pattern": "^[a-zA-Z0-9_-]+$",
                },
            },
            "required": ["required"],
        },
    })
}

/// The digest of the request's name, if it has one.
///
/// # Errors
/// `invalid_payload` for a name of another form, for two header values, and for two names that differ.
pub fn of(headers: &HeaderMap, payment: &PaymentPayload) -> Result<Option<Hash>, Refusal> {
    let extension = in_extension(payment)?;
    let header = in_header(headers)?;
    match (extension, header) {
        (Some(one), Some(other)) if one != other => {
            Err(wire::invalid("`payment-identifier` and Idempotency-Key name two requests"))
        }
        (name, other) => Ok(name.or(other).map(digest)),
    }
}

fn in_extension(payment: &PaymentPayload) -> Result<Option<&str>, Refusal> {
    let info = payment.extensions.as_ref().and_then(|e| e.get(IDENTIFIER)).and_then(|e| e.get("info"));
    // A client that gives no name echoes the declaration.
    let Some(id) = info.and_then(|info| info.get("id")) else { return Ok(None) };
    let of_form = |id: &&str| {
        let letters = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        letters && (LENGTH_MIN..=LENGTH_MAX).contains(&id.len())
    };
    id.as_str().filter(of_form).map(Some).ok_or_else(|| {
        wire::invalid(format!("a payment identifier has {LENGTH_MIN} to {LENGTH_MAX} letters, digits, `-` and `_`"))
    })
}

fn in_header(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(text) if !text.is_empty() && text.len() <= HEADER_LENGTH_MAX => Ok(Some(text)),
            _ => Err(wire::invalid(format!("Idempotency-Key has 1 to {HEADER_LENGTH_MAX} visible characters"))),
        },
        (Some(_), Some(_)) => Err(wire::invalid("more than one Idempotency-Key")),
    }
}

fn digest(name: &str) -> Hash {
    Sha256::new().chain_update(b"vivarium request name").chain_update(name).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn payment(extensions: Option<Value>) -> PaymentPayload {
        PaymentPayload { payload: json!({}), resource: None, accepted: json!({}), extensions }
    }

    fn named(id: Value) -> PaymentPayload {
        payment(Some(json!({ IDENTIFIER: { "info": { "required": false, "id": id } } })))
    }

    fn keyed(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_name_is_one_whichever_way_it_comes() {
        let (id, none) = ("pay_0123456789abcdef", HeaderMap::new());
        let by_extension = of(&none, &named(json!(id))).unwrap();
        assert!(by_extension.is_some());
        assert_eq!(of(&keyed(&[id]), &payment(None)).unwrap(), by_extension);
        assert_eq!(of(&keyed(&[id]), &named(json!(id))).unwrap(), by_extension);
        assert_ne!(of(&keyed(&["another"]), &payment(None)).unwrap(), by_extension);
        assert!(of(&keyed(&["7"]), &payment(None)).unwrap().is_some(), "programs number theirs");
        // Nobody's name: none, and a declaration that is echoed as it came.
        assert_eq!(of(&none, &payment(None)), Ok(None));
        assert_eq!(of(&none, &payment(Some(json!({ IDENTIFIER: declaration() })))), Ok(None));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let none = HeaderMap::new();
        for wrong in [json!("short"), json!("x".repeat(129)), json!("with spaces in between"), json!(7), json!(null)] {
            assert!(of(&none, &named(wrong.clone())).is_err(), "{wrong}");
        }
        assert!(of(&keyed(&["a", "a"]), &payment(None)).is_err());
        assert!(of(&keyed(&["b"]), &named(json!("pay_0123456789abcdef"))).is_err());
        assert!(of(&keyed(&[&"x".repeat(256)]), &payment(None)).is_err());
    }
}
