//! Small secrets at rest under a 32-byte key, such as a node's keys under its lease key.
//!
//! `VIVLOCK1`, a random 24-byte nonce, then XChaCha20-Poly1305 with those 8 bytes as associated data. The nonce
//! is long enough to be drawn at random for ever. Nothing here is for passwords: the key must be random.

use crate::error::{Error, Result};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"VIVLOCK1";
const NONCE_BYTES: usize = 24;

/// Locks `plain` under `key`; 48 bytes longer.
pub fn lock(key: &[u8; 32], plain: &[u8]) -> Result<Vec<u8>> {
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let closed = XChaCha20Poly1305::new(key.into())
        .encrypt(XNonce::from_slice(&nonce), Payload { msg: plain, aad: MAGIC })
        .map_err(|_| Error::usage("a secret is too long to be locked"))?;
    Ok([&MAGIC[..], &nonce, &closed].concat())
}

/// Opens what [`lock`] made. `Corrupt` if it is none of ours, `Key` if the key is another or a bit was changed
/// (the two cannot be told apart).
pub fn unlock(key: &[u8; 32], locked: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let rest = locked.strip_prefix(MAGIC).filter(|rest| rest.len() >= NONCE_BYTES);
    let (nonce, closed) =
        rest.ok_or_else(|| Error::corrupt("not a locked secret of this program"))?.split_at(NONCE_BYTES);
    let open = XChaCha20Poly1305::new(key.into())
        .decrypt(XNonce::from_slice(nonce), Payload { msg: closed, aad: MAGIC })
        .map_err(|_| Error::key("the secret does not open: another key locked it, or it was altered"))?;
    Ok(Zeroizing::new(open))
}

/// Locks `plain` under `key` into the file `path`: whole or not at all, and durable when this returns.
///
/// `Disk` when it cannot be written; what was there before is then still there.
pub fn lock_to(path: &Path, key: &[u8; 32], plain: &[u8]) -> Result<()> {
    let locked = lock(key, plain)?;
    let failed = |e: std::io::Error| Error::disk(format!("cannot write {}", path.display()), e);
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).map_err(failed)?;
    file.write_all(&locked).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)?;
    // The name, too: a power cut could take it.
    let folder = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}
