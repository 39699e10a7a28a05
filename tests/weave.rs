//! An Arweave node for tests: follows the published interface, and checks what it is sent.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use store::Error;
use store::arweave::{Proven, Transaction, TxId, verify_chunk};

/// A node: takes what is signed and proven, gives it out again.
#[derive(Default)]
pub struct Weave {
    pub height: u64,
    pub transactions: Vec<Stored>,
    pub posts: Vec<&'static str>,
    /// Refuses to take more posts than this.
    pub posts_max: Option<usize>,
}

pub struct Stored {
    pub id: TxId,
    json: Value,
    /// Where its data begins.
    start: u64,
    bytes: u64,
    root: String,
    chunks: Vec<(u64, u64, Value)>,
    pub mined_at: Option<u64>,
}

pub type Shared = Arc<Mutex<Weave>>;
/// How the node refuses.
pub type Refusal = (StatusCode, String);

pub fn node(weave: &Shared) -> Router {
    Router::new()
        .route(
            "/info",
            get(|State(w): State<Shared>| async move { Json(json!({ "height": w.lock().unwrap().height })) }),
        )
        .route("/price/{bytes}", get(|Path(bytes): Path<u64>| async move { (bytes * 10).to_string() }))
        .route("/tx_anchor", get(|| async { URL_SAFE_NO_PAD.encode([3; 48]) }))
        .route("/wallet/{address}/balance", get(|| async { "5000" }))
        .route("/tx", post(take_transaction))
        .route("/chunk", post(take_chunk))
        .route("/tx/{id}", get(give_transaction))
        .route("/tx/{id}/offset", get(give_offset))
        .route("/tx/{id}/status", get(give_status))
        .route("/chunk/{offset}", get(give_chunk))
        .with_state(weave.clone())
}

fn may_post(weave: &mut Weave, what: &'static str) -> Result<(), Refusal> {
    if weave.posts_max.is_some_and(|max| weave.posts.len() >= max) {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "busy".into()));
    }
    weave.posts.push(what);
    Ok(())
}

async fn take_transaction(State(weave): State<Shared>, Json(json): Json<Value>) -> Result<&'static str, Refusal> {
    let mut weave = weave.lock().unwrap();
    may_post(&mut weave, "tx")?;
    let bad = |e: Error| (StatusCode::BAD_REQUEST, e.to_string());
    let transaction = Transaction::from_json(&json).map_err(bad)?;
    transaction.verify(&TxId::parse(json["id"].as_str().unwrap()).unwrap()).map_err(bad)?;
    let start = weave.transactions.iter().map(|t| t.start + t.bytes).max().unwrap_or(1 << 40);
    let root = json["data_root"].as_str().unwrap().to_owned();
    let (id, bytes) = (transaction.id(), transaction.draft.data_bytes);
    weave.transactions.push(Stored { id, json, start, bytes, root, chunks: Vec::new(), mined_at: None });
    Ok("OK")
}

async fn take_chunk(State(weave): State<Shared>, Json(json): Json<Value>) -> Result<&'static str, Refusal> {
    let mut weave = weave.lock().unwrap();
    may_post(&mut weave, "chunk")?;
    let bad = |why: &str| (StatusCode::BAD_REQUEST, why.to_owned());
    let field = |name: &str| URL_SAFE_NO_PAD.decode(json[name].as_str().unwrap()).unwrap();
    let number = |name: &str| json[name].as_str().unwrap().parse::<u64>().unwrap();
    let wanted = weave.transactions.iter_mut().find(|t| json["data_root"].as_str() == Some(t.root.as_str()));
    let stored = wanted.ok_or_else(|| bad("data_root_not_found"))?;
    let root: [u8; 32] = field("data_root").try_into().unwrap();
    let proven = verify_chunk(&root, number("data_size"), number("offset"), &field("data_path"), &field("chunk"));
    let Proven { start, end } = proven.map_err(|e| bad(&e.to_string()))?;
    stored.chunks.push((start, end, json!({ "chunk": json["chunk"], "data_path": json["data_path"], "tx_path": "" })));
    Ok("OK")
}

fn find(weave: &Weave, id: &str) -> Result<usize, Refusal> {
    let at = weave.transactions.iter().position(|t| t.id.to_string() == id);
    at.ok_or_else(|| (StatusCode::NOT_FOUND, "Not Found.".into()))
}

pub async fn give_transaction(State(weave): State<Shared>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let weave = weave.lock().unwrap();
    Ok(Json(weave.transactions[find(&weave, &id)?].json.clone()))
}

pub async fn give_offset(State(weave): State<Shared>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let weave = weave.lock().unwrap();
    let stored = &weave.transactions[find(&weave, &id)?];
    let last = stored.start + stored.bytes - 1;
    Ok(Json(json!({ "offset": last.to_string(), "size": stored.bytes.to_string() })))
}

async fn give_status(State(weave): State<Shared>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let weave = weave.lock().unwrap();
    let height = weave.height;
    Ok(match weave.transactions[find(&weave, &id)?].mined_at {
        None => (StatusCode::ACCEPTED, "Pending").into_response(),
        Some(at) => Json(json!({ "block_height": at, "number_of_confirmations": height - at })).into_response(),
    })
}

pub async fn give_chunk(State(weave): State<Shared>, Path(offset): Path<u64>) -> Result<Json<Value>, Refusal> {
    let weave = weave.lock().unwrap();
    let chunks =
        weave.transactions.iter().flat_map(|t| t.chunks.iter().map(|(s, e, json)| (t.start + s, t.start + e, json)));
    let found = chunks.into_iter().find(|(start, end, _)| (*start..*end).contains(&offset));
    found.map(|(_, _, json)| Json(json.clone())).ok_or_else(|| (StatusCode::NOT_FOUND, String::new()))
}
