//! Whether to acknowledge a checkpoint: pure checks, each refusal with a name, and the memory of what was signed.
//!
//! An acknowledgement says: this steward fetched the object and everything it names, and can open its share. On
//! chain, k of them make the checkpoint the one that successors restore; so a steward never signs two different
//! digests for the same place in the same epoch.

use crate::refusal::Refusal;
use alloy::primitives::{Address, B256};
use chain::Stage;
use chain::bindings::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use store::checkpoint::Checkpoint;

/// Signed places this far behind the chain's are forgotten: `commit` accepts only the next one, and a reorg that
/// deep is not survived by anything else here either.
const KEEP_SEQS: u64 = 64;

/// What the treasury says about itself, as far as a checkpoint is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnChain {
    pub chain_id: u64,
    pub treasury: Address,
    /// Alive, stopped or winding down: the stages in which `commit` works.
    pub living: bool,
    pub operator: Address,
    pub epoch: u64,
    pub checkpoint_seq: u64,
    pub checkpoint_digest: B256,
}

impl OnChain {
    /// As the treasury says it.
    pub fn of(chain_id: u64, treasury: Address, state: &State) -> Self {
        Self {
            chain_id,
            treasury,
            living: matches!(state.stage(), Stage::Alive | Stage::Stopped | Stage::WindingDown),
            operator: state.operator,
            epoch: state.epoch,
            checkpoint_seq: state.checkpointSeq,
            checkpoint_digest: state.checkpointDigest,
        }
    }
}

/// The refusals that need only the request: asked before anything is fetched.
pub fn check_request(chain: &OnChain, seq: u64, digest: B256, signed: &Signed) -> Result<(), Refusal> {
    if !chain.living || chain.operator.is_zero() {
        return Err(Refusal::WrongStage);
    }
    let expected = chain.checkpoint_seq + 1;
    if seq != expected {
        return Err(Refusal::WrongSeq { expected, got: seq });
    }
    signed.check(chain.epoch, seq, digest)
}

/// The refusals that need the object: that it is this agent's next checkpoint, signed by whoever acts for it now.
pub fn check_object(chain: &OnChain, seq: u64, object: &Checkpoint) -> Result<(), Refusal> {
    object.verify(chain.operator, chain.treasury, chain.chain_id).map_err(Refusal::from)?;
    if object.epoch != chain.epoch {
        return Err(Refusal::WrongEpoch { current: chain.epoch, got: object.epoch });
    }
    if object.seq != seq {
        return Err(Refusal::WrongSeq { expected: seq, got: object.seq });
    }
    // The chain has zero where the object has null: before the first one.
    if object.prev.unwrap_or_default() != chain.checkpoint_digest {
        return Err(Refusal::WrongPrev);
    }
    Ok(())
}

/// Every place this steward signed for one treasury.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    places: BTreeMap<u64, BTreeMap<u64, B256>>,
}

impl Signed {
    /// Refuses a second, different digest for a place. Another epoch is another place: after a takeover the new
    /// operator commits its own.
    pub fn check(&self, epoch: u64, seq: u64, digest: B256) -> Result<(), Refusal> {
        match self.places.get(&epoch).and_then(|seqs| seqs.get(&seq)) {
            Some(before) if *before != digest => Err(Refusal::AlreadySigned { seq, before: *before }),
            _ => Ok(()),
        }
    }

    /// To be on the disk before the signature leaves.
    pub fn remember(&mut self, epoch: u64, seq: u64, digest: B256) -> Result<(), Refusal> {
        self.check(epoch, seq, digest)?;
        self.places.entry(epoch).or_default().insert(seq, digest);
        for seqs in self.places.values_mut() {
            seqs.retain(|s, _| s + KEEP_SEQS > seq);
        }
        self.places.retain(|_, seqs| !seqs.is_empty());
        Ok(())
    }

    /// Whether this steward signed this digest at this place.
    pub fn has(&self, epoch: u64, seq: u64, digest: B256) -> bool {
        self.places.get(&epoch).and_then(|seqs| seqs.get(&seq)) == Some(&digest)
    }

    /// The highest place signed, for `/status`.
    pub fn last(&self) -> Option<(u64, u64, B256)> {
        let (epoch, seqs) = self.places.last_key_value()?;
        seqs.last_key_value().map(|(seq, digest)| (*epoch, *seq, *digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::signers::local::PrivateKeySigner;
    use store::checkpoint::Share;
    use store::seal::Identity;

    fn digest(n: u8) -> B256 {
        B256::repeat_byte(n)
    }

    fn chain() -> OnChain {
        OnChain {
            chain_id: 31337,
            treasury: Address::repeat_byte(1),
            living: true,
            operator: key(2).address(),
            epoch: 3,
            checkpoint_seq: 7,
            checkpoint_digest: digest(7),
        }
    }

    fn key(n: u8) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&digest(n)).unwrap()
    }

    /// The next checkpoint, changed and then signed by `signer`.
    fn object(signer: u8, change: impl FnOnce(&mut Checkpoint)) -> Checkpoint {
        let recipient = Identity::generate().recipient().to_string();
        let mut object = Checkpoint {
            version: store::checkpoint::VERSION,
            agent: chain().treasury,
            chain_id: 31337,
            epoch: 3,
            seq: 8,
            prev: Some(digest(7)),
            lsn: 100,
            snapshot: store::cid::of_raw(b"sealed"),
            snapshot_bytes: 6,
            snapshot_lsn: 100,
            segments: None,
            segments_bytes: 0,
            chapter: recipient.clone(),
            keys: store::cid::of_raw(b"keys"),
            recipient: recipient.clone(),
            key_hash: digest(1),
            threshold: 1,
            shares: vec![Share { steward: Address::repeat_byte(5), share_recipient: recipient, sealed: "AAAA".into() }],
            conversations: vec![],
            log: store::cid::of_raw(b"log"),
            log_seq: 1,
            created_at: 1,
            signature: String::new(),
        };
        change(&mut object);
        let (agent, chain_id) = (object.agent, object.chain_id);
        object.sign(&key(signer)).unwrap();
        assert_eq!((agent, chain_id), (object.agent, object.chain_id));
        object
    }

    #[test]
    fn the_next_checkpoint_of_the_operator_is_accepted() {
        check_request(&chain(), 8, digest(8), &Signed::default()).unwrap();
        check_object(&chain(), 8, &object(2, |_| ())).unwrap();
        let first = OnChain { checkpoint_seq: 0, checkpoint_digest: B256::ZERO, ..chain() };
        check_object(&first, 1, &object(2, |o| (o.seq, o.prev) = (1, None))).unwrap();
    }

    #[test]
    fn wrong_places_are_refused() {
        for seq in [0, 6, 7, 9] {
            let refusal = check_request(&chain(), seq, digest(8), &Signed::default()).unwrap_err();
            assert_eq!(refusal, Refusal::WrongSeq { expected: 8, got: seq });
        }
        let refusal = check_object(&chain(), 8, &object(2, |o| o.seq = 9)).unwrap_err();
        assert_eq!(refusal.code(), "wrong_seq");
    }

    #[test]
    fn each_lie_in_the_object_has_a_name() {
        let stranger = Address::repeat_byte(9);
        for (bad, code) in [
            (object(9, |_| ()), "wrong_operator"),
            (object(2, |o| o.epoch = 2), "wrong_epoch"),
            (object(2, |o| o.epoch = 4), "wrong_epoch"),
            (object(2, |o| o.prev = Some(digest(6))), "wrong_prev"),
            (object(2, |o| o.prev = None), "wrong_prev"),
            (object(2, |o| o.agent = stranger), "wrong_agent"),
            (object(2, |o| o.chain_id = 1), "wrong_agent"),
            (Checkpoint { lsn: 101, ..object(2, |_| ()) }, "wrong_operator"),
        ] {
            assert_eq!(check_object(&chain(), 8, &bad).unwrap_err().code(), code);
        }
        for bad in [OnChain { living: false, ..chain() }, OnChain { operator: Address::ZERO, ..chain() }] {
            assert_eq!(check_request(&bad, 8, digest(8), &Signed::default()).unwrap_err().code(), "wrong_stage");
        }
    }

    #[test]
    fn two_digests_for_one_place_are_never_signed() {
        let mut signed = Signed::default();
        signed.remember(3, 8, digest(8)).unwrap();
        signed.remember(3, 8, digest(8)).unwrap();
        assert_eq!(check_request(&chain(), 8, digest(9), &signed).unwrap_err().code(), "already_signed");
        assert_eq!(signed.remember(3, 8, digest(9)).unwrap_err().code(), "already_signed");
        // A successor by takeover commits its own object at the same place, one epoch later.
        check_request(&OnChain { epoch: 4, ..chain() }, 8, digest(9), &signed).unwrap();
        // The memory survives the disk.
        let text = serde_json::to_string(&signed).unwrap();
        assert_eq!(serde_json::from_str::<Signed>(&text).unwrap(), signed);
    }

    #[test]
    fn old_places_are_forgotten() {
        let mut signed = Signed::default();
        for seq in 1..=500 {
            signed.remember(1 + seq / 100, seq, digest(1)).unwrap();
        }
        let kept: usize = signed.places.values().map(BTreeMap::len).sum();
        assert_eq!(kept, usize::try_from(KEEP_SEQS).unwrap());
        assert_eq!(signed.last(), Some((6, 500, digest(1))));
    }
}
