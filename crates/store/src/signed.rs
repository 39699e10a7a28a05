//! How this crate's JSON objects are signed and checked.
//!
//! The object's canonical JSON (fixed order of fields, no spaces) with an empty `signature` is hashed behind a
//! line that names its kind, so that no object can pass for another; the digest is signed as a personal message
//! (EIP-191), so that it can never be a transaction or an order (EIP-712).

use crate::error::{Error, Result};
use alloy::primitives::{Address, B256, Signature, keccak256};
use alloy::signers::{SignerSync, local::PrivateKeySigner};
use serde::Serialize;

/// The digest of `kind` (such as `checkpoint v1`) and `unsigned`.
fn digest(kind: &str, unsigned: &impl Serialize) -> B256 {
    let mut text = format!("vivarium {kind}\n").into_bytes();
    text.extend_from_slice(&json(unsigned));
    keccak256(&text)
}

/// Canonical JSON.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs with text keys are always JSON")
}

/// 65 bytes as `0x` and lower-case hex.
pub(crate) fn sign(kind: &str, unsigned: &impl Serialize, key: &PrivateKeySigner) -> Result<String> {
    let signature = key
        .sign_message_sync(digest(kind, unsigned).as_slice())
        .map_err(|e| Error::bug(format!("the {kind} cannot be signed")).caused_by(e))?;
    Ok(format!("0x{}", hex::encode(signature.as_bytes())))
}

/// Who signed, or `None` for anything but the one canonical form of a signature: 0x, lower case, low s, v 27 or 28.
pub(crate) fn signer(kind: &str, unsigned: &impl Serialize, signature: &str) -> Option<Address> {
    let bytes = hex::decode(signature.strip_prefix("0x")?).ok()?;
    let parsed = Signature::from_raw(&bytes).ok()?;
    let canonical = format!("0x{}", hex::encode(parsed.as_bytes())) == signature && parsed.normalize_s().is_none();
    if !canonical {
        return None;
    }
    parsed.recover_address_from_msg(digest(kind, unsigned).as_slice()).ok()
}

/// Parses `bytes` and refuses any but the canonical form: one object, one digest, one CID.
pub(crate) fn parse<T: Serialize + serde::de::DeserializeOwned>(kind: &str, bytes: &[u8]) -> Result<T> {
    let value: T = serde_json::from_slice(bytes).map_err(|e| Error::corrupt(format!("not a {kind}")).caused_by(e))?;
    if json(&value) != bytes {
        return Err(Error::corrupt(format!("a {kind} in another form than the canonical one")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_over_one_kind_is_none_over_another() {
        let key = PrivateKeySigner::random();
        let signature = sign("checkpoint v1", &7, &key).unwrap();
        assert_eq!(signer("checkpoint v1", &7, &signature), Some(key.address()));
        assert_ne!(signer("segment v1", &7, &signature), Some(key.address()));
        assert_ne!(signer("checkpoint v1", &8, &signature), Some(key.address()));
    }
}
