use crate::cid::Cid;
use crate::error::Result;
use crate::signed;
use serde::{Deserialize, Serialize};

/// Conversations on one page: so few that a page is written anew for little when one of them changes, so many that the
/// list of pages stays short. What it costs is measured in docs/benchmarks.md.
pub const PAGE_CONVERSATIONS: u64 = 64;
/// Longest page that is read.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// Some stored conversations: where they lie, for whoever keeps them, and their keys, for whoever has the page's key.
/// That is in the key object; a page without one of its conversations has another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConversationPage {
    #[serde(with = "crate::cid::text::many")]
    pub conversations: Vec<Cid>,
    /// Of each, in order, 32 bytes; locked under the page's key ([`crate::seal::lockbox`]), standard base64.
    pub keys: String,
}

impl ConversationPage {
    /// Reads the canonical form; anything else is `Corrupt`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        signed::parse("conversation page", bytes)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        signed::json(self)
    }
}
