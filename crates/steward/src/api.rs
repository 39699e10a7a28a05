//! The steward's HTTP routes. All errors are `{"error":{"code","message","request_id"}}`.

use crate::desk::{AckRequest, AlarmRequest, Desk, OrderRequest, ShareAnswer, SignatureAnswer};
use crate::limits::Route;
use crate::orders::{OrderFile, handed_out};
use crate::refusal::Refusal;
use crate::suspicion::Proposal;
use crate::watch::BlockView;
use alloy::primitives::Address;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use store::checkpoint::{SegmentHeader, ShareRequest};

/// Longest request body. Everything a steward is asked fits into a few hundred bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What the daemon's loop tells `/status`.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<NotesInside>>);

#[derive(Clone, Debug, Default)]
struct NotesInside {
    alarms: BTreeMap<Address, &'static str>,
    proposals: BTreeMap<Address, Proposal>,
    probes: BTreeMap<Address, String>,
    /// Why an agent cannot be read.
    unread: BTreeMap<Address, String>,
    /// What peers said last, by agent and peer.
    heard: BTreeMap<(Address, Address), Heard>,
    trouble: Option<String>,
    /// Why treasuries cannot be looked for.
    search_trouble: Option<String>,
}

impl Notes {
    pub fn set_alarms(&self, alarms: BTreeMap<Address, &'static str>) {
        self.inside(|n| n.alarms = alarms);
    }

    /// Notes what `peer` says about `treasury`; true if it is news. An older word than the last one is none.
    pub fn hear(&self, treasury: Address, peer: Address, heard: Heard) -> bool {
        let mut news = false;
        self.inside(|n| {
            let before = n.heard.get(&(treasury, peer));
            news = before.is_none_or(|b| b.at < heard.at) && before.map(|b| &b.alarm) != Some(&heard.alarm);
            if news {
                n.heard.insert((treasury, peer), heard);
            }
        });
        news
    }

    pub fn set_proposals(&self, proposals: BTreeMap<Address, Proposal>) {
        self.inside(|n| n.proposals = proposals);
    }

    pub fn set_unread(&self, unread: BTreeMap<Address, String>) {
        self.inside(|n| n.unread = unread);
    }

    /// What the last look at this agent's host found, in words.
    pub fn probe(&self, treasury: Address) -> Option<String> {
        self.copy().probes.get(&treasury).cloned()
    }

    pub fn set_probe(&self, treasury: Address, found: String) {
        self.inside(|n| drop(n.probes.insert(treasury, found)));
    }

    /// Remembers a trouble; true if it is news.
    pub fn set_trouble(&self, trouble: Option<String>) -> bool {
        self.replace(trouble, |n| &mut n.trouble)
    }

    /// The same for the search for treasuries.
    pub fn set_search_trouble(&self, trouble: Option<String>) -> bool {
        self.replace(trouble, |n| &mut n.search_trouble)
    }

    fn replace(&self, new: Option<String>, place: fn(&mut NotesInside) -> &mut Option<String>) -> bool {
        let mut news = false;
        self.inside(|n| {
            let place = place(n);
            news = *place != new;
            *place = new;
        });
        news
    }

    fn inside(&self, change: impl FnOnce(&mut NotesInside)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn copy(&self) -> NotesInside {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A peer's alarm about an agent, by the name in [`crate::watch::Alarm`], or [`CLEAR`]. `at`: chain seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub alarm: String,
    pub at: u64,
}

/// The word that takes an alarm back.
pub const CLEAR: &str = "clear";

#[derive(Clone)]
struct Api {
    desk: Arc<Desk>,
    notes: Notes,
}

pub fn router(desk: Arc<Desk>, notes: Notes) -> Router {
    Router::new()
        .route("/ack", post(ack))
        .route("/segments", post(segment))
        .route("/segments/{treasury}", get(segments))
        .route("/share", post(share))
        .route("/sign-order", post(sign_order))
        .route("/alarm", post(alarm))
        .route("/orders/{treasury}", get(orders))
        .route("/status", get(status))
        .route("/health", get(health))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Api { desk, notes })
}

/// A refusal on its way out.
struct No(Refusal);

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<JsonRejection> for No {
    fn from(e: JsonRejection) -> Self {
        Self(Refusal::BadRequest { why: e.body_text() })
    }
}

impl From<PathRejection> for No {
    fn from(e: PathRejection) -> Self {
        Self(Refusal::BadRequest { why: e.body_text() })
    }
}

impl From<QueryRejection> for No {
    fn from(e: QueryRejection) -> Self {
        Self(Refusal::BadRequest { why: e.body_text() })
    }
}

static REQUESTS: AtomicU64 = AtomicU64::new(1);

impl IntoResponse for No {
    fn into_response(self) -> Response {
        let request_id = format!("s{}", REQUESTS.fetch_add(1, Ordering::Relaxed));
        let (code, message) = (self.0.code(), self.0.to_string());
        tracing::info!(code, message, request_id, "refused");
        let status = StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let error = json!({ "error": { "code": code, "message": message, "request_id": request_id } });
        (status, Json(error)).into_response()
    }
}

async fn ack(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Result<Json<AckRequest>, JsonRejection>,
) -> Result<Json<SignatureAnswer>, No> {
    let request = body?.0;
    api.desk.admit(from.ip(), request.treasury, Route::Ack)?;
    Ok(Json(api.desk.ack(request).await?))
}

async fn segment(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Result<Json<SegmentHeader>, JsonRejection>,
) -> Result<Json<Value>, No> {
    let header = body?.0;
    api.desk.admit(from.ip(), header.agent, Route::Segments)?;
    api.desk.segment(header).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct After {
    #[serde(default)]
    epoch_from: u64,
    #[serde(default)]
    after_lsn: u64,
}

async fn segments(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    treasury: Result<Path<Address>, PathRejection>,
    after: Result<Query<After>, QueryRejection>,
) -> Result<Json<Vec<Value>>, No> {
    let (Path(treasury), Query(after)) = (treasury?, after?);
    api.desk.admit(from.ip(), treasury, Route::ReadSegments)?;
    // A steward that was just started has not heard of the agent yet.
    if !api.desk.adopt(treasury).await? {
        return Err(Refusal::NotWatched.into());
    }
    Ok(Json(api.desk.segments(treasury, after.epoch_from, after.after_lsn)?))
}

async fn share(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Result<Json<ShareRequest>, JsonRejection>,
) -> Result<Json<ShareAnswer>, No> {
    let request = body?.0;
    api.desk.admit(from.ip(), request.treasury, Route::Share)?;
    Ok(Json(api.desk.share(request).await?))
}

async fn sign_order(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Result<Json<OrderRequest>, JsonRejection>,
) -> Result<Json<SignatureAnswer>, No> {
    let request = body?.0;
    api.desk.admit(from.ip(), request.treasury, Route::SignOrder)?;
    Ok(Json(api.desk.sign_order(request).await?))
}

/// A peer is worried: said in the log and in `/status`, and nothing is decided by it. What this steward does it does on
/// what it sees itself.
async fn alarm(State(api): State<Api>, body: Result<Json<AlarmRequest>, JsonRejection>) -> Result<Json<Value>, No> {
    let request = body?.0;
    let peer = api.desk.peer_of(&request)?;
    let AlarmRequest { treasury, alarm, at, .. } = request;
    if api.notes.hear(treasury, peer, Heard { alarm: alarm.clone(), at }) {
        tracing::warn!(%treasury, %peer, alarm, at, "a peer's alarm");
    }
    Ok(Json(json!({})))
}

/// Orders that this steward's operator signed and has not seen in force yet.
async fn orders(
    State(api): State<Api>,
    treasury: Result<Path<Address>, PathRejection>,
) -> Result<Json<Vec<OrderFile>>, No> {
    let Path(treasury) = treasury?;
    Ok(Json(handed_out(&api.desk.config, treasury, api.desk.block().timestamp)))
}

/// 200 once a block was seen, 503 before.
async fn health(State(api): State<Api>) -> (StatusCode, &'static str) {
    if api.desk.block().timestamp == 0 {
        return (StatusCode::SERVICE_UNAVAILABLE, "no block seen yet\n");
    }
    (StatusCode::OK, "ok\n")
}

#[derive(Serialize)]
struct StatusBody {
    steward: Address,
    share_recipient: String,
    block: Value,
    agents: Vec<AgentStatus>,
    trouble: Option<String>,
}

/// Without what is known once it was seen, if it never was.
#[derive(Default, Serialize)]
struct AgentStatus {
    treasury: Address,
    alive: bool,
    operator: Option<Address>,
    epoch: u64,
    restoring: bool,
    last_heartbeat: u64,
    challenged_at: u64,
    checkpoint_seq: u64,
    /// The last checkpoint this steward acknowledged, which the chain may not have yet.
    last_ack: Option<Value>,
    segments: usize,
    alarm: Option<&'static str>,
    /// What peers are worried about: [{"steward", "alarm", "at"}].
    peer_alarms: Vec<Value>,
    probe: Option<String>,
    /// An eviction that this daemon would have the quorum order: {"evict", "keep", "provider", "epoch", "why", "times",
    /// "since"}.
    proposal: Option<Value>,
    /// Why it cannot be read. What stands above is then of the last time that it could.
    trouble: Option<String>,
}

async fn status(State(api): State<Api>) -> Json<StatusBody> {
    let (BlockView { number, timestamp, treasuries, .. }, notes) = (api.desk.block(), api.notes.copy());
    let agents = api.desk.agents();
    let seen = |treasury: &Address| treasuries.iter().any(|view| view.treasury == *treasury);
    let never = notes.unread.iter().filter(|(treasury, _)| !seen(treasury)).map(|(treasury, why)| AgentStatus {
        treasury: *treasury,
        trouble: Some(why.clone()),
        ..AgentStatus::default()
    });
    let agents = treasuries.iter().map(|t| {
        let agent = agents.get(&t.treasury);
        let last_ack = agent.and_then(|a| a.signed().last());
        AgentStatus {
            treasury: t.treasury,
            alive: t.alive,
            operator: t.operator,
            epoch: t.epoch,
            restoring: t.restoring,
            last_heartbeat: t.last_heartbeat,
            challenged_at: t.challenged_at,
            checkpoint_seq: t.checkpoint_seq,
            last_ack: last_ack.map(|(epoch, seq, digest)| json!({ "epoch": epoch, "seq": seq, "digest": digest })),
            segments: agent.map_or(0, |a| a.segments().kept().len()),
            alarm: notes.alarms.get(&t.treasury).copied(),
            peer_alarms: notes
                .heard
                .iter()
                .filter(|((treasury, _), heard)| *treasury == t.treasury && heard.alarm != CLEAR)
                .map(|((_, peer), Heard { alarm, at })| json!({ "steward": peer, "alarm": alarm, "at": at }))
                .collect(),
            probe: notes.probes.get(&t.treasury).cloned(),
            proposal: notes.proposals.get(&t.treasury).map(|p| {
                json!({
                    "evict": p.lease, "keep": p.keep, "provider": p.provider, "epoch": p.epoch,
                    "why": p.fault.as_str(), "times": p.times, "since": p.since,
                })
            }),
            trouble: notes.unread.get(&t.treasury).cloned(),
        }
    });
    Json(StatusBody {
        steward: api.desk.address(),
        share_recipient: api.desk.share_recipient(),
        block: json!({ "number": number, "timestamp": timestamp }),
        agents: agents.chain(never).collect(),
        trouble: notes.trouble.or(notes.search_trouble),
    })
}
