use crate::cid::Cid;
use crate::client::StoreClient;
use crate::error::{Error, Result};
use crate::signed;
use alloy::primitives::Address;
use serde::{Deserialize, Serialize};

/// Longest stretch that is read. A node keeps 2,000 lines, of about 150 bytes each.
pub(crate) const STRETCH_BYTES_MAX: usize = 4 << 20;
/// Stretches that are read back: a checkpoint an hour for eleven years.
const STRETCHES_MAX: usize = 100_000;

/// A stretch of the agent's log: what it wrote down between two checkpoints. Not sealed, because anybody may audit a
/// life; it holds facts from a closed list, and never a prompt or an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifeLog {
    /// The treasury.
    pub agent: Address,
    pub chain_id: u64,
    /// The stretch before; null for the first.
    #[serde(with = "crate::cid::text::maybe")]
    pub prev: Option<Cid>,
    /// Ascending by `seq`. A gap to the stretch before means lines that were dropped before they could be archived.
    pub lines: Vec<LogLine>,
}

/// One line of `vivarium log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// Counts from 1 over the whole life.
    pub seq: u64,
    /// Chain seconds.
    pub at: u64,
    pub block: u64,
    pub kind: String,
    pub text: String,
}

impl LifeLog {
    /// Reads the canonical form; anything else is `Corrupt`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        signed::parse("log", bytes)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        signed::json(self)
    }

    /// The whole log that ends with the stretch `newest`, oldest line first, lines after `seq` only.
    ///
    /// `Corrupt` when a stretch is another agent's or does not come before the one that names it.
    pub async fn read(store: &StoreClient, newest: Cid, agent: Address, after: u64) -> Result<Vec<LogLine>> {
        let mut stretches: Vec<Vec<LogLine>> = Vec::new();
        let mut next = Some(newest);
        let mut below = u64::MAX;
        while let Some(cid) = next {
            let stretch = Self::from_bytes(&store.get_bytes(&cid, STRETCH_BYTES_MAX).await?)?;
            let ordered = stretch.lines.windows(2).all(|w| w[0].seq < w[1].seq);
            if stretch.agent != agent || !ordered || stretch.lines.last().is_some_and(|line| line.seq >= below) {
                return Err(Error::corrupt(format!("{cid} is no part of the log of {agent}")));
            }
            below = stretch.lines.first().map_or(below, |line| line.seq);
            stretches.push(stretch.lines);
            next = stretch.prev.filter(|_| below > after + 1 && stretches.len() < STRETCHES_MAX);
        }
        Ok(stretches.into_iter().rev().flatten().filter(|line| line.seq > after).collect())
    }
}
