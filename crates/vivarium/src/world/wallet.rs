//! One key with somebody at the terminal behind it: the creator, a giver, a steward with an order.

use alloy::eips::BlockId;
use alloy::primitives::{Address, Bytes};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::local::PrivateKeySigner;
use chain::sender::Done;
use chain::{Chain, Sender, SenderHandle, Tx};
use std::fmt;

/// Sends one transaction after the other and waits for each. Clones share the queue.
#[derive(Clone)]
pub struct Wallet {
    pub chain: Chain,
    key: PrivateKeySigner,
    sender: SenderHandle,
}

impl Wallet {
    /// Needs a running runtime: sending is a task of its own.
    pub fn new(chain: Chain, key: PrivateKeySigner) -> Self {
        // One confirmation: somebody waits, and a development chain does not reorg while it is shown.
        let sender = Sender::spawn(chain.clone(), key.clone(), 1);
        Self { chain, key, sender }
    }

    pub fn address(&self) -> Address {
        self.key.address()
    }

    pub fn key(&self) -> &PrivateKeySigner {
        &self.key
    }

    /// Sends and waits until it is mined. A refusal carries the contract's reason.
    pub async fn send(&self, tx: Tx) -> Result<Done, chain::Error> {
        self.sender.send_and_wait(tx).await
    }

    /// The contract's answer without sending anything: `Ok` means that it would accept.
    pub async fn ask(&self, to: Address, data: Bytes) -> Result<Bytes, chain::Error> {
        let request = TransactionRequest::default().from(self.address()).to(to).input(data.into());
        self.chain.request("eth_call", (request, BlockId::latest())).await
    }
}

/// The key stays out of logs.
impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wallet").field("address", &self.address()).finish_non_exhaustive()
    }
}
