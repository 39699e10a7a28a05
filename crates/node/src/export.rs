//! Who gets, or is told of, all that a customer stored: whoever signs for it with the key that paid.
//!
//! The agent knows its customers by their payments alone, so the payer's address is the customer. It signs an ordinary
//! personal message (EIP-191) that names agent, chain and time: no wallet can take it for a payment (those are EIP-712),
//! and whoever overhears it can use it for five minutes at most.

use alloy::primitives::{Address, Signature};
use alloy::signers::{SignerSync, local::PrivateKeySigner};
use serde::{Deserialize, Serialize};

/// How far a request's time may be from the chain's, seconds.
pub const FRESH_SECS: u64 = 300;

/// The body of `POST /v1/responses/export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// An account with a key: a contract signs nothing here.
    pub payer: Address,
    /// Unix seconds.
    pub at: u64,
    /// `0x` and 65 bytes in hex, over [`message`] as a personal message.
    pub signature: String,
}

/// What is signed, for people to read in their wallet.
pub fn message(agent: Address, chain_id: u64, payer: Address, at: u64) -> String {
    format!("Export all conversations that {payer} stored with the agent {agent} on chain {chain_id}, at {at}")
}

impl ExportRequest {
    /// # Errors
    /// When the key cannot sign.
    pub fn signed(agent: Address, chain_id: u64, at: u64, key: &PrivateKeySigner) -> alloy::signers::Result<Self> {
        let payer = key.address();
        let signature = key.sign_message_sync(message(agent, chain_id, payer, at).as_bytes())?;
        Ok(Self { payer, at, signature: format!("0x{}", hex::encode(signature.as_bytes())) })
    }

    /// Why this is not the payer's wish here and `now`, or nothing.
    ///
    /// # Errors
    /// A sentence for the asker.
    pub fn verify(&self, agent: Address, chain_id: u64, now: u64) -> Result<(), String> {
        is_signed(self.payer, self.at, &self.signature, now, &message(agent, chain_id, self.payer, self.at))
    }
}

/// The header `vivarium-payer` of `GET /v1/files` and `GET /v1/batches`, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    pub payer: Address,
    /// Unix seconds.
    pub at: u64,
    /// `0x` and 65 bytes in hex, over [`list_message`] as a personal message.
    pub signature: String,
}

/// What is signed: it shows no content.
pub fn list_message(agent: Address, chain_id: u64, payer: Address, at: u64) -> String {
    format!("List all files and batches that {payer} paid for with the agent {agent} on chain {chain_id}, at {at}")
}

impl ListRequest {
    /// # Errors
    /// When the key cannot sign.
    pub fn signed(agent: Address, chain_id: u64, at: u64, key: &PrivateKeySigner) -> alloy::signers::Result<Self> {
        let payer = key.address();
        let signature = key.sign_message_sync(list_message(agent, chain_id, payer, at).as_bytes())?;
        Ok(Self { payer, at, signature: format!("0x{}", hex::encode(signature.as_bytes())) })
    }

    /// As [`ExportRequest::verify`].
    ///
    /// # Errors
    /// A sentence for the asker.
    pub fn verify(&self, agent: Address, chain_id: u64, now: u64) -> Result<(), String> {
        is_signed(self.payer, self.at, &self.signature, now, &list_message(agent, chain_id, self.payer, self.at))
    }
}

fn is_signed(payer: Address, at: u64, signature: &str, now: u64, text: &str) -> Result<(), String> {
    if at.abs_diff(now) > FRESH_SECS {
        return Err(format!("`at` is {at}, the chain's time is {now}: sign it anew"));
    }
    let bytes = signature.strip_prefix("0x").and_then(|digits| hex::decode(digits).ok());
    let signature = bytes.and_then(|bytes| Signature::from_raw(&bytes).ok());
    let signature = signature.ok_or("`signature` is not 0x and 65 bytes in hex")?;
    match signature.recover_address_from_msg(text.as_bytes()) {
        Ok(signer) if signer == payer && !signer.is_zero() => Ok(()),
        _ => Err(format!("this is not signed by {payer}; sign: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: Address = Address::repeat_byte(7);

    #[test]
    fn only_the_payer_asks_and_only_here_and_now() {
        let key = PrivateKeySigner::random();
        let asked = ExportRequest::signed(AGENT, 31337, 1_000, &key).unwrap();
        assert_eq!(asked.verify(AGENT, 31337, 1_000 + FRESH_SECS), Ok(()));
        assert_eq!(asked.verify(AGENT, 31337, 1_000 - FRESH_SECS), Ok(()));
        let refused = |asked: &ExportRequest, agent, chain_id, now| asked.verify(agent, chain_id, now).unwrap_err();
        assert!(refused(&asked, AGENT, 31337, 1_001 + FRESH_SECS).contains("anew"));
        assert!(refused(&asked, Address::ZERO, 31337, 1_000).contains("not signed by"));
        assert!(refused(&asked, AGENT, 1, 1_000).contains("not signed by"));
        let other = ExportRequest { payer: PrivateKeySigner::random().address(), ..asked.clone() };
        assert!(refused(&other, AGENT, 31337, 1_000).contains("not signed by"));
        let list = ListRequest::signed(AGENT, 31337, 1_000, &key).unwrap();
        assert_eq!(list.verify(AGENT, 31337, 1_000), Ok(()));
        let list = ListRequest { signature: asked.signature.clone(), ..list };
        assert!(list.verify(AGENT, 31337, 1_000).unwrap_err().contains("not signed by"), "an export is another wish");
        let later = ExportRequest { at: 1_001, ..asked.clone() };
        assert!(refused(&later, AGENT, 31337, 1_000).contains("not signed by"));
        for signature in ["", "0x", "0x00", &asked.signature[2..]] {
            let broken = ExportRequest { signature: signature.to_owned(), ..asked.clone() };
            assert!(refused(&broken, AGENT, 31337, 1_000).contains("65 bytes"), "{signature}");
        }
    }
}
