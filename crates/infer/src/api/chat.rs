//! `POST /v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::strict::{Fields, out_of_range, wrong_type};
use super::{
    ApiError, MESSAGES_MAX, Message, NAME_BYTES_MAX, Role, STOP_BYTES_MAX, STOP_MAX, Sampling, StreamEvent, Usage,
    with_extra,
};
use crate::wire::Finish;

/// Documented fields that are refused whatever they say.
const NOT_DONE: [&str; 12] = [
    "audio",
    "function_call",
    "functions",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "tool_choice",
    "tools",
    "verbosity",
    "web_search_options",
];

/// Documented fields of a message that are refused unless they are empty.
const NOT_DONE_IN_MESSAGE: [&str; 5] = ["name", "audio", "function_call", "refusal", "tool_call_id"];

/// A request whose every field was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatCompletionRequest {
    /// As the customer spelled it; whether it is the one served here is the caller's question.
    pub model: String,
    /// At least one.
    pub messages: Vec<Message>,
    /// At least 1. `None`: as far as the context reaches.
    pub max_tokens: Option<u32>,
    pub sampling: Sampling,
    /// At most [`STOP_MAX`], none empty.
    pub stop: Vec<String>,
    pub stream: bool,
    /// `stream_options.include_usage`: one more chunk with the usage. False without `stream`.
    pub include_usage: bool,
    /// Opaque to us; takes part in nothing.
    pub user: Option<String>,
}

impl ChatCompletionRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<ChatCompletionRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = model_name(&mut fields)?;
        let messages = messages(fields.required("messages")?)?;
        let max_tokens = max_tokens(&mut fields)?;
        let sampling = Sampling {
            temperature: fields.number("temperature", 2)?,
            top_p: fields.number("top_p", 1)?,
            seed: fields.seed("seed")?,
        };
        let stop = stop(fields.take("stop"))?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields.take("stream_options"), stream)?;
        let user = fields.string("user", NAME_BYTES_MAX)?;
        fields.only("n", &[json!(1)])?;
        fields.only("frequency_penalty", &[json!(0)])?;
        fields.only("presence_penalty", &[json!(0)])?;
        fields.only("logit_bias", &[json!({})])?;
        fields.only("logprobs", &[json!(false)])?;
        fields.only("top_logprobs", &[json!(0)])?;
        fields.only("metadata", &[json!({})])?;
        fields.only("modalities", &[json!(["text"])])?;
        // Without tools both of its values mean the same.
        fields.only("parallel_tool_calls", &[json!(true), json!(false)])?;
        fields.only("response_format", &[json!({"type": "text"})])?;
        fields.only("service_tier", &[json!("auto"), json!("default")])?;
        fields.only("store", &[json!(false)])?;
        fields.finish(&NOT_DONE)?;
        Ok(ChatCompletionRequest { model, messages, max_tokens, sampling, stop, stream, include_usage, user })
    }
}

pub(super) fn model_name(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.string("model", NAME_BYTES_MAX)? {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(ApiError::for_field("missing_field", "model", "`model` is required")),
    }
}

/// The old name and the new one; both at once must agree.
fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let new = fields.count("max_completion_tokens")?;
    let old = fields.count("max_tokens")?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => Err(ApiError::for_field(
            "out_of_range",
            "max_tokens",
            format!("`max_tokens` says {old} and `max_completion_tokens` {new}; give one of them"),
        )),
        _ => Ok(new.or(old)),
    }
}

fn stop(value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let list = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => return Err(wrong_type("stop".into(), "a string or a list of strings", &other)),
    };
    if list.len() > STOP_MAX {
        return Err(out_of_range("stop".into(), format!("at most {STOP_MAX} entries long, not {}", list.len())));
    }
    let mut stops = Vec::new();
    for (index, entry) in list.into_iter().enumerate() {
        match entry {
            Value::String(text) if text.is_empty() || text.len() > STOP_BYTES_MAX => {
                let wanted = format!("1 to {STOP_BYTES_MAX} bytes long, not {}", text.len());
                return Err(out_of_range(format!("stop[{index}]"), wanted));
            }
            Value::String(text) => stops.push(text),
            other => return Err(wrong_type(format!("stop[{index}]"), "a string", &other)),
        }
    }
    Ok(stops)
}

fn stream_options(value: Option<Value>, stream: bool) -> Result<bool, ApiError> {
    let Some(value) = value else { return Ok(false) };
    if !stream {
        return Err(ApiError::for_field(
            "out_of_range",
            "stream_options",
            "`stream_options` is only allowed with `stream: true`",
        ));
    }
    let mut options = Fields::from_value("stream_options".into(), value)?;
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[json!(false)])?;
    options.finish(&[])?;
    Ok(include_usage)
}

fn messages(value: Value) -> Result<Vec<Message>, ApiError> {
    let list = match value {
        Value::Array(list) => list,
        other => return Err(wrong_type("messages".into(), "a list", &other)),
    };
    if list.is_empty() || list.len() > MESSAGES_MAX {
        let wanted = format!("1 to {MESSAGES_MAX} entries long, not {}", list.len());
        return Err(out_of_range("messages".into(), wanted));
    }
    list.into_iter().enumerate().map(|(index, value)| message(format!("messages[{index}]"), value)).collect()
}

fn message(path: String, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::from_value(path, value)?;
    let role = role(&mut fields)?;
    let content = fields.required("content")?;
    let content = content_text(fields.name("content"), content, &["text"])?;
    fields.only("tool_calls", &[json!([])])?;
    fields.only("annotations", &[json!([])])?;
    fields.finish(&NOT_DONE_IN_MESSAGE)?;
    Ok(Message { role, content })
}

/// The speaker of a message; the roles of tools are refused, because no tools are offered.
pub(super) fn role(fields: &mut Fields) -> Result<Role, ApiError> {
    let name = fields.name("role");
    let word = match fields.required("role")? {
        Value::String(word) => word,
        other => return Err(wrong_type(name, "a string", &other)),
    };
    match word.as_str() {
        "developer" => Ok(Role::System),
        "tool" | "function" => {
            let message = format!("`{name}`: tools are not supported by this agent");
            Err(ApiError::for_field("unsupported_field", name, message))
        }
        word => {
            Role::parse(word).ok_or_else(|| out_of_range(name, "one of system, developer, user and assistant".into()))
        }
    }
}

/// A text, or a list of text parts whose `type` is one of `kinds`; they are joined without anything between.
pub(super) fn content_text(path: String, value: Value, kinds: &[&str]) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) if !parts.is_empty() && parts.len() <= MESSAGES_MAX => parts,
        Value::Array(parts) => {
            let wanted = format!("1 to {MESSAGES_MAX} parts long, not {}", parts.len());
            return Err(out_of_range(path, wanted));
        }
        other => return Err(wrong_type(path, "a string or a list of text parts", &other)),
    };
    let mut joined = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::from_value(format!("{path}[{index}]"), part)?;
        match part.required("type")? {
            Value::String(kind) if kinds.contains(&kind.as_str()) => {}
            _ => {
                let name = part.name("type");
                let message = format!("`{name}` must be {}; other parts are not supported", kinds.join(" or "));
                return Err(ApiError::for_field("unsupported_field", name, message));
            }
        }
        let name = part.name("text");
        match part.required("text")? {
            Value::String(text) => joined.push_str(&text),
            other => return Err(wrong_type(name, "a string", &other)),
        }
        // What our own answers carry, for clients that send them back.
        part.only("annotations", &[json!([])])?;
        part.only("logprobs", &[json!([])])?;
        part.finish(&[])?;
    }
    Ok(joined)
}

/// Builds the answer, whole or in chunks.
#[derive(Clone, Debug)]
pub struct ChatReply {
    /// `chatcmpl-…`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// Of the request: chunks then say `usage: null`.
    pub include_usage: bool,
}

impl ChatReply {
    /// The whole answer; `extra` is added at its top.
    pub fn whole(&self, text: &str, finish: Finish, usage: Usage, extra: Map<String, Value>) -> Value {
        let answer = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null, "annotations": []},
                "logprobs": null,
                "finish_reason": finish.as_str(),
            }],
            "usage": usage_json(usage),
        });
        with_extra(answer, extra)
    }

    /// First chunk: who speaks.
    pub fn role_chunk(&self) -> StreamEvent {
        self.chunk(json!({"role": "assistant", "content": "", "refusal": null}), Value::Null)
    }

    /// More text.
    pub fn delta_chunk(&self, text: &str) -> StreamEvent {
        self.chunk(json!({"content": text}), Value::Null)
    }

    /// Last chunk with a choice: why the text ended.
    pub fn finish_chunk(&self, finish: Finish) -> StreamEvent {
        self.chunk(json!({}), finish.as_str().into())
    }

    /// The chunk that `include_usage` asks for, without choices; `extra` is added at its top.
    pub fn usage_chunk(&self, usage: Usage, extra: Map<String, Value>) -> StreamEvent {
        let data = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [],
            "usage": usage_json(usage),
        });
        StreamEvent { event: None, data: with_extra(data, extra) }
    }

    /// What a stream ends with when the answer breaks off: the headers with their status are long gone.
    pub fn error_chunk(&self, error: &ApiError, request_id: &str) -> StreamEvent {
        StreamEvent { event: None, data: error.to_json(request_id) }
    }

    fn chunk(&self, delta: Value, finish_reason: Value) -> StreamEvent {
        let mut data = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
        });
        if self.include_usage {
            data["usage"] = Value::Null;
        }
        StreamEvent { event: None, data }
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens(),
    })
}

#[cfg(test)]
mod tests;
