//! Stored conversations (`store: true`): the journal holds where they are, the store holds them sealed, each under a key
//! of its own, which is destroyed with it (`memory`).
//!
//! Files and batches ([`crate::batch`]) are kept in the same way under names that begin otherwise than a response's. Kept
//! again under its name, an object takes the place of the one before.

use crate::error::{Error, Result};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use store::checkpoint::PAGE_CONVERSATIONS;
use store::seal::lockbox;

/// Most conversations kept at once; the oldest by insertion give way. A guess: the keys of all are held in memory.
pub const STORED_MAX: usize = 10_000;

/// Opens one stored conversation and nothing else. Not one key a customer: deleting one of its conversations would then
/// have to write all others anew, in the request that deletes, which costs nothing.
pub type ConversationKey = [u8; 32];

/// Where one stored response lies. Recorded in the journal; the text itself never is, and its key only sealed.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Stored {
    pub response: String,
    /// Who paid for it, and may ask for all that it paid for.
    pub payer: [u8; 20],
    /// Chain seconds.
    pub at: u64,
    /// CID of the sealed object, in text form.
    pub cid: String,
    /// Its key, sealed to the memory keys of the time when it was stored (age format): readable for whoever restores
    /// the last checkpoint before this record, and for nobody any more once the next one stands.
    pub wrapped_key: Vec<u8>,
}

/// What the journal says about conversations.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum ConversationInput {
    Store(Stored),
    Delete { response: String },
}

/// Pure fold: response id → where it lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Conversations {
    /// With its slot, which it keeps as long as it is stored.
    by_id: BTreeMap<String, (u64, Stored)>,
    by_slot: BTreeMap<u64, String>,
    /// Slots given so far.
    slots: u64,
}

impl Conversations {
    pub fn apply(&mut self, input: &ConversationInput) {
        match input {
            ConversationInput::Store(stored) => {
                self.forget(&stored.response);
                self.by_slot.insert(self.slots, stored.response.clone());
                self.by_id.insert(stored.response.clone(), (self.slots, stored.clone()));
                self.slots += 1;
                if self.by_slot.len() > STORED_MAX
                    && let Some((_, oldest)) = self.by_slot.pop_first()
                {
                    self.by_id.remove(&oldest);
                }
            }
            ConversationInput::Delete { response } => self.forget(response),
        }
    }

    fn forget(&mut self, response: &str) {
        if let Some((slot, _)) = self.by_id.remove(response) {
            self.by_slot.remove(&slot);
        }
    }

    pub fn get(&self, response: &str) -> Option<&Stored> {
        self.by_id.get(response).map(|(_, stored)| stored)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.by_slot.values().filter_map(|response| self.get(response))
    }

    /// Those whose name begins with this.
    pub fn named<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Stored> {
        let from = self.by_id.range(prefix.to_owned()..);
        from.map(|(_, (_, stored))| stored).take_while(move |stored| stored.response.starts_with(prefix))
    }

    /// All that `payer` paid for, oldest first.
    pub fn of_payer(&self, payer: &[u8; 20]) -> impl Iterator<Item = &Stored> {
        self.iter().filter(move |stored| stored.payer == *payer)
    }

    /// By the page of a checkpoint that names them. Storing one changes the last page, deleting one its own.
    pub fn by_page(&self) -> BTreeMap<u64, Vec<&Stored>> {
        let mut pages: BTreeMap<u64, Vec<&Stored>> = BTreeMap::new();
        for (slot, response) in &self.by_slot {
            pages.entry(slot / PAGE_CONVERSATIONS).or_default().extend(self.get(response));
        }
        pages
    }
}

/// The sealed object: the whole exchange up to and including this response, so that one fetch continues it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    pub response: String,
    pub turns: Vec<Turn>,
    /// The response as its customer got it, its text left out: that is the last turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    pub role: String,
    pub content: String,
}

impl Transcript {
    fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::bug("a transcript cannot be encoded").caused_by(e))
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::corrupt("a stored conversation does not parse").caused_by(e))
    }

    /// Closes it under `key`, which closes nothing else.
    pub fn seal(&self, key: &ConversationKey) -> Result<Vec<u8>> {
        lockbox::lock(key, &self.encode()?).map_err(|e| Error::bug("a transcript cannot be sealed").caused_by(e))
    }

    /// Opens what [`Transcript::seal`] closed.
    pub fn open(sealed: &[u8], key: &ConversationKey) -> Result<Self> {
        let plain = lockbox::unlock(key, sealed)
            .map_err(|e| Error::corrupt("a stored conversation does not open").caused_by(e))?;
        Self::decode(&plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(number: usize) -> ConversationInput {
        ConversationInput::Store(Stored {
            response: number.to_string(),
            payer: [0; 20],
            at: 0,
            cid: store::cid::of_raw(&number.to_le_bytes()).to_string(),
            wrapped_key: Vec::new(),
        })
    }

    #[test]
    fn the_oldest_give_way_and_pages_keep_their_places() {
        let mut all = Conversations::default();
        (0..STORED_MAX + 10).for_each(|number| all.apply(&stored(number)));
        assert_eq!(all.iter().count(), STORED_MAX);
        assert!(all.get("9").is_none() && all.get("10").is_some(), "the oldest give way");
        let before: BTreeMap<u64, Vec<Stored>> =
            all.by_page().into_iter().map(|(page, of)| (page, of.into_iter().cloned().collect())).collect();
        all.apply(&ConversationInput::Delete { response: "1000".into() });
        all.apply(&stored(STORED_MAX + 10));
        let changed: Vec<u64> = all
            .by_page()
            .into_iter()
            .filter(|(page, of)| before.get(page).is_none_or(|was| !was.iter().eq(of.iter().copied())))
            .map(|(page, _)| page)
            .collect();
        assert_eq!(changed, [1_000 / PAGE_CONVERSATIONS, 10_010 / PAGE_CONVERSATIONS]);
        // Stored again under the same name, it is there once.
        all.apply(&stored(20));
        assert_eq!(all.iter().filter(|one| one.response == "20").count(), 1);
    }
}
