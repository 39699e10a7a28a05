use super::{Mismatch, check_home, check_signature};
use crate::cid::{self, Cid};
use crate::error::Result;
use crate::signed;
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use serde::{Deserialize, Serialize};

const KIND: &str = "segment v1";

/// The label of one sealed run of journal records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentHeader {
    /// The treasury.
    pub agent: Address,
    pub chain_id: u64,
    /// The epoch whose operator sealed and signed it.
    pub epoch: u64,
    /// Counts segments, from the first of the agent's life.
    pub index: u64,
    pub first_lsn: u64,
    /// Inclusive; not before `first_lsn`.
    pub last_lsn: u64,
    /// The segment before; null for the first.
    #[serde(with = "crate::cid::text::maybe")]
    pub prev: Option<Cid>,
    /// The sealed records.
    #[serde(with = "crate::cid::text")]
    pub cid: Cid,
    /// The chapter (`age1…`) it is sealed to.
    pub recipient: String,
    /// Length of the sealed records.
    pub bytes: u64,
    /// `0x` and 65 bytes in hex; empty while unsigned.
    pub signature: String,
}

impl SegmentHeader {
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        signed::parse("segment header", bytes)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        signed::json(self)
    }

    pub fn digest(&self) -> [u8; 32] {
        cid::sha256(&self.to_bytes())
    }

    pub fn sign(&mut self, operator: &PrivateKeySigner) -> Result<()> {
        self.signature = signed::sign(KIND, &self.unsigned(), operator)?;
        Ok(())
    }

    /// Checks that it is this agent's on this chain and that `operator` (of its epoch) signed exactly this.
    pub fn verify(&self, operator: Address, agent: Address, chain_id: u64) -> std::result::Result<(), Mismatch> {
        check_home(self.agent, self.chain_id, agent, chain_id)?;
        check_signature(signed::signer(KIND, &self.unsigned(), &self.signature), operator)?;
        if self.last_lsn < self.first_lsn {
            return Err(Mismatch::Gap { found: self.last_lsn, expected: self.first_lsn });
        }
        Ok(())
    }

    /// Checks that it comes right after `before`.
    pub fn follows(&self, before: &Self) -> std::result::Result<(), Mismatch> {
        if self.epoch < before.epoch {
            return Err(Mismatch::Epoch { found: self.epoch, expected: before.epoch });
        }
        if Some(self.index) != before.index.checked_add(1) {
            return Err(Mismatch::Seq { found: self.index, expected: before.index.saturating_add(1) });
        }
        if self.prev.as_ref().map(cid::normal) != Some(cid::normal(&before.cid)) {
            let digest = |c: &Cid| cid::digest(c).into();
            return Err(Mismatch::Prev { found: self.prev.as_ref().map(digest), expected: Some(digest(&before.cid)) });
        }
        if Some(self.first_lsn) != before.last_lsn.checked_add(1) {
            return Err(Mismatch::Gap { found: self.first_lsn, expected: before.last_lsn.saturating_add(1) });
        }
        Ok(())
    }

    fn unsigned(&self) -> Self {
        Self { signature: String::new(), ..self.clone() }
    }
}
