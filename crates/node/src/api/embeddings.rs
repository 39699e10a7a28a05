//! `POST /v1/embeddings`: texts become vectors, where the manifest names a model for it.

use super::Api;
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{Errand, Form, Order, Prompt};
use crate::answers::Question;
use crate::manifest::Kind;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use infer::TokenLogprob;
use infer::api::embeddings::vector_bytes;
use infer::api::{Answered, ApiError, EmbeddingReply, EmbeddingRequest, Settings};
use serde_json::{Map, Value, json};

pub const ROUTE: &str = "POST /v1/embeddings";

pub(super) fn about() -> Operation {
    Operation::new("Texts become vectors, where the agent has a model for it")
        .takes("EmbeddingRequest")
        .answers("Embeddings")
        .paid()
}

pub async fn embed(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    answer(&api, &headers, &body, Errand::Buy).await
}

pub async fn terms(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Response> {
    let body = json!({ "model": api.vectors_by_default(), "input": "hello" }).to_string();
    answer(&api, &headers, &Bytes::from(body), Errand::Probe).await
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes, errand: Errand) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = EmbeddingRequest::parse(body).map_err(refuse)?;
    let further = api.embeds_by(&request.model).map_err(refuse)?;
    if request.dimensions.is_some() {
        api.here("/v1/embeddings").await?;
        let embedder = api.embedder_of(further).await.map_err(IntoResponse::into_response)?;
        request.check(embedder.dimensions).map_err(refuse)?;
    }
    let name_of = request.name_of();
    let form = Vectors {
        id: fresh_id("emb-"),
        reply: EmbeddingReply { model: request.model, encoding: request.encoding },
        vectors: Vec::new(),
    };
    let order = Order {
        errand,
        route: ROUTE,
        description: "vectors of texts",
        question: Question::of(body),
        prompt: Prompt::Texts { texts: request.inputs, name_of: Box::new(name_of), further },
        prompt_field: "input",
        settings: Settings::default(),
        adapter: None,
        stored_bytes: None,
        flat: None,
    };
    Ok(api.sell(headers, order).await?.deliver(form, None).await)
}

impl Api {
    /// The model that a look at the terms of vectors is for; the first one, which makes none, where no other does.
    pub(super) fn vectors_by_default(&self) -> &str {
        self.cx.manifest.vector_models().next().unwrap_or(&self.cx.manifest.model.name)
    }

    /// Place of the further model with this name; `None`: it is the manifest's `embedding`.
    pub(super) fn embeds_by(&self, model: &str) -> Result<Option<usize>, ApiError> {
        if let Some(further) = self.cx.manifest.further(model, Kind::Embedding) {
            return Ok(Some(further));
        }
        let message = match &self.cx.manifest.embedding {
            Some(ours) if ours.name == model => return Ok(None),
            Some(ours) => format!("`{model}` makes no vectors here; `{}` does", ours.name),
            None => format!("`{model}` makes no vectors here, and no other model does"),
        };
        Err(ApiError::for_not_found("model_not_found", "model", message))
    }
}

/// One JSON object with all vectors.
struct Vectors {
    id: String,
    reply: EmbeddingReply,
    vectors: Vec<Vec<f32>>,
}

impl Form for Vectors {
    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }
    fn delta(&mut self, _: &str, _: &[TokenLogprob]) -> Vec<Bytes> {
        Vec::new()
    }
    fn vectors(&mut self, vectors: Vec<Vec<f32>>) -> Vec<u8> {
        self.vectors = vectors;
        self.vectors.iter().flat_map(|vector| vector_bytes(vector)).collect()
    }
    fn close(&mut self, answered: Answered<'_>, extra: Map<String, Value>) -> Vec<Bytes> {
        vec![self.reply.whole(&self.vectors, answered.usage.prompt_tokens, extra).to_string().into()]
    }
    fn fail(&mut self, error: &ApiError) -> Vec<Bytes> {
        vec![error.to_json(&self.id).to_string().into()]
    }
    fn content_type(&self) -> &'static str {
        "application/json"
    }
    fn streams(&self) -> bool {
        false
    }
}
