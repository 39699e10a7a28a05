//! `POST /v1/rerank`: documents in the order of how near they are to a question. OpenAI has no such route; this is the
//! form that Cohere's and Jina's clients speak.

use serde_json::{Map, Value, json};

use super::embeddings::{INPUTS_MAX, number};
use super::settings::model_name;
use super::strict::{Fields, out_of_range, wrong_type};
use super::{ApiError, NAME_BYTES_MAX, with_extra};

/// Most documents of one request; with the question one text more than an embedding request has.
pub const DOCUMENTS_MAX: usize = INPUTS_MAX;

/// Documented fields, of one of the two APIs, that are refused whatever they say.
pub(super) const NOT_DONE: [&str; 4] = ["max_tokens_per_doc", "max_chunks_per_doc", "rank_fields", "return_embeddings"];

/// And those of which only values are let through that ask for nothing more: nothing is ever cut here, nor preferred.
pub(super) fn harmless() -> [(&'static str, Vec<Value>); 2] {
    [("truncation", vec![json!(false)]), ("priority", vec![json!(0)])]
}

/// A request whose every field was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct RerankRequest {
    pub model: String,
    /// Not empty.
    pub query: String,
    /// At least one, and none empty.
    pub documents: Vec<String>,
    /// How many results are wanted; without a word all of them.
    pub top_n: Option<u32>,
    /// Whether each result carries its document.
    pub return_documents: bool,
    pub user: Option<String>,
}

impl RerankRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<RerankRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = model_name(&mut fields)?;
        let query = text("query".into(), fields.required("query")?)?;
        let documents = documents(fields.required("documents")?)?;
        let top_n = fields.count("top_n")?;
        let return_documents = fields.bool("return_documents")?.unwrap_or(false);
        let user = fields.string("user", NAME_BYTES_MAX)?;
        fields.only_of_each(&harmless())?;
        fields.finish(&NOT_DONE)?;
        Ok(RerankRequest { model, query, documents, top_n, return_documents, user })
    }

    /// What vectors are made of: the question, then the documents.
    pub fn texts(&self) -> Vec<String> {
        std::iter::once(&self.query).chain(&self.documents).cloned().collect()
    }

    /// What an error calls the text with this number of [`RerankRequest::texts`].
    pub fn name_of(at: usize) -> String {
        at.checked_sub(1).map_or_else(|| "query".into(), |document| format!("documents[{document}]"))
    }
}

fn text(name: String, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) if text.is_empty() => Err(out_of_range(name, "at least one character long".into())),
        Value::String(text) => Ok(text),
        other => Err(wrong_type(name, "a string", &other)),
    }
}

/// Texts, or objects with one text each.
fn documents(value: Value) -> Result<Vec<String>, ApiError> {
    let list = match value {
        Value::Array(list) => list,
        other => return Err(wrong_type("documents".into(), "a list", &other)),
    };
    if list.is_empty() || list.len() > DOCUMENTS_MAX {
        let wanted = format!("1 to {DOCUMENTS_MAX} texts long, not {}", list.len());
        return Err(out_of_range("documents".into(), wanted));
    }
    let one = |(at, value)| {
        let name = format!("documents[{at}]");
        if !matches!(value, Value::Object(_)) {
            return text(name, value);
        }
        let mut document = Fields::from_value(name, value)?;
        let text = text(document.name("text"), document.required("text")?)?;
        document.finish(&[])?;
        Ok(text)
    };
    list.into_iter().enumerate().map(one).collect()
}

/// A document's place in the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Cosine of its vector and the question's, −1 to 1.
    pub relevance: f32,
}

/// The nearest first, and of equals the one that came first. `vectors` of [`RerankRequest::texts`], each of length 1: the
/// question's, then the documents'. `top_n` as in the request.
pub fn rank(vectors: &[Vec<f32>], top_n: Option<u32>) -> Vec<Ranked> {
    let Some((query, documents)) = vectors.split_first() else { return Vec::new() };
    let cosine = |vector: &[f32]| query.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>().clamp(-1.0, 1.0);
    let mut ranked: Vec<Ranked> =
        documents.iter().enumerate().map(|(index, vector)| Ranked { index, relevance: cosine(vector) }).collect();
    ranked.sort_by(|one, other| other.relevance.total_cmp(&one.relevance).then(one.index.cmp(&other.index)));
    ranked.truncate(top_n.map_or(usize::MAX, |top_n| usize::try_from(top_n).unwrap_or(usize::MAX)));
    ranked
}

/// What a receipt's digest is taken of: of each result its document's number and its relevance, 32 bits each, little endian.
pub fn ranked_bytes(ranked: &[Ranked]) -> Vec<u8> {
    let bytes = |result: &Ranked| {
        let index = u32::try_from(result.index).unwrap_or(u32::MAX);
        [index.to_le_bytes(), result.relevance.to_le_bytes()].concat()
    };
    ranked.iter().flat_map(bytes).collect()
}

/// Builds the answer.
#[derive(Clone, Debug)]
pub struct RerankReply {
    /// `rerank-…`
    pub id: String,
    /// The model that answered.
    pub model: String,
    /// Of the request, where results are to carry them.
    pub documents: Option<Vec<String>>,
}

impl RerankReply {
    /// `extra` is added at the top.
    pub fn whole(&self, ranked: &[Ranked], prompt_tokens: u32, extra: Map<String, Value>) -> Value {
        let results: Vec<Value> = ranked
            .iter()
            .map(|result| {
                let mut told = json!({"index": result.index, "relevance_score": number(result.relevance)});
                if let Some(document) = self.documents.as_ref().and_then(|documents| documents.get(result.index)) {
                    told["document"] = json!({"text": document});
                }
                told
            })
            .collect();
        let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens});
        let answer = json!({"id": self.id, "object": "list", "model": self.model, "results": results, "usage": usage});
        with_extra(answer, extra)
    }
}

#[cfg(test)]
mod tests;
