//! Receipts: what was asked, answered and paid, signed by the operator key.
//!
//! EIP-712, so that a wallet can show and a contract can check it. The domain names the agent (its treasury) and the
//! chain; `epoch` says whose key signed: look the operator of that epoch up on chain, or trust the one you know.
//! [`cose`] is the same document for readers of CBOR; [`tree`] puts receipts under the roots that heartbeats carry;
//! [`refund`] says what goes back, and why.

pub mod cose;
pub mod refund;
pub mod tree;

use crate::scheme::exact::Hash;
use crate::{RequestId, Usdc, wire};
use alloy::consensus::crypto::secp256k1::recover_signer;
use alloy::primitives::{Address, B256, FixedBytes, Signature};
use alloy::signers::{SignerSync, local::PrivateKeySigner};
use alloy::sol_types::{Eip712Domain, SolStruct, eip712_domain};
use serde::{Deserialize, Serialize};
use std::fmt;

mod signed {
    /// Of texts that became vectors: the same fields, and their tokens.
    pub mod embedding {
        alloy::sol! {
            struct Receipt {
                bytes16 request;
                uint64 epoch;
                address payer;
                bytes32 nonce;
                bytes32 model;
                bytes32 prompt;
                bytes32 output;
                uint32 promptTokens;
                uint32 cachedTokens;
                uint32 completionTokens;
                uint128 amount;
                bytes32 transactionHash;
                uint64 issuedAt;
                uint32 embeddingTokens;
            }
        }
    }
    alloy::sol! {
        /// The signed struct. Its fields are the receipt's, in EIP-712 types.
        struct Receipt {
            bytes16 request;
            uint64 epoch;
            address payer;
            bytes32 nonce;
            bytes32 model;
            bytes32 prompt;
            bytes32 output;
            uint32 promptTokens;
            uint32 cachedTokens;
            uint32 completionTokens;
            uint128 amount;
            bytes32 transactionHash;
            uint64 issuedAt;
        }
    }
}

/// One answered and paid request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The treasury.
    pub agent: Address,
    pub chain_id: u64,
    pub epoch: u64,
    pub request: RequestId,
    pub payer: Address,
    /// Nonce of the authorisation that paid.
    pub nonce: Hash,
    /// sha2-256 digest in the model's CID.
    pub model: Hash,
    /// sha2-256 of the request's body.
    pub prompt: Hash,
    /// sha2-256 of the output; zero when a crash lost it.
    pub output: Hash,
    pub prompt_tokens: u32,
    /// Of the prompt's: not computed for this request, and cheaper. Zero when a crash lost the count; the amount knows it.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    /// Of texts that became vectors; then `model` made them, `output` is the digest of their numbers (32 bits each, little
    /// endian), and no other class has tokens. Not zero: a receipt of version 3; the others stay what they were.
    pub embedding_tokens: u32,
    /// Micro-USDC charged.
    pub amount: Usdc,
    /// The settlement.
    pub transaction: Hash,
    /// Chain seconds.
    pub issued_at: u64,
}

impl Receipt {
    /// What the operator signs.
    pub fn digest(&self) -> B256 {
        let message = signed::Receipt {
            request: FixedBytes(self.request.0),
            epoch: self.epoch,
            payer: self.payer,
            nonce: B256::from(self.nonce),
            model: B256::from(self.model),
            prompt: B256::from(self.prompt),
            output: B256::from(self.output),
            promptTokens: self.prompt_tokens,
            cachedTokens: self.cached_tokens,
            completionTokens: self.completion_tokens,
            amount: self.amount.micro(),
            transactionHash: B256::from(self.transaction),
            issuedAt: self.issued_at,
        };
        if self.embedding_tokens == 0 {
            return message.eip712_signing_hash(&self.domain());
        }
        let message = signed::embedding::Receipt {
            request: message.request,
            epoch: message.epoch,
            payer: message.payer,
            nonce: message.nonce,
            model: message.model,
            prompt: message.prompt,
            output: message.output,
            promptTokens: message.promptTokens,
            cachedTokens: message.cachedTokens,
            completionTokens: message.completionTokens,
            amount: message.amount,
            transactionHash: message.transactionHash,
            issuedAt: message.issuedAt,
            embeddingTokens: self.embedding_tokens,
        };
        message.eip712_signing_hash(&self.domain())
    }

    /// Of all its forms. Each receipt has one: 3 where texts became vectors, else 2.
    pub fn version(&self) -> u32 {
        if self.embedding_tokens == 0 { 2 } else { 3 }
    }

    fn is_of_version(&self, named: u128) -> Result<(), Error> {
        match named == u128::from(self.version()) {
            true => Ok(()),
            false => Err(Error(format!("receipt version {named}; 2 is known, and 3 with embedding tokens alone"))),
        }
    }

    /// The receipt's leaf under the roots on chain.
    pub fn leaf(&self) -> Hash {
        tree::leaf(self.digest(), self.amount)
    }

    fn domain(&self) -> Eip712Domain {
        eip712_domain! {
            name: "Vivarium Receipt",
            version: self.version().to_string(),
            chain_id: self.chain_id,
            verifying_contract: self.agent,
        }
    }

    pub fn sign(self, operator: &PrivateKeySigner) -> Result<SignedReceipt, Error> {
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
        let json = Json {
            version: receipt.version(),
            agent: receipt.agent.to_string(),
            chain_id: receipt.chain_id,
            epoch: receipt.epoch,
            request: receipt.request.to_string(),
            payer: receipt.payer.to_string(),
            nonce: hex32(&receipt.nonce),
            model_sha256: hex32(&receipt.model),
            prompt_sha256: hex32(&receipt.prompt),
            output_sha256: hex32(&receipt.output),
            prompt_tokens: receipt.prompt_tokens,
            cached_tokens: receipt.cached_tokens,
            completion_tokens: receipt.completion_tokens,
            embedding_tokens: receipt.embedding_tokens,
            amount_uusdc: receipt.amount.micro().to_string(),
            transaction: hex32(&receipt.transaction),
            issued_at: receipt.issued_at,
            signature: format!("0x{}", hex::encode(self.signature)),
        };
        // Texts and integers always print.
        serde_json::to_string(&json).expect("plain fields are JSON")
    }

    /// Reads what [`to_json`](Self::to_json) wrote; unknown fields are refused because they are not signed.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let json: Json = serde_json::from_str(text).map_err(|e| Error(format!("not a receipt: {e}")))?;
        let address = |text: &str| wire::address(text).map_err(|e| Error(e.message));
        let receipt = Receipt {
            agent: address(&json.agent)?,
            chain_id: json.chain_id,
            epoch: json.epoch,
            request: json.request.parse().map_err(|e| Error(format!("request: {e}")))?,
            payer: address(&json.payer)?,
            nonce: bytes("nonce", &json.nonce)?,
            model: bytes("model_sha256", &json.model_sha256)?,
            prompt: bytes("prompt_sha256", &json.prompt_sha256)?,
            output: bytes("output_sha256", &json.output_sha256)?,
            prompt_tokens: json.prompt_tokens,
            cached_tokens: json.cached_tokens,
            completion_tokens: json.completion_tokens,
            embedding_tokens: json.embedding_tokens,
            amount: wire::amount(&json.amount_uusdc).map_err(|e| Error(e.message))?,
            transaction: bytes("transaction", &json.transaction)?,
            issued_at: json.issued_at,
        };
        receipt.is_of_version(json.version.into())?;
        Ok(Self { receipt, signature: bytes("signature", &json.signature)? })
    }
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
    nonce: String,
    model_sha256: String,
    prompt_sha256: String,
    output_sha256: String,
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    embedding_tokens: u32,
    amount_uusdc: String,
    transaction: String,
    issued_at: u64,
    signature: String,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
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
            nonce: [1; 32],
            model: [2; 32],
            prompt: [3; 32],
            output: [4; 32],
            prompt_tokens: 12,
            cached_tokens: 8,
            completion_tokens: 64,
            embedding_tokens: 0,
            amount: Usdc(1234),
            transaction: [5; 32],
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

    /// Of texts that became vectors.
    pub(super) fn embedded() -> Receipt {
        Receipt { prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0, embedding_tokens: 24, ..receipt() }
    }

    #[test]
    fn vectors_have_a_version_of_their_own() {
        let operator = PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap();
        let signed = embedded().sign(&operator).unwrap();
        let json = signed.to_json();
        assert_eq!(SignedReceipt::from_json(&json), Ok(signed.clone()));
        assert_eq!(signed.verify(operator.address()), Ok(()));
        assert!(json.contains("\"version\":3,") && json.contains("\"embedding_tokens\":24,"), "{json}");
        assert!(!receipt().sign(&operator).unwrap().to_json().contains("embedding"));
        // Neither passes for the other: the tokens cannot be taken out or put in.
        for (from, to) in [
            ("\"version\":3", "\"version\":2"),
            ("\"embedding_tokens\":24,", ""),
            ("\"embedding_tokens\":24,", "\"embedding_tokens\":0,"),
        ] {
            assert!(SignedReceipt::from_json(&json.replacen(from, to, 1)).is_err(), "{to}");
        }
        let as_answer = json.replacen("\"embedding_tokens\":24,", "", 1).replacen("\"version\":3", "\"version\":2", 1);
        assert!(SignedReceipt::from_json(&as_answer).unwrap().verify(operator.address()).is_err());
    }

    #[test]
    fn every_field_is_signed() {
        let mut digests = vec![receipt().digest()];
        let changes: [fn(&mut Receipt); 17] = [
            |r| r.agent = Address::ZERO,
            |r| r.chain_id += 1,
            |r| r.epoch += 1,
            |r| r.request.0[0] += 1,
            |r| r.payer = Address::ZERO,
            |r| r.nonce[0] += 1,
            |r| r.model[0] += 1,
            |r| r.prompt[0] += 1,
            |r| r.output[0] += 1,
            |r| r.prompt_tokens += 1,
            |r| r.cached_tokens += 1,
            |r| r.completion_tokens += 1,
            |r| r.embedding_tokens += 1,
            |r| r.embedding_tokens += 2,
            |r| r.amount = Usdc(1235),
            |r| r.transaction[0] += 1,
            |r| r.issued_at += 1,
        ];
        for change in changes {
            let mut changed = receipt();
            change(&mut changed);
            digests.push(changed.digest());
        }
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 18);
    }

    #[test]
    fn unknown_fields_and_versions_are_refused() {
        let operator = PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap();
        let json = receipt().sign(&operator).unwrap().to_json();
        for (from, to) in [("{", "{\"tip\":1,"), ("\"version\":2", "\"version\":1"), ("\"1234\"", "\"01234\"")] {
            assert!(SignedReceipt::from_json(&json.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
