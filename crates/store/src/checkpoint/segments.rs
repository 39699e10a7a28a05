use crate::cid::Cid;
use crate::client::StoreClient;
use crate::error::{Error, Result};
use crate::signed;
use alloy::primitives::Address;
use serde::{Deserialize, Serialize};

/// Longest list that is read: of 60,000 segments, where a day has 720.
pub const LIST_BYTES_MAX: usize = 4 << 20;
/// Lists that are read back: a checkpoint an hour for eleven years.
const LISTS_MAX: usize = 100_000;

/// The journal's segments between two checkpoints that rest on the same snapshot. Each was sealed and stored once, when
/// it was written; a checkpoint names them by the newest list, and this by the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentList {
    /// The treasury.
    pub agent: Address,
    /// The list before; null for the first after the snapshot.
    #[serde(with = "crate::cid::text::maybe")]
    pub prev: Option<Cid>,
    /// Sealed runs of records, in order, without gaps.
    #[serde(with = "crate::cid::text::many")]
    pub segments: Vec<Cid>,
}

impl SegmentList {
    /// Reads the canonical form; anything else is `Corrupt`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        signed::parse("segment list", bytes)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        signed::json(self)
    }

    /// The lists from `newest` back to the one after `until` (to the first for `None`), oldest first, with their names.
    ///
    /// `Corrupt` when one is another agent's.
    pub async fn read(
        store: &StoreClient,
        newest: Option<Cid>,
        until: Option<Cid>,
        agent: Address,
    ) -> Result<Vec<(Cid, Self)>> {
        let mut lists = Vec::new();
        let mut next = newest.filter(|cid| Some(*cid) != until);
        while let Some(cid) = next {
            if lists.len() == LISTS_MAX {
                return Err(Error::over_limit(format!("over {LISTS_MAX} lists of segments")));
            }
            let list = Self::from_bytes(&store.get_bytes(&cid, LIST_BYTES_MAX).await?)?;
            if list.agent != agent {
                return Err(Error::corrupt(format!("{cid} is no part of the memory of {agent}")));
            }
            next = list.prev.filter(|cid| Some(*cid) != until);
            lists.push((cid, list));
        }
        lists.reverse();
        Ok(lists)
    }
}
