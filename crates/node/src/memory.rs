//! The memory keys this node holds: one age identity per checkpoint, at rest under the lease key.
//!
//! **Invariant:** a key is on disk before its checkpoint can be on chain, so a crash between the two
//! never leaves an acknowledged checkpoint that its own author cannot open.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use store::seal::{Identity, lockbox};

const FILE: &str = "memory.sealed";
/// Older keys are kept only while stored conversations sealed to them may be read.
const KEYS_MAX: usize = 512;

/// One memory key: the secret and the digest of the checkpoint that introduced it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryKey {
    pub seq: u64,
    /// Hex sha2-256 of the checkpoint object.
    pub checkpoint: String,
    /// Age X25519 secret in its text form.
    pub secret: String,
}

/// All memory keys known here, oldest first.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRing {
    pub keys: Vec<MemoryKey>,
}

impl KeyRing {
    /// The key of the checkpoint with this digest.
    pub fn of_checkpoint(&self, digest: &[u8; 32]) -> Option<Result<Identity>> {
        let wanted = hex::encode(digest);
        let key = self.keys.iter().rev().find(|k| k.checkpoint == wanted)?;
        Some(Identity::parse(&key.secret).map_err(|e| Error::corrupt("a memory key does not parse").caused_by(e)))
    }

    /// The key whose public half is `recipient`.
    pub fn of_recipient(&self, recipient: &str) -> Option<Identity> {
        self.keys
            .iter()
            .rev()
            .filter_map(|k| Identity::parse(&k.secret).ok())
            .find(|i| i.recipient().to_string() == recipient)
    }

    pub fn add(&mut self, key: MemoryKey) {
        if self.keys.iter().any(|k| k.secret == key.secret && k.checkpoint == key.checkpoint) {
            return;
        }
        self.keys.push(key);
        let surplus = self.keys.len().saturating_sub(KEYS_MAX);
        self.keys.drain(..surplus);
    }

    /// Adds all keys of `other`, e.g. those that came sealed from the active node.
    pub fn merge(&mut self, other: Self) {
        for key in other.keys {
            self.add(key);
        }
    }

    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::bug("the key ring cannot be encoded").caused_by(e))
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::corrupt("the key ring does not parse").caused_by(e))
    }
}

/// The key ring's file, sealed under the lease key.
#[derive(Clone)]
pub struct RingFile {
    path: PathBuf,
    seal_key: [u8; 32],
}

impl RingFile {
    pub fn new(data_dir: &Path, seal_key: [u8; 32]) -> Self {
        Self { path: data_dir.join(FILE), seal_key }
    }

    pub fn load(&self) -> Result<KeyRing> {
        match std::fs::read(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(KeyRing::default()),
            Err(e) => Err(Error::retry(format!("cannot read {}", self.path.display())).caused_by(e)),
            Ok(sealed) => {
                let open = lockbox::unlock(&self.seal_key, &sealed).map_err(|e| {
                    Error::corrupt(format!("{} does not open under this lease's key", self.path.display())).caused_by(e)
                })?;
                KeyRing::decode(&open)
            }
        }
    }

    pub fn save(&self, ring: &KeyRing) -> Result<()> {
        lockbox::lock_to(&self.path, &self.seal_key, &ring.encode()?)
            .map_err(|e| Error::retry("the key ring cannot be written").caused_by(e))
    }

    pub fn seal_key(&self) -> &[u8; 32] {
        &self.seal_key
    }
}

impl crate::main_loop::Node {
    /// To whom new memory is sealed now; `None` before the first checkpoint.
    pub fn memory_recipient(&self) -> Option<store::seal::Recipient> {
        let live = self.live.as_ref()?;
        let identity = live.ring.of_checkpoint(&live.sealing_for?)?.ok()?;
        Some(identity.recipient())
    }

    /// Where a stored response lies, and the key that opens it.
    pub fn conversation(&self, response: &str) -> Option<(crate::conversation::Stored, Identity)> {
        let live = self.live.as_ref()?;
        let stored = live.state.conversations.get(response)?.clone();
        let identity = live.ring.of_recipient(&stored.recipient)?;
        Some((stored, identity))
    }
}
