//! Shares of the memory key: who asks the stewards for one, rightly or not, and their shipped decision (`steward::share`).
//!
//! What is sealed has a stand-in: a share is the word of whom it was sealed to, and k of them open the checkpoint.

use super::chain::Chain;
use crate::world::World;
use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use chain::anvil::DEV_CHAIN_ID;
use std::collections::BTreeSet;
use steward::ack::OnChain;
use steward::share::check;
use store::checkpoint::ShareRequest;

/// The stewards' desks, and whoever waits in front of them.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// The operator's request, while it has to restore; the last one after that, for whoever overheard it.
    pub request: Option<ShareRequest>,
    /// It has not enough of them yet.
    pub waits: bool,
    /// By whom it has been given one.
    pub given: BTreeSet<usize>,
    /// Bugs that were planted: stewards give to whoever asks; fewer than k are taken for enough.
    pub careless: bool,
    pub hasty: bool,
}

impl Shares {
    /// A new operator that has to restore.
    pub fn begins(&mut self, chain: &Chain) {
        let lease = chain.state.activeLease.to();
        (self.request, self.waits) = (Some(request(chain, lease, &World::node(lease))), true);
        self.given.clear();
    }

    /// Whether a steward gives its share to whoever sent this, as the chain is now.
    pub fn gives(&self, chain: &Chain, request: &ShareRequest) -> bool {
        let on_chain = OnChain::of(DEV_CHAIN_ID, chain.world.treasury, &chain.state);
        self.careless || check(&on_chain, &chain.state, request).is_ok()
    }

    pub fn are_enough(&self, chain: &Chain) -> bool {
        let threshold = if self.hasty { 1 } else { usize::from(chain.world.terms.threshold) };
        self.given.len() >= threshold
    }
}

/// For the present epoch, to be sealed to the signer.
pub fn request(chain: &Chain, lease: u64, signer: &PrivateKeySigner) -> ShareRequest {
    let mut request = ShareRequest {
        treasury: chain.world.treasury,
        chain_id: DEV_CHAIN_ID,
        epoch: chain.state.epoch,
        lease,
        recipient: signer.address().to_string(),
        signature: String::new(),
    };
    request.sign(signer).expect("a key signs");
    request
}

/// Whom the answer is sealed to.
pub fn recipient(request: &ShareRequest) -> Address {
    request.recipient.parse().expect("a stand-in of ours")
}
