//! The store over HTTP: an IPFS trustless gateway, plus a way to put blocks.
//!
//! `GET|HEAD /ipfs/{cid}[/{path}]` answers raw blocks and CARs, never pages: whoever asks verifies. What it serves is
//! public and sealed where it must be; what it takes (`PUT /blocks/{cid}`) is verified, at most 2 MiB, and kept
//! until garbage collection finds no pin that reaches it (`PUT|DELETE /pins/{cid}?reason=…`). There is no login: it
//! belongs on loopback or behind one who decides who may write.
//! Follows <https://specs.ipfs.tech/http-gateways/trustless-gateway/>: `format`, `dag-scope`, `entity-bytes`, paths
//! below a CID (CARs only), `Range` (blocks only), `only-if-cached`, entity tags. CARs are always version 1, depth
//! first, and no block comes twice unless there are more than can be remembered; other wishes are answered so, and the
//! content type says it (`dups=n` where it is certain). Not spoken: IPNS.

mod answer;
pub mod selection;

use crate::blocks::Blocks;
use crate::car;
use crate::cid::{self, Cid};
use crate::dag::{self, BLOCK_BYTES_MAX};
use crate::error::{Error, Kind, Result, off_thread};
use crate::unixfs::{self, Object};
use crate::walk::{DEPTH_MAX, LEAVES_REMEMBERED_MAX};
use answer::{Format, Problem, add_car_type, add_path, block_head, car_head, format_of, not_modified, range_of};
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream;
use selection::{ByteRange, Dups, Scope, Selection};
use serde::Deserialize;

/// The empty block by identity hash, which clients ask for to see whether somebody is at home. The only one spoken.
const PROBE: &str = "bafkqaaa";
/// The shortest link in a node: two lengths with their keys, and a CIDv0.
const LINK_BYTES_MIN: u64 = 38;

/// All routes of one store.
pub fn router(blocks: Blocks) -> Router {
    Router::new()
        .route("/ipfs/{cid}", get(read))
        .route("/ipfs/{cid}/", get(read))
        .route("/ipfs/{cid}/{*path}", get(read_path))
        .route("/blocks/{cid}", put(write))
        .route("/pins/{cid}", put(pin).delete(unpin))
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
    #[serde(rename = "car-version")]
    car_version: Option<String>,
}

impl Wish {
    /// `entity-bytes` implies the scope `entity`.
    fn scope(&self) -> std::result::Result<Scope, Problem> {
        let range = self.entity_bytes.as_deref().map(|text| {
            ByteRange::parse(text).ok_or_else(|| Problem::bad(format!("entity-bytes `{text}` is not from:to")))
        });
        match (self.dag_scope.as_deref(), range.transpose()?) {
            (None | Some("entity"), Some(range)) => Ok(Scope::Entity(range)),
            (Some(scope @ ("block" | "all")), Some(_)) => {
                Err(Problem::bad(format!("entity-bytes implies dag-scope=entity, not {scope}")))
            }
            (None | Some("all"), None) => Ok(Scope::All),
            (Some("block"), None) => Ok(Scope::Block),
            (Some("entity"), None) => Ok(Scope::Entity(ByteRange::default())),
            (Some(other), _) => Err(Problem::bad(format!("dag-scope `{other}` is none of block, entity, all"))),
        }
    }
}

/// A request as both routes hear it.
struct Asked {
    blocks: Blocks,
    head_only: bool,
    cid: Cid,
    /// Names below the CID.
    path: Vec<String>,
    uri: Uri,
    wish: Wish,
    headers: HeaderMap,
}

async fn read(
    State(blocks): State<Blocks>,
    method: Method,
    Path(text): Path<String>,
    uri: Uri,
    Query(wish): Query<Wish>,
    headers: HeaderMap,
) -> std::result::Result<Response, Problem> {
    let format = format_of(wish.format.as_deref(), &headers)?;
    if text == PROBE && format == Format::Raw {
        let cid = Cid::try_from(PROBE).map_err(|e| Error::bug("the probe is no CID").caused_by(e))?;
        return Ok((block_head(&cid), Body::empty()).into_response());
    }
    let cid = cid::parse(&text)?;
    answer(Asked { blocks, head_only: method == Method::HEAD, cid, path: Vec::new(), uri, wish, headers }, format).await
}

async fn read_path(
    State(blocks): State<Blocks>,
    method: Method,
    Path((text, path)): Path<(String, String)>,
    uri: Uri,
    Query(wish): Query<Wish>,
    headers: HeaderMap,
) -> std::result::Result<Response, Problem> {
    let format = format_of(wish.format.as_deref(), &headers)?;
    let cid = cid::parse(&text)?;
    if format == Format::Raw {
        return Err(Problem::bad("a block has no path below it; ask for a CAR, or for the block's own CID"));
    }
    let path: Vec<String> = path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if path.len() > DEPTH_MAX {
        return Err(Problem::bad(format!("a path of {} names; {DEPTH_MAX} are walked", path.len())));
    }
    answer(Asked { blocks, head_only: method == Method::HEAD, cid, path, uri, wish, headers }, format).await
}

async fn answer(asked: Asked, format: Format) -> std::result::Result<Response, Problem> {
    let location = asked.wish.format.is_none().then(|| {
        let name = if format == Format::Raw { "raw" } else { "car" };
        let rest = asked.uri.query().filter(|q| !q.is_empty()).map(|q| format!("&{q}")).unwrap_or_default();
        format!("{}?format={name}{rest}", asked.uri.path())
    });
    let headers = asked.headers.clone();
    let answered = match format {
        Format::Raw => raw(asked).await,
        Format::Car => a_car(asked).await,
    };
    let mut answered = answered.map_err(|problem| problem.or_not_cached(&headers))?;
    if let Some(location) = location.and_then(|text| HeaderValue::from_str(&text).ok()) {
        // The same URL has two answers; this one names the one that was chosen.
        answered.headers_mut().insert(header::CONTENT_LOCATION, location);
    }
    Ok(answered)
}

async fn raw(Asked { blocks, head_only, cid, headers, .. }: Asked) -> std::result::Result<Response, Problem> {
    let head = block_head(&cid);
    if not_modified(&headers, &head) {
        return Ok((StatusCode::NOT_MODIFIED, head).into_response());
    }
    if head_only {
        let length = blocks.len(&cid).ok_or_else(|| Problem::missing(&cid))?;
        let length = [(header::CONTENT_LENGTH, length.to_string())];
        return Ok((head, length, Body::empty()).into_response());
    }
    let bytes = off_thread(move || blocks.get(&cid)).await?;
    let length = bytes.len();
    Ok(match range_of(&headers, crate::protobuf::len64(&bytes))? {
        None => (head, Body::from(bytes)).into_response(),
        Some((from, to)) => {
            let index = |at: u64| usize::try_from(at).map_err(|_| Error::bug("a range beyond a block"));
            let part = bytes.slice(index(from)?..=index(to)?);
            let range = [(header::CONTENT_RANGE, format!("bytes {from}-{to}/{length}"))];
            (StatusCode::PARTIAL_CONTENT, head, range, Body::from(part)).into_response()
        }
    })
}

async fn a_car(
    Asked { blocks, head_only, cid, path, uri, wish, headers }: Asked,
) -> std::result::Result<Response, Problem> {
    let scope = wish.scope()?;
    if wish.car_version.as_deref().is_some_and(|version| version != "1") {
        return Err(Problem::not_acceptable("only CARs of version 1 are sent"));
    }
    let mut head = car_head(&cid, &format!("{path:?} {scope:?}"));
    if not_modified(&headers, &head) {
        // Whether blocks may come twice is not known yet; what was said of the entity before holds.
        return Ok((StatusCode::NOT_MODIFIED, head).into_response());
    }
    // The path is walked before the status is sent: what is missing there is a 404, not a broken stream.
    let (found, blocks) = off_thread(move || Ok((resolve(&blocks, &cid, &path)?, blocks))).await?;
    if let (Scope::Entity(range), Some(bytes)) = (scope, found.file_bytes)
        && bytes > 0
        && range.within(bytes).is_none()
    {
        return Err(Problem::bad(format!("entity-bytes lies outside of the file, which has {bytes} bytes")));
    }
    let dups = found.dups(scope);
    add_car_type(&mut head, dups);
    add_path(&mut head, uri.path(), &found.roots);
    if head_only {
        return Ok((head, Body::empty()).into_response());
    }
    let header = Bytes::from(car::header(&[found.end])?);
    let carrying = Carrying { blocks, selection: Selection::new(&found.way, &found.end, scope, dups) };
    let rest = stream::try_unfold(carrying, |carrying| off_thread(|| carrying.next()));
    let body = stream::once(async { Ok(header) }).chain(rest);
    Ok((head, Body::from_stream(body)).into_response())
}

/// Where a path leads.
struct Found {
    /// Every block that it takes to follow the path, without the last.
    way: Vec<Cid>,
    /// The objects that the path names, one after another; the last is the end.
    roots: Vec<Cid>,
    end: Cid,
    /// Content bytes, if the end is a file.
    file_bytes: Option<u64>,
    /// Encoded bytes of the end and all below, by its own claim.
    claimed_bytes: u64,
}

impl Found {
    /// Whether no block will come twice: where there are so few links that all leaves can be remembered. What a graph
    /// claims beyond the content of its file are nodes, and each link takes a part of one. A graph that claims less than
    /// it holds breaks off when that is found out.
    fn dups(&self, scope: Scope) -> Dups {
        let nodes_bytes = self.claimed_bytes.checked_sub(self.file_bytes.unwrap_or(0));
        let links_max = nodes_bytes.map(|bytes| bytes / LINK_BYTES_MIN);
        let is_small = |links| usize::try_from(links).is_ok_and(|links| links <= LEAVES_REMEMBERED_MAX);
        match scope == Scope::Block || links_max.is_some_and(is_small) {
            true => Dups::No,
            false => Dups::Unsaid,
        }
    }
}

/// Follows `path` below `root`. `Missing` if there is no such entry, or a block on the way is not here.
fn resolve(blocks: &Blocks, root: &Cid, path: &[String]) -> Result<Found> {
    let (mut way, mut roots) = (Vec::new(), vec![*root]);
    let mut end = *root;
    for name in path {
        let found = unixfs::find(blocks, &end, name, |block| way.push(*block)).map_err(|e| match e.kind {
            Kind::Usage => Error::missing(format!("nothing is called {name:?} below {end}")).caused_by(e),
            _ => e,
        })?;
        end = found.ok_or_else(|| Error::missing(format!("nothing is called {name:?} in {end}")))?.cid;
        roots.push(end);
    }
    let block = blocks.get(&end)?;
    let file_bytes = match unixfs::read(&end, &block) {
        Ok(Object::File { bytes, .. }) => Some(bytes),
        _ => None,
    };
    // What is no node claims nothing, and is sent alone or breaks off.
    let claimed_bytes = dag::claimed_bytes(&end, &block).unwrap_or(0);
    Ok(Found { way, roots, end, file_bytes, claimed_bytes })
}

/// A CAR under way. One block is held at a time, and no thread while the reader is slow.
struct Carrying {
    blocks: Blocks,
    selection: Selection,
}

impl Carrying {
    /// The next block with what stands before it. An error cuts the connection, so that the reader does not take
    /// half a graph for a whole one.
    fn next(self) -> Result<Option<(Bytes, Self)>> {
        self.advance().inspect_err(|e| tracing::info!(error = %e, "a CAR broke off"))
    }

    fn advance(mut self) -> Result<Option<(Bytes, Self)>> {
        while let Some(step) = self.selection.next_step()? {
            let cid = step.cid;
            let block = self.blocks.get(&cid)?;
            self.selection.visited(&step, &block)?;
            if !step.is_sent {
                let mut chunk = car::frame(&cid, &block);
                chunk.extend_from_slice(&block);
                return Ok(Some((Bytes::from(chunk), self)));
            }
        }
        Ok(None)
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
    let stored = off_thread(move || {
        // A block that is here already is only made young again: a collection that has looked at its age must not take
        // it after this was answered. While one runs, this waits.
        let _writing = blocks.writing()?;
        blocks.put(&cid, &bytes)
    });
    stored.await.map_err(|e| match e.kind {
        // Here the sender is the one who lied, so it is the request that is wrong.
        Kind::Corrupt => Problem::new(StatusCode::BAD_REQUEST, "wrong_bytes", e.to_string()),
        _ => Problem::from(e),
    })?;
    let stored = serde_json::json!({ "cid": cid.to_string(), "bytes": length });
    Ok((StatusCode::CREATED, Json(stored)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    reason: String,
}

/// Only what is here whole is kept: a pin on less would be a promise that nobody holds.
async fn pin(
    State(blocks): State<Blocks>,
    Path(text): Path<String>,
    Query(Why { reason }): Query<Why>,
) -> std::result::Result<Response, Problem> {
    let cid = cid::parse(&text)?;
    off_thread(move || {
        let _writing = blocks.writing()?;
        blocks.check_whole(&[cid], |_| {})?;
        blocks.pin(&cid, &reason)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Taking back what is not pinned is no error: whoever asks again after a lost answer gets the same one.
async fn unpin(
    State(blocks): State<Blocks>,
    Path(text): Path<String>,
    Query(Why { reason }): Query<Why>,
) -> std::result::Result<Response, Problem> {
    let cid = cid::parse(&text)?;
    off_thread(move || blocks.unpin(&cid, Some(&reason))).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "ok": true }))
}

async fn nothing_here() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_route",
        "there are GET /ipfs/{cid}[/{path}], PUT /blocks/{cid}, PUT and DELETE /pins/{cid}?reason=…, GET /health",
    )
}
