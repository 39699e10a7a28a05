//! The same receipt as a COSE_Sign1 message, for readers that have CBOR and no EIP-712: about half the size of the JSON.
//!
//! RFC 9052 with ES256K (RFC 8812: ECDSA on secp256k1 over SHA-256); `kid` is the operator's address; payload and
//! protected header in core deterministic CBOR (RFC 8949, section 4.2.1), so that one receipt has one encoding. Crate
//! `coset` (Google, Apache-2.0) makes and reads the message; the signature is the operator key's, as in the other form.

use super::run::Run;
use super::{Error, PaidBy, Receipt, VERSION, neither, unknown};
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
/// What paid: one of the two pairs.
const NONCE: u8 = 6;
const TRANSACTION: u8 = 13;
const CHANNEL: u8 = 18;
const CHANNEL_CHARGED: u8 = 19;
/// How the answer was made: digests alone. What the second is of stands in the JSON.
const ADAPTER: u8 = 20;
const RUN: u8 = 21;
/// CBOR's tag of an unsigned integer above 64 bits.
const BIGNUM: u64 = 2;

impl Receipt {
    /// r and s of the COSE form. Deterministic (RFC 6979), low s.
    ///
    /// # Errors
    /// Of a receipt that cannot be true, or when the key does not sign.
    pub fn sign_cose(&self, operator: &PrivateKeySigner) -> Result<[u8; 64], Error> {
        self.check()?;
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
    let mut fields = vec![
        (0, Value::from(VERSION)),
        (1, Value::Bytes(receipt.agent.to_vec())),
        (2, Value::from(receipt.chain_id)),
        (3, Value::from(receipt.epoch)),
        (4, Value::Bytes(receipt.request.0.to_vec())),
        (5, Value::Bytes(receipt.payer.to_vec())),
        (7, Value::Bytes(receipt.model.to_vec())),
        (8, Value::Bytes(receipt.prompt.to_vec())),
        (9, Value::Bytes(receipt.output.to_vec())),
        (10, Value::from(receipt.prompt_tokens)),
        (11, Value::from(receipt.completion_tokens)),
        (12, integer(receipt.amount.micro())),
        (14, Value::from(receipt.issued_at)),
        (15, Value::from(receipt.cached_tokens)),
        (17, Value::from(receipt.embedding_tokens)),
        (ADAPTER, Value::Bytes(receipt.adapter.to_vec())),
        (RUN, Value::Bytes(receipt.run.digest().to_vec())),
    ];
    fields.extend(match &receipt.paid_by {
        PaidBy::Authorization { nonce, transaction } => {
            [(NONCE, Value::Bytes(nonce.to_vec())), (TRANSACTION, Value::Bytes(transaction.to_vec()))]
        }
        PaidBy::Voucher { channel, charged } => {
            [(CHANNEL, Value::Bytes(channel.to_vec())), (CHANNEL_CHARGED, integer(charged.micro()))]
        }
    });
    fields.sort_by_key(|(key, _)| *key);
    let map = Value::Map(fields.into_iter().map(|(key, value)| (Value::from(key), value)).collect());
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
    let version = number(0, "version")?;
    if version != u128::from(VERSION) {
        return Err(unknown(version));
    }
    let has = |wanted: u8| fields.iter().any(|(key, _)| *key == Value::from(wanted));
    let paid_by = match [NONCE, TRANSACTION, CHANNEL, CHANNEL_CHARGED].map(has) {
        [true, true, false, false] => {
            PaidBy::Authorization { nonce: hash(NONCE, "nonce")?, transaction: hash(TRANSACTION, "transaction")? }
        }
        [false, false, true, true] => {
            let charged = Usdc(number(CHANNEL_CHARGED, "channel_charged")?);
            PaidBy::Voucher { channel: hash(CHANNEL, "channel")?, charged }
        }
        _ => return Err(neither()),
    };
    let receipt = Receipt {
        agent: bytes_of("agent", field(1, "agent")?).map(Address::from)?,
        chain_id: long(2, "chain_id")?,
        epoch: long(3, "epoch")?,
        request: bytes_of("request", field(4, "request")?).map(RequestId)?,
        payer: bytes_of("payer", field(5, "payer")?).map(Address::from)?,
        paid_by,
        model: hash(7, "model")?,
        adapter: hash(ADAPTER, "adapter")?,
        run: Run::digest_of(hash(RUN, "run")?),
        prompt: hash(8, "prompt")?,
        output: hash(9, "output")?,
        prompt_tokens: short(10, "prompt_tokens")?,
        completion_tokens: short(11, "completion_tokens")?,
        amount: Usdc(number(12, "amount")?),
        issued_at: long(14, "issued_at")?,
        cached_tokens: short(15, "cached_tokens")?,
        embedding_tokens: short(17, "embedding_tokens")?,
    };
    receipt.check()?;
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
    use super::super::tests::{on_channel, receipt};
    use super::*;
    use alloy::primitives::keccak256;

    /// The receipts of the tests, signed by PyPI `cwt` 3.3.0 with its own encoder.
    const BY_CWT: [&str; 2] = [
        "d2845842a301382e0378256170706c69636174696f6e2f766e642e766976617269756d2e726563656970742b63626f720454bc32b0fcdb9b55f5ece07ba7f8059ba42d331f4ca059014fb300050154aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa02197a6903030450070707070707070707070707070707070554bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb06582001010101010101010101010101010101010101010101010101010101010101010758200202020202020202020202020202020202020202020202020202020202020202085820030303030303030303030303030303030303030303030303030303030303030309582004040404040404040404040404040404040404040404040404040404040404040a0c0b18400c1904d20d582005050505050505050505050505050505050505050505050505050505050505050e1a6b0471100f0811001458200909090909090909090909090909090909090909090909090909090909090909155820015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862584013109c20f3bdb1c4e9b60d2fb66f6c684b1c3a0b13830674af67a4215575390262a85badbf1383ef73ac112b68b16203a5dacf8af4082f591a50fbfea922b656",
        "d2845842a301382e0378256170706c69636174696f6e2f766e642e766976617269756d2e726563656970742b63626f720454bc32b0fcdb9b55f5ece07ba7f8059ba42d331f4ca0590130b300050154aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa02197a6903030450070707070707070707070707070707070554bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb0758200202020202020202020202020202020202020202020202020202020202020202085820030303030303030303030303030303030303030303030303030303030303030309582004040404040404040404040404040404040404040404040404040404040404040a0c0b18400c1904d20e1a6b0471100f08110012582006060606060606060606060606060606060606060606060606060606060606061319162e1458200909090909090909090909090909090909090909090909090909090909090909155820015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862584047ab6e5cebf9c3e6c43fd09b5c4201ce69768dc4e4168c1d649f1974ac00d0835e50cd23fe5f730e7844b9f7d89bef39ab6a613c47a4d1bea6f2ae3a5aed6463",
    ];

    fn operator() -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&keccak256(b"operator")).unwrap()
    }

    fn made(receipt: Receipt) -> CoseReceipt {
        let signature = receipt.sign_cose(&operator()).unwrap();
        CoseReceipt { receipt, operator: operator().address(), signature }
    }

    fn ours() -> CoseReceipt {
        made(receipt())
    }

    #[test]
    fn another_implementations_messages_are_read_and_ours_differ_only_in_the_signature() {
        // `cwt` 3.3.0 takes these bytes (seen on 2026-11-29).
        let signatures = [
            expect_test::expect![
                "1c40568b894c72a902fd778008148007ddfe2b0c03019dd8c4d5fab66fd6caaf734558e79e58018024f2f5b2c7cc417c907677402a969c67eadd4e499a322cc4"
            ],
            expect_test::expect![
                "0efa1b08aefd49477abb2b720a0d941b999cc64cedfabb97a7bf030eef8d339009cfedfb6da2c63c9b174a442b68801bd71a04576a14be5b7bcbdf4885c1d0e8"
            ],
        ];
        for ((theirs, receipt), signature) in BY_CWT.iter().zip([receipt(), on_channel()]).zip(signatures) {
            let theirs = hex::decode(theirs).unwrap();
            let read = CoseReceipt::from_bytes(&theirs).unwrap();
            assert_eq!((&read.receipt, read.operator), (&receipt, operator().address()));
            let ours = made(receipt).to_bytes();
            let signed = theirs.len() - 64;
            assert_eq!(theirs[..signed], ours[..signed]);
            signature.assert_eq(&hex::encode(&ours[signed..]));
        }
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
    fn a_call_on_a_channel_names_that_and_no_nonce() {
        let message = made(on_channel());
        let bytes = message.to_bytes();
        assert_eq!(CoseReceipt::from_bytes(&bytes), Ok(message));
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(CoseReceipt::from_bytes(&altered).is_err(), "byte {at}");
        }
        // Its operator's own lie is no receipt either.
        let lie = Receipt { amount: Usdc(5679), ..on_channel() };
        let unsigned = super::message(&lie, operator().address(), Vec::new());
        let digest = B256::from_slice(&Sha256::digest(unsigned.tbs_data(&[])));
        let mut signature = [0; 64];
        signature.copy_from_slice(&operator().sign_hash_sync(&digest).unwrap().as_bytes()[..64]);
        let told = CoseReceipt { receipt: lie, operator: operator().address(), signature };
        assert_eq!(told.check(), Ok(()));
        assert!(CoseReceipt::from_bytes(&told.to_bytes()).is_err());
    }

    #[test]
    fn amounts_above_64_bits_are_bignums() {
        for micro in [0, u128::from(u64::MAX), u128::from(u64::MAX) + 1, u128::MAX] {
            let paid_by = PaidBy::Voucher { channel: [6; 32], charged: Usdc(u128::MAX) };
            let receipt = Receipt { amount: Usdc(micro), paid_by, ..receipt() };
            let message = made(receipt);
            assert_eq!(CoseReceipt::from_bytes(&message.to_bytes()), Ok(message));
        }
    }
}
