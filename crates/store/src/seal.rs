//! Closing bytes to a key, and splitting a key among people.
//!
//! Sealed objects are age files to X25519 recipients: the format outlives us, and any age tool opens one with
//! the key. A memory key is split k of n by Shamir's scheme; no share shows whether it was altered, so whoever
//! combines shares checks the key against its hash ([`recover`]).

pub mod lockbox;
mod shamir;

pub use shamir::{Recovered, Share, combine, recover, split};

use crate::cid;
use crate::error::{Error, Result};
use age::secrecy::ExposeSecret;
use alloy::primitives::B256;
use std::fmt;
use std::io::{Read, Write};
use zeroize::Zeroizing;

/// More people than this share nothing.
const RECIPIENTS_MAX: usize = 100;
/// Room for their lines, about 120 bytes each. The reader behind this begins anew with each line of a header, so that a
/// mebibyte of short ones, from a steward or a host, would keep it busy for hours.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// How the last line of a header begins.
const HEADER_END: &[u8] = b"\n--- ";

/// A secret key. Wiped from memory when dropped; printing it needs [`Identity::to_secret_string`].
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl Identity {
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// Reads `AGE-SECRET-KEY-1…`.
    pub fn parse(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|why| Error::key(format!("not an age secret key: {why}")))
    }

    /// `AGE-SECRET-KEY-1…`, wiped when dropped.
    pub fn to_secret_string(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string().expose_secret().to_owned())
    }

    /// The public half.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient())
    }
}

/// A public key, in text `age1…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(age::x25519::Recipient);

impl Recipient {
    /// Reads `age1…`.
    pub fn parse(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|why| Error::key(format!("`{text}` is not an age recipient: {why}")))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

/// Seals `plain` so that each of `recipients` can open it alone. About 200 bytes longer than `plain`, each
/// time other bytes (and another CID). `Usage` without recipients, or with over 100.
pub fn seal(plain: &[u8], recipients: &[Recipient]) -> Result<Vec<u8>> {
    if recipients.len() > RECIPIENTS_MAX {
        return Err(Error::usage(format!("{} recipients; an object has at most {RECIPIENTS_MAX}", recipients.len())));
    }
    let keys = recipients.iter().map(|r| &r.0 as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(keys)
        .map_err(|e| Error::usage("nothing can be sealed to these recipients").caused_by(e))?;
    let failed = |e: std::io::Error| Error::bug("sealing in memory failed").caused_by(e);
    let mut sealed = Vec::with_capacity(plain.len() + plain.len() / 4096 + 512);
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(failed)?;
    writer.write_all(plain).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(sealed)
}

/// Opens what was sealed to `identity`, at most `bytes_max` plain bytes.
///
/// `Key` if it is sealed to others, `Corrupt` if a byte of it was changed or it was cut, `OverLimit` if longer.
pub fn open(sealed: &[u8], identity: &Identity, bytes_max: usize) -> Result<Vec<u8>> {
    let start = &sealed[..sealed.len().min(HEADER_BYTES_MAX)];
    if !start.windows(HEADER_END.len()).any(|bytes| bytes == HEADER_END) {
        return Err(Error::corrupt(format!(
            "not a sealed object (age format): no end of its header in the first {HEADER_BYTES_MAX} bytes"
        )));
    }
    let decryptor = age::Decryptor::new_buffered(sealed)
        .map_err(|e| Error::corrupt("not a sealed object (age format)").caused_by(e))?;
    let key: &dyn age::Identity = &identity.0;
    let reader = decryptor.decrypt(std::iter::once(key)).map_err(|e| match e {
        age::DecryptError::NoMatchingKeys => {
            Error::key(format!("the object is not sealed to {}", identity.recipient())).caused_by(e)
        }
        _ => Error::corrupt("a sealed object was altered").caused_by(e),
    })?;
    let mut plain = Vec::new();
    let one_more = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    reader
        .take(one_more)
        .read_to_end(&mut plain)
        .map_err(|e| Error::corrupt("a sealed object was altered or cut").caused_by(e))?;
    if plain.len() > bytes_max {
        return Err(Error::over_limit(format!("a sealed object holds over {bytes_max} bytes")));
    }
    Ok(plain)
}

/// What is published about a key so that its shares can be checked: sha2-256 under a domain of its own.
/// The key must have full entropy, as an age secret key has.
pub fn key_hash(secret: &[u8]) -> B256 {
    let mut text = Zeroizing::new(b"vivarium memory key\n".to_vec());
    text.extend_from_slice(secret);
    B256::from(cid::sha256(&text))
}
