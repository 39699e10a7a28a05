//! `POST /v1/rerank`: documents in the order of how near they are to a question, where the manifest names a model for
//! vectors. One call of the same engine, the same class of the price and the same receipt as those of `embeddings`.

use super::Api;
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{Errand, Form, Order, Prompt};
use crate::answers::Question;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use infer::TokenLogprob;
use infer::api::rerank::{Ranked, rank, ranked_bytes};
use infer::api::{Answered, ApiError, RerankReply, RerankRequest, Settings};
use serde_json::{Map, Value, json};

pub const ROUTE: &str = "POST /v1/rerank";

pub(super) fn about() -> Operation {
    Operation::new("Documents in the order of their nearness to a question; not OpenAI's")
        .takes("RerankRequest")
        .answers("Ranking")
        .paid()
}

pub async fn rerank(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    answer(&api, &headers, &body, Errand::Buy).await
}

pub async fn terms(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Response> {
    let body = json!({ "model": api.vectors_by_default(), "query": "hello", "documents": ["hello"] }).to_string();
    answer(&api, &headers, &Bytes::from(body), Errand::Probe).await
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes, errand: Errand) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = RerankRequest::parse(body).map_err(refuse)?;
    let further = api.embeds_by(&request.model).map_err(refuse)?;
    let texts = request.texts();
    let form = Ranking {
        top_n: request.top_n,
        reply: RerankReply {
            id: fresh_id("rerank-"),
            model: request.model,
            documents: request.return_documents.then_some(request.documents),
        },
        ranked: Vec::new(),
    };
    let order = Order {
        errand,
        route: ROUTE,
        description: "documents by their nearness to a question",
        question: Question::of(body),
        prompt: Prompt::Texts { texts, name_of: Box::new(RerankRequest::name_of), further },
        prompt_field: "documents",
        settings: Settings::default(),
        adapter: None,
        stored_bytes: None,
        flat: None,
    };
    Ok(api.sell(headers, order).await?.deliver(form, None).await)
}

/// One JSON object with all results.
struct Ranking {
    top_n: Option<u32>,
    reply: RerankReply,
    ranked: Vec<Ranked>,
}

impl Form for Ranking {
    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }
    fn delta(&mut self, _: &str, _: &[TokenLogprob]) -> Vec<Bytes> {
        Vec::new()
    }
    fn vectors(&mut self, vectors: Vec<Vec<f32>>) -> Vec<u8> {
        self.ranked = rank(&vectors, self.top_n);
        ranked_bytes(&self.ranked)
    }
    fn close(&mut self, answered: Answered<'_>, extra: Map<String, Value>) -> Vec<Bytes> {
        vec![self.reply.whole(&self.ranked, answered.usage.prompt_tokens, extra).to_string().into()]
    }
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![error.to_json(&self.reply.id).to_string().into()]
    }
    fn content_type(&self) -> &'static str {
        "application/json"
    }
    fn streams(&self) -> bool {
        false
    }
}
