//! `POST /v1/embeddings`: each text becomes a vector of length 1.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value, json};

use super::settings::model_name;
use super::strict::{Fields, out_of_range, wrong_type};
use super::{ApiError, NAME_BYTES_MAX, with_extra};

/// Most texts of one request. OpenAI takes 2,048; fewer keep one answer a few megabytes long. A choice.
pub const INPUTS_MAX: usize = 256;
/// Most tokens of one request, all texts together: a few seconds of one core. A choice.
pub const INPUT_TOKENS_MAX: u32 = 32_768;

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A list of numbers.
    Float,
    /// Standard base64 of the numbers as IEEE 754's 32 bits, little endian: what the official SDKs ask for.
    Base64,
}

/// A request whose every field was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingRequest {
    pub model: String,
    /// At least one, and none empty.
    pub inputs: Vec<String>,
    /// They came as a list, and are named by their numbers.
    pub is_list: bool,
    pub encoding: Encoding,
    /// How many numbers a vector is to have; to be checked by [`EmbeddingRequest::check`].
    pub dimensions: Option<u32>,
    pub user: Option<String>,
}

impl EmbeddingRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<EmbeddingRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = model_name(&mut fields)?;
        let (inputs, is_list) = texts("input", fields.required("input")?)?;
        let encoding = match fields.string("encoding_format", NAME_BYTES_MAX)?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(_) => return Err(out_of_range("encoding_format".into(), "`float` or `base64`".into())),
        };
        let dimensions = fields.count("dimensions")?;
        let user = fields.string("user", NAME_BYTES_MAX)?;
        fields.finish(&[])?;
        Ok(EmbeddingRequest { model, inputs, is_list, encoding, dimensions, user })
    }

    /// Refuses vectors of another size than this model's: it was not trained to be cut.
    pub fn check(&self, dimensions: u32) -> Result<(), ApiError> {
        match self.dimensions {
            Some(wanted) if wanted != dimensions => {
                let message = format!("`dimensions` is not supported by this model, whose vectors have {dimensions}");
                Err(ApiError::for_field("unsupported_field", "dimensions", message))
            }
            _ => Ok(()),
        }
    }

    /// What an error calls the text with a number.
    pub fn name_of(&self) -> fn(usize) -> String {
        if self.is_list { |at| format!("input[{at}]") } else { |_| "input".into() }
    }
}

/// One text or a list of them. Tokens' numbers are refused: they are those of another vocabulary, and would mean
/// something else here.
pub(super) fn texts(field: &str, value: Value) -> Result<(Vec<String>, bool), ApiError> {
    let numbers = |name: String| {
        let message = format!("`{name}`: tokens' numbers are not supported by this agent; send texts");
        ApiError::for_field("unsupported_field", name, message)
    };
    let text = |name: String, value: Value| match value {
        Value::String(text) if text.is_empty() => Err(out_of_range(name, "at least one character long".into())),
        Value::String(text) => Ok(text),
        Value::Array(_) | Value::Number(_) => Err(numbers(name)),
        other => Err(wrong_type(name, "a string", &other)),
    };
    match value {
        Value::Array(list) if list.is_empty() => Err(out_of_range(field.into(), "at least one text long".into())),
        Value::Array(list) if list.iter().all(Value::is_number) => Err(numbers(field.into())),
        Value::Array(list) if list.len() > INPUTS_MAX => {
            Err(out_of_range(field.into(), format!("at most {INPUTS_MAX} texts long, not {}", list.len())))
        }
        Value::Array(list) => {
            let texts = list.into_iter().enumerate().map(|(at, value)| text(format!("{field}[{at}]"), value));
            Ok((texts.collect::<Result<_, _>>()?, true))
        }
        Value::Number(number) => Err(wrong_type(field.into(), "a string or a list of strings", &Value::Number(number))),
        other => Ok((vec![text(field.into(), other)?], false)),
    }
}

/// The tokens of all texts together, if each fits the model and all fit one request. `name_of` a text, for the error.
pub fn tokens_of(
    field: &str,
    counts: &[u32],
    each_max: u32,
    name_of: impl Fn(usize) -> String,
) -> Result<u32, ApiError> {
    if let Some((at, count)) = counts.iter().enumerate().find(|(_, count)| **count > each_max) {
        let name = name_of(at);
        let message = format!("`{name}` has {count} tokens; this model takes {each_max}");
        return Err(ApiError::for_field("context_length_exceeded", name, message));
    }
    let sum: u64 = counts.iter().copied().map(u64::from).sum();
    u32::try_from(sum).ok().filter(|sum| *sum <= INPUT_TOKENS_MAX).ok_or_else(|| {
        let message = format!("`{field}` has {sum} tokens; a request takes {INPUT_TOKENS_MAX}");
        ApiError::for_field("out_of_range", field, message)
    })
}

/// Builds the answer.
#[derive(Clone, Debug)]
pub struct EmbeddingReply {
    /// The model that answered.
    pub model: String,
    pub encoding: Encoding,
}

impl EmbeddingReply {
    /// `vectors` in the order of the texts; `extra` is added at the top.
    pub fn whole(&self, vectors: &[Vec<f32>], prompt_tokens: u32, extra: Map<String, Value>) -> Value {
        let data: Vec<Value> = vectors
            .iter()
            .enumerate()
            .map(|(index, vector)| {
                let embedding = match self.encoding {
                    Encoding::Float => vector.iter().copied().map(number).collect(),
                    Encoding::Base64 => Value::String(STANDARD.encode(vector_bytes(vector))),
                };
                json!({"object": "embedding", "index": index, "embedding": embedding})
            })
            .collect();
        let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens});
        with_extra(json!({"object": "list", "data": data, "model": self.model, "usage": usage}), extra)
    }
}

/// A vector's numbers in 32 bits each, little endian: what base64 carries, and what a receipt's digest is taken of.
pub fn vector_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// By its digits, because those of the nearest f64 would be twice as many and say no more.
pub(super) fn number(value: f32) -> Value {
    value.to_string().parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests;
