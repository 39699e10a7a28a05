//! `POST /v1/files` and the content of files: what batches are made of, and what they make.
//!
//! A file is kept for whoever has its id, which is not guessable. An upload is paid, so that storing has a price and each
//! file a customer; the output of a batch is paid when it is fetched, at what was really generated.

use super::Api;
use super::batches::{whole, with};
use super::openapi::Operation;
use super::problem::{Problem, fresh_id};
use super::responses::STORED_HEADER;
use super::sale::{BeforeEnd, Errand, Form, Order, Prompt, Ready, Whole, can_hold_to};
use crate::answers::Question;
use crate::batch::{Batch, Counted, FILE, FileName, Input, InputFile, Object};
use crate::conversation::Stored;
use crate::export::ListRequest;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use infer::TokenLogprob;
use infer::api::batches::{Asked, Line, in_line, lines};
use infer::api::embeddings::tokens_of;
use infer::api::files::{BODY_BYTES_MAX, Upload};
use infer::api::{Answered, ApiError, Settings};
use pay::RequestId;
use pay::wire::PAYMENT_SIGNATURE;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

pub const ROUTE: &str = "POST /v1/files";
/// Content is paid for by POST as well as by GET; the route's name in the book is this.
const CONTENT_ROUTE: &str = "GET /v1/files/{id}/content";
/// In the head of every answer that leaves something behind here: until when, and what deleting it can and cannot prove.
const KEPT: &str = "sealed under a key of its own: a file with requests until the output of its batch is paid, or three days \
    after the batch ended, or a day where no batch uses it; an output three days, paid thirty. DELETE /v1/files/{id} destroys \
    that key here, and from the agent's next checkpoint on no successor gets it; nobody can prove that a host, or a quorum of \
    stewards, kept no copy of the key or of an earlier checkpoint";
/// What a deletion proves, in its answer.
const DELETED: &str = "The key of this file is destroyed on this host, and the agent's next checkpoint has it no more. Until \
    that stands the host holds the last checkpoint's memory key, which opens what that checkpoint, or a record since, says of \
    it. A host, or a quorum of stewards, that kept a copy of the key or of an earlier checkpoint could still read it.";
/// How long an upload may take to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);
/// Names whoever lists: JSON of a [`ListRequest`].
const PAYER_HEADER: &str = "vivarium-payer";
/// Entries of a list's page, by default and at most.
const PAGE: usize = 20;
const PAGE_MAX: usize = 100;

pub(super) fn about() -> Operation {
    Operation::new("Keeps a file of requests for a batch, 10 MiB at most; OpenAI's form, or the same as JSON")
        .takes("FileUpload")
        .answers("File")
        .paid()
}

pub(super) fn about_list() -> Operation {
    Operation::new("Files of whoever signs with the key that paid (header `vivarium-payer`)")
        .answers("FileList")
        .refuses(&[(403, "not signed, or too old"), (503, "ask again")])
}

pub(super) fn about_read() -> Operation {
    Operation::new("What a file is").answers("File").refuses(&[(404, "no such file"), (503, "ask again")])
}

pub(super) fn about_delete() -> Operation {
    Operation::new("Destroys the key of a file; a batch whose requests it holds ends")
        .answers("DeletedFile")
        .refuses(&[(404, "no such file"), (409, "its batch is not over"), (503, "ask again")])
}

pub(super) fn about_content() -> Operation {
    Operation::new("A file's lines; a batch's output is paid the first time, by what was generated, at half price")
        .answers_as("application/jsonl", json!({ "type": "string" }))
        .paid()
}

pub async fn upload(State(api): State<Api>, headers: HeaderMap, request: Request) -> Result<Response, Response> {
    sold(&api, &headers, request).await
}

async fn sold(api: &Api, headers: &HeaderMap, request: Request) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let problem = |e: Problem| e.into_response();
    api.here("/v1/files").await?;
    let (body, upload, asked) = {
        let Ok(_place) = api.desk.uploads.try_acquire() else {
            return Err(problem(Problem::for_unavail("other files are just arriving", 2)));
        };
        let body = arrived(request).await.map_err(refuse)?;
        let parsed = body.clone();
        let parse = move || {
            let upload = Upload::parse(&parsed)?;
            let asked = lines(&upload.content)?;
            Ok::<_, ApiError>((upload, asked))
        };
        let parsed = tokio::task::spawn_blocking(parse).await.map_err(|e| problem(Problem::for_internal(e)))?;
        let (upload, asked) = parsed.map_err(refuse)?;
        (body, upload, asked)
    };
    for (index, line) in asked.iter().enumerate() {
        api.serves_line(line).map_err(|e| refuse(in_line(index + 1, e)))?;
    }
    let today = api.first_price().await.map_err(|why| problem(Problem::for_unavail(why, 2)))?;
    let bytes = u64::try_from(upload.content.len()).unwrap_or(u64::MAX);
    let price = economy::Price { call_uusdc_max: today.call_uusdc_max, ..whole(today.call_uusdc) };
    let ready =
        Ready { path: "/v1/files".to_owned(), price, prompt_tokens: 0, completion_tokens: 0, text: String::new() };
    let order = Order {
        errand: Errand::Buy,
        route: ROUTE,
        description: "a file of requests is kept",
        question: Question::of(&body),
        prompt: Prompt::Ready(ready),
        prompt_field: "file",
        settings: Settings { max_tokens: Some(1), ..Settings::default() },
        adapter: None,
        stored_bytes: Some(bytes),
        flat: None,
    };
    drop(body);
    let mut sale = api.sell(headers, order).await?;
    let (id, created_at) = (fresh_id(FILE), api.shared.now());
    sale.stored_as = Some(id.clone());
    let payer = sale.payer.into_array();
    let Some(endpoint) = asked.first().map(|line| line.asked.endpoint().as_str().to_owned()) else {
        return Err(problem(Problem::for_internal("a file without lines was taken")));
    };
    let file =
        InputFile { filename: upload.filename, content: upload.content, created_at, endpoint, lines: Vec::new() };
    let json = file.to_json(&id);
    let whole = Whole { id: id.clone(), json: move |_: Answered<'_>, extra| with(json.clone(), extra) };
    let response = sale.deliver(whole, Some(keep(api.clone(), (id, payer), file, asked))).await;
    Ok(kept_header(response))
}

pub(super) fn kept_header(mut response: Response) -> Response {
    if response.status().is_success() {
        response.headers_mut().insert(STORED_HEADER, HeaderValue::from_static(KEPT));
    }
    response
}

async fn arrived(request: Request) -> Result<Bytes, ApiError> {
    let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX);
    match tokio::time::timeout(ARRIVES_WITHIN, body).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => {
            let message = format!("the body is longer than {BODY_BYTES_MAX} bytes, or did not arrive whole");
            Err(ApiError { status: 413, ..ApiError::for_bad_request("body_too_large", message) })
        }
        Err(_) => {
            let message = format!("the body took longer than {} s to arrive", ARRIVES_WITHIN.as_secs());
            Err(ApiError::for_bad_request("broken_body", message))
        }
    }
}

/// Counts every line's tokens, which takes the engine's time and so comes after the payment is good, and keeps the file. A
/// line that the model cannot take is refused by its number, and nothing is charged.
fn keep(api: Api, (id, payer): (String, [u8; 20]), mut file: InputFile, asked: Vec<Line>) -> BeforeEnd {
    Box::new(move |_| {
        Box::pin(async move {
            let told = |problem: Problem| problem.api().clone();
            for (index, line) in asked.iter().enumerate() {
                let counted = api.counted(line, file.created_at).await;
                file.lines.push(counted.map_err(|problem| in_line(index + 1, told(problem)))?);
            }
            let bytes = u64::try_from(file.content.len()).unwrap_or(u64::MAX);
            api.keep_object(payer, &id, &Object::Input(file)).await.map_err(told)?;
            Ok(bytes)
        })
    })
}

/// Further models are loaded for whoever waits for them, not for the night's work.
fn not_in_batches(model: &str) -> ApiError {
    ApiError::for_field("invalid_value", "model", format!("`{model}` is not served in batches; ask it directly"))
}

impl Api {
    /// Whether this agent's own models answer such a line.
    fn serves_line(&self, line: &Line) -> Result<(), ApiError> {
        let in_body = |e: ApiError| ApiError { param: Some("body.model".to_owned()), ..e };
        match &line.asked {
            Asked::Embedding(request) => match self.embeds_by(&request.model).map_err(in_body)? {
                None => Ok(()),
                Some(_) => Err(in_body(not_in_batches(&request.model))),
            },
            asked => self.serves_model(asked.model()).map(|_| ()).map_err(in_body),
        }
    }

    async fn counted(&self, line: &Line, date: u64) -> Result<Counted, Problem> {
        let away = |e: infer::Error| Problem::for_unavail(format!("the engine does not answer: {e}"), 1);
        let (prompt, settings) = match &line.asked {
            Asked::Embedding(request) => {
                let embedder = self.embedder_of(None).await?;
                request.check(embedder.dimensions)?;
                let mut counts = Vec::new();
                for text in &request.inputs {
                    counts.push(embedder.client.count_tokens(text, true).await.map_err(away)?);
                }
                let prompt = tokens_of("body.input", &counts, embedder.hello.n_ctx, request.name_of())?;
                return Ok(Counted { prompt, answer_max: 0 });
            }
            Asked::Chat(request) => (self.rendered(&line.asked, date).await?, &request.settings),
            Asked::Completion(request) => (request.prompt.clone(), &request.settings),
        };
        let engine = self.engine_of(None).await?;
        settings.check(engine.hello.n_vocab)?;
        can_hold_to(&engine, settings).await?;
        let prompt = engine.client.count_tokens(&prompt, settings.add_bos).await.map_err(away)?;
        match engine.hello.n_ctx.saturating_sub(prompt) {
            0 => {
                let message = format!("the prompt has {prompt} tokens; the context holds {}", engine.hello.n_ctx);
                Err(ApiError::for_field("context_length_exceeded", "body", message).into())
            }
            room => Ok(Counted { prompt, answer_max: settings.max_tokens_within(room) }),
        }
    }

    /// Who lists: whoever signed the header.
    pub(super) fn lists_for(&self, headers: &HeaderMap) -> Result<[u8; 20], Problem> {
        let forbidden = |why: String| {
            let how = "lists are of whoever signs: send the header `vivarium-payer` with {payer, at, signature}";
            Problem::for_forbidden(format!("{why}; {how} (docs/reference/api.md)"))
        };
        let said = headers.get(PAYER_HEADER).and_then(|value| value.to_str().ok());
        let said = said.ok_or_else(|| forbidden("nobody signed".to_owned()))?;
        let asked: ListRequest = serde_json::from_str(said).map_err(|e| forbidden(format!("the header: {e}")))?;
        let (agent, chain_id) = (self.cx.config.treasury, self.cx.config.chain_id);
        asked.verify(agent, chain_id, self.shared.now()).map_err(forbidden)?;
        Ok(asked.payer.into_array())
    }

    /// What `payer` keeps under names that begin with this. What cannot be read now is left out and told to the log.
    pub(super) async fn objects_of(&self, prefix: &str, payer: [u8; 20]) -> Result<Vec<(Stored, Object)>, Problem> {
        let prefix = prefix.to_owned();
        let mut all = Vec::new();
        for (stored, key) in self.look(move |node| node.objects_named(&prefix)).await? {
            if stored.payer == payer {
                let object = self.opened(&stored, &key).await?;
                all.push((stored, object));
            }
        }
        Ok(all)
    }

    /// The batch, if it offers this file.
    async fn batch_behind(&self, batch: &str, is_output: bool) -> Result<Batch, Problem> {
        let found = self.batch(batch).await?.map(|(_, batch)| batch);
        let offers = |batch: &Batch| if is_output { batch.offers_output() } else { batch.offers_errors() };
        found.filter(offers).ok_or_else(no_file)
    }

    async fn input(&self, id: &str) -> Result<InputFile, Problem> {
        match self.object(id).await? {
            Some((_, Object::Input(file))) => Ok(file),
            _ => Err(no_file()),
        }
    }

    /// Whether the output is free now: it was paid, or costs nothing. While somebody is just paying, nobody else does.
    async fn is_free(&self, batch: &Batch) -> Result<bool, Problem> {
        if batch.is_collected() {
            return Ok(true);
        }
        let Some(request) = batch.sold.map(RequestId) else { return Ok(false) };
        match self.look(move |node| node.is_sold(&request)).await? {
            Some(true) => self.step_batch(&batch.id, Input::Collected).await.map(|_| true),
            Some(false) => Ok(false),
            None => {
                let message = "this output is just being paid; ask again";
                Err(Problem::for_conflict("answer_not_ready", message).retry_after(1))
            }
        }
    }
}

fn no_file() -> Problem {
    Problem::for_not_found("there is no such file")
}

/// `GET /v1/files/{id}`.
pub async fn read(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Response> {
    api.here(&format!("/v1/files/{id}")).await?;
    let about = async {
        match FileName::of(&id).ok_or_else(no_file)? {
            FileName::Input => Ok(api.input(&id).await?.to_json(&id)),
            FileName::Output(batch) => Ok(api.batch_behind(&batch, true).await?.file_to_json(true)),
            FileName::Errors(batch) => Ok(api.batch_behind(&batch, false).await?.file_to_json(false)),
        }
    };
    about.await.map(Json).map_err(|problem: Problem| problem.into_response())
}

/// `DELETE /v1/files/{id}`: destroys its keys.
pub async fn delete(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Response> {
    api.here(&format!("/v1/files/{id}")).await?;
    let deleted = async {
        let name = FileName::of(&id).ok_or_else(no_file)?;
        let (batch, input) = match &name {
            FileName::Input => {
                api.input(&id).await?;
                return api.forget_kept(&id).await;
            }
            FileName::Output(batch) => (batch, Input::OutputDeleted),
            FileName::Errors(batch) => (batch, Input::ErrorsDeleted),
        };
        api.batch_behind(batch, matches!(name, FileName::Output(_))).await?;
        // The copy of the answer that was kept for a repetition goes with it.
        api.answers.forget_stored(&id).map_err(Problem::for_internal)?;
        match api.step_batch(batch, input).await? {
            Some(batch) => api.forget_parts(&batch).await,
            None => Err(no_file()),
        }
    };
    deleted.await.map_err(|problem: Problem| problem.into_response())?;
    Ok(Json(json!({ "id": id, "object": "file", "deleted": true, "note": DELETED })))
}

/// `GET` or `POST` of a file's content. The SDKs get it; a client that pays for posts alone posts.
pub async fn content(State(api): State<Api>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Response> {
    lines_of(&api, &headers, &id).await
}

async fn lines_of(api: &Api, headers: &HeaderMap, id: &str) -> Result<Response, Response> {
    let problem = |e: Problem| e.into_response();
    let path = format!("/v1/files/{id}/content");
    api.here(&path).await?;
    let batch = match FileName::of(id).ok_or_else(|| problem(no_file()))? {
        FileName::Input => return Ok(jsonl(api.input(id).await.map_err(problem)?.content)),
        FileName::Errors(batch) => {
            let batch = api.batch_behind(&batch, false).await.map_err(problem)?;
            return Ok(jsonl(api.lines_of(&batch, true).await.map_err(problem)?));
        }
        FileName::Output(batch) => api.batch_behind(&batch, true).await.map_err(problem)?,
    };
    if api.is_free(&batch).await.map_err(problem)? {
        return Ok(jsonl(api.lines_of(&batch, false).await.map_err(problem)?));
    }
    // Whoever only asks for the price has nothing read.
    let pays = headers.contains_key(&PAYMENT_SIGNATURE);
    let text = if pays { api.lines_of(&batch, false).await.map_err(problem)? } else { String::new() };
    let completion_tokens = u32::try_from(batch.spent.completion).unwrap_or(u32::MAX);
    let price = whole(batch.output_uusdc());
    let order = Order {
        errand: Errand::Buy,
        route: CONTENT_ROUTE,
        description: "the output of a batch: what was generated, at half the price of the day it was created",
        question: Question::of(id.as_bytes()),
        prompt: Prompt::Ready(Ready { path, price, prompt_tokens: 0, completion_tokens, text }),
        prompt_field: "id",
        settings: Settings { max_tokens: Some(completion_tokens), ..Settings::default() },
        adapter: None,
        stored_bytes: None,
        flat: None,
    };
    let mut sale = api.sell(headers, order).await?;
    sale.stored_as = Some(id.to_owned());
    let sold = sold_to(api.clone(), batch.id, sale.request.0);
    Ok(sale.deliver(Content { id: id.to_owned() }, Some(sold)).await)
}

/// Notes who is about to pay, before it is charged: that the book has the charge makes the output free from then on.
fn sold_to(api: Api, batch: String, request: [u8; 16]) -> BeforeEnd {
    Box::new(move |_| {
        Box::pin(async move {
            let noted = api.step_batch(&batch, Input::Sold(request)).await;
            noted.map(|_| 0).map_err(|problem| problem.api().clone())
        })
    })
}

fn jsonl(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/jsonl")], text).into_response()
}

/// The lines as they are.
struct Content {
    id: String,
}

impl Form for Content {
    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }
    fn delta(&mut self, _: &str, _: &[TokenLogprob]) -> Vec<Bytes> {
        Vec::new()
    }
    fn close(&mut self, answered: Answered<'_>, _: Map<String, Value>) -> Vec<Bytes> {
        vec![answered.text.to_owned().into()]
    }
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![error.to_json(&self.id).to_string().into()]
    }
    fn content_type(&self) -> &'static str {
        "application/jsonl"
    }
    fn streams(&self) -> bool {
        false
    }
}

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    after: Option<String>,
    limit: Option<usize>,
    /// OpenAI's, of files: `desc` unless it says `asc`.
    order: Option<String>,
    purpose: Option<String>,
}

/// A page of these, each with when it was created.
pub(super) fn listed(mut all: Vec<(u64, Value)>, page: &Page) -> Result<Value, Problem> {
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        let message = format!("`limit` must be from 1 to {PAGE_MAX}");
        return Err(ApiError::for_field("out_of_range", "limit", message).into());
    }
    let id = |value: &Value| value["id"].as_str().unwrap_or_default().to_owned();
    all.sort_by_key(|(at, value)| (*at, id(value)));
    match page.order.as_deref() {
        None | Some("desc") => all.reverse(),
        Some("asc") => {}
        Some(_) => return Err(ApiError::for_field("out_of_range", "order", "`order` must be `asc` or `desc`").into()),
    }
    let mut left = all.into_iter().map(|(_, value)| value);
    if let Some(after) = &page.after
        && !left.by_ref().any(|value| id(&value) == *after)
    {
        let message = format!("`after` is `{after}`, which is not in this list");
        return Err(ApiError::for_field("out_of_range", "after", message).into());
    }
    let data: Vec<Value> = left.by_ref().take(limit).collect();
    Ok(json!({
        "object": "list",
        "first_id": data.first().map(id),
        "last_id": data.last().map(id),
        "has_more": left.next().is_some(),
        "data": data,
    }))
}

/// `GET /v1/files`: the newest first.
pub async fn list(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(page): Query<Page>,
) -> Result<Json<Value>, Response> {
    let problem = |e: Problem| e.into_response();
    api.here("/v1/files").await?;
    let payer = api.lists_for(&headers).map_err(problem)?;
    let mut all = Vec::new();
    for (stored, object) in api.objects_of(FILE, payer).await.map_err(problem)? {
        if let Object::Input(file) = object {
            all.push((file.created_at, file.to_json(&stored.response)));
        }
    }
    for (_, object) in api.objects_of(crate::batch::BATCH, payer).await.map_err(problem)? {
        let Object::Batch(batch) = object else { continue };
        let at = batch.ended_at.unwrap_or(batch.created_at);
        all.extend(batch.offers_output().then(|| (at, batch.file_to_json(true))));
        all.extend(batch.offers_errors().then(|| (at, batch.file_to_json(false))));
    }
    if let Some(purpose) = &page.purpose {
        all.retain(|(_, file)| file["purpose"] == **purpose);
    }
    listed(all, &page).map(Json).map_err(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_pages() {
        let all = || (0..5).map(|n| (n, json!({ "id": n.to_string() }))).collect::<Vec<_>>();
        let page = |after: Option<&str>, limit, order: Option<&str>| {
            let page = Page { after: after.map(Into::into), limit, order: order.map(Into::into), purpose: None };
            listed(all(), &page).map(|list| {
                let ids: Vec<String> =
                    list["data"].as_array().unwrap().iter().map(|v| v["id"].as_str().unwrap().to_owned()).collect();
                (ids.concat(), list["has_more"] == true)
            })
        };
        assert_eq!(page(None, None, None).unwrap(), ("43210".to_owned(), false));
        assert_eq!(page(None, Some(2), None).unwrap(), ("43".to_owned(), true));
        assert_eq!(page(Some("3"), Some(3), None).unwrap(), ("210".to_owned(), false));
        assert_eq!(page(Some("1"), Some(2), Some("asc")).unwrap(), ("23".to_owned(), true));
        for refused in [page(Some("9"), None, None), page(None, Some(0), None), page(None, None, Some("up"))] {
            assert_eq!(refused.unwrap_err().api().status, 400);
        }
    }
}
