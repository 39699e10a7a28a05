//! The standard facilitator API (`POST /verify`, `POST /settle`, `GET /supported`), without HTTP: what is asked, what
//! would be sent for it, and the answers. For `exact` (EIP-3009 and Permit2) and `upto`.
//!
//! Source: x402 specification v2, section 7; the official packages' client and server are what it is tested with.

use super::account::{Means, Settlement};
use super::multicall::Call;
use crate::scheme::exact::server::verify_any_in;
use crate::scheme::exact::{Domain, EXACT, Hash, facilitator::transfer_call};
use crate::scheme::upto::facilitator::settle_call;
use crate::scheme::upto::server::verify_any;
use crate::scheme::upto::{Permit2Domain, Proxy, UPTO};
use crate::wire::{PaymentPayload, PaymentRequirements, SettlementResponse, X402_VERSION, invalid, parse_json};
use crate::{Reason, Refusal};
use alloy::primitives::Address;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Longest body read, bytes: twice a header, which is what a customer can send.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// Body of `/verify` and `/settle`.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub payment: PaymentPayload,
    pub requirements: PaymentRequirements,
}

impl Asked {
    pub fn from_body(body: &[u8]) -> Result<Self, Refusal> {
        let Value::Object(mut fields) = parse_json(body)? else { return Err(invalid("the body is not an object")) };
        let mut member = |name: &str| fields.shift_remove(name).ok_or_else(|| invalid(format!("`{name}` is missing")));
        Ok(Self {
            payment: PaymentPayload::from_json(member("paymentPayload")?)?,
            requirements: PaymentRequirements::from_json(member("paymentRequirements")?)?,
        })
    }

    pub fn to_body(&self) -> Value {
        json!({
            "x402Version": X402_VERSION,
            "paymentPayload": self.payment.to_json(),
            "paymentRequirements": self.requirements.json(),
        })
    }
}

/// What is settled here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desk {
    pub chain_id: u64,
    /// Only these are called: a token is code, and its transfers cost our gas.
    pub tokens: Vec<Address>,
    /// The key that settles: `upto` names it.
    pub facilitator: Address,
}

/// A payment whose terms and times hold. Whether it settles, the chain says: simulate it, then send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The same for the same authorisation, whoever asks.
    pub key: Hash,
    pub settlement: Settlement,
    pub call: Call,
    pub signature: Vec<u8>,
    pub is_signed_by_key: bool,
    /// The scheme's names for a wrong signature and for a simulation that fails.
    pub wrong: Reason,
    pub fails: Reason,
}

impl Job {
    /// May share a transaction with others: anyone may send it, the token's events tell it apart, and nobody else's
    /// code runs in it.
    pub fn may_be_batched(&self) -> bool {
        self.settlement.means == Means::Eip3009 && self.is_signed_by_key
    }

    pub fn pay_to(&self) -> Address {
        self.settlement.pay_to.into()
    }

    pub fn payer(&self) -> Address {
        self.settlement.payer.into()
    }
}

impl Desk {
    /// Answer of `/supported`.
    pub fn supported(&self) -> Value {
        let network = format!("eip155:{}", self.chain_id);
        let kind = |scheme: &str, extra: Value| json!({ "x402Version": X402_VERSION, "scheme": scheme, "network": network, "extra": extra });
        let upto = json!({ "facilitatorAddress": self.facilitator.to_checksum(None) });
        json!({
            "kinds": [kind(EXACT, json!({})), kind(UPTO, upto)],
            "extensions": ["eip2612GasSponsoring"],
            "signers": { "eip155:*": [self.facilitator.to_checksum(None)] },
        })
    }

    /// Checks a payment: shape, terms, times, a key's signature. `chain_now`: of the newest block, `height`.
    ///
    /// With `upto` a settlement asks for less than was permitted: the amount of the requirements then differs from the
    /// accepted one, and nothing else does.
    pub fn check(&self, asked: &Asked, chain_now: u64, height: u64) -> Result<Job, Refusal> {
        let wanted = &asked.requirements;
        let token = wanted.asset();
        if wanted.network() != format!("eip155:{}", self.chain_id) {
            let message = format!("{:.60?} is not settled here", wanted.network());
            return Err(Refusal::new(Reason::InvalidNetwork, message));
        }
        if !self.tokens.contains(&token) {
            let message = format!("token {token} is not settled here");
            return Err(Refusal::new(Reason::InvalidPaymentRequirements, message));
        }
        match wanted.scheme() {
            EXACT if wanted.extra_text("assetTransferMethod") != Some("permit2") => {
                let now_for = |_: &Address, _: &_| Some(chain_now);
                let (found, by_key) = verify_any_in(&Domain::of(wanted)?, &asked.payment, wanted, now_for)?;
                let terms = found.settlement();
                Ok(Job {
                    key: key(token, &terms.payer, &terms.nonce, "eip3009"),
                    call: Call { to: token, data: transfer_call(&terms, wanted.pay_to()).into() },
                    settlement: Settlement {
                        token: token.into_array(),
                        payer: terms.payer,
                        pay_to: wanted.pay_to().into_array(),
                        nonce: terms.nonce,
                        amount: terms.value,
                        valid_before: terms.valid_before,
                        means: Means::Eip3009,
                        since_block: height,
                    },
                    signature: terms.signature,
                    is_signed_by_key: by_key.is_ok(),
                    wrong: Reason::Signature,
                    fails: Reason::Simulation,
                })
            }
            scheme @ (EXACT | UPTO) => {
                // What was permitted, and what is asked for.
                let permitted = PaymentRequirements::from_json(asked.payment.accepted.clone())?;
                let mut same = permitted.json().clone();
                same["amount"] = wanted.amount().micro().to_string().into();
                let is_less = scheme == UPTO && wanted.amount() <= permitted.amount();
                if !crate::wire::same_terms(&same, wanted.json()) || (!is_less && wanted.amount() != permitted.amount())
                {
                    let message = "`accepted` is not what is asked for: echo one of `accepts` untouched";
                    return Err(Refusal::new(Reason::InvalidPaymentRequirements, message));
                }
                let domain = Permit2Domain { chain_id: self.chain_id };
                let (found, by_key) =
                    verify_any(domain, &asked.payment, &permitted, |_: &[u8; 20], _: &[u8; 32]| Some(chain_now))?;
                if let Proxy::Upto { facilitator } = found.proxy
                    && self.facilitator != facilitator
                {
                    let message = format!("{} may settle this, not {}", Address::from(facilitator), self.facilitator);
                    return Err(Refusal::new(Reason::UptoFacilitator, message));
                }
                Ok(Job {
                    key: key(token, &found.payer, &found.nonce, "permit2"),
                    call: Call { to: found.proxy.address(), data: settle_call(&found, wanted.amount()).into() },
                    settlement: Settlement {
                        token: token.into_array(),
                        payer: found.payer,
                        pay_to: found.pay_to,
                        nonce: found.nonce,
                        amount: wanted.amount(),
                        valid_before: found.deadline,
                        means: if scheme == UPTO { Means::Upto } else { Means::Permit2 },
                        since_block: height,
                    },
                    signature: found.signature,
                    is_signed_by_key: by_key.is_ok(),
                    wrong: Reason::Permit2Signature,
                    fails: Reason::Permit2Simulation,
                })
            }
            other => Err(Refusal::new(Reason::InvalidScheme, format!("scheme {other:.40?} is not settled here"))),
        }
    }
}

fn key(token: Address, payer: &[u8; 20], nonce: &Hash, method: &str) -> Hash {
    Sha256::new().chain_update(token).chain_update(payer).chain_update(nonce).chain_update(method).finalize().into()
}

/// Answer of `/verify`.
pub fn verified(outcome: &Result<Address, Refusal>) -> Value {
    match outcome {
        Ok(payer) => json!({ "isValid": true, "payer": payer.to_checksum(None) }),
        Err(refusal) => {
            json!({ "isValid": false, "invalidReason": refusal.reason.as_str(), "invalidMessage": refusal.message })
        }
    }
}

/// Answer of `/settle`. `Err` with a transaction: it may still be mined.
pub fn settled(network: &str, job: Option<&Job>, outcome: Result<Hash, (Refusal, Option<Hash>)>) -> SettlementResponse {
    let hex = |hash: Hash| format!("0x{}", hex::encode(hash));
    let (success, transaction, refusal) = match outcome {
        Ok(transaction) => (true, hex(transaction), None),
        Err((refusal, transaction)) => (false, transaction.map(hex).unwrap_or_default(), Some(refusal)),
    };
    let mut rest = Map::new();
    if let Some(refusal) = &refusal {
        rest.insert("errorMessage".into(), refusal.message.clone().into());
    }
    SettlementResponse {
        success,
        transaction,
        network: network.to_owned(),
        payer: job.map(|job| job.payer().to_checksum(None)),
        error_reason: refusal.map(|refusal| refusal.reason.to_string()),
        amount: job.filter(|_| success).map(|job| job.settlement.amount),
        rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Usdc;
    use crate::scheme::exact::client::sign;
    use alloy::primitives::{B256, keccak256};
    use alloy::signers::local::PrivateKeySigner;

    const NOW: u64 = 1_795_453_140;
    const TOKEN: Address = Address::repeat_byte(0xa5);

    fn desk() -> Desk {
        Desk { chain_id: 31337, tokens: vec![TOKEN], facilitator: Address::repeat_byte(0xfa) }
    }

    fn payer() -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&keccak256(b"payer")).unwrap()
    }

    fn offer(scheme: &str, amount: u128, more: Value) -> PaymentRequirements {
        let mut extra = json!({"name": "USD Coin", "version": "2"});
        extra.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let places = (TOKEN, Address::repeat_byte(0x77));
        PaymentRequirements::new((scheme, "eip155:31337"), Usdc(amount), places, 60, extra)
    }

    fn exact() -> Asked {
        let requirements = offer(EXACT, 1_234, json!({}));
        Asked { payment: sign(&payer(), &requirements, NOW, B256::repeat_byte(9)).unwrap(), requirements }
    }

    #[test]
    fn a_body_survives_and_an_exact_payment_may_be_batched() {
        let asked = Asked::from_body(exact().to_body().to_string().as_bytes()).unwrap();
        assert_eq!(asked, exact());
        let job = desk().check(&asked, NOW, 7).unwrap();
        assert!(job.may_be_batched());
        assert_eq!((job.payer(), job.settlement.amount, job.call.to), (payer().address(), Usdc(1_234), TOKEN));
        for wrong in ["", "[]", "{}", r#"{"paymentPayload":{},"paymentRequirements":{}}"#] {
            assert!(Asked::from_body(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_settled_here_is_named() {
        let check = |change: fn(&mut Value), reason: Reason| {
            let mut body = exact().to_body();
            change(&mut body);
            let asked = Asked::from_body(body.to_string().as_bytes()).unwrap();
            assert_eq!(desk().check(&asked, NOW, 7).unwrap_err().reason, reason);
        };
        check(|body| body["paymentRequirements"]["network"] = "eip155:1".into(), Reason::InvalidNetwork);
        check(
            |body| body["paymentRequirements"]["asset"] = Address::ZERO.to_string().into(),
            Reason::InvalidPaymentRequirements,
        );
        check(|body| body["paymentRequirements"]["amount"] = "1".into(), Reason::InvalidPaymentRequirements);
        check(
            |body| body["paymentRequirements"]["payTo"] = Address::ZERO.to_string().into(),
            Reason::InvalidPaymentRequirements,
        );
        check(|body| body["paymentRequirements"]["scheme"] = "auth-capture".into(), Reason::InvalidScheme);
    }

    #[test]
    fn upto_settles_less_than_permitted_and_never_more() {
        let facilitator = json!({ "assetTransferMethod": "permit2", "facilitatorAddress": desk().facilitator });
        let permitted = offer(UPTO, 1_000, facilitator.clone());
        let payment = crate::scheme::upto::client::sign(&payer(), &permitted, NOW, [5; 32]).unwrap();
        let ask = |amount| {
            let requirements = offer(UPTO, amount, facilitator.clone());
            desk().check(&Asked { payment: payment.clone(), requirements }, NOW, 7)
        };
        assert_eq!(ask(1_000).unwrap().settlement.amount, Usdc(1_000));
        let less = ask(400).unwrap();
        assert_eq!((less.settlement.amount, less.may_be_batched()), (Usdc(400), false));
        assert_eq!(less.key, ask(1_000).unwrap().key, "one authorisation, one settlement");
        assert_eq!(ask(1_001).unwrap_err().reason, Reason::InvalidPaymentRequirements);
    }
}
