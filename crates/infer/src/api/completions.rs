//! `POST /v1/completions`: a text goes on, without a template.

use serde_json::{Map, Value, json};

use super::settings::{model_name, stop, stream_options};
use super::strict::{Fields, out_of_range, wrong_type};
use super::{Answered, ApiError, NAME_BYTES_MAX, Sampling, Settings, StreamEvent, Usage, with_extra};
use crate::wire::{Finish, TokenLogprob};

/// As a receipt's run names it.
pub const ROUTE: &str = "POST /v1/completions";
/// Tokens of an answer that names no bound (OpenAI's own default).
const MAX_TOKENS_DEFAULT: u32 = 16;
/// Most alternatives told of a token (OpenAI's own bound).
pub(super) const LOGPROBS_MAX: u8 = 5;

/// Documented fields that are refused unless they are empty.
pub(super) const NOT_DONE: [&str; 1] = ["suffix"];

/// And those of which only values are let through that ask for nothing more.
pub(super) fn harmless() -> [(&'static str, Vec<Value>); 3] {
    [("best_of", vec![json!(1)]), ("echo", vec![json!(false)]), ("n", vec![json!(1)])]
}

/// A request whose every field was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    pub model: String,
    /// Not empty.
    pub prompt: String,
    pub settings: Settings,
    pub stream: bool,
    pub include_usage: bool,
    pub user: Option<String>,
}

impl CompletionRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<CompletionRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = model_name(&mut fields)?;
        let prompt = prompt(fields.required("prompt")?)?;
        let max_tokens = fields.count("max_tokens")?.unwrap_or(MAX_TOKENS_DEFAULT);
        let sampling = Sampling::take_all(&mut fields)?;
        let stop = stop(fields.take("stop"))?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields.take("stream_options"), stream)?;
        let user = fields.string("user", NAME_BYTES_MAX)?;
        let logprobs = fields.count_within("logprobs", LOGPROBS_MAX)?;
        fields.only_of_each(&harmless())?;
        fields.finish(&NOT_DONE)?;
        let settings = Settings { max_tokens: Some(max_tokens), stop, sampling, logprobs, form: None, add_bos: true };
        Ok(CompletionRequest { model, prompt, settings, stream, include_usage, user })
    }
}

/// One text; a list of one is let through.
fn prompt(value: Value) -> Result<String, ApiError> {
    let text = match value {
        Value::Array(mut list) if list.len() == 1 && list[0].is_string() => list.remove(0),
        Value::Array(_) => {
            let message = "`prompt` must be one string; several, and tokens' numbers, are not supported by this agent";
            return Err(ApiError::for_field("unsupported_field", "prompt", message));
        }
        other => other,
    };
    match text {
        Value::String(text) if text.is_empty() => {
            Err(out_of_range("prompt".into(), "at least one character long".into()))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type("prompt".into(), "a string", &other)),
    }
}

/// Builds the answer, whole or in chunks.
#[derive(Clone, Debug)]
pub struct CompletionReply {
    /// `cmpl-…`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// Of the request.
    pub include_usage: bool,
    /// Of the request.
    pub logprobs: bool,
    /// Characters told of so far: where the next token begins.
    pub told_chars: usize,
}

impl CompletionReply {
    /// The whole answer; `extra` is added at its top.
    pub fn whole(&mut self, answered: Answered<'_>, extra: Map<String, Value>) -> Value {
        let mut data = self.object(answered.text, answered.logprobs, answered.finish.as_str().into());
        data["usage"] = answered.usage.to_json();
        with_extra(data, extra)
    }

    /// More text.
    pub fn delta(&mut self, text: &str, logprobs: &[TokenLogprob]) -> StreamEvent {
        let data = self.object(text, logprobs, Value::Null);
        self.chunk(data)
    }

    /// The end: why the text ended, and the usage where it was asked for. `extra` is at the top of the last one.
    pub fn close(&mut self, finish: Finish, usage: Usage, extra: Map<String, Value>) -> Vec<StreamEvent> {
        let last = self.object("", &[], finish.as_str().into());
        let mut chunks = vec![self.chunk(last)];
        if self.include_usage {
            let mut data = self.object("", &[], Value::Null);
            data["choices"] = json!([]);
            data["usage"] = usage.to_json();
            chunks.push(StreamEvent { event: None, data });
        }
        if let Some(last) = chunks.last_mut() {
            last.data = with_extra(std::mem::take(&mut last.data), extra);
        }
        chunks
    }

    /// The end of an answer that broke off.
    pub fn fail(&self, error: &ApiError) -> StreamEvent {
        StreamEvent { event: None, data: error.to_json(&self.id) }
    }

    fn chunk(&self, mut data: Value) -> StreamEvent {
        if self.include_usage {
            data["usage"] = Value::Null;
        }
        StreamEvent { event: None, data }
    }

    fn object(&mut self, text: &str, logprobs: &[TokenLogprob], finish_reason: Value) -> Value {
        let logprobs = if self.logprobs { self.logprobs_json(logprobs) } else { Value::Null };
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}],
        })
    }

    /// Lists beside each other, one entry a token: the form that this route always had.
    fn logprobs_json(&mut self, logprobs: &[TokenLogprob]) -> Value {
        let text_of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (mut tokens, mut values, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for token in logprobs {
            let text = text_of(&token.bytes);
            offsets.push(self.told_chars);
            self.told_chars += text.chars().count();
            values.push(token.logprob);
            let mut top: Map<String, Value> =
                token.top.iter().map(|(bytes, logprob)| (text_of(bytes), json!(logprob))).collect();
            // Two tokens can be spelled alike where their bytes are no characters; the chosen one is always told.
            top.insert(text.clone(), json!(token.logprob));
            tops.push(Value::Object(top));
            tokens.push(text);
        }
        json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
    }
}

#[cfg(test)]
mod tests;
