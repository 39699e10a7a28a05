//! `POST /v1/responses`: with `store: true` the exchange is kept, sealed under a key of its own, and goes on after a move.
//!
//! A response's id is not guessable (96 bits of chance): whoever has it reads, continues and deletes that one. Whoever
//! signs with the key that paid gets all that it paid for ([`crate::export`]).

use super::Api;
use super::further::Served;
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{BeforeEnd, Errand, Form, Made, Order, Prompt, Whole};
use crate::answers::Question;
use crate::ask::Ask;
use crate::conversation::{ConversationKey, Stored, Transcript, Turn};
use crate::export::ExportRequest;
use crate::main_loop::Event;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use infer::TokenLogprob;
use infer::api::{Answered, ApiError, Message, ResponseReply, ResponseStream, ResponsesRequest, Role, StreamEvent};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use tokio::sync::oneshot;

pub use infer::api::responses::ROUTE;
/// In the head of every answer that is kept: what deleting it can and cannot prove.
const STORED: &str = "sealed under a key of its own; DELETE /v1/responses/{id} destroys that key here, and from the \
    agent's next checkpoint on no successor gets it; nobody can prove that a host, or a quorum of stewards, kept no copy \
    of the key or of an earlier checkpoint";
pub(super) const STORED_HEADER: &str = "vivarium-stored";
/// What every response's name begins with.
const ID: &str = "resp_";
/// Longest stored conversation, sealed, bytes.
const TRANSCRIPT_BYTES_MAX: usize = 8 << 20;

pub(super) fn about() -> Operation {
    Operation::new("An answer that can be stored and gone on from")
        .takes("ResponsesRequest")
        .answers("Response")
        .streams("ResponseEvent")
        .paid()
}

pub(super) fn about_export() -> Operation {
    Operation::new("All that a payer stored, for whoever signs with the key that paid")
        .takes("ExportRequest")
        .answers("Archive")
        .refuses(&[(400, "not such a request"), (403, "not this payer's signature, or too old"), (503, "ask again")])
}

pub(super) fn about_read() -> Operation {
    Operation::new("A stored exchange")
        .answers("StoredResponse")
        .refuses(&[(404, "no such response"), (503, "ask again")])
}

pub(super) fn about_delete() -> Operation {
    Operation::new("Destroys the key of a stored exchange")
        .answers("DeletedResponse")
        .refuses(&[(404, "no such response"), (503, "ask again")])
}

pub async fn respond(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    answer(&api, &headers, &body, Errand::Buy).await
}

pub async fn terms(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Response> {
    let body = json!({ "model": api.cx.manifest.model.name, "input": "hello" }).to_string();
    answer(&api, &headers, &Bytes::from(body), Errand::Probe).await
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes, errand: Errand) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = ResponsesRequest::parse(body).map_err(refuse)?;
    let Served { further, adapter } = api.serves(&request.model).map_err(refuse)?;
    api.here("/v1/responses").await?;
    let before = match &request.previous_response_id {
        Some(id) => api.transcript(id).await.map_err(IntoResponse::into_response)?.1.turns,
        None => Vec::new(),
    };
    let messages = messages_of(&before).and_then(|before| request.conversation(before)).map_err(refuse)?;
    let prompt = api.render(further, &messages, &[]).await.map_err(IntoResponse::into_response)?;
    let order = Order {
        errand,
        route: ROUTE,
        description: "one response",
        question: Question::of(body),
        prompt: Prompt::Text(prompt),
        prompt_field: "input",
        settings: request.settings.clone(),
        adapter,
        stored_bytes: request.store.then(|| bytes_of(&before) + bytes_of(&said(&request))),
        flat: None,
    };
    let mut sale = api.sell(headers, order).await?;
    let reply = ResponseReply {
        id: fresh_id(ID),
        message_id: fresh_id("msg_"),
        created_at: api.shared.now(),
        model: request.model.clone(),
        request: request.clone(),
    };
    let payer = sale.payer.into_array();
    sale.stored_as = request.store.then(|| reply.id.clone());
    let store: Option<BeforeEnd> = request.store.then(|| keep(api.clone(), payer, before, reply.clone()));
    let mut answered = if request.stream {
        sale.deliver(Events(ResponseStream::new(reply)), store).await
    } else {
        let whole =
            Whole { id: reply.id.clone(), json: move |answered: Answered<'_>, extra| reply.whole(answered, extra) };
        sale.deliver(whole, store).await
    };
    if request.store {
        answered.headers_mut().insert(STORED_HEADER, HeaderValue::from_static(STORED));
    }
    Ok(answered)
}

/// What was said before, as the model sees it.
fn messages_of(turns: &[Turn]) -> Result<Vec<Message>, ApiError> {
    let message = |turn: &Turn| {
        let role = Role::parse(&turn.role).ok_or_else(ApiError::for_internal)?;
        Ok(Message::new(role, turn.content.clone()))
    };
    turns.iter().map(message).collect()
}

/// What the customer says in this request.
fn said(request: &ResponsesRequest) -> Vec<Turn> {
    let turn = |m: &Message| Turn { role: m.role.as_str().to_owned(), content: m.content.clone() };
    request.input.iter().map(turn).collect()
}

/// The text of these turns, as storing it is priced: what its customer can count, not what sealing makes of it.
fn bytes_of(turns: &[Turn]) -> u64 {
    turns.iter().map(|turn| u64::try_from(turn.content.len()).unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
}

/// Seals the exchange under a fresh key, stores it, and has its place and key made durable: all before the last
/// byte, so that an id in the customer's hands can always be gone on from.
fn keep(api: Api, payer: [u8; 20], before: Vec<Turn>, reply: ResponseReply) -> BeforeEnd {
    Box::new(move |Made { text, finish, usage }| {
        Box::pin(async move {
            let answered = Answered { text: "", logprobs: &[], finish, usage };
            let mut turns = before;
            turns.extend(said(&reply.request));
            turns.push(Turn { role: Role::Assistant.as_str().to_owned(), content: text });
            let bytes = bytes_of(&turns);
            let whole = reply.whole(answered, Map::new());
            let transcript = Transcript { response: reply.id, turns, reply: Some(whole) };
            let kept = api.keep_sealed(payer, &transcript.response, |key| transcript.seal(key)).await;
            kept.map(|()| bytes).map_err(|problem| problem.api().clone())
        })
    })
}

/// A stored response as the one that was answered, with all that was said before it.
fn told_again(stored: &Stored, transcript: Transcript) -> Value {
    let text = transcript.turns.last().map_or("", |turn| turn.content.as_str());
    let bare = || json!({ "id": stored.response, "object": "response", "created_at": stored.at, "output": [] });
    let mut told = transcript.reply.unwrap_or_else(bare);
    if let Some(part) = told.pointer_mut("/output/0/content/0/text") {
        *part = text.into();
    }
    told["messages"] = messages(&transcript.turns);
    told
}

impl Api {
    /// A response may be deleted between its being stored and its answer's being kept for a repetition.
    pub(super) async fn forget_answer_unless_stored(&self, response: &str) {
        let wanted = response.to_owned();
        if !self.look(move |node| node.conversation(&wanted).is_some()).await.is_ok_and(|is_stored| is_stored)
            && let Err(e) = self.answers.forget_stored(response)
        {
            tracing::error!(error = %net::chain_of(&e), "a kept answer outlives its response");
        }
    }

    pub(super) async fn recorded(&self, ask: impl FnOnce(oneshot::Sender<()>) -> Ask) -> Result<(), Problem> {
        let (reply, durable) = oneshot::channel();
        self.cx.tell(Event::Ask(Box::new(ask(reply)))).await;
        durable.await.map_err(|_| Problem::for_unavail("the agent is moving; ask again", 1))
    }

    /// What was said up to and including response `id`.
    async fn transcript(&self, id: &str) -> Result<(Stored, Transcript), Problem> {
        let wanted = id.to_owned();
        let found = self.look(move |node| node.conversation(&wanted)).await?.filter(|_| is_response(id));
        let (stored, key) = found.ok_or_else(|| {
            Problem::from(ApiError::for_not_found(
                "response_not_found",
                "previous_response_id",
                format!("there is no stored response `{id}`; only answers to requests with `store: true` are kept"),
            ))
        })?;
        let transcript = self.exchange(&stored, &key).await?;
        Ok((stored, transcript))
    }

    async fn exchange(&self, stored: &Stored, key: &ConversationKey) -> Result<Transcript, Problem> {
        let sealed = self.sealed(stored, TRANSCRIPT_BYTES_MAX).await?;
        Transcript::open(&sealed, key).map_err(Problem::for_internal)
    }

    /// One entry of an archive. What cannot be had now is said in its place: the rest is the customer's all the same.
    async fn archived(&self, stored: &Stored, key: &ConversationKey) -> Value {
        let mut entry = json!({ "id": stored.response, "created_at": stored.at });
        match self.exchange(stored, key).await {
            Ok(transcript) => entry["messages"] = messages(&transcript.turns),
            Err(problem) => entry["error"] = problem.api().message.clone().into(),
        }
        entry
    }
}

/// Files and batches are kept beside them, and have routes of their own.
fn is_response(id: &str) -> bool {
    id.starts_with(ID)
}

fn messages(turns: &[Turn]) -> Value {
    turns.iter().map(|t| json!({ "role": t.role, "content": t.content })).collect()
}

/// `GET /v1/responses/{id}`: the stored response, and the exchange that it ends.
pub async fn read(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(asked): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, Response> {
    api.here(&format!("/v1/responses/{id}")).await?;
    if let Some(field) = asked.into_keys().next() {
        let message = format!("`{field}` is not done here: a stored response is read whole and at once");
        return Err(Problem::from(ApiError::for_field("unsupported_field", field, message)).into_response());
    }
    let (stored, transcript) = api.transcript(&id).await.map_err(IntoResponse::into_response)?;
    Ok(Json(told_again(&stored, transcript)))
}

/// `POST /v1/responses/export`: all that the signer paid for, as one JSON object, an entry at a time.
pub async fn export(State(api): State<Api>, Posted(body): Posted) -> Result<Response, Response> {
    api.here("/v1/responses/export").await?;
    let bad = |why: String| Problem::from(ApiError::for_bad_request("invalid_export", why)).into_response();
    let asked: ExportRequest =
        serde_json::from_slice(&body).map_err(|e| bad(format!("not {{payer, at, signature}}: {e}")))?;
    let (agent, chain_id) = (api.cx.config.treasury, api.cx.config.chain_id);
    asked.verify(agent, chain_id, api.shared.now()).map_err(|why| Problem::for_forbidden(why).into_response())?;
    let payer = asked.payer.into_array();
    let mut all = api.look(move |node| node.conversations_of(&payer)).await.map_err(IntoResponse::into_response)?;
    all.retain(|(stored, _)| is_response(&stored.response));
    let head = json!({
        "object": "vivarium.archive", "agent": agent, "chain_id": chain_id, "payer": asked.payer, "at": asked.at,
    });
    // The object is written by hand around its entries, so that one conversation at a time is in memory.
    let head = head.to_string();
    let begin = format!("{},\"responses\":[", head.strip_suffix('}').unwrap_or(&head));
    let entries = futures::stream::iter(all.into_iter().enumerate()).then(move |(index, (stored, key))| {
        let api = api.clone();
        async move { format!("{}{}", if index == 0 { "" } else { "," }, api.archived(&stored, &key).await) }
    });
    let once = |text: String| futures::stream::iter([text]);
    let whole = once(begin).chain(entries).chain(once("]}\n".to_owned()));
    let body = Body::from_stream(whole.map(Ok::<_, Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// `DELETE /v1/responses/{id}`: destroys its key. What that cannot prove is said in the answer.
pub async fn delete(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Response> {
    api.here(&format!("/v1/responses/{id}")).await?;
    let wanted = id.clone();
    let known =
        api.look(move |node| node.conversation(&wanted).is_some()).await.map_err(IntoResponse::into_response)?;
    if !known || !is_response(&id) {
        return Err(Problem::for_not_found(format!("there is no stored response `{id}`")).into_response());
    }
    api.forget_kept(&id).await.map_err(IntoResponse::into_response)?;
    Ok(Json(json!({
        "id": id,
        "object": "response",
        "deleted": true,
        "note": "The key of this conversation is destroyed on this host, with the copy of the answer that was kept for a day, and the agent's next checkpoint has it no more. Until that stands the host holds the last checkpoint's memory key, which opens what that checkpoint, or a record since, says of it. A host, or a quorum of stewards, that kept a copy of the key or of an earlier checkpoint could still read the sealed object.",
    })))
}

struct Events(ResponseStream);

impl Form for Events {
    fn open(&mut self) -> Vec<Bytes> {
        self.0.open().iter().map(StreamEvent::to_sse).collect()
    }
    fn delta(&mut self, text: &str, _: &[TokenLogprob]) -> Vec<Bytes> {
        vec![self.0.delta(text).to_sse()]
    }
    fn close(&mut self, answered: Answered<'_>, extra: Map<String, Value>) -> Vec<Bytes> {
        self.0.close(answered.finish, answered.usage, extra).iter().map(StreamEvent::to_sse).collect()
    }
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![self.0.fail(error).to_sse()]
    }
    fn content_type(&self) -> &'static str {
        "text/event-stream"
    }
    fn streams(&self) -> bool {
        true
    }
}
