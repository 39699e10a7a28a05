//! The keys of an agent's memory that this node holds, at rest under the lease key.
//!
//! Three kinds, because they end at different times. A *memory key* opens one checkpoint's key object; it is split among
//! the stewards and destroyed when the next checkpoint stands. *Chapter keys* open a snapshot and the segments after it,
//! and live in the key object as long as those are needed. A *conversation key* opens one stored conversation: it lives
//! in a page whose key is in the key object, and in the journal it is sealed to the memory keys of its time, so it is
//! nowhere once it is forgotten here and the next checkpoint stands.
//!
//! **Invariant:** a memory key is on disk before its checkpoint can be on chain, so a crash between the two never leaves
//! an acknowledged checkpoint that its own author cannot open.
//! **Invariant:** no key object and no snapshot holds a memory key: what opens a checkpoint opens none before it.

use crate::conversation::{ConversationKey, Conversations, Stored};
use crate::error::{Error, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::checkpoint::{Checkpoint, ConversationPage};
use store::cid::Cid;
use store::seal::{self, Identity, Recipient, lockbox};

const FILE: &str = "memory.sealed";
/// Memory keys held at once: the acknowledged one, and those of checkpoints that were begun since and may still be mined.
/// Failed attempts beyond that were given up long before. A guess, unmeasured.
const MEMORY_MAX: usize = 8;
/// Chapter keys held at once: the present one, the one before, and those of attempts. A guess, unmeasured.
const CHAPTERS_MAX: usize = 32;

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
    /// Age secrets of what snapshots and segments are sealed to, oldest first. That of the chapter before, too: segments
    /// that left while the present one was begun are sealed to it.
    pub chapters: Vec<String>,
    /// The public half of the chapter that segments are sealed to now; `None` before the first checkpoint.
    pub chapter: Option<String>,
    /// The pages of the acknowledged checkpoint, by number.
    #[serde(skip)]
    pub pages: Pages,
    /// By the CID of what they open. A successor gets them from the checkpoint's pages and from the journal, never from a peer.
    #[serde(skip)]
    pub conversations: BTreeMap<String, ConversationKey>,
}

/// A [`ConversationPage`] that is stored, and what opens it.
#[derive(Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Page {
    pub cid: String,
    key: [u8; 32],
    /// What is on it: a page with the same is not written again.
    conversations: Vec<String>,
}

/// By number.
pub type Pages = BTreeMap<u64, Page>;

/// What is sealed in a key object.
#[derive(BorshSerialize, BorshDeserialize)]
struct KeyObject {
    /// The checkpoint's.
    seq: u64,
    chapters: Vec<String>,
    /// Of the pages that the checkpoint names, in that order: number and key.
    pages: Vec<(u64, [u8; 32])>,
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

    /// A memory key for the checkpoint `seq` that is begun now. Until one stands, both the new key and the acknowledged
    /// one are in use.
    pub fn begin(&mut self, seq: u64) -> Identity {
        let memory = Identity::generate();
        self.memory.push(MemoryKey { seq, secret: memory.to_secret_string().as_str().to_owned() });
        if self.memory.len() > MEMORY_MAX {
            // Never the first one: that is the acknowledged checkpoint's.
            self.memory.remove(1);
        }
        memory
    }

    /// A key for a snapshot that is made now, and for what will come after it.
    pub fn begin_chapter(&mut self) -> Identity {
        let chapter = Identity::generate();
        self.chapters.push(chapter.to_secret_string().as_str().to_owned());
        if self.chapters.len() > CHAPTERS_MAX {
            // Of the attempt before, which was given up: so many never stand in a row.
            self.chapters.remove(CHAPTERS_MAX - 1);
        }
        chapter
    }

    /// This checkpoint stands, with these pages: the memory keys of all others are destroyed, and what no successor
    /// needs any more.
    pub fn stands(&mut self, checkpoint: &Checkpoint, pages: Pages) {
        self.memory.retain(|key| is_of(&key.secret, &checkpoint.recipient));
        let before = self.chapter.replace(checkpoint.chapter.clone());
        if before.as_ref() != Some(&checkpoint.chapter) {
            let needed = |secret: &String, recipient: &Option<String>| {
                recipient.as_ref().is_some_and(|recipient| is_of(secret, recipient))
            };
            self.chapters.retain(|secret| needed(secret, &before) || needed(secret, &self.chapter));
        }
        self.pages = pages;
        // What was forgotten while this checkpoint was made is on one of these.
        let held = &self.conversations;
        self.pages.retain(|_, page| page.conversations.iter().all(|cid| held.contains_key(cid)));
    }

    /// Destroys the key of the conversation `cid`, and the key of the page that it is on: the page lies in the store and
    /// would give the other one back. What else is on that page is written to a new one for the next checkpoint.
    ///
    /// Until that stands, the memory key of the last one still opens the page, or the record that brought the key.
    pub fn forget(&mut self, cid: &str) {
        self.conversations.remove(cid);
        self.pages.retain(|_, page| !page.conversations.iter().any(|on_it| on_it == cid));
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
        let mut kept = BTreeMap::new();
        for one in stored.iter() {
            let known = self.conversations.get(&one.cid).copied();
            let opens = |identity: &Identity| -> Option<ConversationKey> {
                seal::open(&one.wrapped_key, identity, 32).ok()?.try_into().ok()
            };
            if let Some(key) = known.or_else(|| identities.iter().find_map(opens)) {
                kept.insert(one.cid.clone(), key);
            }
        }
        self.conversations = kept;
    }

    /// The pages of all that is stored: as they are, and written anew where something on one changed. A new page has a new
    /// key: the old one would open what is not on it any more.
    pub fn turn_pages(&self, stored: &Conversations) -> Result<(Pages, Vec<ConversationPage>)> {
        let (mut pages, mut written) = (Pages::new(), Vec::new());
        for (number, on_it) in stored.by_page() {
            let held = on_it.iter().filter_map(|one| Some((&one.cid, self.conversations.get(&one.cid)?)));
            let conversations: Vec<String> = held.clone().map(|(cid, _)| cid.clone()).collect();
            if let Some(page) = self.pages.get(&number).filter(|page| page.conversations == conversations) {
                pages.insert(number, page.clone());
                continue;
            }
            let keys: Vec<u8> = held.flat_map(|(_, key)| *key).collect();
            let key: [u8; 32] = rand::random();
            let locked = lockbox::lock(&key, &keys).map_err(|e| Error::bug("a page cannot be locked").caused_by(e))?;
            let names = conversations.iter().map(|cid| store::cid::parse(cid)).collect::<store::Result<_>>();
            let page = ConversationPage {
                conversations: names.map_err(|e| Error::corrupt("a conversation's CID does not parse").caused_by(e))?,
                keys: BASE64_STANDARD.encode(locked),
            };
            let cid = store::cid::of_raw(&page.to_bytes()).to_string();
            pages.insert(number, Page { cid, key, conversations });
            written.push(page);
        }
        Ok((pages, written))
    }

    /// What the checkpoint `seq` with `pages` gives its successors, sealed to `memory`.
    pub fn seal_for(&self, seq: u64, pages: &Pages, memory: &Recipient) -> Result<Vec<u8>> {
        let object = KeyObject {
            seq,
            chapters: self.chapters.clone(),
            pages: pages.iter().map(|(number, page)| (*number, page.key)).collect(),
        };
        let plain = borsh::to_vec(&object).map_err(|e| Error::bug("the keys cannot be encoded").caused_by(e))?;
        store::checkpoint::keys::seal(&plain, memory).map_err(|e| Error::bug("the keys cannot be sealed").caused_by(e))
    }

    /// The ring of whoever restores `checkpoint` with its memory key, but for the keys on its pages.
    pub fn open(checkpoint: &Checkpoint, sealed: &[u8], memory: &Identity) -> Result<Self> {
        let plain = store::checkpoint::keys::open(sealed, memory)
            .map_err(|e| Error::corrupt("the key object does not open under its memory key").caused_by(e))?;
        let object: KeyObject =
            borsh::from_slice(&plain).map_err(|e| Error::corrupt("the key object does not decode").caused_by(e))?;
        if object.seq != checkpoint.seq {
            let (found, wanted) = (object.seq, checkpoint.seq);
            return Err(Error::corrupt(format!("the key object is of checkpoint {found}, not of {wanted}")));
        }
        if object.pages.len() != checkpoint.conversations.len() {
            return Err(Error::corrupt("the key object is of other pages than the checkpoint names"));
        }
        let named = object.pages.into_iter().zip(&checkpoint.conversations);
        let page = |key, cid: &Cid| Page { cid: cid.to_string(), key, conversations: Vec::new() };
        let pages = named.map(|((number, key), cid)| (number, page(key, cid))).collect();
        let secret = memory.to_secret_string().as_str().to_owned();
        Ok(Self {
            memory: vec![MemoryKey { seq: checkpoint.seq, secret }],
            chapters: object.chapters,
            chapter: Some(checkpoint.chapter.clone()),
            pages,
            conversations: BTreeMap::new(),
        })
    }

    /// Reads the keys on page `number`, whose bytes are `page`.
    pub fn read_page(&mut self, number: u64, page: &[u8]) -> Result<()> {
        let Some(known) = self.pages.get_mut(&number) else { return Err(Error::bug("a page that nobody named")) };
        let bad = |what: &str| Error::corrupt(format!("page {number} of the conversations {what}"));
        let read = ConversationPage::from_bytes(page).map_err(|e| bad("does not parse").caused_by(e))?;
        let locked = BASE64_STANDARD.decode(&read.keys).map_err(|e| bad("has no base64").caused_by(e))?;
        let keys = lockbox::unlock(&known.key, &locked).map_err(|e| bad("does not open").caused_by(e))?;
        let (keys, []) = keys.as_chunks::<32>() else { return Err(bad("has a part of a key")) };
        if keys.len() != read.conversations.len() {
            return Err(bad("has not a key for each"));
        }
        known.conversations = read.conversations.iter().map(ToString::to_string).collect();
        self.conversations.extend(known.conversations.iter().cloned().zip(keys.iter().copied()));
        Ok(())
    }

    /// Opens a snapshot or a run of records, whichever chapter it is of.
    pub fn open_sealed(&self, sealed: &[u8], bytes_max: usize) -> Result<Vec<u8>> {
        let identities = self.chapters.iter().rev().filter_map(|secret| Identity::parse(secret).ok());
        let mut why = None;
        for identity in identities {
            match seal::open(sealed, &identity, bytes_max) {
                Ok(plain) => return Ok(plain),
                Err(e) if e.kind == store::Kind::Key => why = Some(e),
                Err(e) => return Err(Error::corrupt("sealed memory does not open").caused_by(e)),
            }
        }
        let refusal = Error::corrupt("memory is sealed to a chapter that the checkpoint gave no key for");
        Err(match why {
            Some(why) => refusal.caused_by(why),
            None => refusal,
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
        let key = *live.ring.conversations.get(&stored.cid)?;
        Some((stored, key))
    }

    /// All that `payer` stored, oldest first.
    pub fn conversations_of(&self, payer: &[u8; 20]) -> Vec<(Stored, ConversationKey)> {
        let Some(live) = &self.live else { return Vec::new() };
        let key = |stored: &Stored| live.ring.conversations.get(&stored.cid).copied();
        live.state.conversations.of_payer(payer).filter_map(|stored| Some((stored.clone(), key(stored)?))).collect()
    }
}
