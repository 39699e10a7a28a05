use super::{X402_VERSION, address, amount, check_version, decode_header, encode_header, invalid, object};
use crate::{Refusal, Usdc};
use alloy::primitives::Address;
use serde_json::{Map, Value};

/// What a payment is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub url: String,
    pub description: String,
    pub mime_type: String,
}

/// A 402's offer: any one of `accepts` will do.
#[derive(Debug, Clone, PartialEq)]
pub struct PaymentRequired {
    /// For people and for the client's recovery; a [`crate::Reason`] by name when a payment was refused.
    pub error: String,
    /// Kept as JSON: clients echo it untouched.
    pub resource: Value,
    /// Cheapest for the payer first. Offers that cannot be read are left out, they may be of schemes unknown here.
    pub accepts: Vec<PaymentRequirements>,
    pub extensions: Option<Value>,
}

impl PaymentRequired {
    pub fn new(error: impl Into<String>, resource: &Resource, accepts: Vec<PaymentRequirements>) -> Self {
        let mut about = Map::new();
        about.insert("url".into(), resource.url.as_str().into());
        about.insert("description".into(), resource.description.as_str().into());
        about.insert("mimeType".into(), resource.mime_type.as_str().into());
        Self { error: error.into(), resource: Value::Object(about), accepts, extensions: None }
    }

    /// Reads a `PAYMENT-REQUIRED` header.
    pub fn from_header(header: &str) -> Result<Self, Refusal> {
        Self::from_json(decode_header(header)?)
    }

    pub fn from_json(json: Value) -> Result<Self, Refusal> {
        let mut fields = object(json, "the offer")?;
        check_version(&fields)?;
        let error = match fields.shift_remove("error") {
            Some(Value::String(error)) => error,
            None => String::new(),
            Some(_) => return Err(invalid("`error` is not a text")),
        };
        let resource = fields.shift_remove("resource").filter(Value::is_object);
        let resource = resource.ok_or_else(|| invalid("`resource` is not an object"))?;
        let Some(Value::Array(offers)) = fields.shift_remove("accepts") else {
            return Err(invalid("`accepts` is not a list"));
        };
        let accepts = offers.into_iter().filter_map(|offer| PaymentRequirements::from_json(offer).ok()).collect();
        Ok(Self { error, resource, accepts, extensions: fields.shift_remove("extensions") })
    }

    pub fn to_json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("x402Version".into(), X402_VERSION.into());
        fields.insert("error".into(), self.error.as_str().into());
        fields.insert("resource".into(), self.resource.clone());
        let accepts = self.accepts.iter().map(|offer| offer.json.clone()).collect();
        fields.insert("accepts".into(), Value::Array(accepts));
        if let Some(extensions) = &self.extensions {
            fields.insert("extensions".into(), extensions.clone());
        }
        Value::Object(fields)
    }

    pub fn to_header(&self) -> String {
        encode_header(&self.to_json())
    }
}

/// One offer: the JSON as it is (or will be) on the wire, and its fields read from it.
///
/// The JSON is private and never changes after it was read, so that what is echoed is what was received.
#[derive(Debug, Clone, PartialEq)]
pub struct PaymentRequirements {
    json: Value,
    scheme: String,
    network: String,
    amount: Usdc,
    asset: Address,
    pay_to: Address,
    max_timeout_secs: u64,
}

impl PaymentRequirements {
    /// An offer of ours. `extra` is the scheme's, for `exact` `{name, version}` of the token's EIP-712 domain.
    pub fn new(
        (scheme, network): (&str, &str),
        amount: Usdc,
        (asset, pay_to): (Address, Address),
        max_timeout_secs: u64,
        extra: Value,
    ) -> Self {
        let mut fields = Map::new();
        fields.insert("scheme".into(), scheme.into());
        fields.insert("network".into(), network.into());
        fields.insert("amount".into(), amount.micro().to_string().into());
        fields.insert("asset".into(), asset.to_string().into());
        fields.insert("payTo".into(), pay_to.to_string().into());
        fields.insert("maxTimeoutSeconds".into(), max_timeout_secs.into());
        fields.insert("extra".into(), extra);
        let (scheme, network) = (scheme.to_owned(), network.to_owned());
        Self { json: Value::Object(fields), scheme, network, amount, asset, pay_to, max_timeout_secs }
    }

    /// The same, telling more in `extra`.
    pub fn with_extra(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.json["extra"][name] = value.into();
        self
    }

    /// Reads one offer, ours or another seller's, or what a customer says it accepted.
    pub fn from_json(json: Value) -> Result<Self, Refusal> {
        let text = |name: &str| {
            json.get(name).and_then(Value::as_str).ok_or_else(|| invalid(format!("offer: `{name}` is not a text")))
        };
        let scheme = text("scheme")?.to_owned();
        let network = text("network")?.to_owned();
        let amount = amount(text("amount")?)?;
        let asset = address(text("asset")?)?;
        let pay_to = address(text("payTo")?)?;
        let max_timeout_secs = json
            .get("maxTimeoutSeconds")
            .and_then(Value::as_u64)
            .ok_or_else(|| invalid("offer: `maxTimeoutSeconds` is not a whole number of seconds"))?;
        if json.get("extra").is_some_and(|extra| !extra.is_object()) {
            return Err(invalid("offer: `extra` is not an object"));
        }
        Ok(Self { scheme, network, amount, asset, pay_to, max_timeout_secs, json })
    }

    pub fn json(&self) -> &Value {
        &self.json
    }

    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// CAIP-2.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Atomic units of the asset; micro-USDC for USDC.
    pub fn amount(&self) -> Usdc {
        self.amount
    }

    pub fn asset(&self) -> Address {
        self.asset
    }

    pub fn pay_to(&self) -> Address {
        self.pay_to
    }

    /// How long the payer's authorisation should stay valid, in seconds from when it signs.
    pub fn max_timeout_secs(&self) -> u64 {
        self.max_timeout_secs
    }

    /// A text of `extra`, like the token's EIP-712 `name`.
    pub fn extra_text(&self, name: &str) -> Option<&str> {
        self.json.get("extra")?.get(name)?.as_str()
    }
}

/// Whether `accepted` is the offer: equal as JSON (key order is nothing), addresses without case.
pub fn same_terms(accepted: &Value, offered: &Value) -> bool {
    match (accepted, offered) {
        (Value::String(a), Value::String(b)) => a == b || (is_address(a) && is_address(b) && a.eq_ignore_ascii_case(b)),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_terms(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same_terms(a, b)))
        }
        _ => accepted == offered,
    }
}

fn is_address(text: &str) -> bool {
    address(text).is_ok()
}
