//! `POST /v1/extract`: JSON by a schema out of a text, by the model that answers, at a price a call.

use super::Api;
use super::further::Served;
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{Errand, Flat, Order, Prompt, Whole};
use crate::answers::Question;
use crate::manifest::Manifest;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use economy::Usdc;
use infer::api::extract::OUTPUT_TOKENS_MAX;
use infer::api::{Answered, ApiError, ExtractReply, ExtractRequest};
use serde_json::json;

pub use infer::api::extract::ROUTE;

/// Tokens of a prompt that the price covers where the manifest names none: those of about 4,000 bytes of English. A
/// choice.
const PROMPT_TOKENS: u32 = 1_024;

pub(super) fn about() -> Operation {
    Operation::new("What a text says, as JSON by a schema, at a fixed price; not OpenAI's")
        .takes("ExtractRequest")
        .answers("Extraction")
        .paid()
}

pub async fn extract(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    answer(&api, &headers, &body, Errand::Buy).await
}

pub async fn terms(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Response> {
    let body = json!({ "model": api.cx.manifest.model.name, "input": "hello", "schema": {}, "max_output_tokens": 1 })
        .to_string();
    answer(&api, &headers, &Bytes::from(body), Errand::Probe).await
}

/// The price of a call.
pub(crate) fn flat(manifest: &Manifest) -> Flat {
    Flat {
        uusdc: Usdc(manifest.per_call.extract_uusdc),
        prompt_tokens: PROMPT_TOKENS,
        completion_tokens: OUTPUT_TOKENS_MAX,
    }
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes, errand: Errand) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = ExtractRequest::parse(body).map_err(refuse)?;
    let Served { further, adapter } = api.serves(&request.model).map_err(refuse)?;
    api.here("/v1/extract").await?;
    let prompt = api.render(further, &request.messages(), &[]).await.map_err(IntoResponse::into_response)?;
    let order = Order {
        errand,
        route: ROUTE,
        description: "JSON out of a text",
        question: Question::of(body),
        prompt: Prompt::Text(prompt),
        prompt_field: "input",
        settings: request.settings(),
        adapter,
        stored_bytes: None,
        flat: Some(flat(&api.cx.manifest)),
    };
    let reply = ExtractReply { id: fresh_id("extr-"), created: api.shared.now(), model: request.model };
    let sale = api.sell(headers, order).await?;
    let whole = Whole { id: reply.id.clone(), json: move |answered: Answered<'_>, extra| reply.whole(answered, extra) };
    Ok(sale.deliver(whole, None).await)
}
