//! `POST /v1/batches` and what is asked of a batch after: half the price, whenever there is time within a day.
//!
//! Two payments, neither of which is ever given back: the prompts' tokens when it is created, and what was generated when
//! its output is fetched ([`super::files`]). A batch's id is not guessable (96 bits of chance): whoever has it reads it and
//! cancels it. Lists are of whoever signs with the key that paid.

mod desk;
mod work;

pub(crate) use desk::Desk;
pub(super) use work::work;

use super::Api;
use super::files::{self, kept_header, listed};
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{BeforeEnd, Errand, Order, Prompt, Ready, Whole};
use crate::answers::Question;
use crate::batch::{Asked, BATCH, Batch, Input, OPEN_MAX, Object, TOKENS_MAX, Terms, UNPAID_MAX, half_up};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use economy::{Price, Usdc};
use infer::api::batches::{BatchRequest, Endpoint};
use infer::api::{Answered, ApiError, Settings};
use serde_json::Value;

pub const ROUTE: &str = "POST /v1/batches";

pub(super) fn about() -> Operation {
    Operation::new("Many requests at half price, answered within 24 hours: pays for the prompts")
        .takes("BatchRequest")
        .answers("Batch")
        .paid()
}

pub(super) fn about_list() -> Operation {
    Operation::new("Batches of whoever signs with the key that paid (header `vivarium-payer`)")
        .answers("BatchList")
        .refuses(&[(403, "not signed, or too old"), (503, "ask again")])
}

pub(super) fn about_read() -> Operation {
    Operation::new("How far a batch is").answers("Batch").refuses(&[(404, "no such batch"), (503, "ask again")])
}

pub(super) fn about_cancel() -> Operation {
    Operation::new("Ends a batch; what was answered can be fetched")
        .answers("Batch")
        .refuses(&[(404, "no such batch"), (503, "ask again")])
}

pub async fn create(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    sold(&api, &headers, &body).await
}

async fn sold(api: &Api, headers: &HeaderMap, body: &Bytes) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let problem = |e: Problem| e.into_response();
    let request = BatchRequest::parse(body).map_err(refuse)?;
    api.here("/v1/batches").await?;
    let Some((_, Object::Input(file))) = api.object(&request.input_file_id).await.map_err(problem)? else {
        let message = format!("there is no file `{}` with requests here", request.input_file_id);
        return Err(refuse(ApiError::for_not_found("file_not_found", "input_file_id", message)));
    };
    if file.endpoint != request.endpoint.as_str() {
        let message =
            format!("`endpoint` is {}, and the file's lines are for {}", request.endpoint.as_str(), file.endpoint);
        return Err(refuse(ApiError::for_field("out_of_range", "endpoint", message)));
    }
    let today = api.first_price().await.map_err(|why| problem(Problem::for_unavail(why, 2)))?;
    let tokens = file.tokens();
    let amount = prompts_up(request.endpoint, tokens, today).map_err(refuse)?;
    let terms = Terms { call_uusdc: today.call_uusdc, mtok_completion_uusdc: today.mtok_completion_uusdc };
    let ready = Ready {
        path: "/v1/batches".to_owned(),
        price: whole(amount),
        prompt_tokens: u32::try_from(tokens.0).unwrap_or(u32::MAX),
        completion_tokens: 0,
        text: String::new(),
    };
    let order = Order {
        errand: Errand::Buy,
        route: ROUTE,
        description: "the prompts of a batch, at half price; what is generated is paid at half price with its output",
        question: Question::of(body),
        prompt: Prompt::Ready(ready),
        prompt_field: "input_file_id",
        settings: Settings::default(),
        adapter: None,
        stored_bytes: None,
        flat: None,
    };
    let mut sale = api.sell(headers, order).await?;
    let asked = Asked {
        id: fresh_id(BATCH),
        input_file: request.input_file_id,
        endpoint: file.endpoint,
        metadata: request.metadata,
        total: u32::try_from(file.lines.len()).unwrap_or(u32::MAX),
        terms,
        request: sale.request.0,
    };
    let (id, payer) = (asked.id.clone(), sale.payer.into_array());
    sale.stored_as = Some(id.clone());
    let batch = Batch::new(asked, api.shared.now());
    let json = batch.to_json(None);
    let whole = Whole { id, json: move |_: Answered<'_>, extra| with(json.clone(), extra) };
    let response = sale.deliver(whole, Some(open(api.clone(), payer, batch))).await;
    Ok(kept_header(response))
}

/// What the prompts of a batch cost, or why it is too long.
fn prompts_up(endpoint: Endpoint, (prompt, answers): (u64, u64), today: Price) -> Result<Usdc, ApiError> {
    if answers > TOKENS_MAX {
        let message = format!(
            "the answers to this file may have {answers} tokens together; a batch may have {TOKENS_MAX}: ask for fewer \
             by `max_tokens`, or split the file"
        );
        return Err(ApiError::for_field("out_of_range", "input_file_id", message));
    }
    let mtok = if endpoint == Endpoint::Embeddings { today.mtok_embedding_uusdc } else { today.mtok_prompt_uusdc };
    let amount = half_up(prompt, mtok).max(today.call_uusdc);
    let most = amount.max(half_up(answers, today.mtok_completion_uusdc));
    if most > today.call_uusdc_max {
        let message = format!(
            "a payment for this file may be {most}, and none may be above {}: split the file",
            today.call_uusdc_max
        );
        return Err(ApiError::for_field("out_of_range", "input_file_id", message));
    }
    Ok(amount)
}

/// A price that no token changes.
pub(super) fn whole(amount: Usdc) -> Price {
    Price {
        call_uusdc: amount,
        call_uusdc_max: Usdc::MAX,
        mtok_prompt_uusdc: Usdc::ZERO,
        mtok_cached_uusdc: Usdc::ZERO,
        mtok_embedding_uusdc: Usdc::ZERO,
        mtok_completion_uusdc: Usdc::ZERO,
    }
}

/// Keeps the batch before the last byte leaves. It does nothing until the book says that its call was delivered.
fn open(api: Api, payer: [u8; 20], batch: Batch) -> BeforeEnd {
    Box::new(move |_| {
        Box::pin(async move {
            let allowed = |open, unpaid| {
                if unpaid >= UNPAID_MAX {
                    let message = format!(
                        "you have {unpaid} batches that are not over, or whose output is not paid; fetch their outputs, or \
                         delete them"
                    );
                    let error = ApiError::for_bad_request("too_many_unpaid_batches", message);
                    return Err(Problem::from(ApiError { status: 429, ..error }));
                }
                if open >= OPEN_MAX {
                    return Err(Problem::for_unavail("as many batches wait as this agent takes; try again later", 600));
                }
                Ok(())
            };
            let opened = api.open_batch(payer, batch, allowed).await;
            opened.map(|()| 0).map_err(|problem| problem.api().clone())
        })
    })
}

pub(super) fn with(mut object: Value, extra: serde_json::Map<String, Value>) -> Value {
    for (name, value) in extra {
        object[name] = value;
    }
    object
}

impl Api {
    /// Why no line of a batch is answered now, where that is not for want of time.
    pub(super) fn batches_wait(&self) -> Option<String> {
        if self.shared.price().is_some() {
            return None;
        }
        Some(self.shared.closed_because().unwrap_or_else(|| "the agent does not sell now".to_owned()))
    }

    async fn known(&self, id: &str) -> Result<Batch, Problem> {
        let found = self.batch(id).await?;
        found.map(|(_, batch)| batch).ok_or_else(|| Problem::for_not_found(format!("there is no batch `{id}`")))
    }
}

/// `GET /v1/batches/{id}`.
pub async fn read(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Response> {
    api.here(&format!("/v1/batches/{id}")).await?;
    let batch = api.known(&id).await.map_err(IntoResponse::into_response)?;
    Ok(Json(batch.to_json(api.batches_wait())))
}

/// `POST /v1/batches/{id}/cancel`.
pub async fn cancel(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Response> {
    api.here(&format!("/v1/batches/{id}/cancel")).await?;
    let stepped = api.step_batch(&id, Input::Cancel).await.map_err(IntoResponse::into_response)?;
    let batch = stepped.ok_or_else(|| Problem::for_not_found(format!("there is no batch `{id}`")).into_response())?;
    Ok(Json(batch.to_json(api.batches_wait())))
}

/// `GET /v1/batches`: the newest first.
pub async fn list(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(page): Query<files::Page>,
) -> Result<Json<Value>, Response> {
    api.here("/v1/batches").await?;
    let payer = api.lists_for(&headers).map_err(IntoResponse::into_response)?;
    let mut all = Vec::new();
    for (stored, object) in api.objects_of(BATCH, payer).await.map_err(IntoResponse::into_response)? {
        if let Object::Batch(batch) = object {
            all.push((stored.at.min(batch.created_at), batch.to_json(api.batches_wait())));
        }
    }
    listed(all, &page).map(Json).map_err(IntoResponse::into_response)
}
