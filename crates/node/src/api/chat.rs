//! `POST /v1/chat/completions`, with and without `stream`.

use super::Api;
use super::further::Served;
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{Errand, Form, Order, Prompt, Rendered, Whole};
use crate::answers::Question;
use crate::suppliers;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use infer::api::{
    Answered, ApiError, ChatCompletionRequest, ChatReply, ChatStream, Message, SSE_DONE, StreamEvent, Tool,
};
use infer::{TemplateError, TokenLogprob};
use serde_json::{Map, Value};

pub use infer::api::chat::ROUTE;

pub(super) fn about() -> Operation {
    Operation::new("A conversation goes on")
        .takes("ChatCompletionRequest")
        .answers("ChatCompletion")
        .streams("ChatCompletionChunk")
        .paid()
}

pub async fn complete(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    answer(&api, &headers, &body, Errand::Buy).await
}

/// `GET` of a paid route: the terms, for clients and indexers that probe before they post, and a channel's refund,
/// which the official clients ask for by it. Nothing else is paid for here.
pub async fn terms(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Response> {
    let body =
        format!(r#"{{"model":"{}","messages":[{{"role":"user","content":"hello"}}]}}"#, api.cx.manifest.model.name);
    answer(&api, &headers, &Bytes::from(body), Errand::Probe).await
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes, errand: Errand) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = ChatCompletionRequest::parse(body).map_err(refuse)?;
    let (route, prompt, adapter) = match api.cx.suppliers.of(&request.model) {
        Some(supplier) => (suppliers::ROUTE, Prompt::Bought(supplier.purchase(&request, body).map_err(refuse)?), None),
        None => {
            let Served { further, adapter } = api.serves(&request.model).map_err(refuse)?;
            if further.is_some() {
                // Where the agent does not live nothing is loaded for it.
                api.here("/v1/chat/completions").await?;
            }
            let prompt = api.render(further, &request.messages, request.offered_tools()).await;
            let prompt = prompt.map_err(IntoResponse::into_response)?;
            (ROUTE, Prompt::Text(prompt), adapter)
        }
    };
    let order = Order {
        errand,
        route,
        description: "one chat completion",
        question: Question::of(body),
        prompt,
        prompt_field: "messages",
        settings: request.settings.clone(),
        adapter,
        stored_bytes: None,
        flat: None,
    };
    let sale = api.sell(headers, order).await?;
    let reply = ChatReply {
        id: fresh_id("chatcmpl-"),
        created: api.shared.now(),
        model: request.model.clone(),
        include_usage: request.include_usage,
        logprobs: request.settings.logprobs.is_some(),
        tools: request.tools.is_some(),
    };
    Ok(if request.stream {
        sale.deliver(Chunks(ChatStream::new(reply)), None).await
    } else {
        let whole =
            Whole { id: reply.id.clone(), json: move |answered: Answered<'_>, extra| reply.whole(answered, extra) };
        sale.deliver(whole, None).await
    })
}

impl Api {
    /// As the model gets it, by its own template. `further` as [`Served`] has it.
    pub(super) async fn render(
        &self,
        further: Option<usize>,
        messages: &[Message],
        tools: &[Tool],
    ) -> Result<Rendered, Problem> {
        let date = self.shared.now();
        Ok(Rendered { text: self.render_on(further, messages, tools, date).await?, date, further })
    }

    /// As it is rendered on this date, chain seconds.
    pub(super) async fn render_on(
        &self,
        further: Option<usize>,
        messages: &[Message],
        tools: &[Tool],
        date: u64,
    ) -> Result<String, Problem> {
        let engine = self.engine_of(further).await?;
        engine.template.render_with_tools(messages, tools, date).map_err(|e| match e {
            TemplateError::Refused(why) => Problem::from(ApiError::for_field("invalid_value", "messages", why)),
            other => Problem::for_internal(other),
        })
    }
}

struct Chunks(ChatStream);

impl Form for Chunks {
    fn open(&mut self) -> Vec<Bytes> {
        vec![self.0.open().to_sse()]
    }
    fn delta(&mut self, text: &str, logprobs: &[TokenLogprob]) -> Vec<Bytes> {
        self.0.delta(text, logprobs).iter().map(StreamEvent::to_sse).collect()
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
