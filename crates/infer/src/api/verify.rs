//! `POST /v1/verify`: an answer that was paid, here or elsewhere, is made again and held against its receipt.
//! Vivarium's own.

use serde_json::{Map, Value, json};

use super::strict::{Fields, wrong_type};
use super::{ApiError, NAME_BYTES_MAX, Usage, with_extra};
use crate::rerun::Place;

/// Not of what is asked here, but of asking: the routes of text have their own.
pub const ROUTE: &str = "POST /v1/verify";

/// A request whose every field was understood. Of what kind the papers are, the caller reads.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyRequest {
    /// A receipt, as JSON.
    pub receipt: String,
    /// The body of the request that was answered, byte by byte as it was sent.
    pub request: String,
    /// The answer's body: one JSON object, or the stream's events. `None`: the receipt's digest decides alone.
    pub answer: Option<String>,
    pub user: Option<String>,
}

impl VerifyRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<VerifyRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let receipt = match fields.required("receipt")? {
            receipt @ Value::Object(_) => receipt.to_string(),
            other => return Err(wrong_type("receipt".into(), "an object", &other)),
        };
        let text = |name: &str, value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(name.to_owned(), "a string", &other)),
        };
        let request = text("request", fields.required("request")?)?;
        let answer = fields.take("answer").map(|answer| text("answer", answer)).transpose()?;
        let user = fields.string("user", NAME_BYTES_MAX)?;
        fields.finish(&[])?;
        Ok(VerifyRequest { receipt, request, answer, user })
    }
}

/// Builds the answer.
#[derive(Clone, Debug)]
pub struct VerifyReply {
    /// `vrf-…`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Who signed the receipt, an address.
    pub signer: String,
}

impl VerifyReply {
    /// `differ`: why the answer is another one, and where; `None`: it is the same. `extra` is added at the top.
    pub fn whole(&self, differ: Option<(&[String], Option<&Place>)>, usage: Usage, extra: Map<String, Value>) -> Value {
        let (why, place) = differ.unwrap_or((&[], None));
        let place = place.map(|Place { bytes, line, column, answered, made }| {
            json!({"bytes": bytes, "line": line, "column": column, "answered": answered, "made": made})
        });
        let answer = json!({
            "id": self.id,
            "object": "verification",
            "created": self.created,
            "verdict": if differ.is_some() { "different" } else { "same" },
            "why": why,
            "place": place,
            "signer": self.signer,
            "usage": usage.to_json(),
        });
        with_extra(answer, extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let parsed = |body: Value| VerifyRequest::parse(body.to_string().as_bytes());
        let taken = parsed(json!({"receipt": {"version": 5}, "request": "{}", "answer": null})).unwrap();
        assert_eq!((taken.receipt.as_str(), taken.request.as_str(), taken.answer), (r#"{"version":5}"#, "{}", None));
        for (body, field, code) in [
            (json!({"request": "{}"}), "receipt", "missing_field"),
            (json!({"receipt": "{}", "request": "{}"}), "receipt", "wrong_type"),
            (json!({"receipt": {}}), "request", "missing_field"),
            (json!({"receipt": {}, "request": {}}), "request", "wrong_type"),
            (json!({"receipt": {}, "request": "{}", "answer": {}}), "answer", "wrong_type"),
            (json!({"receipt": {}, "request": "{}", "operator": "0x"}), "operator", "unknown_field"),
        ] {
            let error = parsed(body).unwrap_err();
            assert_eq!((error.status, error.param.as_deref(), error.code), (400, Some(field), code));
        }
    }
}
