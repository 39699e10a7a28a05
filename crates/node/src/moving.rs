//! Moving: what the active node gives to its announced successor, and how the successor follows it.
//!
//! Active side: [`PeerAsk`] from the HTTP routes `/peer/*`. Standby side: [`follow`], started once the chain
//! shows this lease as announced. The number a follower asks from is its acknowledgement: everything before it
//! is durable on the follower.

use crate::checkpoint;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::main_loop::Event;
use crate::memory::KeyRing;
use crate::restore::{self, Restored};
use alloy::primitives::B256;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use net::chain_of;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use store::checkpoint::ShareRequest;
use store::seal;
use tokio::sync::{oneshot, watch};

pub const LAST_LSN: &str = "x-vivarium-last-lsn";
pub const FINAL: &str = "x-vivarium-final";
const TAIL_BYTES_MAX: usize = 64 << 20;
/// Pause between two looks at a node that does not answer.
const RETRY: Duration = Duration::from_millis(250);

/// What peers ask of the active node, answered by the main loop.
pub enum PeerAsk {
    /// The announced successor wants the memory keys.
    Key { request: ShareRequest, reply: oneshot::Sender<Result<KeyGrant>> },
    /// Records after `after`, sealed to the follower; waits a moment when there are none yet.
    Tail { after: u64, token: String, reply: oneshot::Sender<Result<TailPart>> },
    /// The former operator finished a stream that was open at the cut.
    Delivered { token: String, record: Vec<u8>, reply: oneshot::Sender<Result<()>> },
}

/// Sealed to the successor's exchange key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyGrant {
    /// Bearer of this may follow the journal until the epoch ends.
    pub token: String,
    pub ring: KeyRing,
    /// Hex sha2-256 of the last acknowledged checkpoint.
    pub checkpoint: String,
}

/// A run of records, as exported by the journal.
pub struct TailPart {
    pub records: Vec<u8>,
    pub last_lsn: u64,
    /// Nothing comes after this: the old node is fenced.
    pub last: bool,
}

/// A part as the follower's main loop receives it.
pub struct Tail {
    pub records: Vec<u8>,
    pub last: bool,
    /// With the last part: the keys of checkpoints made since the first grant.
    pub ring: Option<KeyRing>,
}

/// Gets the keys, restores the last acknowledged checkpoint, then follows the active node's journal until it
/// says that it is over. Ends by itself when `stop` turns true (another successor was announced).
pub async fn follow(
    cx: Arc<Context>,
    active_url: String,
    epoch: u64,
    digest: B256,
    durable: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        match try_follow(&cx, &active_url, epoch, digest, durable.clone(), &stop).await {
            Ok(()) => return,
            Err(e) => {
                tracing::info!(error = %chain_of(&e), "following the active node: trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn try_follow(
    cx: &Arc<Context>,
    active_url: &str,
    epoch: u64,
    digest: B256,
    mut durable: watch::Receiver<u64>,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let grant = ask_for_keys(cx, active_url, epoch).await?;
    if grant.checkpoint != hex::encode(digest) {
        return Err(Error::retry("the active node and the chain name different checkpoints"));
    }
    let found = checkpoint::fetch(cx, digest).await?;
    let memory = grant
        .ring
        .memory_of(&found.recipient)
        .ok_or_else(|| Error::retry("the key grant lacks the key of the last checkpoint"))?;
    let mut restored = Restored::of(&found, checkpoint::open(&cx.store, &found, &memory).await?);
    restored.ring.merge(grant.ring);
    restored.token = Some(grant.token.clone());
    let mut after = restored.until;
    cx.tell(Event::Restored(Ok(Box::new(restored)))).await;

    let mut headers = HeaderMap::new();
    let bearer = HeaderValue::from_str(&format!("Bearer {}", grant.token))
        .map_err(|e| Error::retry("the follower's token is not a header value").caused_by(e))?;
    headers.insert(header::AUTHORIZATION, bearer);
    while !*stop.borrow() {
        let url = format!("{active_url}/peer/tail?after={after}");
        let answer = cx.http.send(Method::GET, &url, headers.clone(), Bytes::new()).await?.success_or_read().await?;
        let number = |name: &str| answer.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let last_lsn: u64 = number(LAST_LSN)
            .and_then(|v| v.parse().ok())
            .ok_or_else(|| Error::retry("the active node's answer lacks its last record number"))?;
        let last = number(FINAL).as_deref() == Some("true");
        let sealed = answer.bytes(TAIL_BYTES_MAX).await?;
        let records = if sealed.is_empty() {
            Vec::new()
        } else {
            seal::open(&sealed, &cx.keys.exchange, TAIL_BYTES_MAX)
                .map_err(|e| Error::retry("a part of the journal is not sealed to this node").caused_by(e))?
        };
        if !records.is_empty() || last {
            // A checkpoint may have been made since the first grant; keys that are sealed to its key must stay readable.
            let ring = if last { last_keys(cx, active_url, epoch + 1).await } else { None };
            cx.tell(Event::Tail(Tail { records, last, ring })).await;
        }
        // Asking from `last_lsn` acknowledges it, so it must be durable here first.
        if durable.wait_for(|d| *d >= last_lsn).await.is_err() {
            return Ok(());
        }
        after = last_lsn;
        if last {
            // Its last answers wait for this word; after that it has nothing more to say.
            let url = format!("{active_url}/peer/tail?after={after}");
            if let Err(e) = cx.http.send(Method::GET, &url, headers.clone(), Bytes::new()).await {
                tracing::info!(error = %chain_of(&e), "the former node did not hear that its last records arrived");
            }
            return Ok(());
        }
    }
    Ok(())
}

/// The old node still answers after its last word; if it does not, only conversations that were stored in the seconds
/// between are out of reach.
async fn last_keys(cx: &Context, active_url: &str, epoch: u64) -> Option<KeyRing> {
    const ATTEMPTS: u32 = 4;
    for _ in 0..ATTEMPTS {
        match ask_for_keys(cx, active_url, epoch).await {
            Ok(grant) => return Some(grant.ring),
            Err(e) => tracing::info!(error = %chain_of(&e), "the last memory keys: asking again"),
        }
        tokio::time::sleep(RETRY).await;
    }
    None
}

async fn ask_for_keys(cx: &Context, active_url: &str, epoch: u64) -> Result<KeyGrant> {
    let request = restore::share_request(cx, epoch)?;
    let sealed = cx.http.post_json(&format!("{active_url}/peer/key"), &request).await?.success_or_read().await?;
    let sealed = sealed.bytes(1 << 20).await?;
    let plain = seal::open(&sealed, &cx.keys.exchange, 1 << 20)
        .map_err(|e| Error::retry("the key grant is not sealed to this node").caused_by(e))?;
    serde_json::from_slice(&plain).map_err(|e| Error::retry("the key grant does not parse").caused_by(e))
}

// ---- the active side, inside the main loop ----

use crate::main_loop::Node;
use crate::shared::Role;
use crate::state::Recorded;
use store::seal::Recipient;

/// Most records in one part of the tail.
const PART_RECORDS_MAX: u64 = 50_000;

impl Node {
    pub(crate) fn on_peer(&mut self, ask: PeerAsk) -> Result<()> {
        match ask {
            PeerAsk::Key { request, reply } => {
                // The asker may have hung up; it will ask again.
                let _ = reply.send(self.grant_key(&request));
            }
            PeerAsk::Tail { after, token, reply } => match self.successor_for(&token) {
                Ok(_) => {
                    if let Some(live) = &mut self.live {
                        live.followed_to(after);
                    }
                    self.let_go()?;
                    self.tail_waiters.push((after, reply));
                    self.answer_tails();
                }
                Err(e) => {
                    let _ = reply.send(Err(e));
                }
            },
            PeerAsk::Delivered { token, record, reply } => {
                let result = self.take_delivery(&token, &record);
                let _ = reply.send(result);
            }
        }
        Ok(())
    }

    /// The memory keys, for the node key of the lease that the chain shows as announced, and nobody else.
    fn grant_key(&mut self, request: &ShareRequest) -> Result<KeyGrant> {
        let Some(news) = &self.news else {
            return Err(Error::retry("this node has no memory to give"));
        };
        if !matches!(self.role, Role::Active | Role::Draining) {
            return Err(Error::retry("this node is not active"));
        }
        let announced = news.state.announcedLease.saturating_to::<u64>();
        let successor = [&news.standby, &news.active]
            .into_iter()
            .flatten()
            .find(|l| l.id == announced || l.lease.nodeKey == news.state.operator)
            .filter(|l| l.id == request.lease)
            .ok_or_else(|| Error::superseded(format!("lease {} is not announced as successor", request.lease)))?;
        request
            .verify(successor.lease.nodeKey, self.cx.config.treasury, self.cx.config.chain_id, news.state.epoch)
            .map_err(|e| Error::superseded("the request is not signed by the successor's node key").caused_by(e))?;
        let recipient = Recipient::parse(&request.recipient)
            .map_err(|e| Error::usage("the successor's exchange key does not parse").caused_by(e))?;
        // The same follower keeps its token: late deliveries are reported under it.
        let token = match &self.successor {
            Some((token, known)) if *known == recipient => token.clone(),
            _ => hex::encode(rand::random::<[u8; 32]>()),
        };
        let is_known = self.successor.as_ref().is_some_and(|(known, _)| *known == token);
        self.successor = Some((token.clone(), recipient));
        let Some(live) = self.live.as_mut() else { return Err(Error::retry("this node has no memory to give")) };
        if !is_known {
            live.follow_anew();
        }
        let checkpoint = live.sealing_for.map(hex::encode).unwrap_or_default();
        Ok(KeyGrant { token, ring: live.ring.clone(), checkpoint })
    }

    fn successor_for(&self, token: &str) -> Result<&Recipient> {
        match &self.successor {
            Some((expected, recipient)) if expected == token => Ok(recipient),
            _ => Err(Error::superseded("this token follows nothing; ask for the keys again")),
        }
    }

    /// Answers followers that wait for records, once there are some or the journal is closed.
    pub(crate) fn answer_tails(&mut self) {
        let Some((_, recipient)) = &self.successor else { return };
        let Some(live) = &self.live else { return };
        let closed = live.sealed && self.role == Role::Draining && live.durable + 1 >= live.journal.next_lsn();
        let mut waiting = Vec::new();
        for (after, reply) in std::mem::take(&mut self.tail_waiters) {
            if reply.is_closed() {
                continue;
            }
            if after >= live.durable && !closed {
                waiting.push((after, reply));
                continue;
            }
            let part = if after >= live.durable {
                Ok(TailPart { records: Vec::new(), last_lsn: live.durable, last: true })
            } else {
                let last_lsn = live.durable.min(after + PART_RECORDS_MAX);
                live.journal
                    .export(after + 1, last_lsn)
                    .map_err(|e| Error::retry("the records cannot be read back").caused_by(e))
                    .and_then(|plain| {
                        seal::seal(&plain, std::slice::from_ref(recipient))
                            .map_err(|e| Error::bug("records cannot be sealed").caused_by(e))
                    })
                    .map(|records| TailPart { records, last_lsn, last: closed && last_lsn == live.durable })
            };
            // A follower that hung up asks again.
            let _ = reply.send(part);
        }
        self.tail_waiters = waiting;
    }

    /// What the former operator delivered after the cut: charged and signed here.
    fn take_delivery(&mut self, token: &str, record: &[u8]) -> Result<()> {
        if self.granted_token.as_deref() != Some(token) {
            return Err(Error::superseded("only the node whose journal this one continues may report deliveries"));
        }
        let recorded = Recorded::decode(record)?;
        let late = matches!(
            &recorded,
            Recorded::Book(
                pay::BookInput::Delivered { .. }
                    | pay::BookInput::Aborted { .. }
                    | pay::BookInput::Channel(
                        pay::book::ChannelInput::Charged { .. } | pay::book::ChannelInput::Aborted { .. }
                    )
            ) | Recorded::Conversation(crate::conversation::ConversationInput::Store(_))
        );
        if !late {
            return Err(Error::superseded("only deliveries can be reported after the cut"));
        }
        let now = self.now();
        match &mut self.live {
            Some(live) if self.role == Role::Active => {
                live.record(now, &recorded)?;
                if matches!(recorded, Recorded::Conversation(_)) {
                    live.ring.learn(&live.state.conversations);
                }
                Ok(())
            }
            _ => Err(Error::retry("this node is not active yet")),
        }
    }

    /// Read by `/peer/able`: an announced standby is able once it holds the memory.
    pub fn synced_if_announced(&self) -> bool {
        let Some(news) = &self.news else { return false };
        let announced = news.state.announcedLease.saturating_to::<u64>() == self.cx.config.lease;
        !announced || self.live.is_some()
    }
}

/// A delivery that ended after this journal was closed: the successor charges and signs it. Tried for a minute.
pub fn report_late(node: &mut Node, recorded: Recorded) {
    const ATTEMPTS: u32 = 30;
    node.late.push(recorded.clone());
    let Some(url) = node.shared.moved() else { return };
    let Some((token, _)) = node.successor.clone() else { return };
    let cx = node.cx.clone();
    tokio::spawn(async move {
        let mut headers = HeaderMap::new();
        let Ok(bearer) = HeaderValue::from_str(&format!("Bearer {token}")) else { return };
        headers.insert(header::AUTHORIZATION, bearer);
        for _ in 0..ATTEMPTS {
            let body = Bytes::from(recorded.encode());
            let sent = cx.http.send(Method::POST, &format!("{url}/peer/delivered"), headers.clone(), body).await;
            match sent {
                Ok(answer) if answer.status.is_success() || answer.status.is_client_error() => return,
                _ => tokio::time::sleep(Duration::from_secs(2)).await,
            }
        }
        tracing::warn!(
            "a delivery after the cut could not be reported: the successor refunds it or charges its last mark"
        );
    });
}
