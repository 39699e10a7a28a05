//! Receipts: what was asked, answered and paid, signed by the operator key.
//!
//! EIP-712, so that a wallet can show and a contract can check it. The domain names the agent (its treasury) and the
//! chain; `epoch` says whose key signed: look the operator of that epoch up on chain, or trust the one you know.
//! [`run`] says how the answer was made, so that it can be made again; [`cose`] is the same document for readers of
//! CBOR; [`tree`] puts receipts under the roots that heartbeats carry; [`refund`] says what goes back, and why.

pub mod cose;
pub mod refund;
pub mod run;
pub mod tree;

use crate::scheme::exact::Hash;
use crate::{RequestId, Usdc, wire};
use alloy::consensus::crypto::secp256k1::recover_signer;
use alloy::primitives::{Address, B256, FixedBytes, Signature};
use alloy::signers::{SignerSync, local::PrivateKeySigner};
use alloy::sol_types::{Eip712Domain, SolStruct, eip712_domain};
use run::Run;
use serde::{Deserialize, Serialize};
use std::fmt;

mod signed {
    alloy::sol! {
        /// The signed struct. Its fields are the receipt's, in EIP-712 types; what does not apply is zero: nonce and
        /// transaction, or channel and what it was charged.
        struct Receipt {
            bytes16 request;
            uint64 epoch;
            address payer;
            bytes32 nonce;
            bytes32 model;
            bytes32 adapter;
            bytes32 run;
            bytes32 prompt;
            bytes32 output;
            uint32 promptTokens;
            uint32 cachedTokens;
            uint32 completionTokens;
            uint32 embeddingTokens;
            uint128 amount;
            bytes32 transactionHash;
            bytes32 channel;
            uint128 channelCharged;
            uint64 issuedAt;
        }
    }
}

/// Of all forms of a receipt; no other is read.
const VERSION: u32 = 5;

/// One answered and paid request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The treasury.
    pub agent: Address,
    pub chain_id: u64,
    pub epoch: u64,
    pub request: RequestId,
    pub payer: Address,
    pub paid_by: PaidBy,
    /// sha2-256 digest in the model's CID.
    pub model: Hash,
    /// The same of the adapter that the model had on; zero: none.
    pub adapter: Hash,
    /// How the model was run. Only its digest is signed.
    pub run: Run,
    /// sha2-256 of the request's body.
    pub prompt: Hash,
    /// sha2-256 of the output; zero when a crash lost it.
    pub output: Hash,
    pub prompt_tokens: u32,
    /// Of the prompt's: not computed for this request, and cheaper. Zero when a crash lost the count; the amount knows it.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    /// Of texts that became vectors; then `model` made them, `output` is the digest of their numbers (32 bits each, little
    /// endian), and no other class has tokens.
    pub embedding_tokens: u32,
    /// Micro-USDC charged for this request.
    pub amount: Usdc,
    /// Chain seconds.
    pub issued_at: u64,
}

/// What paid for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaidBy {
    /// An authorisation of its own, or a Permit2 permission: its nonce, and the settlement.
    Authorization { nonce: Hash, transaction: Hash },
    /// A voucher on a channel that was charged so much in all, micro-USDC, with this request. Sorted by this sum, a
    /// channel's receipts have no gap: each begins (`charged` less the amount) where the one before ends; only what was
    /// claimed of a channel before its records were lost with a host stands in none. A claim on chain is never above the
    /// last one.
    Voucher { channel: Hash, charged: Usdc },
}

impl PaidBy {
    /// The nonce, or the channel: what its payer knows its payment by.
    pub fn name(&self) -> Hash {
        match *self {
            Self::Authorization { nonce, .. } => nonce,
            Self::Voucher { channel, .. } => channel,
        }
    }
}

impl Receipt {
    /// What the operator signs.
    pub fn digest(&self) -> B256 {
        let (nonce, transaction, channel, charged) = match self.paid_by {
            PaidBy::Authorization { nonce, transaction } => (nonce, transaction, [0; 32], Usdc::ZERO),
            PaidBy::Voucher { channel, charged } => ([0; 32], [0; 32], channel, charged),
        };
        let message = signed::Receipt {
            request: FixedBytes(self.request.0),
            epoch: self.epoch,
            payer: self.payer,
            nonce: B256::from(nonce),
            model: B256::from(self.model),
            adapter: B256::from(self.adapter),
            run: B256::from(self.run.digest()),
            prompt: B256::from(self.prompt),
            output: B256::from(self.output),
            promptTokens: self.prompt_tokens,
            cachedTokens: self.cached_tokens,
            completionTokens: self.completion_tokens,
            embeddingTokens: self.embedding_tokens,
            amount: self.amount.micro(),
            transactionHash: B256::from(transaction),
            channel: B256::from(channel),
            channelCharged: charged.micro(),
            issuedAt: self.issued_at,
        };
        message.eip712_signing_hash(&self.domain())
    }

    /// What must hold of every receipt, whoever signed it. No operator signs another, no reader takes one.
    fn check(&self) -> Result<(), Error> {
        match self.paid_by {
            PaidBy::Voucher { charged, .. } if charged < self.amount => Err(Error(format!(
                "this call was charged {}, and its channel {charged} in all: that cannot be",
                self.amount
            ))),
            PaidBy::Voucher { .. } | PaidBy::Authorization { .. } => Ok(()),
        }
    }

    /// The receipt's leaf under the roots on chain.
    pub fn leaf(&self) -> Hash {
        tree::leaf(self.digest(), self.amount)
    }

    fn domain(&self) -> Eip712Domain {
        eip712_domain! {
            name: "Vivarium Receipt",
            version: VERSION.to_string(),
            chain_id: self.chain_id,
            verifying_contract: self.agent,
        }
    }

    /// # Errors
    /// Of a receipt that cannot be true, or when the key does not sign.
    pub fn sign(self, operator: &PrivateKeySigner) -> Result<SignedReceipt, Error> {
        self.check()?;
        let signature = sign(operator, self.digest())?;
        Ok(SignedReceipt { receipt: self, signature })
    }
}

/// A receipt and the operator's signature over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedReceipt {
    pub receipt: Receipt,
    /// r, s, v with low s.
    pub signature: [u8; 65],
}

impl SignedReceipt {
    /// Whose key signed: to be compared with the agent's operator in `receipt.epoch`. Works off line.
    pub fn signer(&self) -> Result<Address, Error> {
        signer_of(&self.signature, self.receipt.digest())
    }

    /// Fails unless `operator` signed exactly this receipt.
    pub fn verify(&self, operator: Address) -> Result<(), Error> {
        let signer = self.signer()?;
        if signer == operator {
            return Ok(());
        }
        Err(Error(format!("signed by {signer}, not by the operator {operator}, or altered after signing")))
    }

    /// The document that customers keep.
    pub fn to_json(&self) -> String {
        let receipt = &self.receipt;
        let hex32 = |bytes: &Hash| format!("0x{}", hex::encode(bytes));
        let (alone, on_channel) = match &receipt.paid_by {
            PaidBy::Authorization { nonce, transaction } => (Some((nonce, transaction)), None),
            PaidBy::Voucher { channel, charged } => (None, Some((channel, charged))),
        };
        let json = Json {
            version: VERSION,
            agent: receipt.agent.to_string(),
            chain_id: receipt.chain_id,
            epoch: receipt.epoch,
            request: receipt.request.to_string(),
            payer: receipt.payer.to_string(),
            nonce: alone.map(|(nonce, _)| hex32(nonce)),
            model_sha256: hex32(&receipt.model),
            adapter_sha256: hex32(&receipt.adapter),
            run_sha256: hex32(&receipt.run.digest()),
            run: receipt.run.to_json(),
            prompt_sha256: hex32(&receipt.prompt),
            output_sha256: hex32(&receipt.output),
            prompt_tokens: receipt.prompt_tokens,
            cached_tokens: receipt.cached_tokens,
            completion_tokens: receipt.completion_tokens,
            embedding_tokens: receipt.embedding_tokens,
            amount_uusdc: receipt.amount.micro().to_string(),
            transaction: alone.map(|(_, transaction)| hex32(transaction)),
            channel: on_channel.map(|(channel, _)| hex32(channel)),
            channel_charged_uusdc: on_channel.map(|(_, charged)| charged.micro().to_string()),
            issued_at: receipt.issued_at,
            signature: format!("0x{}", hex::encode(self.signature)),
        };
        // Texts and integers always print.
        serde_json::to_string(&json).expect("plain fields are JSON")
    }

    /// Reads what [`to_json`](Self::to_json) wrote; unknown fields are refused because they are not signed.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let json: Json = serde_json::from_str(text).map_err(|e| Error(format!("not a receipt: {e}")))?;
        if json.version != VERSION {
            return Err(unknown(json.version.into()));
        }
        let address = |text: &str| wire::address(text).map_err(|e| Error(e.message));
        let amount = |text: &str| wire::amount(text).map_err(|e| Error(e.message));
        let paid_by = match (&json.nonce, &json.transaction, &json.channel, &json.channel_charged_uusdc) {
            (Some(nonce), Some(transaction), None, None) => {
                PaidBy::Authorization { nonce: bytes("nonce", nonce)?, transaction: bytes("transaction", transaction)? }
            }
            (None, None, Some(channel), Some(charged)) => {
                PaidBy::Voucher { channel: bytes("channel", channel)?, charged: amount(charged)? }
            }
            _ => return Err(neither()),
        };
        let receipt = Receipt {
            agent: address(&json.agent)?,
            chain_id: json.chain_id,
            epoch: json.epoch,
            request: json.request.parse().map_err(|e| Error(format!("request: {e}")))?,
            payer: address(&json.payer)?,
            paid_by,
            model: bytes("model_sha256", &json.model_sha256)?,
            adapter: bytes("adapter_sha256", &json.adapter_sha256)?,
            run: Run::read(bytes("run_sha256", &json.run_sha256)?, json.run)?,
            prompt: bytes("prompt_sha256", &json.prompt_sha256)?,
            output: bytes("output_sha256", &json.output_sha256)?,
            prompt_tokens: json.prompt_tokens,
            cached_tokens: json.cached_tokens,
            completion_tokens: json.completion_tokens,
            embedding_tokens: json.embedding_tokens,
            amount: amount(&json.amount_uusdc)?,
            issued_at: json.issued_at,
        };
        receipt.check()?;
        Ok(Self { receipt, signature: bytes("signature", &json.signature)? })
    }
}

fn unknown(version: u128) -> Error {
    Error(format!("receipt version {version}; {VERSION} is known, and no other"))
}

fn neither() -> Error {
    Error("a receipt names a nonce and a transaction, or a channel and what it was charged: one pair, and whole".into())
}

/// r, s, v with low s.
fn sign(operator: &PrivateKeySigner, digest: B256) -> Result<[u8; 65], Error> {
    let signature = operator.sign_hash_sync(&digest).map_err(|e| Error(format!("cannot sign: {e}")))?;
    Ok(signature.as_bytes())
}

fn signer_of(signature: &[u8; 65], digest: B256) -> Result<Address, Error> {
    let signature = Signature::from_raw_array(signature).map_err(|e| Error(format!("signature: {e}")))?;
    recover_signer(&signature, digest).map_err(|e| Error(format!("no key made this signature: {e}")))
}

/// Why a receipt cannot be signed, read or believed. The reader treats it as no receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// The twin at the edge.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    version: u32,
    agent: String,
    chain_id: u64,
    epoch: u64,
    request: String,
    payer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    model_sha256: String,
    adapter_sha256: String,
    run_sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<serde_json::Value>,
    prompt_sha256: String,
    output_sha256: String,
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
    embedding_tokens: u32,
    amount_uusdc: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transaction: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel_charged_uusdc: Option<String>,
    issued_at: u64,
    signature: String,
}

fn bytes<const N: usize>(name: &str, text: &str) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let digits = text.strip_prefix("0x").ok_or_else(|| Error(format!("{name} does not start with 0x")))?;
    hex::decode_to_slice(digits, &mut bytes).map_err(|e| Error(format!("{name}: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::keccak256;

    pub(super) fn receipt() -> Receipt {
        Receipt {
            agent: Address::repeat_byte(0xaa),
            chain_id: 31337,
            epoch: 3,
            request: RequestId([7; 16]),
            payer: Address::repeat_byte(0xbb),
            paid_by: PaidBy::Authorization { nonce: [1; 32], transaction: [5; 32] },
            model: [2; 32],
            adapter: [9; 32],
            run: Run::of(r#"{"a":1}"#),
            prompt: [3; 32],
            output: [4; 32],
            prompt_tokens: 12,
            cached_tokens: 8,
            completion_tokens: 64,
            embedding_tokens: 0,
            amount: Usdc(1234),
            issued_at: 1_795_453_200,
        }
    }

    #[test]
    fn survives_json_and_names_its_signer() {
        let operator = PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap();
        let signed = receipt().sign(&operator).unwrap();
        let read = SignedReceipt::from_json(&signed.to_json()).unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.signer(), Ok(operator.address()));
        assert!(read.verify(Address::ZERO).is_err());
    }

    /// Of a call on a channel that was charged for others before.
    pub(super) fn on_channel() -> Receipt {
        Receipt { paid_by: PaidBy::Voucher { channel: [6; 32], charged: Usdc(5678) }, ..receipt() }
    }

    #[test]
    fn a_call_on_a_channel_says_what_the_channel_was_charged_with_it() {
        let operator = PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap();
        let signed = on_channel().sign(&operator).unwrap();
        let json = signed.to_json();
        assert_eq!(SignedReceipt::from_json(&json), Ok(signed));
        assert!(json.contains("\"channel_charged_uusdc\":\"5678\",") && !json.contains("nonce"), "{json}");
        // Half of it, nothing of it, or more than belongs to it.
        let channel = format!("\"channel\":\"0x{}\",", "06".repeat(32));
        let nonce = format!("\"nonce\":\"0x{}\",", "01".repeat(32));
        let transaction = format!("\"transaction\":\"0x{}\",", "05".repeat(32));
        for (from, to) in [
            (&channel[..], ""),
            ("\"channel_charged_uusdc\":\"5678\",", ""),
            (&channel, &nonce),
            ("\"issued_at\"", &format!("{nonce}{transaction}\"issued_at\"")),
        ] {
            let altered = json.replacen(from, to, 1);
            assert!(altered != json && SignedReceipt::from_json(&altered).is_err(), "{altered}");
        }
        let alone = receipt().sign(&operator).unwrap().to_json();
        assert!(!alone.contains("channel"), "{alone}");
    }

    /// What viem 2.57.20 makes of the same typed data (`hashTypedData`).
    #[test]
    fn another_implementation_signs_the_same() {
        let digests = [receipt(), on_channel()].map(|receipt| hex::encode(receipt.digest()));
        assert_eq!(
            digests,
            [
                "e94ee9995a218a759a527a96592e28b2a5ea0b397cb990f54943e05541f171ef",
                "6f7f4ce31612f5f56f18051f18495bb57e8fe3662cac9d156d7085be737d9081",
            ]
        );
    }

    #[test]
    fn no_call_is_charged_more_than_its_channel() {
        let operator = PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap();
        let charged =
            |charged| Receipt { paid_by: PaidBy::Voucher { channel: [6; 32], charged: Usdc(charged) }, ..receipt() };
        let first = charged(1234).sign(&operator).unwrap();
        assert_eq!(SignedReceipt::from_json(&first.to_json()), Ok(first.clone()));
        assert!(charged(1233).sign(&operator).is_err() && charged(1233).sign_cose(&operator).is_err());
        // Nor is it believed of an operator who did sign it.
        let signature = sign(&operator, charged(1233).digest()).unwrap();
        let said = SignedReceipt { receipt: charged(1233), signature };
        assert_eq!(said.signer(), Ok(operator.address()));
        assert!(SignedReceipt::from_json(&said.to_json()).is_err());
    }

    #[test]
    fn every_field_is_signed() {
        let mut digests = vec![receipt().digest(), on_channel().digest()];
        let voucher = |channel, charged| PaidBy::Voucher { channel: [channel; 32], charged: Usdc(charged) };
        let changes: [fn(&mut Receipt); 16] = [
            |r| r.agent = Address::ZERO,
            |r| r.chain_id += 1,
            |r| r.epoch += 1,
            |r| r.request.0[0] += 1,
            |r| r.payer = Address::ZERO,
            |r| r.model[0] += 1,
            |r| r.adapter[0] += 1,
            |r| r.run = Run::of(r#"{"a":2}"#),
            |r| r.prompt[0] += 1,
            |r| r.output[0] += 1,
            |r| r.prompt_tokens += 1,
            |r| r.cached_tokens += 1,
            |r| r.completion_tokens += 1,
            |r| r.embedding_tokens += 1,
            |r| r.amount = Usdc(1235),
            |r| r.issued_at += 1,
        ];
        for change in changes {
            let mut changed = receipt();
            change(&mut changed);
            digests.push(changed.digest());
        }
        let alone = |nonce, transaction| PaidBy::Authorization { nonce: [nonce; 32], transaction: [transaction; 32] };
        for paid_by in [alone(2, 5), alone(1, 6), voucher(7, 5678), voucher(6, 5679)] {
            digests.push(Receipt { paid_by, ..receipt() }.digest());
        }
        let count = digests.len();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }

    #[test]
    fn unknown_fields_and_versions_are_refused() {
        let operator = PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap();
        let json = receipt().sign(&operator).unwrap().to_json();
        for (from, to) in [("{", "{\"tip\":1,"), ("\"version\":5", "\"version\":4"), ("\"1234\"", "\"01234\"")] {
            assert!(SignedReceipt::from_json(&json.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
