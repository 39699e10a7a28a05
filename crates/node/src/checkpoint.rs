//! Checkpoints: snapshot, fresh memory key, shares, acknowledgements, commit.
//!
//! Order matters and each step is a crash point: seal → store → key on disk → k acknowledgements → commit.
//! A crash before the commit leaves an object nobody names; a crash after it finds the key in the ring file.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::history::LogLine;
use crate::memory::{KeyRing, MemoryKey};
use alloy::primitives::{Address, B256, Bytes};
use base64::{Engine, prelude::BASE64_STANDARD};
use borsh::{BorshDeserialize, BorshSerialize};
use chain::Safe;
use chain::orders::{self, Ack};
use futures::future::join_all;
use journal::crash_point;
use serde::Deserialize;
use std::sync::Arc;
use store::checkpoint::{Checkpoint, LifeLog, Share};
use store::cid::Cid;
use store::seal::{self, Identity, Recipient};

/// Longest snapshot a successor will read. A guess; a day of a busy small agent is under 10 MiB.
pub const SNAPSHOT_BYTES_MAX: usize = 256 << 20;
/// A checkpoint object is one block.
pub(crate) const OBJECT_BYTES_MAX: usize = 1 << 20;

/// What is inside the sealed snapshot.
#[derive(BorshSerialize, BorshDeserialize)]
pub struct Snapshot {
    /// The state after this LSN.
    pub lsn: u64,
    pub state: Vec<u8>,
    /// Older memory keys (JSON), for conversations sealed to them.
    pub ring: Vec<u8>,
}

/// What the main loop hands over: everything as of one LSN.
pub struct Draft {
    pub epoch: u64,
    pub seq: u64,
    pub prev: B256,
    pub lsn: u64,
    /// Chain seconds.
    pub at: u64,
    pub state: Vec<u8>,
    pub ring: KeyRing,
    pub conversations: Vec<String>,
    /// Every line of the log that is still kept.
    pub log: Vec<LogLine>,
}

/// A checkpoint the chain has accepted.
pub struct Committed {
    pub seq: u64,
    pub digest: B256,
    pub lsn: u64,
}

#[derive(Deserialize)]
struct AckAnswer {
    signer: Address,
    signature: Bytes,
}

/// Seals, stores, collects acknowledgements. Returns the calldata's parts; the caller sends `commit`.
pub struct Prepared {
    pub seq: u64,
    pub digest: B256,
    pub prev: B256,
    pub lsn: u64,
    pub acks: Vec<Bytes>,
    /// Already in the ring file; the main loop's copy learns it here.
    pub key: MemoryKey,
    /// The newest stretch of the log, named in the checkpoint.
    pub log: Cid,
}

pub async fn prepare(cx: Arc<Context>, draft: Draft) -> Result<Prepared> {
    let identity = Identity::generate();
    let recipient = identity.recipient();
    let secret = identity.to_secret_string();
    let snapshot = Snapshot { lsn: draft.lsn, state: draft.state, ring: draft.ring.encode()? };
    let plain = borsh::to_vec(&snapshot).map_err(|e| Error::bug("a snapshot cannot be encoded").caused_by(e))?;
    let sealed = seal::seal(&plain, std::slice::from_ref(&recipient))
        .map_err(|e| Error::bug("a snapshot cannot be sealed").caused_by(e))?;
    crash_point!("checkpoint.sealed");
    let stored = |e| Error::retry("the store did not take the checkpoint").caused_by(e);
    let snapshot_cid = cx.store.put_bytes(&sealed).await.map_err(stored)?;
    let (log, log_seq) = archive_log(&cx, draft.prev, draft.lsn, &draft.log).await?;

    let shares = share_out(&cx, secret.as_str())?;
    let mut checkpoint = Checkpoint {
        version: store::checkpoint::VERSION,
        agent: cx.config.treasury,
        chain_id: cx.config.chain_id,
        epoch: draft.epoch,
        seq: draft.seq,
        prev: (draft.prev != B256::ZERO).then_some(draft.prev),
        lsn: draft.lsn,
        snapshot: snapshot_cid,
        snapshot_bytes: u64::try_from(sealed.len()).map_err(|_| Error::bug("a snapshot longer than 2^64 bytes"))?,
        recipient: recipient.to_string(),
        key_hash: seal::key_hash(secret.as_bytes()),
        threshold: cx.manifest.threshold,
        shares,
        conversations: draft
            .conversations
            .iter()
            .map(|c| {
                store::cid::parse(c).map_err(|e| Error::corrupt("a conversation's CID does not parse").caused_by(e))
            })
            .collect::<Result<_>>()?,
        log,
        log_seq,
        created_at: draft.at,
        signature: String::new(),
    };
    checkpoint.sign(&cx.keys.node).map_err(|e| Error::bug("a checkpoint cannot be signed").caused_by(e))?;
    let bytes = checkpoint.to_bytes();
    let digest = B256::from(checkpoint.digest());
    cx.store.put_block(&checkpoint.cid(), &bytes).await.map_err(stored)?;
    crash_point!("checkpoint.stored");

    let key = MemoryKey { seq: draft.seq, checkpoint: hex::encode(digest), secret: secret.as_str().to_owned() };
    let mut ring = draft.ring;
    ring.add(key.clone());
    cx.ring_file.save(&ring)?;

    let ack = Ack { epoch: draft.epoch, seq: draft.seq, digest, prev: draft.prev };
    let acks = acknowledge(&cx, &ack).await?;
    crash_point!("checkpoint.acked");
    Ok(Prepared { seq: draft.seq, digest, prev: draft.prev, lsn: draft.lsn, acks, key, log })
}

/// Has the stores keep a committed checkpoint and the log that ends with it, and let go of what came before the one
/// that it follows: a reorganisation of the chain may make that one the last again.
///
/// A store that does not keep pins is not waited for: nothing but a garbage collection by hand takes from it.
pub async fn keep(cx: &Context, digest: B256, prev: B256, log: &Cid) {
    let pins = [(store::cid::raw(digest.0), "checkpoint"), (*log, "log")];
    for (root, reason) in pins {
        if let Err(e) = cx.store.pin(&root, reason).await {
            tracing::warn!(error = %e, %root, reason, "no store keeps it from garbage collection");
            return;
        }
    }
    if prev.is_zero() {
        return;
    }
    // What cannot be read here is let go of at no other time: a pin too many costs its space.
    let Ok(before) = fetch(cx, prev).await else { return };
    if before.log != *log {
        cx.store.unpin(&before.log, "log").await;
    }
    if let Some(older) = before.prev {
        cx.store.unpin(&store::cid::raw(older.0), "checkpoint").await;
    }
}

/// Stores what the log says since the checkpoint before, and names the stretch: (CID, last line). A checkpoint that no
/// store has any more begins the chain of stretches anew, with every line that is still kept.
///
/// `Corrupt` if that checkpoint holds records beyond `lsn`: then the memory here is an older one, and must never follow it.
async fn archive_log(cx: &Context, prev: B256, lsn: u64, lines: &[LogLine]) -> Result<(Cid, u64)> {
    let before = if prev.is_zero() { None } else { before(cx, prev).await? };
    if let Some(newer) = before.as_ref().filter(|before| before.lsn > lsn) {
        return Err(Error::corrupt(format!(
            "the acknowledged checkpoint {} holds record {}, the memory here ends at {lsn}: it is older",
            newer.seq, newer.lsn
        )));
    }
    let (prev, seq) = before.map_or((None, 0), |before| (Some(before.log), before.log_seq));
    let new = lines.iter().filter(|line| line.seq > seq).map(|line| store::checkpoint::LogLine {
        seq: line.seq,
        at: line.at,
        block: line.block,
        kind: line.kind.clone(),
        text: line.text.clone(),
    });
    let stretch = LifeLog { agent: cx.config.treasury, chain_id: cx.config.chain_id, prev, lines: new.collect() };
    let last = stretch.lines.last().map_or(seq, |line| line.seq);
    let cid = cx
        .store
        .put_bytes(&stretch.to_bytes())
        .await
        .map_err(|e| Error::retry("the store did not take the log").caused_by(e))?;
    Ok((cid, last))
}

/// The checkpoint `prev`; `None` if no store has it any more.
async fn before(cx: &Context, prev: B256) -> Result<Option<Checkpoint>> {
    match cx.store.get_bytes(&store::cid::raw(prev.0), OBJECT_BYTES_MAX).await {
        Ok(bytes) => Ok(Checkpoint::from_bytes(&bytes).ok()),
        Err(e) if e.kind == store::Kind::Missing => {
            tracing::warn!(%prev, "no store has the checkpoint before: the earlier part of the log is lost");
            Ok(None)
        }
        Err(e) => Err(Error::retry("the checkpoint before cannot be fetched").caused_by(e)),
    }
}

/// One share per steward, sealed to its share key.
fn share_out(cx: &Context, secret: &str) -> Result<Vec<Share>> {
    let stewards = &cx.manifest.stewards;
    let shares = seal::split(secret.as_bytes(), usize::from(cx.manifest.threshold), stewards.len())
        .map_err(|e| Error::bug("the memory key cannot be split").caused_by(e))?;
    stewards
        .iter()
        .zip(shares)
        .map(|(steward, share)| {
            let recipient = Recipient::parse(&steward.share_recipient)
                .map_err(|e| Error::usage("the manifest names a bad share recipient").caused_by(e))?;
            let sealed = seal::seal(share.as_bytes(), &[recipient])
                .map_err(|e| Error::bug("a share cannot be sealed").caused_by(e))?;
            Ok(Share {
                steward: steward.address,
                share_recipient: steward.share_recipient.clone(),
                sealed: BASE64_STANDARD.encode(sealed),
            })
        })
        .collect()
}

/// k acknowledgements, ascending by signer as the contract wants them; or one of the Safe's, made of its owners'.
async fn acknowledge(cx: &Context, ack: &Ack) -> Result<Vec<Bytes>> {
    let (seq, treasury) = (ack.seq, cx.config.treasury);
    let body = serde_json::json!({ "treasury": treasury, "seq": seq, "digest": ack.digest });
    let answers = join_all(cx.manifest.stewards.iter().map(|s| {
        let (url, http, body) = (format!("{}/ack", s.url), cx.http.clone(), body.clone());
        async move { http.call_json::<AckAnswer>(&url, &body).await }
    }))
    .await;
    let mut acks: Vec<AckAnswer> = Vec::new();
    let mut refusals = Vec::new();
    for (steward, answer) in cx.manifest.stewards.iter().zip(answers) {
        match answer {
            Ok(ack) if ack.signer == steward.address => acks.push(ack),
            Ok(ack) => refusals.push(format!("{} answered as {}", steward.url, ack.signer)),
            Err(e) => refusals.push(e.to_string()),
        }
    }
    let needed = usize::from(cx.manifest.threshold);
    if acks.len() < needed {
        return Err(Error::retry(format!(
            "checkpoint {seq} has {} of {needed} acknowledgements: {}",
            acks.len(),
            refusals.join("; ")
        )));
    }
    acks.sort_by_key(|a| a.signer);
    let Some(address) = cx.manifest.safe else {
        acks.truncate(needed);
        return Ok(acks.into_iter().map(|a| a.signature).collect());
    };
    let owners = cx.manifest.stewards.iter().map(|s| s.address).collect();
    let parts: Vec<Bytes> = acks.into_iter().map(|a| a.signature).collect();
    let digest = orders::digest(ack, &orders::domain(cx.config.chain_id, treasury));
    let whole = Safe { address, owners, threshold: needed }.signature(cx.config.chain_id, digest, &parts);
    whole.map(|signature| vec![signature]).map_err(|e| Error::retry(format!("checkpoint {seq}")).caused_by(e))
}

/// Fetches the checkpoint the chain names and checks that it is this agent's.
pub async fn fetch(cx: &Context, digest: B256) -> Result<Checkpoint> {
    let cid = store::cid::raw(digest.0);
    let bytes = cx
        .store
        .get_bytes(&cid, OBJECT_BYTES_MAX)
        .await
        .map_err(|e| Error::retry(format!("checkpoint {cid} cannot be fetched")).caused_by(e))?;
    let checkpoint = Checkpoint::from_bytes(&bytes)
        .map_err(|e| Error::corrupt(format!("checkpoint {cid} does not parse")).caused_by(e))?;
    is_of(&checkpoint, cx.config.treasury, cx.config.chain_id)?;
    Ok(checkpoint)
}

/// Refuses, by name, the memory of another agent or another chain.
fn is_of(checkpoint: &Checkpoint, agent: Address, chain_id: u64) -> Result<()> {
    if checkpoint.agent == agent && checkpoint.chain_id == chain_id {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "checkpoint {} belongs to agent {} on chain {}, not to agent {agent} on chain {chain_id}",
        checkpoint.cid(),
        checkpoint.agent,
        checkpoint.chain_id
    )))
}

/// Opens the snapshot of `checkpoint` with its memory key.
pub async fn open(cx: &Context, checkpoint: &Checkpoint, identity: &Identity) -> Result<Snapshot> {
    let sealed = cx
        .store
        .get_bytes(&checkpoint.snapshot, SNAPSHOT_BYTES_MAX)
        .await
        .map_err(|e| Error::retry("the snapshot cannot be fetched").caused_by(e))?;
    let plain = seal::open(&sealed, identity, SNAPSHOT_BYTES_MAX)
        .map_err(|e| Error::corrupt("the snapshot does not open under its memory key").caused_by(e))?;
    let snapshot: Snapshot =
        borsh::from_slice(&plain).map_err(|e| Error::corrupt("the snapshot does not decode").caused_by(e))?;
    if snapshot.lsn != checkpoint.lsn {
        return Err(Error::corrupt(format!(
            "the snapshot is of record {}, the checkpoint says {}",
            snapshot.lsn, checkpoint.lsn
        )));
    }
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(agent: Address, chain_id: u64) -> Checkpoint {
        Checkpoint {
            version: store::checkpoint::VERSION,
            agent,
            chain_id,
            epoch: 1,
            seq: 1,
            prev: None,
            lsn: 9,
            snapshot: store::cid::raw([1; 32]),
            snapshot_bytes: 1,
            recipient: Identity::generate().recipient().to_string(),
            key_hash: B256::ZERO,
            threshold: 2,
            shares: Vec::new(),
            conversations: Vec::new(),
            log: store::cid::raw([2; 32]),
            log_seq: 0,
            created_at: 0,
            signature: String::new(),
        }
    }

    #[test]
    fn the_memory_of_another_agent_or_chain_is_refused_by_name() {
        let (ours, other) = (Address::repeat_byte(0xAA), Address::repeat_byte(0xBB));
        assert!(is_of(&checkpoint(ours, 8453), ours, 8453).is_ok());
        for (agent, chain_id) in [(other, 8453), (ours, 1), (other, 1)] {
            let error = is_of(&checkpoint(agent, chain_id), ours, 8453).expect_err("it is somebody else's");
            assert_eq!(error.kind, crate::Kind::Corrupt);
            let said = error.to_string();
            assert!(
                said.contains(&format!("belongs to agent {agent} on chain {chain_id}, not to agent {ours}")),
                "{said}"
            );
        }
    }
}
