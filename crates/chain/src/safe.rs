//! A Safe as a steward: who owns it, and what its owners sign so that it says yes.
//!
//! The treasury asks a steward that is a contract by ERC-1271. A Safe's fallback handler takes the question for a
//! *Safe message*: it wants its owners' signatures over an EIP-712 struct in the Safe's own domain, whose `message` is
//! the ABI encoding of the digest asked about. Source: Safe 1.5.0, `CompatibilityFallbackHandler`.

use alloy::{
    dyn_abi::Eip712Domain,
    eips::BlockId,
    primitives::{Address, B256, Bytes, U256},
    signers::{SignerSync, local::PrivateKeySigner},
    sol_types::{SolStruct, SolValue},
};
use std::collections::BTreeMap;

use crate::{
    error::{Error, Kind},
    orders::recover_digest,
    rpc::Chain,
};

alloy::sol! {
    #[derive(Debug, PartialEq, Eq)]
    struct SafeMessage {
        bytes message;
    }

    function getOwners() external view returns (address[] memory);
    function getThreshold() external view returns (uint256);
}

/// One Safe, as it stood when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Safe {
    /// The contract.
    pub address: Address,
    /// Whose signatures count.
    pub owners: Vec<Address>,
    /// How many of them are needed.
    pub threshold: usize,
}

impl Chain {
    /// The Safe at `address`; `None` for a plain key.
    ///
    /// # Errors
    /// `Missing` for a contract that does not answer as a Safe does, or `Rpc`.
    pub async fn safe(&self, address: Address) -> Result<Option<Safe>, Error> {
        let code: Bytes = self.request("eth_getCode", (address, BlockId::latest())).await?;
        if code.is_empty() {
            return Ok(None);
        }
        let foreign = |e: Error| match e.kind {
            Kind::Reverted(_) | Kind::Missing => {
                Error::missing(format!("the contract at {address} is no Safe, and only Safes are known here"))
                    .with_source(e)
            }
            _ => e,
        };
        let owners = self.read(address, getOwnersCall {}, BlockId::latest()).await.map_err(foreign)?;
        let threshold: U256 = self.read(address, getThresholdCall {}, BlockId::latest()).await.map_err(foreign)?;
        // No Safe has so many owners, so none could ever speak.
        let threshold = usize::try_from(threshold).unwrap_or(usize::MAX);
        Ok(Some(Safe { address, owners, threshold }))
    }
}

/// What an owner of `safe` signs so that the Safe says yes to `digest`.
pub fn message_digest(chain_id: u64, safe: Address, digest: B256) -> B256 {
    let domain = Eip712Domain::new(None, None, Some(U256::from(chain_id)), Some(safe), None);
    SafeMessage { message: digest.abi_encode().into() }.eip712_signing_hash(&domain)
}

/// One owner's part of the Safe's yes to `digest`: 65 bytes.
///
/// # Errors
/// As [`crate::orders::sign`].
pub fn sign(chain_id: u64, safe: Address, digest: B256, owner: &PrivateKeySigner) -> Result<Bytes, Error> {
    let signature = owner
        .sign_hash_sync(&message_digest(chain_id, safe, digest))
        .map_err(|e| Error::usage(format!("{} cannot sign", owner.address())).with_source(e))?;
    Ok(signature.as_bytes().into())
}

impl Safe {
    /// The Safe's yes to `digest` as a treasury takes it: its address, then its owners' signatures, ascending by owner.
    /// Exactly as many as it asks for; strangers' are left out.
    ///
    /// # Errors
    /// `Usage`, naming how many of how many were found.
    pub fn signature(&self, chain_id: u64, digest: B256, parts: &[Bytes]) -> Result<Bytes, Error> {
        let message = message_digest(chain_id, self.address, digest);
        let signed = parts.iter().filter_map(|part| Some((recover_digest(message, part).ok()?, part)));
        let by_owner: BTreeMap<Address, &Bytes> = signed.filter(|(owner, _)| self.owners.contains(owner)).collect();
        let (found, all) = (by_owner.len(), self.owners.len());
        if found < self.threshold {
            let what =
                format!("{found} of the {all} owners of the Safe {} signed and {} must", self.address, self.threshold);
            return Err(Error::usage(what));
        }
        let mut signature = self.address.to_vec();
        for part in by_owner.into_values().take(self.threshold) {
            signature.extend_from_slice(part);
        }
        Ok(signature.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).expect("in range")
    }

    #[test]
    fn a_safes_word_is_its_address_and_its_owners_in_order() {
        let owners: Vec<Address> = (1..=3).map(|n| key(n).address()).collect();
        let safe = Safe { address: Address::repeat_byte(0x5a), owners, threshold: 2 };
        let digest = B256::repeat_byte(7);
        let part = |n| sign(1, safe.address, digest, &key(n)).expect("signs");
        let stranger = part(9);
        let refused = safe.signature(1, digest, &[part(1), part(1), stranger.clone()]).expect_err("one owner");
        assert!(refused.to_string().starts_with("1 of the 3 owners of the Safe"), "{refused}");
        let whole = safe.signature(1, digest, &[part(3), stranger, part(1), part(2)]).expect("enough");
        assert_eq!((whole.len(), &whole[..20]), (20 + 2 * 65, safe.address.as_slice()));
        let message = message_digest(1, safe.address, digest);
        let signers: Vec<Address> =
            whole[20..].chunks(65).map(|part| recover_digest(message, part).expect("a signature")).collect();
        assert!(signers[0] < signers[1] && signers.iter().all(|s| safe.owners.contains(s)), "{signers:?}");
        // Another Safe, chain or digest is another message.
        for other in [
            message_digest(2, safe.address, digest),
            message_digest(1, Address::ZERO, digest),
            message_digest(1, safe.address, B256::ZERO),
        ] {
            assert_ne!(other, message);
        }
    }
}
