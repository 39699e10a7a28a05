//! The keys of an agent's memory that this node holds, at rest under the lease key.
//!
//! Three kinds, because they end at different times. A *memory key* opens one checkpoint's key object; it is split among
//! the stewards and destroyed when the next checkpoint stands. *Chapter keys* open snapshots and segments, and live in
//! the key object as long as those are needed. A *conversation key* opens one stored conversation: it lives in the key
//! object, and in the journal it is sealed to the memory keys of its time, so it is nowhere once it is forgotten
//! here and the next checkpoint stands.
//!
//! **Invariant:** a memory key is on disk before its checkpoint can be on chain, so a crash between the two never leaves
//! an acknowledged checkpoint that its own author cannot open.
//! **Invariant:** no key object and no snapshot holds a memory key: what opens a checkpoint opens none before it.

use crate::conversation::{ConversationKey, Conversations, Stored};
use crate::error::{Error, Result};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::checkpoint::Checkpoint;
use store::seal::{self, Identity, Recipient, lockbox};

const FILE: &str = "memory.sealed";
/// Memory keys held at once: the acknowledged one, and those of checkpoints that were begun since and may still be mined.
/// Failed attempts beyond that were given up long before. A guess, unmeasured.
const MEMORY_MAX: usize = 8;

/// The secret that opens the key object of checkpoint `seq`.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryKey {
    pub seq: u64,
    /// Age X25519 secret in its text form.
    pub secret: String,
}

/// Every key of the memory that is known here.
#[derive(Clone, Default, BorshSerialize, BorshDeserialize, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRing {
    /// Oldest first.
    pub memory: Vec<MemoryKey>,
    /// Age secrets of what snapshots and segments are sealed to, oldest first.
    pub chapters: Vec<String>,
    /// The public half of the chapter that segments are sealed to now; `None` before the first checkpoint.
    pub chapter: Option<String>,
    /// By response. A successor gets them from the key object and from the journal, never from a peer.
    #[serde(skip)]
    pub conversations: BTreeMap<String, ConversationKey>,
}

/// What is sealed in a key object.
#[derive(BorshSerialize, BorshDeserialize)]
struct KeyObject {
    /// The checkpoint's.
    seq: u64,
    chapters: Vec<String>,
    conversations: BTreeMap<String, ConversationKey>,
}

impl KeyRing {
    /// The memory key whose public half is `recipient`.
    pub fn memory_of(&self, recipient: &str) -> Option<Identity> {
        of_recipient(self.memory.iter().map(|key| &key.secret), recipient)
    }

    /// The chapter key whose public half is `recipient`.
    pub fn chapter_of(&self, recipient: &str) -> Option<Identity> {
        of_recipient(self.chapters.iter(), recipient)
    }

    /// A memory key and a chapter key for the checkpoint `seq` that is begun now. Until one stands, both the new keys and
    /// the acknowledged ones are in use.
    pub fn begin(&mut self, seq: u64) -> (Identity, Identity) {
        let (memory, chapter) = (Identity::generate(), Identity::generate());
        self.memory.push(MemoryKey { seq, secret: memory.to_secret_string().as_str().to_owned() });
        if self.memory.len() > MEMORY_MAX {
            // Never the first one: that is the acknowledged checkpoint's.
            self.memory.remove(1);
        }
        self.chapters.push(chapter.to_secret_string().as_str().to_owned());
        (memory, chapter)
    }

    /// This checkpoint stands: the memory keys of all others are destroyed, and what no successor needs any more.
    pub fn stands(&mut self, checkpoint: &Checkpoint) {
        self.memory.retain(|key| is_of(&key.secret, &checkpoint.recipient));
        self.chapters.retain(|secret| is_of(secret, &checkpoint.chapter));
        self.chapter = Some(checkpoint.chapter.clone());
    }

    /// The chain names checkpoint `seq`: the memory keys of older ones are destroyed, also when nobody was here to hear
    /// that it stands.
    pub fn forget_before(&mut self, seq: u64) {
        if self.memory.iter().any(|key| key.seq == seq) {
            self.memory.retain(|key| key.seq >= seq);
        }
    }

    /// Seals the key of a conversation to every memory key that a successor may be given.
    pub fn wrap(&self, key: &ConversationKey) -> Result<Vec<u8>> {
        let recipients: Vec<Recipient> =
            self.memory.iter().filter_map(|key| Identity::parse(&key.secret).ok()).map(|i| i.recipient()).collect();
        seal::seal(key, &recipients).map_err(|e| Error::retry("there is no memory key yet").caused_by(e))
    }

    /// Opens the keys of conversations that came through the journal, as far as a memory key here opens them, and
    /// forgets those of conversations that are not stored any more.
    pub fn learn(&mut self, stored: &Conversations) {
        let identities: Vec<Identity> = self.memory.iter().filter_map(|k| Identity::parse(&k.secret).ok()).collect();
        for one in stored.iter() {
            if self.conversations.contains_key(&one.response) {
                continue;
            }
            let opened = identities.iter().find_map(|identity| seal::open(&one.wrapped_key, identity, 32).ok());
            if let Some(key) = opened.and_then(|key| ConversationKey::try_from(key).ok()) {
                self.conversations.insert(one.response.clone(), key);
            }
        }
        self.conversations.retain(|response, _| stored.get(response).is_some());
    }

    /// What the checkpoint `seq` gives its successors, sealed to `memory`.
    pub fn seal_for(&self, seq: u64, memory: &Recipient) -> Result<Vec<u8>> {
        let object = KeyObject { seq, chapters: self.chapters.clone(), conversations: self.conversations.clone() };
        let plain = borsh::to_vec(&object).map_err(|e| Error::bug("the keys cannot be encoded").caused_by(e))?;
        store::checkpoint::keys::seal(&plain, memory).map_err(|e| Error::bug("the keys cannot be sealed").caused_by(e))
    }

    /// The ring of whoever restores `checkpoint` with its memory key.
    pub fn open(checkpoint: &Checkpoint, sealed: &[u8], memory: &Identity) -> Result<Self> {
        let plain = store::checkpoint::keys::open(sealed, memory)
            .map_err(|e| Error::corrupt("the key object does not open under its memory key").caused_by(e))?;
        let object: KeyObject =
            borsh::from_slice(&plain).map_err(|e| Error::corrupt("the key object does not decode").caused_by(e))?;
        if object.seq != checkpoint.seq {
            let (found, wanted) = (object.seq, checkpoint.seq);
            return Err(Error::corrupt(format!("the key object is of checkpoint {found}, not of {wanted}")));
        }
        let secret = memory.to_secret_string().as_str().to_owned();
        Ok(Self {
            memory: vec![MemoryKey { seq: checkpoint.seq, secret }],
            chapters: object.chapters,
            chapter: Some(checkpoint.chapter.clone()),
            conversations: object.conversations,
        })
    }

    /// Adds the keys that came sealed from the active node.
    pub fn merge(&mut self, other: Self) {
        for key in other.memory {
            if !self.memory.contains(&key) {
                self.memory.push(key);
            }
        }
        self.memory.sort_by_key(|key| key.seq);
        for secret in other.chapters {
            if !self.chapters.contains(&secret) {
                self.chapters.push(secret);
            }
        }
        self.chapter = other.chapter.or(self.chapter.take());
    }
}

fn of_recipient<'a>(secrets: impl DoubleEndedIterator<Item = &'a String>, recipient: &str) -> Option<Identity> {
    secrets.rev().filter_map(|secret| Identity::parse(secret).ok()).find(|i| i.recipient().to_string() == recipient)
}

fn is_of(secret: &str, recipient: &str) -> bool {
    Identity::parse(secret).is_ok_and(|identity| identity.recipient().to_string() == recipient)
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
                borsh::from_slice(&open).map_err(|e| Error::corrupt("the key ring does not decode").caused_by(e))
            }
        }
    }

    pub fn save(&self, ring: &KeyRing) -> Result<()> {
        let plain = borsh::to_vec(ring).map_err(|e| Error::bug("the key ring cannot be encoded").caused_by(e))?;
        lockbox::lock_to(&self.path, &self.seal_key, &plain)
            .map_err(|e| Error::retry("the key ring cannot be written").caused_by(e))
    }

    pub fn seal_key(&self) -> &[u8; 32] {
        &self.seal_key
    }
}

impl crate::main_loop::Node {
    /// Whether a conversation can be stored: only once a successor could be given its key.
    pub fn can_store(&self) -> bool {
        self.live.as_ref().is_some_and(|live| !live.ring.memory.is_empty() && live.sealing_for.is_some())
    }

    /// Where a stored response lies, and the key that opens it. `None` if either is gone.
    pub fn conversation(&self, response: &str) -> Option<(Stored, ConversationKey)> {
        let live = self.live.as_ref()?;
        let stored = live.state.conversations.get(response)?.clone();
        Some((stored, *live.ring.conversations.get(response)?))
    }

    /// All that `payer` stored, oldest first.
    pub fn conversations_of(&self, payer: &[u8; 20]) -> Vec<(Stored, ConversationKey)> {
        let Some(live) = &self.live else { return Vec::new() };
        let key = |stored: &Stored| live.ring.conversations.get(&stored.response).copied();
        live.state.conversations.of_payer(payer).filter_map(|stored| Some((stored.clone(), key(stored)?))).collect()
    }
}
