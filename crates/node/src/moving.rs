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
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
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
    /// The former operator says how far a stream is that was open at the cut, or how it ended.
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
    /// Under which it was given, and under which late deliveries are reported.
    pub token: String,
    /// Whose it is.
    pub follower: u64,
    /// Said when these records are in the journal here, before any that are this node's own. A loop that does not want them
    /// drops it: then nothing is acknowledged.
    pub taken: oneshot::Sender<()>,
}

/// Whom a follower follows.
pub struct Followed {
    /// The follower's own number: its loop knows its words by it.
    pub follower: u64,
    /// Of the active node, or of the one that was it until now.
    pub url: String,
    /// The chain's when it was begun. The move may be mined meanwhile.
    pub epoch: u64,
    /// Up to which record that node's journal is on this disk; `None`: begin with the checkpoint.
    pub held: Option<u64>,
}

/// Gets the keys, restores the last acknowledged checkpoint, then follows the active node's journal until it says that it
/// is over. `wanted`: the checkpoint that the chain names, or nothing once another successor was announced: then it ends.
///
/// A process of the active node that is started again gives another token and goes on with the same journal, and so does
/// its follower: what it has acknowledged stays on its disk.
pub async fn follow(
    cx: Arc<Context>,
    mut followed: Followed,
    durable: watch::Receiver<u64>,
    wanted: watch::Receiver<Option<B256>>,
) {
    while wanted.borrow().is_some() {
        match try_follow(&cx, &mut followed, durable.clone(), &wanted).await {
            Ok(()) => return,
            Err(e) => {
                tracing::info!(error = %chain_of(&e), "following the active node: trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn try_follow(
    cx: &Context,
    followed: &mut Followed,
    mut durable: watch::Receiver<u64>,
    wanted: &watch::Receiver<Option<B256>>,
) -> Result<()> {
    let grant = ask_for_keys(cx, followed).await?;
    let token = grant.token.clone();
    let mut headers = HeaderMap::new();
    let bearer = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|e| Error::retry("the follower's token is not a header value").caused_by(e))?;
    headers.insert(header::AUTHORIZATION, bearer);
    let mut after = match followed.held {
        Some(after) => {
            // A checkpoint may have been made since they were given.
            later_keys(cx, followed, grant).await;
            after
        }
        None => begin(cx, followed.follower, grant, wanted).await?,
    };
    let mut is_answered = false;
    while wanted.borrow().is_some() {
        let url = format!("{}/peer/tail?after={after}", followed.url);
        let answer = cx.http.send(Method::GET, &url, headers.clone(), Bytes::new()).await?;
        if answer.status == StatusCode::FORBIDDEN && !is_answered {
            // Its journal is not the one that was followed: begin with the checkpoint.
            followed.held = None;
        }
        let answer = answer.success_or_read().await?;
        is_answered = true;
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
            let (taken, is_taken) = oneshot::channel();
            let (token, follower) = (token.clone(), followed.follower);
            cx.tell(Event::Tail(Tail { records, last, token, follower, taken })).await;
            if is_taken.await.is_err() {
                followed.held = None;
                return Err(Error::retry("a part of the journal is not wanted"));
            }
        }
        if last {
            tokio::join!(acknowledge_last(cx, &followed.url, headers, durable, last_lsn), last_keys(cx, followed));
            return Ok(());
        }
        // Asking from `last_lsn` acknowledges it, so it must be durable here first. This node may lead by then: its own
        // records come after these.
        if durable.wait_for(|d| *d >= last_lsn).await.is_err() {
            return Ok(());
        }
        after = last_lsn;
        followed.held = Some(after);
    }
    Ok(())
}

/// The old node's last answers wait for this word, once its last records are on the disk here; after that it has nothing more
/// to say.
async fn acknowledge_last(
    cx: &Context,
    old_url: &str,
    headers: HeaderMap,
    mut durable: watch::Receiver<u64>,
    last_lsn: u64,
) {
    if durable.wait_for(|d| *d >= last_lsn).await.is_err() {
        return;
    }
    let url = format!("{old_url}/peer/tail?after={last_lsn}");
    if let Err(e) = cx.http.send(Method::GET, &url, headers, Bytes::new()).await {
        tracing::info!(error = %chain_of(&e), "the former node did not hear that its last records arrived");
    }
}

/// Restores the last acknowledged checkpoint. Returns its last record.
async fn begin(cx: &Context, follower: u64, grant: KeyGrant, wanted: &watch::Receiver<Option<B256>>) -> Result<u64> {
    let digest = (*wanted.borrow()).ok_or_else(|| Error::superseded("another successor was announced"))?;
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
    restored.token = Some(grant.token);
    let until = restored.until;
    cx.tell(Event::Begun { follower, restored: Box::new(restored) }).await;
    Ok(until)
}

/// A checkpoint may have been made since the first grant; keys that are sealed to its key must stay readable. This node leads
/// by now: nobody waits for them. The old node still answers after its last word; if it does not, only conversations that were
/// stored in the seconds between are out of reach.
async fn last_keys(cx: &Context, followed: &Followed) {
    const ATTEMPTS: u32 = 4;
    for _ in 0..ATTEMPTS {
        match ask_for_keys(cx, followed).await {
            Ok(grant) => return later_keys(cx, followed, grant).await,
            Err(e) => tracing::info!(error = %chain_of(&e), "the last memory keys: asking again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn later_keys(cx: &Context, followed: &Followed, grant: KeyGrant) {
    cx.tell(Event::LaterKeys { follower: followed.follower, ring: Box::new(grant.ring) }).await;
}

async fn ask_for_keys(cx: &Context, followed: &Followed) -> Result<KeyGrant> {
    let request = restore::share_request(cx, followed.epoch)?;
    let url = format!("{}/peer/key", followed.url);
    let sealed = cx.http.post_json(&url, &request).await?.success_or_read().await?;
    let sealed = sealed.bytes(1 << 20).await?;
    let plain = seal::open(&sealed, &cx.keys.exchange, 1 << 20)
        .map_err(|e| Error::retry("the key grant is not sealed to this node").caused_by(e))?;
    serde_json::from_slice(&plain).map_err(|e| Error::retry("the key grant does not parse").caused_by(e))
}

// ---- the active side, inside the main loop ----

use crate::main_loop::Node;
use crate::shared::Role;
use store::seal::Recipient;

/// Questions for the tail that wait at once. A follower asks one after the other; one that broke off and asks again may be
/// here twice for a moment.
pub(crate) const TAILS_WAITING_MAX: usize = 8;
/// Most records in one part of the tail.
const PART_RECORDS_MAX: u64 = 50_000;

impl Node {
    pub(crate) fn on_peer(&mut self, ask: PeerAsk) -> Result<()> {
        match ask {
            PeerAsk::Key { request, reply } => {
                // The asker may have hung up; it will ask again.
                let _ = reply.send(self.grant_key(&request));
            }
            PeerAsk::Tail { after, token, reply } => match self.follower_at(&token, after) {
                Ok(()) => {
                    if let Some(live) = &mut self.live {
                        live.followed_to(after);
                    }
                    self.let_go()?;
                    self.tail_waiters.push((after, reply));
                    self.answer_tails();
                    if self.tail_waiters.len() > TAILS_WAITING_MAX {
                        let (_, oldest) = self.tail_waiters.remove(0);
                        let _ = oldest.send(Err(Error::retry("too many questions for the tail wait already")));
                    }
                }
                Err(e) => {
                    let _ = reply.send(Err(e));
                }
            },
            PeerAsk::Delivered { token, record, reply } => {
                let result = self.take_report(&token, &record);
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
        // The move may have been mined since it was signed, or in a block that this node has not seen.
        let epoch = request.epoch.clamp(news.state.epoch.saturating_sub(1), news.state.epoch.saturating_add(1));
        request
            .verify(successor.lease.nodeKey, self.cx.config.treasury, self.cx.config.chain_id, epoch)
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

    /// Whether the bearer of this token follows, and has nothing that is not here.
    fn follower_at(&self, token: &str, after: u64) -> Result<()> {
        if self.successor.as_ref().is_none_or(|(expected, _)| expected != token) {
            return Err(Error::superseded("this token follows nothing; ask for the keys again"));
        }
        match &self.live {
            Some(live) if after > live.durable => {
                let last = live.durable;
                Err(Error::superseded(format!("this journal ends with record {last}, not with {after}: begin again")))
            }
            _ => Ok(()),
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

    /// Read by `/peer/able`: an announced standby is able once it holds the memory.
    pub fn synced_if_announced(&self) -> bool {
        let Some(news) = &self.news else { return false };
        let announced = news.state.announcedLease.saturating_to::<u64>() == self.cx.config.lease;
        !announced || self.live.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::{Query, State};
    use axum::response::{IntoResponse, Response};
    use axum::routing::{get, post};
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use tokio::sync::mpsc;

    /// An active node, as far as a follower sees it: its tokens are counted, and the first process is gone after one part.
    #[derive(Default)]
    struct Active {
        tokens: u32,
        /// (token, from which record), in order.
        asked: Vec<(String, u64)>,
    }

    type Shared = Arc<Mutex<Active>>;

    async fn key(State(active): State<Shared>, axum::Json(request): axum::Json<ShareRequest>) -> Vec<u8> {
        let mut active = active.lock().unwrap();
        active.tokens += 1;
        let token = format!("token-{}", active.tokens);
        let grant = KeyGrant { token, ring: KeyRing::default(), checkpoint: String::new() };
        let to = Recipient::parse(&request.recipient).unwrap();
        seal::seal(&serde_json::to_vec(&grant).unwrap(), &[to]).unwrap()
    }

    async fn tail(
        State((active, to)): State<(Shared, Recipient)>,
        Query(query): Query<BTreeMap<String, u64>>,
        headers: HeaderMap,
    ) -> Response {
        let mut active = active.lock().unwrap();
        let token = headers[header::AUTHORIZATION].to_str().unwrap().trim_start_matches("Bearer ").to_owned();
        active.asked.push((token.clone(), query["after"]));
        let part = |last_lsn: u64, last: &'static str, records: &[u8]| {
            let sealed = seal::seal(records, std::slice::from_ref(&to)).unwrap();
            ([(LAST_LSN, last_lsn.to_string()), (FINAL, last.to_owned())], sealed).into_response()
        };
        match (token.as_str(), query["after"]) {
            ("token-1", 5) => part(7, "false", b"6 and 7"),
            ("token-1", _) => StatusCode::FORBIDDEN.into_response(),
            _ => part(9, "true", b"8 and 9"),
        }
    }

    /// A follower of such a node that has its journal up to record 5.
    struct Follows {
        active: Shared,
        heard: mpsc::Receiver<Event>,
        on_disk: watch::Sender<u64>,
        want: watch::Sender<Option<B256>>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn follows(dir: &std::path::Path) -> Follows {
        let (cx, heard) = crate::context::for_tests("http://127.0.0.1:1", dir);
        let active = Shared::default();
        let tail = get(tail).with_state((active.clone(), cx.keys.exchange.recipient()));
        let app =
            axum::Router::new().route("/peer/key", post(key).with_state(active.clone())).route("/peer/tail", tail);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let (on_disk, durable) = watch::channel(5);
        let (want, wanted) = watch::channel(Some(B256::repeat_byte(1)));
        let followed = Followed { follower: 1, url, epoch: 1, held: Some(5) };
        let task = tokio::spawn(follow(Arc::new(cx), followed, durable, wanted));
        Follows { active, heard, on_disk, want, task }
    }

    impl Follows {
        /// The next part that it tells.
        async fn tells(&mut self) -> Tail {
            loop {
                match self.heard.recv().await.unwrap() {
                    Event::Tail(tail) => return tail,
                    Event::LaterKeys { .. } => {}
                    other => panic!("it begins again: {}", other.name()),
                }
            }
        }
    }

    fn owned<T: Clone>(of: &[(&str, T)]) -> Vec<(String, T)> {
        of.iter().map(|(token, what)| ((*token).to_owned(), what.clone())).collect()
    }

    #[tokio::test]
    async fn a_follower_keeps_what_it_has_when_the_active_node_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut follows = follows(dir.path()).await;
        let mut parts = Vec::new();
        for (until, tokens) in [(7, 1), (9, 2)] {
            let tail = follows.tells().await;
            assert_eq!(
                (tail.last, follows.active.lock().unwrap().tokens),
                (until == 9, tokens),
                "it waits for no keys"
            );
            parts.push((tail.token, String::from_utf8(tail.records).unwrap()));
            tail.taken.send(()).unwrap();
            follows.on_disk.send_replace(until);
        }
        follows.task.await.unwrap();
        assert!(matches!(follows.heard.try_recv(), Ok(Event::LaterKeys { .. })), "those of the end come after it");
        assert_eq!(parts, owned(&[("token-1", "6 and 7".to_owned()), ("token-2", "8 and 9".to_owned())]));
        let asked = follows.active.lock().unwrap().asked.clone();
        assert_eq!(asked, owned(&[("token-1", 5), ("token-1", 7), ("token-2", 7), ("token-2", 9)]));
    }

    /// Its loop leads without that part: whatever it has on its disk now are its own records.
    #[tokio::test]
    async fn what_the_loop_did_not_take_in_is_not_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let mut follows = follows(dir.path()).await;
        follows.tells().await.taken.send(()).unwrap();
        follows.on_disk.send_replace(7);
        let tail = follows.tells().await;
        assert!(tail.last);
        follows.want.send(None).unwrap();
        follows.on_disk.send_replace(100);
        drop(tail);
        follows.task.await.unwrap();
        let asked = follows.active.lock().unwrap().asked.clone();
        assert_eq!(asked, owned(&[("token-1", 5), ("token-1", 7), ("token-2", 7)]));
    }
}
