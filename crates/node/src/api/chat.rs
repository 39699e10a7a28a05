//! `POST /v1/chat/completions`, with and without `stream`.

use super::Api;
use super::problem::{Problem, fresh_id};
use super::sale::{ENGINE_START, Errand, Form, Order, Whole};
use crate::answers::Question;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use infer::api::{ApiError, ChatCompletionRequest, ChatReply, Message, SSE_DONE, Usage};
use infer::{Finish, TemplateError};
use serde_json::{Map, Value};

pub const ROUTE: &str = "POST /v1/chat/completions";

pub async fn complete(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Response {
    match answer(&api, &headers, &body, Errand::Buy).await {
        Ok(response) | Err(response) => response,
    }
}

/// `GET` of a paid route: the terms, for clients and indexers that probe before they post, and a channel's refund,
/// which the official clients ask for by it. Nothing else is paid for here.
pub async fn terms(State(api): State<Api>, headers: HeaderMap) -> Response {
    let body =
        format!(r#"{{"model":"{}","messages":[{{"role":"user","content":"hello"}}]}}"#, api.cx.manifest.model.name);
    match answer(&api, &headers, &Bytes::from(body), Errand::Probe).await {
        Ok(response) | Err(response) => response,
    }
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes, errand: Errand) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = ChatCompletionRequest::parse(body).map_err(refuse)?;
    api.serves_model(&request.model).map_err(refuse)?;
    let prompt = api.render(&request.messages).await.map_err(IntoResponse::into_response)?;
    let order = Order {
        errand,
        route: ROUTE,
        description: "one chat completion",
        question: Question::of(body),
        prompt,
        max_tokens: request.max_tokens,
        stop: request.stop.clone(),
        sampling: request.sampling,
    };
    let sale = api.sell(headers, order).await?;
    let reply = ChatReply {
        id: fresh_id("chatcmpl-"),
        created: api.shared.now(),
        model: request.model.clone(),
        include_usage: request.include_usage,
    };
    Ok(if request.stream {
        sale.deliver(Chunks(reply), None).await
    } else {
        let whole = Whole {
            id: reply.id.clone(),
            json: move |text: &str, finish, usage, extra| reply.whole(text, finish, usage, extra),
        };
        sale.deliver(whole, None).await
    })
}

impl Api {
    pub(super) fn serves_model(&self, model: &str) -> Result<(), ApiError> {
        let name = &self.cx.manifest.model.name;
        if model == name {
            return Ok(());
        }
        Err(ApiError::for_not_found("model_not_found", "model", format!("`{model}` is not served here; `{name}` is")))
    }

    pub(super) async fn render(&self, messages: &[Message]) -> Result<String, Problem> {
        let engine = self.shared.engine_within(ENGINE_START).await;
        let engine = engine.ok_or_else(|| Problem::for_unavail("the engine is still starting", 5))?;
        engine.template.render(messages, self.shared.now()).map_err(|e| match e {
            TemplateError::Refused(why) => Problem::from(ApiError::for_field("invalid_value", "messages", why)),
            other => Problem::for_internal(other),
        })
    }
}

struct Chunks(ChatReply);

impl Form for Chunks {
    fn open(&mut self) -> Vec<Bytes> {
        vec![self.0.role_chunk().to_sse()]
    }
    fn delta(&mut self, text: &str) -> Vec<Bytes> {
        vec![self.0.delta_chunk(text).to_sse()]
    }
    fn close(&mut self, _: &str, finish: Finish, usage: Usage, extra: Map<String, Value>) -> Vec<Bytes> {
        let mut frames = vec![self.0.finish_chunk(finish).to_sse()];
        // A chunk without choices, as `include_usage` has it: the receipt rides on it either way.
        frames.push(self.0.usage_chunk(usage, extra).to_sse());
        frames.push(Bytes::from_static(SSE_DONE.as_bytes()));
        frames
    }
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![self.0.error_chunk(error, &self.0.id).to_sse(), Bytes::from_static(SSE_DONE.as_bytes())]
    }
    fn content_type(&self) -> &'static str {
        "text/event-stream"
    }
    fn streams(&self) -> bool {
        true
    }
}
