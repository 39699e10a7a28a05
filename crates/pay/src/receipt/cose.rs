//! The same receipt as a COSE_Sign1 message, for readers that have CBOR and no EIP-712: about half the size of the JSON.
//!
//! RFC 9052 with ES256K (RFC 8812: ECDSA on secp256k1 over SHA-256); `kid` is the operator's address; payload and
//! protected header in core deterministic CBOR (RFC 8949, section 4.2.1), so that one receipt has one encoding. Crate
//! `coset` (Google, Apache-2.0) makes and reads the message; the signature is the operator key's, as in the other form.

use super::{Error, Receipt};
use crate::scheme::exact::Hash;
use crate::{RequestId, Usdc};
use alloy::consensus::crypto::secp256k1::recover_signer;
use alloy::primitives::{Address, B256, Signature};
use alloy::signers::{SignerSync, local::PrivateKeySigner};
use coset::cbor::Value;
use coset::{ContentType, CoseSign1, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable, iana};
use sha2::{Digest, Sha256};

/// For `Content-Type`; `application/cose` alone asks for it.
pub const MEDIA_TYPE: &str = "application/cose; cose-type=\"cose-sign1\"";
/// Of the payload; in the protected header, so that a signature for another purpose is never one of a receipt.
const CONTENT: &str = "application/vnd.vivarium.receipt+cbor";
/// Longest message read, bytes: three times the longest there is.
const BYTES_MAX: usize = 1_024;
/// The one field that a receipt need not have.
const EMBEDDING_TOKENS: u8 = 17;
/// CBOR's tag of an unsigned integer above 64 bits.
const BIGNUM: u64 = 2;

impl Receipt {
    /// r and s of the COSE form. Deterministic (RFC 6979), low s.
    pub fn sign_cose(&self, operator: &PrivateKeySigner) -> Result<[u8; 64], Error> {
        let message = message(self, operator.address(), Vec::new());
        let digest = B256::from_slice(&Sha256::digest(message.tbs_data(&[])));
        let signature = operator.sign_hash_sync(&digest).map_err(|e| Error(format!("cannot sign: {e}")))?;
        let mut rs = [0; 64];
        rs.copy_from_slice(&signature.as_bytes()[..64]);
        Ok(rs)
    }
}

/// A receipt, who signed it, and the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoseReceipt {
    pub receipt: Receipt,
    /// `kid`: to be compared with the agent's operator in `receipt.epoch`.
    pub operator: Address,
    /// r, s with low s.
    pub signature: [u8; 64],
}

impl CoseReceipt {
    /// The tagged message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let message = message(&self.receipt, self.operator, self.signature.to_vec());
        message.to_tagged_vec().expect("encoding into memory does not fail")
    }

    /// Reads a message whose signature holds under its own `kid`. Works off line.
    ///
    /// Only the one encoding of a receipt is taken: anything more in it would not be signed, or not be read.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > BYTES_MAX {
            return Err(Error(format!("a receipt has at most {BYTES_MAX} bytes")));
        }
        let message =
            CoseSign1::from_tagged_slice(bytes).map_err(|e| Error(format!("not a COSE_Sign1 message: {e}")))?;
        let header = &message.protected.header;
        if header.content_type != Some(ContentType::Text(CONTENT.to_owned())) {
            return Err(Error(format!("not a receipt: its content type is not {CONTENT}")));
        }
        let operator = fixed("kid", &header.key_id).map(Address::from)?;
        let payload = message.payload.as_deref().ok_or_else(|| Error("the receipt is not in the message".into()))?;
        let read = Self { receipt: read(payload)?, operator, signature: fixed("signature", &message.signature)? };
        if read.to_bytes() != bytes {
            return Err(Error("not the deterministic encoding of a receipt".into()));
        }
        read.check()?;
        Ok(read)
    }

    /// Fails unless `operator` signed exactly this receipt.
    pub fn verify(&self, operator: Address) -> Result<(), Error> {
        self.check()?;
        if self.operator == operator {
            return Ok(());
        }
        Err(Error(format!("signed by {}, not by the operator {operator}", self.operator)))
    }

    /// COSE carries no recovery bit: one of the two keys that may have made the signature has to be `kid`'s.
    fn check(&self) -> Result<(), Error> {
        let message = message(&self.receipt, self.operator, Vec::new());
        let digest = B256::from_slice(&Sha256::digest(message.tbs_data(&[])));
        let signers = [false, true]
            .map(|parity| recover_signer(&Signature::from_bytes_and_parity(&self.signature, parity), digest).ok());
        if signers.contains(&Some(self.operator)) {
            return Ok(());
        }
        Err(Error(format!("not signed by {}, or altered after signing", self.operator)))
    }
}

fn message(receipt: &Receipt, operator: Address, signature: Vec<u8>) -> CoseSign1 {
    let protected = HeaderBuilder::new()
        .algorithm(iana::Algorithm::ES256K)
        .content_type(CONTENT.to_owned())
        .key_id(operator.to_vec())
        .build();
    CoseSign1Builder::new().protected(protected).payload(payload(receipt)).signature(signature).build()
}

/// A map from small integers, in ascending order: the deterministic one.
fn payload(receipt: &Receipt) -> Vec<u8> {
    let fields = [
        Value::from(receipt.version()),
        Value::Bytes(receipt.agent.to_vec()),
        Value::from(receipt.chain_id),
        Value::from(receipt.epoch),
        Value::Bytes(receipt.request.0.to_vec()),
        Value::Bytes(receipt.payer.to_vec()),
        Value::Bytes(receipt.nonce.to_vec()),
        Value::Bytes(receipt.model.to_vec()),
        Value::Bytes(receipt.prompt.to_vec()),
        Value::Bytes(receipt.output.to_vec()),
        Value::from(receipt.prompt_tokens),
        Value::from(receipt.completion_tokens),
        integer(receipt.amount.micro()),
        Value::Bytes(receipt.transaction.to_vec()),
        Value::from(receipt.issued_at),
        Value::from(receipt.cached_tokens),
    ];
    let mut map: Vec<(Value, Value)> = (0u8..).map(Value::from).zip(fields).collect();
    if receipt.embedding_tokens != 0 {
        map.push((Value::from(EMBEDDING_TOKENS), Value::from(receipt.embedding_tokens)));
    }
    let map = Value::Map(map);
    let mut bytes = Vec::new();
    coset::cbor::into_writer(&map, &mut bytes).expect("encoding into memory does not fail");
    bytes
}

fn integer(value: u128) -> Value {
    match u64::try_from(value) {
        Ok(small) => Value::from(small),
        Err(_) => {
            let bytes = value.to_be_bytes();
            let first = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
            Value::Tag(BIGNUM, Box::new(Value::Bytes(bytes[first..].to_vec())))
        }
    }
}

fn read(payload: &[u8]) -> Result<Receipt, Error> {
    let map: Value = coset::cbor::from_reader(payload).map_err(|e| Error(format!("not a receipt: {e}")))?;
    let Value::Map(fields) = map else { return Err(Error("not a receipt: the payload is not a map".into())) };
    let field = |key: u8, name: &str| {
        let found = fields.iter().find(|(k, _)| *k == Value::from(key)).map(|(_, value)| value);
        found.ok_or_else(|| Error(format!("`{name}` is missing")))
    };
    let hash = |key, name| -> Result<Hash, Error> { bytes_of(name, field(key, name)?) };
    let number = |key, name| number_of(name, field(key, name)?);
    let short = |key, name| -> Result<u32, Error> {
        number(key, name)?.try_into().map_err(|_| Error(format!("`{name}` is too large")))
    };
    let long = |key, name| -> Result<u64, Error> {
        number(key, name)?.try_into().map_err(|_| Error(format!("`{name}` is too large")))
    };
    let has_vectors = fields.iter().any(|(key, _)| *key == Value::from(EMBEDDING_TOKENS));
    let embedding_tokens = if has_vectors { short(EMBEDDING_TOKENS, "embedding_tokens")? } else { 0 };
    let receipt = Receipt {
        agent: bytes_of("agent", field(1, "agent")?).map(Address::from)?,
        chain_id: long(2, "chain_id")?,
        epoch: long(3, "epoch")?,
        request: bytes_of("request", field(4, "request")?).map(RequestId)?,
        payer: bytes_of("payer", field(5, "payer")?).map(Address::from)?,
        nonce: hash(6, "nonce")?,
        model: hash(7, "model")?,
        prompt: hash(8, "prompt")?,
        output: hash(9, "output")?,
        prompt_tokens: short(10, "prompt_tokens")?,
        completion_tokens: short(11, "completion_tokens")?,
        amount: Usdc(number(12, "amount")?),
        transaction: hash(13, "transaction")?,
        issued_at: long(14, "issued_at")?,
        cached_tokens: short(15, "cached_tokens")?,
        embedding_tokens,
    };
    receipt.is_of_version(number(0, "version")?)?;
    Ok(receipt)
}

fn number_of(name: &str, value: &Value) -> Result<u128, Error> {
    let wrong = || Error(format!("`{name}` is not an unsigned integer"));
    match value {
        Value::Integer(integer) => u128::try_from(*integer).map_err(|_| wrong()),
        Value::Tag(BIGNUM, bytes) => {
            let bytes = bytes.as_bytes().filter(|b| b.len() <= 16).ok_or_else(wrong)?;
            Ok(bytes.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte)))
        }
        _ => Err(wrong()),
    }
}

fn bytes_of<const N: usize>(name: &str, value: &Value) -> Result<[u8; N], Error> {
    fixed(name, value.as_bytes().ok_or_else(|| Error(format!("`{name}` is not bytes")))?)
}

fn fixed<const N: usize>(name: &str, bytes: &[u8]) -> Result<[u8; N], Error> {
    bytes.try_into().map_err(|_| Error(format!("`{name}` has {} bytes, not {N}", bytes.len())))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{embedded, receipt};
    use super::*;
    use alloy::primitives::keccak256;

    /// The receipt of the tests, signed by PyPI `cwt` 3.3.0 with its own encoder.
    const BY_CWT: &str = "d2845842a301382e0378256170706c69636174696f6e2f766e642e766976617269756d2e726563656970742b63626f720454bc32b0fcdb9b55f5ece07ba7f8059ba42d331f4ca0590107b000020154aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa02197a6903030450070707070707070707070707070707070554bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb06582001010101010101010101010101010101010101010101010101010101010101010758200202020202020202020202020202020202020202020202020202020202020202085820030303030303030303030303030303030303030303030303030303030303030309582004040404040404040404040404040404040404040404040404040404040404040a0c0b18400c1904d20d582005050505050505050505050505050505050505050505050505050505050505050e1a6b0471100f0858403f98409da9e772a331380674247398cfab2f3e127bc7121efda1ec5869560f7b5c7da4840f51948b1161a888eac16601d27bbc9935acb776a1f30848ca5dac53";

    fn operator() -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap()
    }

    fn ours() -> CoseReceipt {
        let signature = receipt().sign_cose(&operator()).unwrap();
        CoseReceipt { receipt: receipt(), operator: operator().address(), signature }
    }

    #[test]
    fn another_implementations_message_is_read_and_ours_differs_only_in_the_signature() {
        let theirs = CoseReceipt::from_bytes(&hex::decode(BY_CWT).unwrap()).unwrap();
        assert_eq!((&theirs.receipt, theirs.operator), (&receipt(), operator().address()));
        let (theirs, ours) = (hex::decode(BY_CWT).unwrap(), ours().to_bytes());
        let signed = theirs.len() - 64;
        assert_eq!(theirs[..signed], ours[..signed]);
        // `cwt` 3.3.0 takes these bytes (seen on 2026-11-28).
        expect_test::expect!["9196780e9b93103ca2ccfdc1e95abb8bb9b73bf9ae2325be54f232393f83e10e54335213604c5f9ec91187a675d6ceddd5e3ad2ab564c8088ef4048007683980"]
            .assert_eq(&hex::encode(&ours[signed..]));
    }

    #[test]
    fn every_byte_is_signed_and_there_is_one_encoding() {
        let bytes = ours().to_bytes();
        assert_eq!(CoseReceipt::from_bytes(&bytes).unwrap(), ours());
        for at in 0..bytes.len() {
            for flip in [1, 0x80] {
                let mut altered = bytes.clone();
                altered[at] ^= flip;
                assert!(CoseReceipt::from_bytes(&altered).is_err(), "byte {at}");
            }
        }
        assert!(CoseReceipt::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err(), "something behind it");
        assert!(ours().verify(Address::ZERO).is_err());
        assert_eq!(ours().verify(operator().address()), Ok(()));
    }

    #[test]
    fn tokens_of_vectors_are_the_one_field_more() {
        let made = |receipt: Receipt| {
            let signature = receipt.sign_cose(&operator()).unwrap();
            CoseReceipt { receipt, operator: operator().address(), signature }
        };
        let message = made(embedded());
        let bytes = message.to_bytes();
        assert_eq!(CoseReceipt::from_bytes(&bytes), Ok(message));
        // Key 17 takes one byte, 24 two; everything else is as long as it was.
        let answer = made(Receipt { embedding_tokens: 0, ..embedded() }).to_bytes();
        assert_eq!(bytes.len(), answer.len() + 3);
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(CoseReceipt::from_bytes(&altered).is_err(), "byte {at}");
        }
    }

    #[test]
    fn amounts_above_64_bits_are_bignums() {
        for micro in [0, u128::from(u64::MAX), u128::from(u64::MAX) + 1, u128::MAX] {
            let receipt = Receipt { amount: Usdc(micro), ..receipt() };
            let signature = receipt.sign_cose(&operator()).unwrap();
            let message = CoseReceipt { receipt, operator: operator().address(), signature };
            assert_eq!(CoseReceipt::from_bytes(&message.to_bytes()), Ok(message));
        }
    }
}
