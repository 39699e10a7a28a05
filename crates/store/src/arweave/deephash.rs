//! What is signed: a hash over a tree of byte strings and lists, in which lengths are hashed beside contents, so
//! that no two different trees share bytes. SHA-384 throughout.
//! Source: ANS-104 §2.1 and the Arweave 2.0 transaction format.

use sha2::{Digest, Sha384};

pub(super) type Hash = [u8; 48];

/// The hash of a byte string.
pub(super) fn blob(bytes: &[u8]) -> Hash {
    let tag = format!("blob{}", bytes.len());
    join(&sha384(tag.as_bytes()), &sha384(bytes))
}

/// The hash of a list of what was hashed already.
pub(super) fn list(items: &[Hash]) -> Hash {
    let tag = format!("list{}", items.len());
    items.iter().fold(sha384(tag.as_bytes()), |sum, item| join(&sum, item))
}

fn sha384(bytes: &[u8]) -> Hash {
    Sha384::digest(bytes).into()
}

fn join(left: &Hash, right: &Hash) -> Hash {
    Sha384::new().chain_update(left).chain_update(right).finalize().into()
}
