//! What this node's two keys have on their way to the chain, on its disk before it leaves: a process that is started
//! again goes on with it, and sends nothing under a second nonce that may still be mined under the first.
//!
//! Each file is sealed under the lease key, like the keys that it belongs to.

use crate::keys::Keys;
use alloy::primitives::{Address, keccak256};
use alloy::signers::local::PrivateKeySigner;
use chain::bindings::ITreasury::State;
use chain::outbox::{self, Id, Outbox};
use chain::sender::{Options, Persist, Sender};
use chain::{Chain, SenderHandle, Tx};
use economy::OutputId;
use net::chain_of;
use std::path::{Path, PathBuf};
use store::seal::lockbox;

/// Blocks that hold a transaction until its end is told: mined. What a reorganisation takes back comes as an event.
const CONFIRMATIONS: u64 = 1;

/// The two senders of a node.
pub struct Outboxes {
    /// Of typed calls to the treasury.
    pub operator: SenderHandle,
    /// Of strangers' settlements.
    pub relay: SenderHandle,
}

impl Outboxes {
    /// Starts both where the process before this one left them.
    ///
    /// What they have on their way rests until the node knows that its memory is the newest ([`SenderHandle::go_on`]).
    /// A former operator's calls are left to the chain, which refuses them: it must not sign, and sending them again would
    /// be that. A file that cannot be read is said and passed over: whoever sends asks the chain first, as after the loss
    /// of a host, and an agent that does not start helps nobody.
    ///
    /// `chains`: the first is told and asked; all must say the same of a receipt.
    pub fn open(chains: &[Chain], keys: &Keys, data_dir: &Path, seal_key: &[u8; 32], acts: bool) -> Self {
        let (chain, witnesses) = chains.split_first().expect("the configuration refuses an empty list");
        let open = |name: &str, key: &PrivateKeySigner, goes_on: bool| {
            let file = File { path: data_dir.join(format!("{name}.outbox")), seal_key: *seal_key };
            let state = if goes_on { file.load() } else { None };
            let is_ours = |state: &Vec<u8>| {
                let read = Outbox::from_bytes(state, key.address(), outbox::Options::new(CONFIRMATIONS));
                read.inspect_err(|e| tracing::error!(name, error = %chain_of(e), "an outbox is passed over")).is_ok()
            };
            let state = state.filter(is_ours);
            let witnesses = witnesses.to_vec();
            let persist = Some(file.persist());
            let options = Options { state, rests: true, persist, witnesses, ..Options::new(CONFIRMATIONS) };
            Sender::spawn_with(chain.clone(), key.clone(), options).expect("it was read before")
        };
        Self { operator: open("operator", &keys.node, acts), relay: open("relay", &keys.relay, true) }
    }
}

/// Whether the calls of the node key `me` on `lease` may still have effect: it is operator or could become it.
pub fn acts(state: &State, me: Address, lease: u64) -> bool {
    state.operator == me || state.standbyLease.saturating_to::<u64>() == lease
}

/// The name of one call that the life asked for, the same after a restart. The call is part of it: a journal that was
/// restored may use a number again for something else.
pub fn name_of(id: OutputId, tx: &Tx) -> Id {
    let to = tx.to.unwrap_or_default();
    let digest = keccak256([&id.lsn.to_be_bytes()[..], &id.index.to_be_bytes(), to.as_slice(), &tx.data].concat());
    let mut name = [0; 16];
    name.copy_from_slice(&digest[..16]);
    Id(name)
}

/// One outbox's file.
struct File {
    path: PathBuf,
    seal_key: [u8; 32],
}

impl File {
    /// `None`: there is none, or it cannot be read, which is said.
    fn load(&self) -> Option<Vec<u8>> {
        let path = self.path.display();
        let sealed = match std::fs::read(&self.path) {
            Ok(sealed) => sealed,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(e) => {
                tracing::error!(%path, error = %e, "what was on its way to the chain cannot be read");
                return None;
            }
        };
        match lockbox::unlock(&self.seal_key, &sealed) {
            Ok(state) => Some(state.to_vec()),
            Err(e) => {
                tracing::error!(%path, error = %chain_of(&e), "what was on its way to the chain does not open");
                None
            }
        }
    }

    /// A full disk stops no heartbeat: what is sent then may be sent again by the next process, and the chain allows each
    /// once or it is asked first.
    fn persist(self) -> Persist {
        Box::new(move |state| {
            if let Err(e) = lockbox::lock_to(&self.path, &self.seal_key, state) {
                tracing::error!(error = %chain_of(&e), "what is on its way to the chain is not on the disk");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, key: u8) -> File {
        File { path: dir.join("operator.outbox"), seal_key: [key; 32] }
    }

    #[test]
    fn what_was_kept_last_comes_back_under_the_same_lease_only() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(file(dir.path(), 1).load(), None);
        let mut persist = file(dir.path(), 1).persist();
        persist(b"first");
        persist(b"second");
        assert_eq!(file(dir.path(), 1).load().as_deref(), Some(&b"second"[..]));
        assert_eq!(file(dir.path(), 2).load(), None, "another lease's key");
    }

    #[test]
    fn a_name_is_of_the_output_and_of_the_call() {
        let tx = |data: &'static [u8]| Tx::call(Address::repeat_byte(1), data.into(), "heartbeat");
        let (id, next) = (OutputId { lsn: 7, index: 0 }, OutputId { lsn: 7, index: 1 });
        assert_eq!(name_of(id, &tx(b"a")), name_of(id, &tx(b"a")));
        assert_ne!(name_of(id, &tx(b"a")), name_of(next, &tx(b"a")));
        assert_ne!(name_of(id, &tx(b"a")), name_of(id, &tx(b"b")), "a restored journal counts on from an older number");
    }
}
