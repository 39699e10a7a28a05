//! Coming to life from what the world holds: the acknowledged checkpoint, the shares, the later segments.

use crate::checkpoint::{self, Opened};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::memory::KeyRing;
use crate::replicate;
use crate::state::State;
use alloy::primitives::B256;
use base64::{Engine, prelude::BASE64_STANDARD};
use futures::future::join_all;
use journal::crash_point;
use serde::Deserialize;
use std::collections::BTreeMap;
use store::checkpoint::{Checkpoint, ShareRequest};
use store::seal::{self, Identity};

/// What a successor starts from.
pub struct Restored {
    pub lsn: u64,
    /// The state after `lsn`, encoded.
    pub state: Vec<u8>,
    /// Runs of records after it, in order.
    pub later: Vec<Vec<u8>>,
    /// They reach at least so far: the checkpoint's last record.
    pub until: u64,
    pub ring: KeyRing,
    /// The token under which a former operator may report what it delivered after the cut.
    pub token: Option<String>,
}

#[derive(Deserialize)]
struct ShareAnswer {
    sealed_share_base64: String,
}

/// A signed wish for key material: what stewards and the active node check against the chain.
pub fn share_request(cx: &Context, epoch: u64) -> Result<ShareRequest> {
    let mut request = ShareRequest {
        treasury: cx.config.treasury,
        chain_id: cx.config.chain_id,
        epoch,
        lease: cx.config.lease,
        recipient: cx.keys.exchange.recipient().to_string(),
        signature: String::new(),
    };
    request.sign(&cx.keys.node).map_err(|e| Error::bug("a share request cannot be signed").caused_by(e))?;
    Ok(request)
}

/// Of the acknowledged checkpoint. On the host that made it, or was sealed its key, nobody has to be asked: that key lies in
/// `ring`, and a node whose journal was moved away because it was damaged goes on by it. Else k stewards release theirs.
pub async fn acknowledged(cx: &Context, epoch: u64, digest: B256, ring: &KeyRing) -> Result<Restored> {
    let found = checkpoint::fetch(cx, digest).await?;
    let Some(own) = ring.memory_of(&found.recipient) else {
        return open(cx, &found, &from_stewards(cx, epoch, &found).await?).await;
    };
    let mut restored = open(cx, &found, &own).await?;
    // Those of checkpoints that were begun here since may still be mined.
    restored.ring.memory.extend(ring.memory.iter().filter(|key| key.seq > found.seq).cloned());
    Ok(restored)
}

/// How far what was acknowledged reaches.
pub struct Reached {
    /// The last record.
    pub lsn: u64,
    /// What the acknowledged checkpoint's key object is sealed to.
    pub recipient: String,
}

/// The last record that the acknowledged checkpoint and the segments after it hold, so that a journal which ends before it
/// is an older one. Segments count that the operator of their epoch signed, by the treasury's own events; where a journal is
/// this node's of the epoch `own`, only those. `Retry` if store, stewards or chain do not say.
pub async fn reached(cx: &Context, digest: B256, own: Option<u64>) -> Result<Reached> {
    let found = checkpoint::fetch(cx, digest).await?;
    let operators = match own {
        Some(epoch) => BTreeMap::from([(epoch, cx.me())]),
        None => chain::history::operators(&cx.chain, cx.config.treasury)
            .await
            .map_err(|e| Error::retry("the treasury's events cannot be read").caused_by(e))?,
    };
    let later = replicate::headers(cx, found.lsn).await?;
    let later = replicate::signed_by_operators(later, cx.config.treasury, cx.config.chain_id, |epoch| {
        operators.get(&epoch).copied()
    });
    let lsn = later.iter().map(|header| header.last_lsn).fold(found.lsn, u64::max);
    Ok(Reached { lsn, recipient: found.recipient })
}

/// After a takeover or rescue: k stewards release their shares of the last acknowledged memory key.
async fn from_stewards(cx: &Context, epoch: u64, found: &Checkpoint) -> Result<Identity> {
    let request = share_request(cx, epoch)?;
    let answers = join_all(cx.manifest.stewards.iter().map(|s| {
        let (url, http, request) = (format!("{}/share", s.url), cx.http.clone(), &request);
        async move { http.call_json::<ShareAnswer>(&url, request).await }
    }))
    .await;
    let mut shares = Vec::new();
    let mut refusals = Vec::new();
    for answer in answers {
        match answer {
            Err(e) => refusals.push(e.to_string()),
            Ok(answer) => match open_share(&answer, &cx.keys.exchange) {
                Ok(share) => shares.push(share),
                Err(e) => refusals.push(e.to_string()),
            },
        }
    }
    let needed = usize::from(found.threshold);
    if shares.len() < needed {
        return Err(Error::retry(format!(
            "{} of {needed} shares of the memory key: {}",
            shares.len(),
            refusals.join("; ")
        )));
    }
    combine(found, &shares)
}

fn open_share(answer: &ShareAnswer, exchange: &Identity) -> Result<seal::Share> {
    let sealed = BASE64_STANDARD
        .decode(&answer.sealed_share_base64)
        .map_err(|e| Error::retry("a steward's share is not base64").caused_by(e))?;
    let bytes = seal::open(&sealed, exchange, 4096)
        .map_err(|e| Error::retry("a steward's share is not sealed to this node").caused_by(e))?;
    seal::Share::from_bytes(&bytes).map_err(|e| Error::retry("a steward's share does not parse").caused_by(e))
}

/// The memory key, whatever n − k altered shares are among them.
fn combine(found: &Checkpoint, shares: &[seal::Share]) -> Result<Identity> {
    let recovered = seal::recover(shares, usize::from(found.threshold), found.key_hash)
        .map_err(|e| Error::retry("the stewards' shares do not give the memory key").caused_by(e))?;
    if !recovered.bad.is_empty() {
        tracing::warn!(shares = ?recovered.bad, "altered shares were handed in");
    }
    let text = String::from_utf8_lossy(&recovered.secret).into_owned();
    Identity::parse(&text).map_err(|e| Error::corrupt("the memory key does not parse").caused_by(e))
}

/// With the key in hand: all that the checkpoint names, then every later segment that chains.
async fn open(cx: &Context, found: &Checkpoint, memory: &Identity) -> Result<Restored> {
    let opened = checkpoint::open(&cx.store, found, memory).await?;
    State::decode(&opened.snapshot.state)?;
    let mut restored = Restored::of(found, opened);
    restored.later.extend(later_segments(cx, (found.epoch, found.lsn), &restored.ring).await?);
    crash_point!("restore.loaded");
    Ok(restored)
}

impl Restored {
    pub fn of(found: &Checkpoint, opened: Opened) -> Self {
        let Opened { snapshot, runs, ring } = opened;
        Self { lsn: snapshot.lsn, state: snapshot.state, later: runs, until: found.lsn, ring, token: None }
    }
}

/// Segments after a checkpoint of this epoch and up to this record, opened, in order, up to the first gap. What lies behind a gap was never acknowledged
/// as replicated, so it is within the stated exposure.
async fn later_segments(cx: &Context, after: (u64, u64), ring: &KeyRing) -> Result<Vec<Vec<u8>>> {
    let mut later = Vec::new();
    for header in replicate::chained(cx, after).await? {
        let Some(identity) = ring.chapter_of(&header.recipient) else {
            tracing::warn!(segment = header.index, "a segment is sealed to a key that this checkpoint does not hold");
            break;
        };
        let sealed = cx
            .store
            .get_bytes(&header.cid, checkpoint::SNAPSHOT_BYTES_MAX)
            .await
            .map_err(|e| Error::retry(format!("segment {} cannot be fetched", header.index)).caused_by(e))?;
        let plain = seal::open(&sealed, &identity, checkpoint::SNAPSHOT_BYTES_MAX)
            .map_err(|e| Error::corrupt(format!("segment {} does not open", header.index)).caused_by(e))?;
        later.push(plain);
    }
    Ok(later)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context;
    use crate::stand_in;
    use alloy::primitives::{Address, U256};
    use alloy::signers::local::PrivateKeySigner;
    use alloy::sol_types::SolEvent;
    use axum::{Json, Router, routing::get};
    use chain::bindings::Treasury;
    use serde_json::{Value, json};
    use store::checkpoint::SegmentHeader;

    /// As the treasury tells them.
    fn logged<E: SolEvent>(treasury: Address, event: &E) -> Value {
        let inner = alloy::primitives::Log { address: treasury, data: event.encode_log_data() };
        serde_json::to_value(alloy::rpc::types::Log { inner, ..Default::default() }).unwrap()
    }

    /// A STAND-IN for a chain on which `old` was operator in epoch 1, and `new` is in epoch 2.
    async fn chain_of_two(treasury: Address, old: Address, new: Address) -> String {
        let activated = Treasury::Activated { lease: U256::from(1), operator: old };
        let handed_over = Treasury::HandedOver { epoch: 2, lease: U256::from(2), operator: new, seq: 1, cut: 0 };
        let logs = json!([logged(treasury, &activated), logged(treasury, &handed_over)]);
        stand_in::endpoint(move |asked| {
            let logs = logs.clone();
            async move { Ok(if asked["method"] == "eth_getLogs" { logs } else { Value::Null }) }
        })
        .await
    }

    async fn served(app: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    /// Records from 61 on.
    fn segment(cx: &Context, epoch: u64, last_lsn: u64, signer: &PrivateKeySigner) -> SegmentHeader {
        let mut header = SegmentHeader {
            agent: cx.config.treasury,
            chain_id: cx.config.chain_id,
            epoch,
            index: 1,
            first_lsn: 61,
            last_lsn,
            prev: None,
            cid: store::cid::of_raw(&last_lsn.to_be_bytes()),
            recipient: "age1".into(),
            bytes: 1,
            signature: String::new(),
        };
        header.sign(signer).unwrap();
        header
    }

    /// The old operator shipped to record 5000, a thief of neither key said more, and this node, its successor, has shipped
    /// to record 70 itself.
    #[tokio::test]
    async fn what_an_old_operator_shipped_counts_until_this_node_leads() {
        let dir = tempfile::tempdir().unwrap();
        let (old, thief) = (PrivateKeySigner::random(), PrivateKeySigner::random());
        let me = context::for_tests("http://127.0.0.1:1", dir.path()).0.me();
        let rpc_url = chain_of_two(context::TREASURY_OF_TESTS, old.address(), me).await;
        let (mut cx, _heard) = context::for_tests(&rpc_url, dir.path());
        let headers =
            [segment(&cx, 1, 5_000, &old), segment(&cx, 2, 70, &cx.keys.node), segment(&cx, 2, 9_000, &thief)];
        let answer = move || std::future::ready(Json(headers.clone()));
        let steward = served(Router::new().route("/segments/{treasury}", get(answer))).await;
        cx.manifest.stewards.iter_mut().for_each(|known| known.url.clone_from(&steward));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let blocks = store::Blocks::open(dir.path().join("store")).unwrap();
        tokio::spawn(store::serve(listener, blocks, std::future::pending()));
        cx.store = store::StoreClient::new(cx.http.clone(), vec![url]);
        let example = checkpoint::tests::example(cx.config.treasury, cx.config.chain_id);
        let found = Checkpoint { lsn: 60, snapshot_lsn: 60, ..example };
        cx.store.put_block(&found.cid(), &found.to_bytes()).await.unwrap();
        let digest = B256::from(found.digest());
        assert_eq!(reached(&cx, digest, None).await.unwrap().lsn, 5_000);
        assert_eq!(reached(&cx, digest, Some(2)).await.unwrap().lsn, 70);
    }
}
