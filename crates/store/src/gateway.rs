//! The store over HTTP: an IPFS trustless gateway, plus a way to put blocks.
//!
//! `GET|HEAD /ipfs/{cid}` answers raw blocks and CARs, never pages: whoever asks verifies. What it serves is
//! public and sealed where it must be; what it takes (`PUT /blocks/{cid}`) is verified, at most 2 MiB, and kept
//! until garbage collection finds no pin that reaches it. There is no login: it belongs on loopback or behind
//! one who decides who may write.
//! Follows <https://specs.ipfs.tech/http-gateways/trustless-gateway/>; not spoken yet: paths below a CID,
//! `entity-bytes`, byte ranges.

mod answer;

use crate::blocks::Blocks;
use crate::car;
use crate::cid;
use crate::dag::{BLOCK_BYTES_MAX, Walk};
use crate::error::{Kind, Result, off_thread};
use crate::unixfs::{self, Object};
use answer::{Format, Problem, block_head, car_head, format_of, not_modified};
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream;
use serde::Deserialize;

/// All routes of one store.
pub fn router(blocks: Blocks) -> Router {
    Router::new()
        .route("/ipfs/{cid}", get(read))
        .route("/blocks/{cid}", put(write))
        .route("/health", get(health))
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(BLOCK_BYTES_MAX))
        .with_state(blocks)
}

#[derive(Deserialize)]
struct Wish {
    format: Option<String>,
    #[serde(rename = "dag-scope")]
    dag_scope: Option<String>,
    #[serde(rename = "entity-bytes")]
    entity_bytes: Option<String>,
}

/// How much of a graph a CAR holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Block,
    /// A whole file; of a directory only its own block.
    Entity,
    All,
}

impl Scope {
    fn parse(text: Option<&str>) -> std::result::Result<Self, Problem> {
        match text {
            None | Some("all") => Ok(Self::All),
            Some("block") => Ok(Self::Block),
            Some("entity") => Ok(Self::Entity),
            Some(other) => Err(Problem::bad(format!("dag-scope `{other}` is none of block, entity, all"))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Entity => "entity",
            Self::All => "all",
        }
    }
}

async fn read(
    State(blocks): State<Blocks>,
    method: Method,
    Path(text): Path<String>,
    Query(wish): Query<Wish>,
    headers: HeaderMap,
) -> std::result::Result<Response, Problem> {
    let cid = cid::parse(&text)?;
    if wish.entity_bytes.is_some() {
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "unsupported", "entity-bytes is not spoken here yet"));
    }
    let scope = Scope::parse(wish.dag_scope.as_deref())?;
    let head_only = method == Method::HEAD;
    match format_of(wish.format.as_deref(), &headers)? {
        Format::Raw => {
            let head = block_head(&cid);
            if not_modified(&headers, &head) {
                return Ok((StatusCode::NOT_MODIFIED, head).into_response());
            }
            if head_only {
                let length = blocks.len(&cid).ok_or_else(|| Problem::missing(&cid))?;
                let length = [(axum::http::header::CONTENT_LENGTH, length.to_string())];
                return Ok((head, length, Body::empty()).into_response());
            }
            let bytes = off_thread(move || blocks.get(&cid)).await?;
            Ok((head, Body::from(bytes)).into_response())
        }
        Format::Car => {
            let head = car_head(&cid, scope.name());
            if not_modified(&headers, &head) {
                return Ok((StatusCode::NOT_MODIFIED, head).into_response());
            }
            // The root is read before the status is sent: a missing one is a 404, not a broken stream.
            let (cid, root, blocks) = off_thread(move || blocks.get(&cid).map(|root| (cid, root, blocks))).await?;
            if head_only {
                return Ok((head, Body::empty()).into_response());
            }
            let deep = match scope {
                Scope::Block => false,
                Scope::All => true,
                Scope::Entity => matches!(unixfs::read(&cid, &root)?, Object::File { .. }),
            };
            let header = Bytes::from(car::header(&[cid])?);
            let carrying = Carrying { blocks, walk: Walk::from(&cid), deep };
            let rest = stream::try_unfold(carrying, |carrying| off_thread(|| carrying.next()));
            let body = stream::once(async { Ok(header) }).chain(rest);
            Ok((head, Body::from_stream(body)).into_response())
        }
    }
}

/// A CAR under way. One block is held at a time, and no thread while the reader is slow.
struct Carrying {
    blocks: Blocks,
    walk: Walk,
    deep: bool,
}

impl Carrying {
    /// The next block with what stands before it. An error cuts the connection, so that the reader does not take
    /// half a graph for a whole one.
    fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        let Some((cid, depth)) = self.walk.next_block() else { return Ok(None) };
        let block = self.blocks.get(&cid).inspect_err(|e| tracing::info!(%cid, error = %e, "a CAR broke off"))?;
        if self.deep {
            self.walk.visited(&cid, depth, &block)?;
        }
        let mut chunk = car::frame(&cid, &block);
        chunk.extend_from_slice(&block);
        Ok(Some((Bytes::from(chunk), self)))
    }
}

async fn write(
    State(blocks): State<Blocks>,
    Path(text): Path<String>,
    bytes: std::result::Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> std::result::Result<Response, Problem> {
    let cid = cid::parse(&text)?;
    let bytes = bytes.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("a block has at most {BLOCK_BYTES_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "block_too_large", message)
        }
        _ => Problem::bad("the body broke off"),
    })?;
    let length = bytes.len();
    off_thread(move || blocks.put(&cid, &bytes)).await.map_err(|e| match e.kind {
        // Here the sender is the one who lied, so it is the request that is wrong.
        Kind::Corrupt => Problem::new(StatusCode::BAD_REQUEST, "wrong_bytes", e.to_string()),
        _ => Problem::from(e),
    })?;
    let stored = serde_json::json!({ "cid": cid.to_string(), "bytes": length });
    Ok((StatusCode::CREATED, Json(stored)).into_response())
}

async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "ok": true }))
}

async fn nothing_here() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_such_route", "there are GET /ipfs/{cid}, PUT /blocks/{cid}, GET /health")
}
