//! Stored conversations (`store: true`): the journal holds where they are, the store holds them sealed.

use crate::error::{Error, Result};
use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most conversations kept at once; the oldest by insertion give way. So many that a checkpoint, which names them all, is
/// one block that its readers take: with more, no checkpoint would ever be acknowledged again.
const STORED_MAX: usize = 10_000;

/// Where one stored response lies. Recorded in the journal; the text itself never is.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Stored {
    pub response: String,
    /// CID of the sealed object, in text form.
    pub cid: String,
    /// Memory recipient the object is sealed to.
    pub recipient: String,
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
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::bug("a transcript cannot be encoded").caused_by(e))
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::corrupt("a stored conversation does not parse").caused_by(e))
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
                cid,
                recipient: String::new(),
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
