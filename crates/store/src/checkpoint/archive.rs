use super::{Checkpoint, LIST_BYTES_MAX, SegmentList};
use crate::blocks::Blocks;
use crate::car;
use crate::cid::Cid;
use crate::client::StoreClient;
use crate::error::{Error, Result, off_thread};
use crate::protobuf::len64;
use crate::signed;
use crate::walk::Walk;
use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use serde::{Deserialize, Serialize};

const KIND: &str = "archive request v1";
/// Stores that one request may name.
const SOURCES_MAX: usize = 8;
const SOURCE_BYTES_MAX: usize = 256;
/// Of all lists of segments together: 260,000 segments, a year of them.
const LISTS_BYTES_MAX: u64 = 16 << 20;
/// What stands in a CAR file before one block, and a chunk's link in its file's node.
const FRAME_BYTES: u64 = 256;
/// A chunk of a file in the store.
const CHUNK_BYTES: u64 = 1 << 20;

/// An operator's signed wish to have a checkpoint's copy put on Arweave, paid by its treasury.
///
/// What one treasury paid for is spent by its operator's word alone: transactions are public, and whoever reads of a
/// payment could otherwise use it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveRequest {
    pub treasury: Address,
    pub chain_id: u64,
    #[serde(with = "crate::cid::text")]
    pub checkpoint: Cid,
    /// In which the treasury paid the archivist.
    pub transaction: B256,
    /// The archivist's price, as it was told.
    pub quote: Quote,
    /// Stores or gateways that have what is to be copied.
    pub sources: Vec<String>,
    /// `0x` and 65 bytes in hex; empty while unsigned.
    pub signature: String,
}

/// What an archivist takes for so many bytes, if it is paid by then. It keeps none of its prices: it knows its own by
/// the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    pub bytes: u64,
    /// Micro-USDC, a decimal string.
    #[serde(with = "decimal")]
    pub amount_uusdc: u128,
    /// Chain seconds.
    pub valid_until: u64,
    pub mac: B256,
}

impl ArchiveRequest {
    /// Reads the canonical form, with a few sources that the client can ask; `Usage` otherwise.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let request: Self =
            signed::parse("archive request", bytes).map_err(|e| Error::usage(e.to_string()).caused_by(e))?;
        let is_good = |url: &String| url.starts_with("http://") && url.len() <= SOURCE_BYTES_MAX;
        if request.sources.is_empty() || request.sources.len() > SOURCES_MAX || !request.sources.iter().all(is_good) {
            return Err(Error::usage(format!(
                "`sources` must name 1 to {SOURCES_MAX} stores by http:// URLs of at most {SOURCE_BYTES_MAX} bytes"
            )));
        }
        Ok(request)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        signed::json(self)
    }

    pub fn sign(&mut self, operator: &PrivateKeySigner) -> Result<()> {
        self.signature = signed::sign(KIND, &self.unsigned(), operator)?;
        Ok(())
    }

    /// Who signed, if anybody.
    pub fn signer(&self) -> Option<Address> {
        signed::signer(KIND, &self.unsigned(), &self.signature)
    }

    fn unsigned(&self) -> Self {
        Self { signature: String::new(), ..self.clone() }
    }
}

/// What of a checkpoint goes where nothing can be destroyed: its signed list, the snapshot and the segments. **Never**
/// its key object, nor the pages, which hold keys of conversations under keys from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveCopy {
    /// The checkpoint first.
    pub roots: Vec<Cid>,
    /// Most bytes of a CAR file of all that lies below them, if the checkpoint says its own sizes right.
    pub bytes_max: u64,
}

impl ArchiveCopy {
    /// Reads the lists of segments for it, newest first. `Corrupt` when one is another agent's, or names keys;
    /// `OverLimit` for lists that are longer than any agent's.
    pub async fn of(store: &StoreClient, checkpoint: &Checkpoint) -> Result<Self> {
        let mut roots = vec![checkpoint.cid(), checkpoint.snapshot];
        let (mut lists_bytes, mut next) = (0_u64, checkpoint.segments);
        while let Some(cid) = next {
            let list = store.get_bytes(&cid, LIST_BYTES_MAX).await?;
            lists_bytes = lists_bytes.saturating_add(len64(&list));
            if lists_bytes > LISTS_BYTES_MAX {
                return Err(Error::over_limit(format!("lists of segments of over {LISTS_BYTES_MAX} bytes")));
            }
            let list = SegmentList::from_bytes(&list)?;
            if list.agent != checkpoint.agent {
                return Err(Error::corrupt(format!("{cid} is no part of the memory of {}", checkpoint.agent)));
            }
            roots.push(cid);
            roots.extend(list.segments);
            next = list.prev;
        }
        let bytes = len64(&checkpoint.to_bytes())
            .saturating_add(checkpoint.snapshot_bytes)
            .saturating_add(checkpoint.segments_bytes)
            .saturating_add(lists_bytes);
        let secret = [checkpoint.keys].into_iter().chain(checkpoint.conversations.iter().copied());
        if let Some(cid) = secret.into_iter().find(|secret| roots.contains(secret)) {
            return Err(Error::corrupt(format!("{cid} is named as keys and as memory: nothing of it is copied")));
        }
        let blocks = len64_of(roots.len()).saturating_add(bytes / CHUNK_BYTES).saturating_add(1);
        Ok(Self { roots, bytes_max: bytes.saturating_add(blocks.saturating_mul(2 * FRAME_BYTES)) })
    }

    /// Brings it into `blocks`, each block checked; what is there is not asked for again.
    ///
    /// `OverLimit` once its CAR file would have more than `bytes_max` bytes, whatever the checkpoint says of its sizes.
    pub async fn gather(&self, blocks: &Blocks, sources: &StoreClient, bytes_max: u64) -> Result<()> {
        let mut bytes = len64(&car::header(&self.roots[..1])?);
        let mut walk = Walk::from_all(&self.roots);
        while let Some((cid, depth)) = walk.next_block() {
            let here = if blocks.has(&cid) { blocks.get(&cid).ok() } else { None };
            let block = match here {
                Some(block) => block,
                None => {
                    let (block, blocks) = (sources.get_block(&cid).await?, blocks.clone());
                    let put = block.clone();
                    off_thread(move || blocks.put_later(&cid, &put)).await?;
                    block
                }
            };
            bytes = bytes.saturating_add(len64(&car::frame(&cid, &block))).saturating_add(len64(&block));
            if bytes > bytes_max {
                return Err(Error::over_limit(format!("the copy has more than the {bytes_max} bytes of its price")));
            }
            walk.visited(&cid, depth, &block)?;
        }
        let blocks = blocks.clone();
        off_thread(move || blocks.sync()).await
    }
}

fn len64_of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Amounts above 2^53 are no safe JSON numbers.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&value.to_string())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        let text = String::deserialize(d)?;
        let amount = text.parse::<u128>().ok().filter(|amount| amount.to_string() == text);
        amount.ok_or_else(|| D::Error::custom(format!("`{text}` is not a decimal integer")))
    }
}
