//! What the agent says of money that goes back: which payment, how much, and why, signed like a receipt by the operator of
//! its epoch. The money itself is the treasury's `refundExact`, which anybody sees on chain.

use super::{Error, bytes};
use crate::book::AbortWhy;
use crate::scheme::exact::Hash;
use crate::{RequestId, Usdc, wire};
use alloy::primitives::{Address, B256, FixedBytes};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolStruct, eip712_domain};
use serde::{Deserialize, Serialize};

alloy::sol! {
    /// The signed struct.
    struct Refund {
        bytes16 request;
        uint64 epoch;
        address payer;
        bytes32 nonce;
        uint128 amount;
        string reason;
        uint64 issuedAt;
    }
}

/// A payment for which nothing was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundNote {
    /// The treasury.
    pub agent: Address,
    pub chain_id: u64,
    pub epoch: u64,
    pub request: RequestId,
    pub payer: Address,
    /// Nonce of the authorisation that paid.
    pub nonce: Hash,
    /// Micro-USDC that go back, or went.
    pub amount: Usdc,
    pub reason: AbortWhy,
    /// Chain seconds.
    pub issued_at: u64,
}

/// The name of a reason in the document.
fn name_of(reason: AbortWhy) -> &'static str {
    match reason {
        AbortWhy::Engine => "engine_failed",
        AbortWhy::HungUp => "hung_up",
        AbortWhy::NotSettled => "not_settled",
        AbortWhy::Crashed => "host_crashed",
        AbortWhy::NotServing => "not_serving",
        AbortWhy::Supplier => "supplier_failed",
    }
}

const REASONS: [AbortWhy; 6] = [
    AbortWhy::Engine,
    AbortWhy::HungUp,
    AbortWhy::NotSettled,
    AbortWhy::Crashed,
    AbortWhy::NotServing,
    AbortWhy::Supplier,
];

impl RefundNote {
    /// What the operator signs.
    pub fn digest(&self) -> B256 {
        let message = Refund {
            request: FixedBytes(self.request.0),
            epoch: self.epoch,
            payer: self.payer,
            nonce: B256::from(self.nonce),
            amount: self.amount.micro(),
            reason: name_of(self.reason).to_owned(),
            issuedAt: self.issued_at,
        };
        message.eip712_signing_hash(&eip712_domain! {
            name: "Vivarium Refund",
            version: "1",
            chain_id: self.chain_id,
            verifying_contract: self.agent,
        })
    }

    /// # Errors
    /// The key does not sign.
    pub fn sign(self, operator: &PrivateKeySigner) -> Result<SignedRefund, Error> {
        let signature = super::sign(operator, self.digest())?;
        Ok(SignedRefund { note: self, signature })
    }

    /// For people.
    pub fn why(&self) -> &'static str {
        match self.reason {
            AbortWhy::Engine => "the model made no answer",
            AbortWhy::HungUp => "nobody was there any more to take the answer",
            AbortWhy::NotSettled => "its settlement was not known in time",
            AbortWhy::Crashed => "the host stopped before it answered",
            AbortWhy::NotServing => "the node was not to serve any more",
            AbortWhy::Supplier => "the agent that it was to be bought from did not deliver it",
        }
    }
}

/// A statement and the operator's signature over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRefund {
    pub note: RefundNote,
    /// r, s, v with low s.
    pub signature: [u8; 65],
}

/// The twin at the edge.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    /// `refund`: nobody takes it for a receipt.
    kind: String,
    agent: String,
    chain_id: u64,
    epoch: u64,
    request: String,
    payer: String,
    nonce: String,
    amount_uusdc: String,
    reason: String,
    issued_at: u64,
    signature: String,
}

const KIND: &str = "refund";

impl SignedRefund {
    /// Whose key signed: to be compared with the agent's operator in `note.epoch`. Works off line.
    ///
    /// # Errors
    /// No key made this signature.
    pub fn signer(&self) -> Result<Address, Error> {
        super::signer_of(&self.signature, self.note.digest())
    }

    pub fn to_json(&self) -> String {
        let note = &self.note;
        let json = Json {
            kind: KIND.to_owned(),
            agent: note.agent.to_string(),
            chain_id: note.chain_id,
            epoch: note.epoch,
            request: note.request.to_string(),
            payer: note.payer.to_string(),
            nonce: format!("0x{}", hex::encode(note.nonce)),
            amount_uusdc: note.amount.micro().to_string(),
            reason: name_of(note.reason).to_owned(),
            issued_at: note.issued_at,
            signature: format!("0x{}", hex::encode(self.signature)),
        };
        // Texts and integers always print.
        serde_json::to_string(&json).expect("plain fields are JSON")
    }

    /// Reads what [`to_json`](Self::to_json) wrote; unknown fields are refused because they are not signed.
    ///
    /// # Errors
    /// It is no such document.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let json: Json = serde_json::from_str(text).map_err(|e| Error(format!("not a refund: {e}")))?;
        if json.kind != KIND {
            return Err(Error(format!("a {:?} is not a refund", json.kind)));
        }
        let address = |text: &str| wire::address(text).map_err(|e| Error(e.message));
        let reason = REASONS.into_iter().find(|reason| name_of(*reason) == json.reason);
        let note = RefundNote {
            agent: address(&json.agent)?,
            chain_id: json.chain_id,
            epoch: json.epoch,
            request: json.request.parse().map_err(|e| Error(format!("request: {e}")))?,
            payer: address(&json.payer)?,
            nonce: bytes("nonce", &json.nonce)?,
            amount: wire::amount(&json.amount_uusdc).map_err(|e| Error(e.message))?,
            reason: reason.ok_or_else(|| Error(format!("reason {:?} is not known", json.reason)))?,
            issued_at: json.issued_at,
        };
        Ok(Self { note, signature: bytes("signature", &json.signature)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::keccak256;
    use serde_json::{Value, json};

    fn note(reason: AbortWhy) -> RefundNote {
        RefundNote {
            agent: Address::repeat_byte(0xaa),
            chain_id: 31337,
            epoch: 3,
            request: RequestId([7; 16]),
            payer: Address::repeat_byte(0xbb),
            nonce: [1; 32],
            amount: Usdc(1234),
            reason,
            issued_at: 1_795_453_200,
        }
    }

    #[test]
    fn survives_json_and_names_its_signer_and_whatever_is_altered_names_another() {
        let operator = PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap();
        for reason in REASONS {
            let signed = note(reason).sign(&operator).unwrap();
            let read = SignedRefund::from_json(&signed.to_json()).unwrap();
            assert_eq!((&read, read.signer()), (&signed, Ok(operator.address())));
        }
        let good: Value = serde_json::from_str(&note(AbortWhy::HungUp).sign(&operator).unwrap().to_json()).unwrap();
        for (field, other) in [
            ("agent", json!(Address::ZERO.to_string())),
            ("chain_id", json!(1)),
            ("epoch", json!(4)),
            ("request", json!(RequestId([8; 16]).to_string())),
            ("payer", json!(Address::ZERO.to_string())),
            ("nonce", json!(format!("0x{}", "02".repeat(32)))),
            ("amount_uusdc", json!("1235")),
            ("reason", json!("host_crashed")),
            ("issued_at", json!(1)),
        ] {
            let mut altered = good.clone();
            assert_ne!(altered[field], other);
            altered[field] = other;
            let read = SignedRefund::from_json(&altered.to_string()).unwrap();
            assert_ne!(read.signer(), Ok(operator.address()), "{field} is not signed");
        }
        for (field, other) in [("kind", json!("receipt")), ("reason", json!("a mood")), ("more", json!(1))] {
            let mut altered = good.clone();
            altered[field] = other;
            assert!(SignedRefund::from_json(&altered.to_string()).is_err(), "{field}");
        }
    }
}
