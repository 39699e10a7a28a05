//! The seller's side of HTTP, without HTTP: what a handler says when it wants money, and how it takes it.
//!
//! A request without payment gets [`Seller::challenge`]; one with a `PAYMENT-SIGNATURE` goes through
//! [`Seller::accept`], then [`crate::ChannelBook::decide`]; after settlement the answer carries
//! [`Seller::settled_header`]. Several schemes at once are [`offers`]'s.

pub mod identifier;
pub mod offers;

use crate::reason::{Reason, Refusal};
use crate::scheme::exact::server::verify_in;
use crate::scheme::exact::{Domain, EXACT, Hash, Verified};
use crate::wire::{
    PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequired, PaymentRequirements,
    Resource, SettlementResponse, X_PAYMENT,
};
use crate::{Usdc, wire};
use alloy::primitives::{Address, B256};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

/// A customer that wants a new answer to a question it asked (and may have lost the answer to) sends this header
/// with any value, and pays again.
pub const FRESH_ANSWER: HeaderName = HeaderName::from_static("vivarium-fresh-answer");

/// How long authorisations should live, in seconds: time for a slow answer and for several settlement attempts.
/// The official clients add it to their own clock. The example in the specification says 60.
pub const MAX_TIMEOUT_SECS: u64 = 300;

/// What is sold for: the same for all requests of an agent.
#[derive(Debug, Clone)]
pub struct Seller {
    pub network: String,
    pub chain_id: u64,
    pub asset: Address,
    /// EIP-712 domain of the token.
    pub token_name: String,
    pub token_version: String,
    /// The treasury.
    pub pay_to: Address,
    domain: Domain,
}

/// Terms of one request that a payment is held against.
pub struct Quote<'a> {
    /// Today's price of this request, a ceiling.
    pub amount: Usdc,
    pub resource: &'a Resource,
    /// Whether this lower amount was quoted for this request a moment ago: prices move between a 402 and its
    /// payment. Return false to insist on today's price.
    pub quoted_before: &'a dyn Fn(Usdc) -> bool,
    /// Whether the book knows this payment: then neither price nor expiry matter any more, the customer is asking
    /// for what it paid.
    pub known: &'a dyn Fn(&[u8; 20], &Hash) -> bool,
}

impl Seller {
    pub fn new(chain_id: u64, asset: Address, (token_name, token_version): (&str, &str), pay_to: Address) -> Self {
        Self {
            network: format!("eip155:{chain_id}"),
            chain_id,
            asset,
            token_name: token_name.to_owned(),
            token_version: token_version.to_owned(),
            pay_to,
            domain: Domain::new(token_name, token_version, chain_id, asset),
        }
    }

    /// The offer of `exact` for this amount.
    pub fn requirements(&self, amount: Usdc) -> PaymentRequirements {
        let extra = json!({ "name": self.token_name, "version": self.token_version });
        let kind = (EXACT, self.network.as_str());
        PaymentRequirements::new(kind, amount, (self.asset, self.pay_to), MAX_TIMEOUT_SECS, extra)
    }

    /// All offers for this amount, cheapest for the payer first.
    pub fn offer(&self, amount: Usdc, resource: &Resource, reason: Reason) -> PaymentRequired {
        PaymentRequired::new(reason.as_str(), resource, vec![self.requirements(amount)])
    }

    /// The answer to a request that did not pay, or not properly.
    pub fn challenge(&self, amount: Usdc, resource: &Resource, refusal: Refusal) -> Challenge {
        let offer = self.offer(amount, resource, refusal.reason);
        Challenge { refusal, offer, settlement: None }
    }

    /// The answer to a request that did not pay.
    pub fn ask(&self, amount: Usdc, resource: &Resource) -> Challenge {
        let message = format!("this costs {amount}: pay with an x402 client (PAYMENT-REQUIRED has the offer)");
        self.challenge(amount, resource, Refusal::new(Reason::PaymentRequired, message))
    }

    /// The answer when a verified payment could not be settled and nothing was delivered.
    pub fn not_settled(&self, amount: Usdc, resource: &Resource, refusal: Refusal, payer: Address) -> Challenge {
        let settlement = SettlementResponse {
            success: false,
            transaction: String::new(),
            network: self.network.clone(),
            payer: Some(payer.to_string()),
            error_reason: Some(refusal.reason.to_string()),
            amount: None,
            rest: Map::new(),
        };
        Challenge { settlement: Some(settlement), ..self.challenge(amount, resource, refusal) }
    }

    /// Takes the payment out of a request's headers and verifies it: one recovery, no I/O. Whether it is new, the
    /// book decides; whether the payer has the money, the chain. The refusal is boxed because it carries an offer.
    pub fn accept(&self, headers: &HeaderMap, quote: &Quote<'_>, chain_now: u64) -> Result<Verified, Box<Challenge>> {
        let verified = match payment_header(headers) {
            Ok(None) => return Err(Box::new(self.ask(quote.amount, quote.resource))),
            Ok(Some(header)) => self.verify(header, quote, chain_now),
            Err(refusal) => Err(refusal),
        };
        verified.map_err(|refusal| Box::new(self.challenge(quote.amount, quote.resource, refusal)))
    }

    fn verify(&self, header: &str, quote: &Quote<'_>, chain_now: u64) -> Result<Verified, Refusal> {
        let payment = PaymentPayload::from_header(header)?;
        // What was offered can be rebuilt from the accepted amount alone, so quotes need not be kept.
        let accepted = payment.accepted.get("amount").and_then(Value::as_str).unwrap_or_default();
        let accepted = wire::amount(accepted)?;
        let known = |payer: &Address, nonce: &B256| (quote.known)(&payer.0.0, &nonce.0);
        let now_for = |payer: &Address, nonce: &B256| (!known(payer, nonce)).then_some(chain_now);
        let verified = verify_in(&self.domain, &payment, &self.requirements(accepted), now_for)?;
        let enough = accepted >= quote.amount || (quote.quoted_before)(accepted);
        if !enough && !known(&verified.payer, &verified.nonce) {
            let message = format!("the price is {} now, {accepted} was accepted", quote.amount);
            return Err(Refusal::new(Reason::PriceMoved, message));
        }
        Ok(verified)
    }

    /// `PAYMENT-RESPONSE` of a settled payment.
    pub fn settled(&self, payer: Address, amount: Usdc, transaction: &Hash) -> SettlementResponse {
        SettlementResponse {
            success: true,
            transaction: format!("0x{}", hex::encode(transaction)),
            network: self.network.clone(),
            payer: Some(payer.to_string()),
            error_reason: None,
            amount: Some(amount),
            rest: Map::new(),
        }
    }

    /// [`settled`](Self::settled) as a header.
    pub fn settled_header(&self, payer: Address, amount: Usdc, transaction: &Hash) -> (HeaderName, HeaderValue) {
        (PAYMENT_RESPONSE, base64_value(self.settled(payer, amount, transaction).to_header()))
    }
}

/// An answer that asks for money: 402, or 400, 409, 429 by the refusal's reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Challenge {
    pub refusal: Refusal,
    pub offer: PaymentRequired,
    /// Present when a settlement was tried.
    pub settlement: Option<SettlementResponse>,
}

impl Challenge {
    pub fn status(&self) -> u16 {
        self.refusal.reason.status()
    }

    /// The x402 headers, and that nobody may cache a price.
    pub fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = vec![
            (PAYMENT_REQUIRED, base64_value(self.offer.to_header())),
            (http::header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        if let Some(settlement) = &self.settlement {
            headers.push((PAYMENT_RESPONSE, base64_value(settlement.to_header())));
        }
        headers
    }

    /// The API's error body; the protocol itself is in the headers.
    pub fn body(&self, request_id: &str) -> Value {
        let code = match self.refusal.reason {
            Reason::PaymentRequired => "payment_required",
            reason => reason.as_str(),
        };
        json!({ "error": { "code": code, "message": self.refusal.message, "request_id": request_id } })
    }
}

/// The one `PAYMENT-SIGNATURE`, if there is any.
fn payment_header(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(&PAYMENT_SIGNATURE).iter();
    match (values.next(), values.next()) {
        (None, _) if headers.contains_key(&X_PAYMENT) => {
            let message = "X-PAYMENT is x402 version 1, which is not spoken here: \
                           send version 2 in PAYMENT-SIGNATURE (packages @x402/* 2.x)";
            Err(Refusal::new(Reason::InvalidX402Version, message))
        }
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(wire::invalid("more than one PAYMENT-SIGNATURE")),
        (Some(value), None) => match value.to_str() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(wire::invalid("PAYMENT-SIGNATURE is not ASCII")),
        },
    }
}

fn base64_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("base64 is ASCII without controls")
}

#[cfg(test)]
mod tests;
