//! `/peer/*`: from one node of this agent to another. Each answer is sealed to the asker's exchange key.

use super::Api;
use super::problem::Problem;
use crate::error::{Error, Kind};
use crate::main_loop::Event;
use crate::moving::{FINAL, LAST_LSN, PeerAsk};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use store::checkpoint::ShareRequest;
use store::seal::{self, Recipient};
use tokio::sync::oneshot;

/// May this node take over? The active one asks about once a second.
pub async fn able(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let synced = api.look(crate::main_loop::Node::synced_if_announced).await?;
    let ready = api.shared.engine().is_some() && synced && api.shared.trouble().is_none();
    Ok(Json(json!({ "lease": api.cx.config.lease, "ready": ready })))
}

pub async fn key(State(api): State<Api>, Json(request): Json<ShareRequest>) -> Result<Response, Problem> {
    let recipient = Recipient::parse(&request.recipient).map_err(|_| Problem::for_forbidden("not an age recipient"))?;
    let (reply, answer) = oneshot::channel();
    api.cx.tell(Event::Peer(PeerAsk::Key { request, reply })).await;
    let grant = wait(answer).await?;
    let plain = serde_json::to_vec(&grant).map_err(Problem::for_internal)?;
    let sealed = seal::seal(&plain, &[recipient]).map_err(Problem::for_internal)?;
    Ok(sealed.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailQuery {
    after: u64,
}

pub async fn tail(
    State(api): State<Api>,
    Query(query): Query<TailQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let token = bearer(&headers)?;
    let (reply, answer) = oneshot::channel();
    api.cx.tell(Event::Peer(PeerAsk::Tail { after: query.after, token, reply })).await;
    let part = wait(answer).await?;
    let mut response = part.records.into_response();
    response.headers_mut().insert(LAST_LSN, part.last_lsn.into());
    let last = if part.last { "true" } else { "false" };
    response.headers_mut().insert(FINAL, axum::http::HeaderValue::from_static(last));
    Ok(response)
}

pub async fn delivered(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Problem> {
    let token = bearer(&headers)?;
    let (reply, answer) = oneshot::channel();
    api.cx.tell(Event::Peer(PeerAsk::Delivered { token, record: body.to_vec(), reply })).await;
    wait(answer).await?;
    Ok(Json(json!({})))
}

fn bearer(headers: &HeaderMap) -> Result<String, Problem> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .map(str::to_owned)
        .ok_or_else(|| Problem::for_forbidden("a peer names itself by its token"))
}

async fn wait<T>(answer: oneshot::Receiver<crate::error::Result<T>>) -> Result<T, Problem> {
    match answer.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(refusal(&e)),
        Err(_) => Err(Problem::for_unavail("the node is stopping", 2)),
    }
}

fn refusal(error: &Error) -> Problem {
    match error.kind {
        Kind::Superseded | Kind::Usage => Problem::for_forbidden(error.message.clone()),
        Kind::Retry => Problem::for_unavail(error.message.clone(), 1),
        Kind::Corrupt | Kind::Bug => Problem::for_internal(error),
    }
}
