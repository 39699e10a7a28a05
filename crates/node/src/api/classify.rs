//! `POST /v1/classify`: the label that fits each text best, by the model for vectors, at a price a text.

use super::Api;
use super::openapi::Operation;
use super::problem::{Posted, Problem, fresh_id};
use super::sale::{Errand, Flat, Form, Order, Prompt};
use crate::answers::Question;
use crate::manifest::Manifest;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use economy::Usdc;
use infer::TokenLogprob;
use infer::api::classify::{Classes, score_bytes};
use infer::api::{Answered, ApiError, ClassifyReply, ClassifyRequest, Settings};
use serde_json::{Map, Value, json};

pub use infer::api::classify::ROUTE;

/// Tokens of a text and of its share of labels and examples that the price covers where the manifest names none. A
/// choice: the longest text is half of it.
const TEXT_TOKENS: u32 = 512;

pub(super) fn about() -> Operation {
    Operation::new("Which label fits a text best, at a fixed price a text; not OpenAI's")
        .takes("ClassifyRequest")
        .answers("Classifications")
        .paid()
}

pub async fn classify(State(api): State<Api>, headers: HeaderMap, Posted(body): Posted) -> Result<Response, Response> {
    answer(&api, &headers, &body, Errand::Buy).await
}

pub async fn terms(State(api): State<Api>, headers: HeaderMap) -> Result<Response, Response> {
    let body = json!({ "model": api.vectors_by_default(), "inputs": ["hello"], "labels": ["greeting", "farewell"] })
        .to_string();
    answer(&api, &headers, &Bytes::from(body), Errand::Probe).await
}

/// The price of this many texts.
pub(crate) fn flat(manifest: &Manifest, texts: usize) -> Flat {
    let texts = u32::try_from(texts).unwrap_or(u32::MAX);
    Flat {
        uusdc: Usdc(manifest.per_call.classify_uusdc.saturating_mul(texts.into())),
        prompt_tokens: texts.saturating_mul(TEXT_TOKENS),
        completion_tokens: 0,
    }
}

async fn answer(api: &Api, headers: &HeaderMap, body: &Bytes, errand: Errand) -> Result<Response, Response> {
    let refuse = |e: ApiError| Problem::from(e).into_response();
    let request = ClassifyRequest::parse(body).map_err(refuse)?;
    let further = api.embeds_by(&request.model).map_err(refuse)?;
    let (texts, classes) = (request.texts(), request.question());
    let flat = flat(&api.cx.manifest, classes.inputs.len());
    let names = classes.clone();
    let form =
        Classified { classes, reply: ClassifyReply { id: fresh_id("cls-"), model: request.model }, scores: Vec::new() };
    let order = Order {
        errand,
        route: ROUTE,
        description: "labels of texts",
        question: Question::of(body),
        prompt: Prompt::Texts { texts, name_of: Box::new(move |at| names.name_of(at)), further },
        prompt_field: "inputs",
        settings: Settings::default(),
        adapter: None,
        stored_bytes: None,
        flat: Some(flat),
    };
    Ok(api.sell(headers, order).await?.deliver(form, None).await)
}

/// One JSON object with all texts' labels.
struct Classified {
    classes: Classes,
    reply: ClassifyReply,
    scores: Vec<Vec<f32>>,
}

impl Form for Classified {
    fn open(&mut self) -> Vec<Bytes> {
        Vec::new()
    }
    fn delta(&mut self, _: &str, _: &[TokenLogprob]) -> Vec<Bytes> {
        Vec::new()
    }
    fn vectors(&mut self, vectors: Vec<Vec<f32>>) -> Vec<u8> {
        self.scores = self.classes.scores(&vectors);
        score_bytes(&self.scores)
    }
    fn close(&mut self, answered: Answered<'_>, extra: Map<String, Value>) -> Vec<Bytes> {
        let tokens = answered.usage.prompt_tokens;
        vec![self.reply.whole(&self.classes, &self.scores, tokens, extra).to_string().into()]
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
