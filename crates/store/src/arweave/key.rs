use super::{TxId, decode, encode};
use crate::cid::sha256;
use crate::error::{Error, Result};
use rsa::pss::{Signature, VerifyingKey};
use rsa::sha2::Sha256;
use rsa::signature::Verifier;
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, PrivateKey, PublicKey};
use serde::Deserialize;
use std::fmt;
use zeroize::Zeroizing;

/// Signatures and public keys have this length: keys of 4096 bits are the only ones that every part of Arweave takes.
pub(super) const KEY_BYTES: usize = 512;
/// The only public exponent in use.
const EXPONENT: u64 = 65_537;
const KEY_FILE_BYTES_MAX: usize = 16 << 10;

/// An RSA key of 4096 bits that pays for storage. Whoever has it spends its balance, and nothing else.
pub struct Key {
    private: PrivateKey,
    owner: Vec<u8>,
}

/// A key file as Arweave wallets write it (JWK), not copied. Other fields are there and of no use.
#[derive(Deserialize)]
struct Jwk<'a> {
    kty: &'a str,
    n: &'a str,
    e: &'a str,
    d: &'a str,
    p: &'a str,
    q: &'a str,
}

impl Key {
    /// Reads a key file (JWK of an RSA key of 4096 bits). `Key` if it is none, or its parts do not belong together.
    pub fn from_jwk(json: &[u8]) -> Result<Self> {
        if json.len() > KEY_FILE_BYTES_MAX {
            return Err(Error::key("a key file of over 16 KiB is none"));
        }
        // The parser's words could quote the file.
        let jwk: Jwk<'_> = serde_json::from_slice(json).map_err(|_| Error::key("not a JWK of an RSA key"))?;
        if jwk.kty != "RSA" {
            return Err(Error::key("a key of another kind than RSA"));
        }
        let number = |name: &str, text: &str| {
            let bytes = decode(text).map(Zeroizing::new);
            let bytes = bytes.filter(|bytes| bytes.len() <= KEY_BYTES);
            let bytes = bytes.ok_or_else(|| Error::key(format!("`{name}` of the key is no base64url number")))?;
            Ok(BoxedUint::from_be_slice_vartime(&bytes))
        };
        let (n, e, d) = (number("n", jwk.n)?, number("e", jwk.e)?, number("d", jwk.d)?);
        let primes = vec![number("p", jwk.p)?, number("q", jwk.q)?];
        let private = PrivateKey::from_components(n, e, d, primes)
            .map_err(|e| Error::key("the parts of the key do not belong together").caused_by(e))?;
        let owner = private.n_bytes().to_vec();
        if owner.len() != KEY_BYTES {
            return Err(Error::key(format!("a key of {} bits; Arweave's have 4096", owner.len() * 8)));
        }
        Ok(Self { private, owner })
    }

    /// The public key as it stands in transactions: the modulus, 512 bytes.
    pub fn owner(&self) -> &[u8] {
        &self.owner
    }

    /// Where its balance is: SHA-256 of the public key, base64url.
    pub fn address(&self) -> String {
        encode(&sha256(&self.owner))
    }

    /// RSA-PSS with SHA-256 and a random salt of 32 bytes, blinded: the same message is never signed the same way,
    /// so an id is known only after signing.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.private
            .pss_sign_with_rng::<Sha256, _>(&mut rand::rng(), message)
            .map_err(|e| Error::bug("an RSA key cannot sign").caused_by(e))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.address())
    }
}

/// Whether `owner` signed `message`, with a salt of any length: wallets differ in it.
pub(super) fn verify(owner: &[u8], message: &[u8], signature: &[u8]) -> bool {
    if owner.len() != KEY_BYTES || signature.len() != KEY_BYTES {
        return false;
    }
    let public = PublicKey::new(BoxedUint::from_be_slice_vartime(owner), BoxedUint::from(EXPONENT));
    let (Ok(public), Ok(signature)) = (public, Signature::try_from(signature)) else { return false };
    VerifyingKey::<Sha256>::new_with_auto_salt_len(public).verify(message, &signature).is_ok()
}

/// The id that a signature gives.
pub(super) fn id_of(signature: &[u8]) -> TxId {
    TxId(sha256(signature))
}
