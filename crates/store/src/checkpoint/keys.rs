//! Key objects: the keys that a checkpoint gives its successors, sealed to its memory key.
//!
//! Each checkpoint brings its own and the one before is thrown away, so a key that is left out is destroyed. That only
//! holds where objects can be thrown away: a line in front says what it is, and nothing of it goes to Arweave.

use crate::cid::Cid;
use crate::error::{Error, Result};
use crate::seal::{self, Identity, Recipient};
use crate::unixfs::{self, Object};

const MAGIC: &[u8] = b"vivarium key object v1\n";
/// Longest key object that is read, plain: the most conversations that an agent keeps need less than a tenth.
pub const KEYS_BYTES_MAX: usize = 16 << 20;

/// Seals `plain` to `memory`.
pub fn seal(plain: &[u8], memory: &Recipient) -> Result<Vec<u8>> {
    let sealed = seal::seal(plain, std::slice::from_ref(memory))?;
    Ok([MAGIC, &sealed].concat())
}

/// Opens what [`seal`] made. `Corrupt` for anything else, `Key` if it is sealed to another memory key.
pub fn open(sealed: &[u8], memory: &Identity) -> Result<Vec<u8>> {
    let inner = sealed.strip_prefix(MAGIC).ok_or_else(|| Error::corrupt("not a key object"))?;
    seal::open(inner, memory, KEYS_BYTES_MAX)
}

/// Whether this block is a key object, or that part of a long one that its line is in: bare, or inside a node.
pub fn is_key_object(cid: &Cid, block: &[u8]) -> bool {
    matches!(unixfs::read(cid, block), Ok(Object::File { inline, .. }) if inline.starts_with(MAGIC))
}
