//! Checkpoints: snapshot, key object, fresh memory key, shares, acknowledgements, commit.
//!
//! Order matters and each step is a crash point: keys on disk → seal → store → k acknowledgements → commit.
//! A crash before the commit leaves an object nobody names; a crash after it finds the key in the ring file.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::history::LogLine;
use crate::live::Live;
use crate::manifest::Steward;
use crate::memory::{KeyRing, Pages};
use crate::replay::Folded;
use crate::replicate::Sent;
use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::local::PrivateKeySigner;
use base64::{Engine, prelude::BASE64_STANDARD};
use borsh::{BorshDeserialize, BorshSerialize};
use chain::Safe;
use chain::orders::{self, Ack};
use futures::future::join_all;
use journal::crash_point;
use serde::Deserialize;
use std::sync::Arc;
use store::StoreClient;
use store::checkpoint::keys::KEYS_BYTES_MAX;
use store::checkpoint::{Checkpoint, ConversationPage, LifeLog, PAGE_BYTES_MAX, SegmentList, Share};
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
}

/// A new snapshot is made when the segments since the last one are so many times as long: then snapshots are 1.6 % of what
/// is written, and a successor reads at most this many times the memory. A choice; docs/benchmarks.md has what it costs.
const SEGMENTS_PER_SNAPSHOT: u64 = 64;
/// Or so long, sealed, bytes: whoever restores holds them in memory.
const SEGMENTS_BYTES_MAX: u64 = 512 << 20;

/// What the main loop hands over: everything as of one LSN.
pub struct Draft {
    pub epoch: u64,
    pub seq: u64,
    pub prev: B256,
    /// The last record that it contains.
    pub lsn: u64,
    /// Chain seconds.
    pub at: u64,
    pub body: Body,
    /// The memory key made for this one, which is in the ring and on disk already.
    pub memory: Identity,
    /// The key object, sealed to it.
    pub keys: Vec<u8>,
    pub pages: Pages,
    /// Those of `pages` that are not stored yet.
    pub written: Vec<ConversationPage>,
    /// Every line of the log that is still kept.
    pub log: Vec<LogLine>,
}

/// How the state comes into a checkpoint.
pub enum Body {
    /// By a snapshot made now, which begins a chapter.
    Snapshot { state: Folded, chapter: Identity },
    /// By the snapshot of the checkpoint before, and segments that are in the store already.
    Segments { before: Box<Checkpoint>, segments: Vec<Cid>, bytes: u64 },
}

impl Body {
    /// What `shipped` adds to the checkpoint that stands, and up to which record. `None` where a snapshot is due: in a
    /// new epoch (other code may go on from here), when the segments are too long, or when there is a gap in them.
    pub fn grown(before: &Checkpoint, shipped: &[Sent], epoch: u64) -> Option<(Self, u64)> {
        let mut lsn = before.lsn;
        for segment in shipped.iter().filter(|segment| segment.last_lsn > before.lsn) {
            if segment.first_lsn > lsn + 1 {
                return None;
            }
            lsn = segment.last_lsn;
        }
        let new = shipped.iter().filter(|segment| segment.last_lsn > before.lsn);
        let bytes = new.clone().map(|segment| segment.bytes).fold(before.segments_bytes, u64::saturating_add);
        let most = before.snapshot_bytes.saturating_mul(SEGMENTS_PER_SNAPSHOT).min(SEGMENTS_BYTES_MAX);
        if before.epoch != epoch || bytes > most {
            return None;
        }
        let segments = new.map(|segment| segment.cid).collect();
        Some((Self::Segments { before: Box::new(before.clone()), segments, bytes }, lsn))
    }
}

/// Where a checkpoint comes, by the chain.
pub struct Place {
    pub epoch: u64,
    pub seq: u64,
    pub prev: B256,
    /// Chain seconds.
    pub at: u64,
    /// It may rest on a snapshot made before. Not at an end, after which no later segment comes, and not when other code
    /// is to read it.
    pub may_grow: bool,
}

/// Draws up the next checkpoint from what lives here. The ring has its new keys then, and must be on disk before the
/// checkpoint can be on chain: a key that is not opens nothing after a crash.
pub fn draw_up(live: &mut Live, place: &Place) -> Result<Draft> {
    live.ring.learn(&live.state.conversations);
    let grown = live.stands.as_ref().filter(|_| place.may_grow);
    let grown = grown.and_then(|before| Body::grown(before, &live.shipping.sent, place.epoch));
    let memory = live.ring.begin(place.seq);
    let (body, lsn) = grown.unwrap_or_else(|| {
        let chapter = live.ring.begin_chapter();
        (Body::Snapshot { state: live.folded(), chapter }, live.journal.last_lsn())
    });
    let (pages, written) = live.ring.turn_pages(&live.state.conversations)?;
    Ok(Draft {
        epoch: place.epoch,
        seq: place.seq,
        prev: place.prev,
        lsn,
        at: place.at,
        body,
        keys: live.ring.seal_for(place.seq, &pages, &memory.recipient())?,
        memory,
        pages,
        written,
        log: live.state.log.after(0).cloned().collect(),
    })
}

/// Whose memory it is, and who watches over it.
pub struct Home<'a> {
    pub agent: Address,
    pub chain_id: u64,
    pub stewards: &'a [Steward],
    pub threshold: u8,
    pub operator: &'a PrivateKeySigner,
}

impl<'a> Home<'a> {
    fn of(cx: &'a Context) -> Self {
        Self {
            agent: cx.config.treasury,
            chain_id: cx.config.chain_id,
            stewards: &cx.manifest.stewards,
            threshold: cx.manifest.threshold,
            operator: &cx.keys.node,
        }
    }
}

#[derive(Deserialize)]
struct AckAnswer {
    signer: Address,
    signature: Bytes,
}

/// Where a checkpoint says that the state is.
struct Memory {
    snapshot: Cid,
    snapshot_bytes: u64,
    snapshot_lsn: u64,
    segments: Option<Cid>,
    segments_bytes: u64,
    chapter: String,
}

/// A checkpoint that k stewards acknowledged; the caller sends `commit`.
pub struct Prepared {
    pub checkpoint: Checkpoint,
    pub digest: B256,
    pub prev: B256,
    pub pages: Pages,
    pub acks: Vec<Bytes>,
}

pub async fn prepare(cx: Arc<Context>, mut draft: Draft) -> Result<Prepared> {
    let log = archive_log(&cx, draft.prev, draft.lsn, &draft.log).await?;
    let checkpoint = write(&cx.store, &Home::of(&cx), &mut draft, log).await?;
    let digest = B256::from(checkpoint.digest());
    let ack = Ack { epoch: draft.epoch, seq: draft.seq, digest, prev: draft.prev };
    let acks = acknowledge(&cx, &ack).await?;
    crash_point!("checkpoint.acked");
    Ok(Prepared { checkpoint, digest, prev: draft.prev, pages: draft.pages, acks })
}

/// Seals and stores everything that the checkpoint names and that is not stored, and the checkpoint. `log`: the newest
/// stretch, and the last line in it.
pub async fn write(store: &StoreClient, home: &Home<'_>, draft: &mut Draft, log: (Cid, u64)) -> Result<Checkpoint> {
    let stored = |e| Error::retry("the store did not take the checkpoint").caused_by(e);
    let memory = match &mut draft.body {
        Body::Snapshot { state, chapter } => {
            let (state, to, lsn) = (std::mem::replace(state, Folded::Here(Vec::new())), chapter.recipient(), draft.lsn);
            let sealed = tokio::task::spawn_blocking(move || sealed_snapshot(lsn, state, &to));
            let sealed = sealed.await.map_err(|e| Error::bug("a snapshot was broken off").caused_by(e))??;
            crash_point!("checkpoint.sealed");
            Memory {
                snapshot: store.put_bytes(&sealed).await.map_err(stored)?,
                snapshot_bytes: u64::try_from(sealed.len())
                    .map_err(|_| Error::bug("a snapshot longer than 2^64 bytes"))?,
                snapshot_lsn: draft.lsn,
                segments: None,
                segments_bytes: 0,
                chapter: chapter.recipient().to_string(),
            }
        }
        Body::Segments { before, segments, bytes } => {
            crash_point!("checkpoint.sealed");
            Memory {
                snapshot: before.snapshot,
                snapshot_bytes: before.snapshot_bytes,
                snapshot_lsn: before.snapshot_lsn,
                segments: match segments.is_empty() {
                    true => before.segments,
                    false => {
                        let list = SegmentList { agent: home.agent, prev: before.segments, segments: segments.clone() };
                        Some(store.put_bytes(&list.to_bytes()).await.map_err(stored)?)
                    }
                },
                segments_bytes: *bytes,
                chapter: before.chapter.clone(),
            }
        }
    };
    for page in &draft.written {
        store.put_bytes(&page.to_bytes()).await.map_err(stored)?;
    }
    let keys = store.put_bytes(&draft.keys).await.map_err(stored)?;
    let secret = draft.memory.to_secret_string();
    let shares = share_out(home, secret.as_str())?;
    let mut checkpoint = Checkpoint {
        version: store::checkpoint::VERSION,
        agent: home.agent,
        chain_id: home.chain_id,
        epoch: draft.epoch,
        seq: draft.seq,
        prev: (draft.prev != B256::ZERO).then_some(draft.prev),
        lsn: draft.lsn,
        snapshot: memory.snapshot,
        snapshot_bytes: memory.snapshot_bytes,
        snapshot_lsn: memory.snapshot_lsn,
        segments: memory.segments,
        segments_bytes: memory.segments_bytes,
        chapter: memory.chapter,
        keys,
        recipient: draft.memory.recipient().to_string(),
        key_hash: seal::key_hash(secret.as_bytes()),
        threshold: home.threshold,
        shares,
        conversations: draft
            .pages
            .values()
            .map(|page| {
                store::cid::parse(&page.cid).map_err(|e| Error::corrupt("a page's CID does not parse").caused_by(e))
            })
            .collect::<Result<_>>()?,
        log: log.0,
        log_seq: log.1,
        created_at: draft.at,
        signature: String::new(),
    };
    checkpoint.sign(home.operator).map_err(|e| Error::bug("a checkpoint cannot be signed").caused_by(e))?;
    store.put_block(&checkpoint.cid(), &checkpoint.to_bytes()).await.map_err(stored)?;
    crash_point!("checkpoint.stored");
    Ok(checkpoint)
}

/// It may block, for as long as folding and sealing take.
fn sealed_snapshot(lsn: u64, state: Folded, to: &Recipient) -> Result<Vec<u8>> {
    let snapshot = Snapshot { lsn, state: state.encoded()? };
    let plain = borsh::to_vec(&snapshot).map_err(|e| Error::bug("a snapshot cannot be encoded").caused_by(e))?;
    seal::seal(&plain, std::slice::from_ref(to)).map_err(|e| Error::bug("a snapshot cannot be sealed").caused_by(e))
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
fn share_out(home: &Home<'_>, secret: &str) -> Result<Vec<Share>> {
    let stewards = home.stewards;
    let shares = seal::split(secret.as_bytes(), usize::from(home.threshold), stewards.len())
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

/// What a checkpoint gives to whoever has its memory key.
pub struct Opened {
    pub snapshot: Snapshot,
    /// Runs of records after the snapshot, in order, up to the checkpoint's last.
    pub runs: Vec<Vec<u8>>,
    pub ring: KeyRing,
}

/// Fetches and opens all of `checkpoint`.
pub async fn open(store: &StoreClient, checkpoint: &Checkpoint, memory: &Identity) -> Result<Opened> {
    let fetched = |what: &str| {
        let what = format!("{what} cannot be fetched");
        move |e: store::Error| Error::retry(what).caused_by(e)
    };
    let sealed = store.get_bytes(&checkpoint.keys, KEYS_BYTES_MAX).await.map_err(fetched("the key object"))?;
    let mut ring = KeyRing::open(checkpoint, &sealed, memory)?;
    for (number, page) in ring.pages.clone() {
        let cid = store::cid::parse(&page.cid).map_err(|e| Error::corrupt("a page's CID").caused_by(e))?;
        let page = store.get_bytes(&cid, PAGE_BYTES_MAX).await.map_err(fetched("a page of conversations"))?;
        ring.read_page(number, &page)?;
    }
    let sealed = store.get_bytes(&checkpoint.snapshot, SNAPSHOT_BYTES_MAX).await.map_err(fetched("the snapshot"))?;
    let plain = ring.open_sealed(&sealed, SNAPSHOT_BYTES_MAX)?;
    let snapshot: Snapshot =
        borsh::from_slice(&plain).map_err(|e| Error::corrupt("the snapshot does not decode").caused_by(e))?;
    if snapshot.lsn != checkpoint.snapshot_lsn {
        return Err(Error::corrupt(format!(
            "the snapshot is of record {}, the checkpoint says {}",
            snapshot.lsn, checkpoint.snapshot_lsn
        )));
    }
    let lists = SegmentList::read(store, checkpoint.segments, None, checkpoint.agent);
    let mut runs = Vec::new();
    for (_, list) in lists.await.map_err(fetched("a list of segments"))? {
        for cid in list.segments {
            let sealed = store.get_bytes(&cid, SNAPSHOT_BYTES_MAX).await.map_err(fetched("a segment"))?;
            runs.push(ring.open_sealed(&sealed, SNAPSHOT_BYTES_MAX)?);
        }
    }
    Ok(Opened { snapshot, runs, ring })
}

#[cfg(test)]
pub(crate) mod tests;
