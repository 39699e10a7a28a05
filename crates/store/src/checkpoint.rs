//! The signed objects that say what an agent's memory is.
//!
//! A [`Checkpoint`] is one raw block: the treasury keeps its sha2-256 digest. A [`SegmentHeader`] names one
//! sealed run of the journal after it. A [`ShareRequest`] is how a successor asks stewards and the active node
//! for key material. All are canonical JSON, and each refusal has a name ([`Mismatch`]).

mod archive;
pub mod keys;
pub(crate) mod log;
mod page;
mod request;
mod segment;
mod segments;

pub use archive::{ArchiveCopy, ArchiveRequest, Quote};
pub use log::{LifeLog, LogLine};
pub use page::{ConversationPage, PAGE_BYTES_MAX, PAGE_CONVERSATIONS};
pub use request::ShareRequest;
pub use segment::SegmentHeader;
pub use segments::{LIST_BYTES_MAX, SegmentList};

use crate::cid::{self, Cid};
use crate::error::{Error, Result};
use crate::seal;
use crate::signed;
use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use serde::{Deserialize, Serialize};
use std::fmt;

const KIND: &str = "checkpoint v3";
/// The one version this program writes and reads.
pub const VERSION: u32 = 3;

/// Everything a successor needs to become the agent, sealed but for the names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    pub version: u32,
    /// The treasury.
    pub agent: Address,
    pub chain_id: u64,
    /// The epoch in which it was made; its operator signs.
    pub epoch: u64,
    pub seq: u64,
    /// Digest of the checkpoint before; null for the first.
    pub prev: Option<B256>,
    /// The last journal record that it contains.
    pub lsn: u64,
    /// The sealed snapshot. It is of this checkpoint or of one before it in the same epoch.
    #[serde(with = "crate::cid::text")]
    pub snapshot: Cid,
    pub snapshot_bytes: u64,
    /// The last journal record that the snapshot contains; the later ones, up to `lsn`, are in `segments`.
    pub snapshot_lsn: u64,
    /// The newest [`SegmentList`]; null where the snapshot has all.
    #[serde(with = "crate::cid::text::maybe")]
    pub segments: Option<Cid>,
    /// Sealed bytes of all segments that it and the lists before it name.
    pub segments_bytes: u64,
    /// The public half (`age1…`) of the key that opens the snapshot, and what later segments are sealed to. Its secret
    /// is in the key object.
    pub chapter: String,
    /// The [key object](keys).
    #[serde(with = "crate::cid::text")]
    pub keys: Cid,
    /// The memory key's public half (`age1…`): what the key object is sealed to.
    pub recipient: String,
    /// [`seal::key_hash`] of the memory key's secret text.
    pub key_hash: B256,
    /// How many shares give the memory key.
    pub threshold: u8,
    pub shares: Vec<Share>,
    /// [Pages](ConversationPage) of stored conversations, whose keys are in the key object.
    #[serde(with = "crate::cid::text::many")]
    pub conversations: Vec<Cid>,
    /// The newest stretch of the agent's public log, a [`LifeLog`]: through it and those before it the whole log is
    /// found from the chain alone, also when nobody runs the agent any more.
    #[serde(with = "crate::cid::text")]
    pub log: Cid,
    /// The last line in it.
    pub log_seq: u64,
    /// Chain seconds.
    pub created_at: u64,
    /// `0x` and 65 bytes in hex; empty while unsigned.
    pub signature: String,
}

/// A share of the memory key, sealed to one steward's share key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    pub steward: Address,
    /// `age1…`
    pub share_recipient: String,
    /// The sealed [`seal::Share`], standard base64.
    pub sealed: String,
}

impl Checkpoint {
    /// Reads the canonical form; anything else, unknown fields too, is `Corrupt`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        signed::parse("checkpoint", bytes)
    }

    /// The canonical form: the bytes of the block.
    pub fn to_bytes(&self) -> Vec<u8> {
        signed::json(self)
    }

    /// What `commit` puts on chain.
    pub fn digest(&self) -> [u8; 32] {
        cid::sha256(&self.to_bytes())
    }

    pub fn cid(&self) -> Cid {
        cid::raw(self.digest())
    }

    /// Sets `signature`. `Usage` if the object could not pass its own [`Checkpoint::verify`].
    pub fn sign(&mut self, operator: &PrivateKeySigner) -> Result<()> {
        self.signature = signed::sign(KIND, &self.unsigned(), operator)?;
        self.verify(operator.address(), self.agent, self.chain_id)
            .map_err(|e| Error::usage("a checkpoint that nobody could accept").caused_by(e))
    }

    /// Checks all that can be seen without its neighbours: that it is this agent's on this chain, that its key
    /// can be restored as it says, and that `operator` signed exactly this.
    pub fn verify(&self, operator: Address, agent: Address, chain_id: u64) -> std::result::Result<(), Mismatch> {
        if self.version != VERSION {
            return Err(Mismatch::Version { found: self.version });
        }
        check_home(self.agent, self.chain_id, agent, chain_id)?;
        check_signature(signed::signer(KIND, &self.unsigned(), &self.signature), operator)?;
        self.check_shares()
    }

    /// Checks that it comes right after the checkpoint `seq` with digest `prev` (`None` before the first), in
    /// an epoch not before `epoch`.
    pub fn follows(&self, seq: u64, prev: Option<B256>, epoch: u64) -> std::result::Result<(), Mismatch> {
        if self.epoch < epoch {
            return Err(Mismatch::Epoch { found: self.epoch, expected: epoch });
        }
        if Some(self.seq) != seq.checked_add(1) {
            return Err(Mismatch::Seq { found: self.seq, expected: seq.saturating_add(1) });
        }
        if self.prev != prev {
            return Err(Mismatch::Prev { found: self.prev, expected: prev });
        }
        Ok(())
    }

    /// All objects it names itself. Pages, logs and lists of segments name others; keeping it means keeping all.
    pub fn objects(&self) -> Vec<Cid> {
        let named = [self.snapshot, self.keys, self.log].into_iter().chain(self.segments);
        named.chain(self.conversations.iter().copied()).collect()
    }

    /// The share sealed to `steward`.
    pub fn share_of(&self, steward: Address) -> Option<&Share> {
        self.shares.iter().find(|s| s.steward == steward)
    }

    fn check_shares(&self) -> std::result::Result<(), Mismatch> {
        let bad = |why: String| Err(Mismatch::Shares { why });
        if self.snapshot_lsn > self.lsn || (self.snapshot_lsn == self.lsn) != self.segments.is_none() {
            return Err(Mismatch::Gap { found: self.snapshot_lsn, expected: self.lsn });
        }
        let (k, n) = (usize::from(self.threshold), self.shares.len());
        if k == 0 || k > n || n > 255 {
            return bad(format!("{k} of {n}"));
        }
        for (at, share) in self.shares.iter().enumerate() {
            if self.shares[..at].iter().any(|s| s.steward == share.steward || s.sealed == share.sealed) {
                return bad(format!("steward {} has a share of somebody else, or two", share.steward));
            }
            if seal::Recipient::parse(&share.share_recipient).is_err() {
                return bad(format!("the share key of steward {} is no age recipient", share.steward));
            }
        }
        if seal::Recipient::parse(&self.chapter).is_err() {
            return bad("the chapter's public half is no age recipient".into());
        }
        match seal::Recipient::parse(&self.recipient) {
            Ok(_) => Ok(()),
            Err(_) => bad("the memory key's public half is no age recipient".into()),
        }
    }

    fn unsigned(&self) -> Self {
        Self { signature: String::new(), ..self.clone() }
    }
}

/// Why a signed object is not the one expected. Ordered by what is checked first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    Version {
        found: u32,
    },
    /// Another agent's object.
    Agent {
        found: Address,
        expected: Address,
    },
    /// The same address on another chain.
    Chain {
        found: u64,
        expected: u64,
    },
    /// Not signed, altered after signing, or signed by somebody else (then `found` says who).
    Signature {
        found: Option<Address>,
        expected: Address,
    },
    /// An older epoch's object, replayed.
    Epoch {
        found: u64,
        expected: u64,
    },
    /// Replayed, or one was left out.
    Seq {
        found: u64,
        expected: u64,
    },
    /// Another history.
    Prev {
        found: Option<B256>,
        expected: Option<B256>,
    },
    /// The key could not be restored from its shares.
    Shares {
        why: String,
    },
    /// A segment's first record is not the one after the last.
    Gap {
        found: u64,
        expected: u64,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = |d: &Option<B256>| d.map_or("none".to_owned(), |d| d.to_string());
        match self {
            Self::Version { found } => write!(f, "version {found}; this program reads version {VERSION}"),
            Self::Agent { found, expected } => write!(f, "it belongs to agent {found}, not to {expected}"),
            Self::Chain { found, expected } => write!(f, "it belongs to chain {found}, not to {expected}"),
            Self::Signature { found: Some(found), expected } => {
                write!(f, "signed by {found} (or altered after {expected} signed)")
            }
            Self::Signature { found: None, expected } => write!(f, "it has no valid signature of {expected}"),
            Self::Epoch { found, expected } => write!(f, "it is of epoch {found}; epoch {expected} has begun"),
            Self::Seq { found, expected } => write!(f, "its number is {found}; {expected} comes next"),
            Self::Prev { found, expected } => {
                write!(f, "it continues {}, not {}", digest(found), digest(expected))
            }
            Self::Shares { why } => write!(f, "its key cannot be restored: {why}"),
            Self::Gap { found, expected } => write!(f, "it begins with record {found}; {expected} comes next"),
        }
    }
}

impl std::error::Error for Mismatch {}

fn check_home(agent: Address, chain_id: u64, ours: Address, our_chain: u64) -> std::result::Result<(), Mismatch> {
    if agent != ours {
        return Err(Mismatch::Agent { found: agent, expected: ours });
    }
    if chain_id != our_chain {
        return Err(Mismatch::Chain { found: chain_id, expected: our_chain });
    }
    Ok(())
}

fn check_signature(found: Option<Address>, expected: Address) -> std::result::Result<(), Mismatch> {
    match found {
        // The zero address is "nobody" on chain: it is never a signer to wait for.
        Some(signer) if signer == expected && !expected.is_zero() => Ok(()),
        found => Err(Mismatch::Signature { found, expected }),
    }
}
