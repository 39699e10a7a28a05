use super::{Mismatch, check_home, check_signature};
use crate::error::Result;
use crate::signed;
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use serde::{Deserialize, Serialize};

const KIND: &str = "share request v1";

/// A node's signed wish for key material, answered only to the key in `recipient`.
///
/// Sent to stewards after a takeover or rescue, and to the active node before a handover. It says who asks and
/// for which epoch; whether that key may have it now is for the answerer to see on chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareRequest {
    pub treasury: Address,
    pub chain_id: u64,
    pub epoch: u64,
    /// The lease under which the asking node runs.
    pub lease: u64,
    /// `age1…`: the answer is sealed to it.
    pub recipient: String,
    /// `0x` and 65 bytes in hex; empty while unsigned.
    pub signature: String,
}

impl ShareRequest {
    pub fn sign(&mut self, node_key: &PrivateKeySigner) -> Result<()> {
        self.signature = signed::sign(KIND, &self.unsigned(), node_key)?;
        Ok(())
    }

    /// Checks that it concerns this treasury, chain and epoch, and that `asker` signed exactly this.
    pub fn verify(
        &self,
        asker: Address,
        treasury: Address,
        chain_id: u64,
        epoch: u64,
    ) -> std::result::Result<(), Mismatch> {
        check_home(self.treasury, self.chain_id, treasury, chain_id)?;
        check_signature(self.signer(), asker)?;
        match self.epoch == epoch {
            true => Ok(()),
            false => Err(Mismatch::Epoch { found: self.epoch, expected: epoch }),
        }
    }

    /// Who signed, if anybody.
    pub fn signer(&self) -> Option<Address> {
        signed::signer(KIND, &self.unsigned(), &self.signature)
    }

    fn unsigned(&self) -> Self {
        Self { signature: String::new(), ..self.clone() }
    }
}
