//! Stored conversations (`store: true`): the journal holds where they are, the store holds them sealed, each under a key
//! of its own, which is destroyed with it (`memory`).

use crate::error::{Error, Result};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use store::seal::lockbox;

/// Most conversations kept at once; the oldest by insertion give way. So many that a checkpoint, which names them all, is
/// one block that its readers take: with more, no checkpoint would ever be acknowledged again.
const STORED_MAX: usize = 10_000;

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
    by_id: BTreeMap<String, Stored>,
    order: Vec<String>,
}

impl Conversations {
    pub fn apply(&mut self, input: &ConversationInput) {
        match input {
            ConversationInput::Store(stored) => {
                if self.by_id.insert(stored.response.clone(), stored.clone()).is_none() {
                    self.order.push(stored.response.clone());
                }
                if self.order.len() > STORED_MAX {
                    let oldest = self.order.remove(0);
                    self.by_id.remove(&oldest);
                }
            }
            ConversationInput::Delete { response } => {
                self.by_id.remove(response);
                self.order.retain(|r| r != response);
            }
        }
    }

    pub fn get(&self, response: &str) -> Option<&Stored> {
        self.by_id.get(response)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.by_id.values()
    }

    /// All that `payer` paid for, oldest first.
    pub fn of_payer(&self, payer: &[u8; 20]) -> impl Iterator<Item = &Stored> {
        self.order.iter().filter_map(|id| self.by_id.get(id)).filter(move |stored| stored.payer == *payer)
    }

    pub fn cids(&self) -> impl Iterator<Item = &str> {
        self.by_id.values().map(|s| s.cid.as_str())
    }
}

/// The sealed object: the whole exchange up to and including this response, so that one fetch continues it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    pub response: String,
    pub turns: Vec<Turn>,
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

    #[test]
    fn a_checkpoint_that_names_all_that_are_kept_is_one_block() {
        let mut all = Conversations::default();
        for number in 0..STORED_MAX + 10 {
            let cid = store::cid::of_raw(&number.to_le_bytes()).to_string();
            all.apply(&ConversationInput::Store(Stored {
                response: number.to_string(),
                payer: [0; 20],
                at: 0,
                cid,
                wrapped_key: Vec::new(),
            }));
        }
        assert_eq!(all.cids().count(), STORED_MAX);
        assert!(all.get("9").is_none() && all.get("10").is_some(), "the oldest give way");
        let named: usize = all.cids().map(|cid| cid.len() + "\"\",".len()).sum();
        // Beside them: a share for each of 255 stewards, and a few words.
        let beside = 255 * 1024;
        assert!(named + beside <= crate::checkpoint::OBJECT_BYTES_MAX, "{named}");
    }
}
