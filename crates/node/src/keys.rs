//! The three keys a node makes inside its sandbox, at rest only under the provider's per-lease key.
//!
//! A thief of this file without the lease key gets nothing; an old disk image started after the lease key
//! was destroyed cannot unseal it.

use crate::error::{Error, Result};
use alloy::signers::local::PrivateKeySigner;
use std::path::Path;
use store::seal::{Identity, lockbox};

const FILE: &str = "keys.sealed";

/// Node, relay and exchange key of one lease.
pub struct Keys {
    /// Named on chain by `ready`; has effect there only while the treasury's operator is its address.
    pub node: PrivateKeySigner,
    /// Sends strangers' settlements. Has no role on chain.
    pub relay: PrivateKeySigner,
    /// What others seal to this node: memory keys at a move, shares after a takeover.
    pub exchange: Identity,
}

impl Keys {
    /// Unseals the keys of this lease, or makes them at the first start.
    pub fn load_or_make(data_dir: &Path, seal_key: &[u8; 32]) -> Result<Self> {
        let path = data_dir.join(FILE);
        match std::fs::read(&path) {
            Ok(sealed) => {
                let open = lockbox::unlock(seal_key, &sealed).map_err(|e| {
                    Error::usage(format!(
                        "{} does not open under this lease's key: it belongs to another lease",
                        path.display()
                    ))
                    .caused_by(e)
                })?;
                Self::parse(&String::from_utf8_lossy(&open))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let keys = Self {
                    node: PrivateKeySigner::random(),
                    relay: PrivateKeySigner::random(),
                    exchange: Identity::generate(),
                };
                keys.write(&path, seal_key)?;
                Ok(keys)
            }
            Err(e) => Err(Error::retry(format!("cannot read {}", path.display())).caused_by(e)),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let bad = || Error::corrupt("the sealed key file does not hold three keys");
        let mut lines = text.lines();
        let mut next = || lines.next().ok_or_else(bad);
        Ok(Self {
            node: next()?.parse().map_err(|_| bad())?,
            relay: next()?.parse().map_err(|_| bad())?,
            exchange: Identity::parse(next()?).map_err(|_| bad())?,
        })
    }

    fn write(&self, path: &Path, seal_key: &[u8; 32]) -> Result<()> {
        let text = format!(
            "{}\n{}\n{}\n",
            self.node.to_bytes(),
            self.relay.to_bytes(),
            self.exchange.to_secret_string().as_str()
        );
        lockbox::lock_to(path, seal_key, text.as_bytes())
            .map_err(|e| Error::retry("the node's keys cannot be written").caused_by(e))
    }
}

/// The provider's key for this lease: 64 hex digits.
pub fn read_seal_key(path: &Path) -> Result<[u8; 32]> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("cannot read the lease key {}; the provider keeps it", path.display())).caused_by(e)
    })?;
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .map_err(|e| Error::usage(format!("{} must hold 64 hex digits", path.display())).caused_by(e))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::memory::RingFile;

    #[test]
    fn an_image_without_the_leases_key_opens_neither_keys_nor_memory() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_make(dir.path(), &[1; 32]).unwrap();
        let again = Keys::load_or_make(dir.path(), &[1; 32]).unwrap();
        assert_eq!((keys.node.address(), keys.relay.address()), (again.node.address(), again.relay.address()));
        RingFile::new(dir.path(), [1; 32]).save(&crate::memory::KeyRing::default()).unwrap();
        // Another lease's key, as a copy has that was started after this one's was destroyed.
        let Err(refused) = Keys::load_or_make(dir.path(), &[2; 32]) else { panic!("it opened") };
        assert!(refused.kind == Kind::Usage && refused.to_string().contains("another lease"), "{refused}");
        assert!(RingFile::new(dir.path(), [2; 32]).load().is_err());
        // None at all.
        let missing = read_seal_key(&dir.path().join("seal.key")).unwrap_err();
        assert!(missing.kind == Kind::Usage && missing.to_string().contains("the provider keeps it"), "{missing}");
        let text = std::fs::read(dir.path().join(FILE)).unwrap();
        assert!(
            !String::from_utf8_lossy(&text).contains(&hex::encode(keys.node.to_bytes())),
            "sealed, not written out"
        );
    }
}
