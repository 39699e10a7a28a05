//! `POST /v1/completions`: a text goes on, with and without `stream`.

use super::Api;
use super::further::Served;
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{Errand, Form, Order, Prompt, Rendered, Whole};
use crate::answers::Question;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use infer::TokenLogprob;
use infer::api::{Answered, ApiError, CompletionReply, CompletionRequest, SSE_DONE, StreamEvent};
use serde_json::{Map, Value, json};

pub use infer::api::completions::ROUTE;

pub(super) fn about() -> Operation {
    Operation::new("A text goes on, without a template")
        .takes("CompletionRequest")
        .answers("Completion")
        .streams("CompletionChunk")
        .paid()
}

pub async fn complete(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    answer(&api, &headers, &body, Errand::Buy).await
}

pub async fn terms(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Response> {
    let body = json!({ "model": api.cx.manifest.model.name, "prompt": "hello" }).to_string();
    answer(&api, &headers, &Bytes::from(body), Errand::Probe).await
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes, errand: Errand) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = CompletionRequest::parse(body).map_err(refuse)?;
    let Served { further, adapter } = api.serves(&request.model).map_err(refuse)?;
    let reply = CompletionReply {
        id: fresh_id("cmpl-"),
        created: api.shared.now(),
        model: request.model,
        include_usage: request.include_usage,
        logprobs: request.settings.logprobs.is_some(),
        told_chars: 0,
    };
    let order = Order {
        errand,
        route: ROUTE,
        description: "one completion",
        question: Question::of(body),
        prompt: Prompt::Text(Rendered { text: request.prompt, date: 0, further }),
        prompt_field: "prompt",
        settings: request.settings,
        adapter,
        stored_bytes: None,
        flat: None,
    };
    let sale = api.sell(headers, order).await?;
    Ok(if request.stream {
        sale.deliver(Chunks(reply), None).await
    } else {
        let mut reply = reply;
        let whole =
            Whole { id: reply.id.clone(), json: move |answered: Answered<'_>, extra| reply.whole(answered, extra) };
        sale.deliver(whole, None).await
    })
}

struct Chunks(CompletionReply);

impl Form for Chunks {
    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }
    fn delta(&mut self, text: &str, logprobs: &[TokenLogprob]) -> Vec<Bytes> {
        vec![self.0.delta(text, logprobs).to_sse()]
    }
    fn close(&mut self, answered: Answered<'_>, extra: Map<String, Value>) -> Vec<Bytes> {
        let mut frames: Vec<Bytes> =
            self.0.close(answered.finish, answered.usage, extra).iter().map(StreamEvent::to_sse).collect();
        frames.push(Bytes::from_static(SSE_DONE.as_bytes()));
        frames
    }
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![self.0.fail(error).to_sse(), Bytes::from_static(SSE_DONE.as_bytes())]
    }
    fn content_type(&self) -> &'static str {
        "text/event-stream"
    }
    fn streams(&self) -> bool {
        true
    }
}
