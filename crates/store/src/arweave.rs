//! Arweave: storage that is paid for once, by transactions signed with an RSA key.
//!
//! [`Transaction`] and [`DataItem`] are what is signed; [`DataTree`] is the Merkle tree over the data in chunks of
//! at most 256 KiB, whose root a transaction names and whose proofs go with each chunk. [`Upload`] and [`judge`]
//! decide what to do next and what an answer means, without a socket; [`Arweave`] carries that out over HTTP.
//!
//! A transaction has three outcomes ([`Outcome`]): paid, unpaid, unknown. It is written down before it is sent, and
//! no second one is signed for the same data before the first is known to be unpaid.
//!
//! **Invariant:** no byte is handed out that a proof does not tie to the `data_root` of a transaction whose id is
//! the hash of its signature: a gateway can refuse, and cannot lie.
//! **Invariant:** nothing here spends by itself: the caller passes the reward, in winston, and holds the key.

mod client;
mod deephash;
mod item;
mod key;
mod merkle;
mod transaction;
mod upload;

pub use client::{Arweave, car_tags};
pub use item::{Bundle, DataItem};
pub use key::Key;
pub use merkle::{CHUNK_BYTES_MAX, DataTree, Proven, verify_chunk};
pub use transaction::{Draft, Tag, Transaction};
pub use upload::{ANCHOR_BLOCKS, CONFIRMATIONS, Observation, Outcome, Seen, Step, Upload, judge};

use crate::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The 32 bytes that name a transaction or data item: SHA-256 of its signature. In text base64url without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 32]);

impl TxId {
    /// `Usage` unless `text` is the 43 characters of an id.
    pub fn parse(text: &str) -> Result<Self> {
        let bytes = decode(text).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| Error::usage(format!("`{text}` is not the id of a transaction")))
    }
}

impl std::fmt::Display for TxId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

/// Base64url without padding, as Arweave writes all bytes.
pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The one form that [`encode`] writes; `None` for anything else.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// A decimal number as it is signed: no sign, no leading zero, nothing around it.
fn number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse::<T>().ok().filter(|number| number.to_string() == text)
}
