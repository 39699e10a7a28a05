//! The x402 v2 envelopes and the three headers that carry them, read strictly.
//!
//! Everything here comes from strangers. A header is at most [`HEADER_BYTES_MAX`] of standard base64 with padding,
//! holding JSON without duplicate keys. Amounts are decimal strings. What a customer accepted stays the JSON it
//! sent: it is compared as JSON ([`same_terms`]) and echoed as JSON, because printing it again from types would add
//! fields and change the case of addresses.
//!
//! Source: x402 specification v2, sections 5.1 to 5.3, and its HTTP transport.

mod required;
mod strict;

pub use required::{PaymentRequired, PaymentRequirements, Resource, same_terms};
pub use strict::parse_json;

use crate::{Reason, Refusal, Usdc};
use alloy::primitives::Address;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

/// Protocol version spoken here. Version 1 is refused by name.
pub const X402_VERSION: u64 = 2;
/// Longest header accepted, encoded. A batch-settlement payload is about 3 KiB; 16 KiB is what common proxies pass.
pub const HEADER_BYTES_MAX: usize = 16 << 10;

/// Server to client, with a 402.
pub const PAYMENT_REQUIRED: http::HeaderName = http::HeaderName::from_static("payment-required");
/// Client to server.
pub const PAYMENT_SIGNATURE: http::HeaderName = http::HeaderName::from_static("payment-signature");
/// Server to client, after settlement.
pub const PAYMENT_RESPONSE: http::HeaderName = http::HeaderName::from_static("payment-response");
/// What version 1 called [`PAYMENT_SIGNATURE`]; only recognised to refuse it helpfully.
pub const X_PAYMENT: http::HeaderName = http::HeaderName::from_static("x-payment");

/// A customer's payment: the scheme's own part and the offer that it accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct PaymentPayload {
    /// What the scheme signs; for `exact` see [`crate::scheme::exact`].
    pub payload: Value,
    /// What is being paid for. Optional, never part of a signature.
    pub resource: Option<Value>,
    /// The offer as the customer received it, untouched.
    pub accepted: Value,
    pub extensions: Option<Value>,
}

impl PaymentPayload {
    /// Reads a `PAYMENT-SIGNATURE` header.
    pub fn from_header(header: &str) -> Result<Self, Refusal> {
        Self::from_json(decode_header(header)?)
    }

    /// Reads the envelope. A payload of version 1 or of an unknown version is refused by that name.
    pub fn from_json(json: Value) -> Result<Self, Refusal> {
        let mut fields = object(json, "the payment")?;
        check_version(&fields)?;
        let payload = fields.shift_remove("payload").ok_or_else(|| invalid("`payload` is missing"))?;
        let accepted = fields.shift_remove("accepted").ok_or_else(|| invalid("`accepted` is missing"))?;
        for (name, value) in [("payload", &payload), ("accepted", &accepted)] {
            if !value.is_object() {
                return Err(invalid(format!("`{name}` is not an object")));
            }
        }
        let resource = optional_object(&mut fields, "resource")?;
        let extensions = optional_object(&mut fields, "extensions")?;
        Ok(Self { payload, resource, accepted, extensions })
    }

    pub fn to_json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("x402Version".into(), X402_VERSION.into());
        fields.insert("payload".into(), self.payload.clone());
        if let Some(resource) = &self.resource {
            fields.insert("resource".into(), resource.clone());
        }
        fields.insert("accepted".into(), self.accepted.clone());
        if let Some(extensions) = &self.extensions {
            fields.insert("extensions".into(), extensions.clone());
        }
        Value::Object(fields)
    }

    pub fn to_header(&self) -> String {
        encode_header(&self.to_json())
    }
}

/// What became of a payment.
#[derive(Debug, Clone, PartialEq)]
pub struct SettlementResponse {
    pub success: bool,
    /// Hash of the transaction, `0x` and 64 digits; empty when nothing was settled.
    pub transaction: String,
    /// CAIP-2, like `eip155:8453`.
    pub network: String,
    pub payer: Option<String>,
    /// A [`Reason`] by name when `success` is false; kept as text since peers have names of their own.
    pub error_reason: Option<String>,
    /// What was charged, when it may differ from what was accepted.
    pub amount: Option<Usdc>,
    /// Whatever else came along (`extra`, `extensions`, …), in its order.
    pub rest: Map<String, Value>,
}

impl SettlementResponse {
    pub fn from_header(header: &str) -> Result<Self, Refusal> {
        Self::from_json(decode_header(header)?)
    }

    pub fn from_json(json: Value) -> Result<Self, Refusal> {
        let mut fields = object(json, "the settlement response")?;
        let success = match fields.shift_remove("success") {
            Some(Value::Bool(success)) => success,
            _ => return Err(invalid("`success` is not true or false")),
        };
        // The HTTP transport's own example of a failure leaves `transaction` out, so it is optional.
        let transaction = optional_text(&mut fields, "transaction")?.unwrap_or_default();
        let network = optional_text(&mut fields, "network")?.ok_or_else(|| invalid("`network` is missing"))?;
        let payer = optional_text(&mut fields, "payer")?;
        let error_reason = optional_text(&mut fields, "errorReason")?;
        // A voucher's answer has it empty: nothing was moved.
        let amount = match optional_text(&mut fields, "amount")?.filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => Some(amount(&text)?),
        };
        Ok(Self { success, transaction, network, payer, error_reason, amount, rest: fields })
    }

    pub fn to_json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("success".into(), self.success.into());
        if let Some(reason) = &self.error_reason {
            fields.insert("errorReason".into(), reason.as_str().into());
        }
        fields.insert("transaction".into(), self.transaction.as_str().into());
        fields.insert("network".into(), self.network.as_str().into());
        if let Some(payer) = &self.payer {
            fields.insert("payer".into(), payer.as_str().into());
        }
        if let Some(amount) = self.amount {
            fields.insert("amount".into(), amount.micro().to_string().into());
        }
        for (name, value) in &self.rest {
            fields.insert(name.clone(), value.clone());
        }
        Value::Object(fields)
    }

    pub fn to_header(&self) -> String {
        encode_header(&self.to_json())
    }
}

/// Base64 of the JSON, ready to be a header's value (it is ASCII by construction).
pub fn encode_header(json: &Value) -> String {
    STANDARD.encode(json.to_string())
}

/// Strict counterpart of [`encode_header`].
pub fn decode_header(header: &str) -> Result<Value, Refusal> {
    if header.len() > HEADER_BYTES_MAX {
        return Err(invalid(format!("the header is {} bytes long; at most {HEADER_BYTES_MAX} are read", header.len())));
    }
    let bytes = STANDARD.decode(header).map_err(|e| invalid(format!("not standard base64 with padding: {e}")))?;
    parse_json(&bytes)
}

/// An amount in the asset's atomic units: decimal digits, no sign, no leading zeros, at most 2^128 − 1.
pub fn amount(text: &str) -> Result<Usdc, Refusal> {
    Usdc::parse_micro(text)
        .map_err(|e| invalid(format!("amount {text:.50?} is not a decimal integer below 2^128: {e}")))
}

/// An EVM address in any case. A wrong checksum is let through: x402 compares addresses without case.
pub fn address(text: &str) -> Result<Address, Refusal> {
    let refuse = || invalid(format!("{text:.60?} is not an address of 0x and 40 hexadecimal digits"));
    let digits = text.strip_prefix("0x").ok_or_else(refuse)?;
    let mut bytes = [0; 20];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| refuse())?;
    Ok(bytes.into())
}

/// Chain id of a CAIP-2 network of the `eip155` namespace.
pub fn chain_id(network: &str) -> Option<u64> {
    let digits = network.strip_prefix("eip155:")?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    plain.then(|| digits.parse().ok()).flatten()
}

/// `0x` and exactly this many bytes in hexadecimal digits of any case.
pub(crate) fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut bytes).ok()?;
    Some(bytes)
}

/// Chain seconds as decimal digits. The contracts have 256 bits for them; more than 64 is nobody's honest clock.
pub(crate) fn seconds(text: &str) -> Result<u64, Refusal> {
    amount(text)
        .ok()
        .and_then(|n| u64::try_from(n.micro()).ok())
        .ok_or_else(|| invalid(format!("{text:.50?} is not a time in whole seconds below 2^64")))
}

pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::InvalidPayload, message)
}

fn check_version(fields: &Map<String, Value>) -> Result<(), Refusal> {
    let message = match fields.get("x402Version").map(|v| (v, v.as_u64())) {
        Some((_, Some(X402_VERSION))) => return Ok(()),
        Some((_, Some(1))) => {
            "x402 version 1 is not spoken here: send version 2 in PAYMENT-SIGNATURE (packages @x402/* 2.x)".to_owned()
        }
        Some((other, _)) => format!("x402Version is {other:.20}; 2 is spoken here"),
        None => "x402Version is missing; 2 is spoken here".to_owned(),
    };
    Err(Refusal::new(Reason::InvalidX402Version, message))
}

pub(crate) fn object(json: Value, what: &str) -> Result<Map<String, Value>, Refusal> {
    match json {
        Value::Object(fields) => Ok(fields),
        _ => Err(invalid(format!("{what} is not a JSON object"))),
    }
}

fn optional_object(fields: &mut Map<String, Value>, name: &str) -> Result<Option<Value>, Refusal> {
    match fields.shift_remove(name) {
        None => Ok(None),
        Some(value @ Value::Object(_)) => Ok(Some(value)),
        Some(_) => Err(invalid(format!("`{name}` is not an object"))),
    }
}

fn optional_text(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, Refusal> {
    match fields.shift_remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(format!("`{name}` is not a text"))),
    }
}

#[cfg(test)]
mod tests;
