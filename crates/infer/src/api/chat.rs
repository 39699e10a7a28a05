//! `POST /v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::settings::{model_name, response_format, stop, stream_options};
use super::strict::{Fields, out_of_range, wrong_type};
use super::tools::{Taken, Taker, calls_of_message};
use super::{
    Answered, ApiError, MESSAGES_MAX, Message, NAME_BYTES_MAX, Role, Sampling, Settings, StreamEvent, Tool, ToolCall,
    Tools, with_extra,
};
use crate::wire::{Finish, TokenLogprob};

/// As a receipt's run names it.
pub const ROUTE: &str = "POST /v1/chat/completions";
/// Most alternatives told of a token (OpenAI's own bound).
pub(super) const TOP_LOGPROBS_MAX: u8 = 20;

/// Documented fields that are refused whatever they say.
pub(super) const NOT_DONE: [&str; 11] = [
    "audio",
    "function_call",
    "functions",
    "moderation",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "web_search_options",
];

/// Documented fields of a message that are refused unless they are empty.
pub(super) const NOT_DONE_IN_MESSAGE: [&str; 4] = ["name", "audio", "function_call", "refusal"];

/// Documented fields of a part of a message that are refused.
const NOT_DONE_IN_PART: [&str; 1] = ["prompt_cache_breakpoint"];
/// Of a part's kind, in an error: it can be as long as the body.
const KIND_CHARS_MAX: usize = 100;

/// And those of which only values are let through that ask for nothing more.
pub(super) fn harmless() -> [(&'static str, Vec<Value>); 6] {
    [
        ("n", vec![json!(1)]),
        ("metadata", vec![json!({})]),
        ("modalities", vec![json!(["text"])]),
        ("service_tier", vec![json!("auto"), json!("default")]),
        ("store", vec![json!(false)]),
        ("verbosity", vec![json!("medium")]),
    ]
}

/// A request whose every field was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatCompletionRequest {
    /// As the customer spelled it; whether it is the one served here is the caller's question.
    pub model: String,
    /// At least one.
    pub messages: Vec<Message>,
    pub tools: Option<Tools>,
    pub settings: Settings,
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
        let sampling = Sampling::take_all(&mut fields)?;
        let stop = stop(fields.take("stop"))?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields.take("stream_options"), stream)?;
        let user = fields.string("user", NAME_BYTES_MAX)?;
        let logprobs = logprobs(&mut fields)?;
        let tools = Tools::take(&mut fields)?;
        let format = response_format(fields.take("response_format"))?;
        if tools.is_some() && format.is_some() {
            let message = "`response_format` cannot be had together with `tools`; set `tool_choice` to none";
            return Err(ApiError::for_field("unsupported_field", "response_format", message));
        }
        fields.only_of_each(&harmless())?;
        fields.finish(&NOT_DONE)?;
        let form = format.or_else(|| tools.as_ref().map(Tools::form));
        let settings = Settings { max_tokens, stop, sampling, logprobs, form, add_bos: false };
        Ok(ChatCompletionRequest { model, messages, tools, settings, stream, include_usage, user })
    }
}

impl ChatCompletionRequest {
    /// What the model may call.
    pub fn offered_tools(&self) -> &[Tool] {
        self.tools.as_ref().map(|tools| tools.list.as_slice()).unwrap_or_default()
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

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.count_within("top_logprobs", TOP_LOGPROBS_MAX)?;
    match (wanted, top) {
        (false, Some(top)) if top > 0 => Err(ApiError::for_field(
            "out_of_range",
            "top_logprobs",
            "`top_logprobs` is only allowed with `logprobs: true`",
        )),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
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
    let tool_calls = match role {
        Role::Assistant => calls_of_message(fields.name("tool_calls"), fields.take("tool_calls"))?,
        Role::System | Role::User | Role::Tool => {
            fields.only("tool_calls", &[json!([])])?;
            Vec::new()
        }
    };
    let tool_call_id = match role {
        Role::Tool => {
            let name = fields.name("tool_call_id");
            let id = fields.string("tool_call_id", NAME_BYTES_MAX)?;
            Some(id.ok_or_else(|| ApiError::for_field("missing_field", &name, format!("`{name}` is required")))?)
        }
        Role::System | Role::User | Role::Assistant => {
            fields.only("tool_call_id", &[])?;
            None
        }
    };
    // Whoever only calls says nothing.
    let content = if tool_calls.is_empty() { Some(fields.required("content")?) } else { fields.take("content") };
    let content = match content {
        Some(content) => content_text(fields.name("content"), content, &["text"])?,
        None => String::new(),
    };
    fields.only("annotations", &[json!([])])?;
    fields.finish(&NOT_DONE_IN_MESSAGE)?;
    Ok(Message { role, content, tool_calls, tool_call_id })
}

/// The speaker of a message.
fn role(fields: &mut Fields) -> Result<Role, ApiError> {
    let name = fields.name("role");
    let word = match fields.required("role")? {
        Value::String(word) => word,
        other => return Err(wrong_type(name, "a string", &other)),
    };
    match word.as_str() {
        "developer" => Ok(Role::System),
        "function" => {
            let message = format!("`{name}`: functions are not supported by this agent; use `tools`");
            Err(ApiError::for_field("unsupported_field", name, message))
        }
        word => Role::parse(word)
            .ok_or_else(|| out_of_range(name, "one of system, developer, user, assistant and tool".into())),
    }
}

/// [`role`] where no tools are offered.
pub(super) fn role_without_tools(fields: &mut Fields) -> Result<Role, ApiError> {
    match role(fields)? {
        Role::Tool => {
            let name = fields.name("role");
            let message = format!("`{name}`: tools are not supported on this route");
            Err(ApiError::for_field("unsupported_field", name, message))
        }
        role => Ok(role),
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
            kind => {
                let (name, kind) = (part.name("type"), kind.to_string());
                let kind: String = kind.chars().take(KIND_CHARS_MAX).collect();
                let message = format!("`{name}` must be {}; {kind} is not supported by this agent", kinds.join(" or "));
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
        part.finish(&NOT_DONE_IN_PART)?;
    }
    Ok(joined)
}

/// What stays the same in every piece of one answer.
#[derive(Clone, Debug)]
pub struct ChatReply {
    /// `chatcmpl-…`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// Of the request: chunks then say `usage: null`, and one more chunk tells it.
    pub include_usage: bool,
    /// Of the request: probabilities are told.
    pub logprobs: bool,
    /// Of the request: the answer may hold calls.
    pub tools: bool,
}

impl ChatReply {
    /// The whole answer; `extra` is added at its top.
    pub fn whole(&self, answered: Answered<'_>, extra: Map<String, Value>) -> Value {
        let (said, calls) = self.take_apart(answered.text);
        // Null is OpenAI's word for nothing, but only where there are calls instead.
        let content = if said.is_empty() && !calls.is_empty() { Value::Null } else { said.into() };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null, "annotations": []});
        if !calls.is_empty() {
            message["tool_calls"] = calls.iter().map(ToolCall::to_json).collect();
        }
        let answer = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": message,
                "logprobs": self.logprobs_json(answered.logprobs),
                "finish_reason": finish_reason(answered.finish, !calls.is_empty()),
            }],
            "usage": answered.usage.to_json(),
        });
        with_extra(answer, extra)
    }

    fn take_apart(&self, text: &str) -> (String, Vec<ToolCall>) {
        if !self.tools {
            return (text.to_owned(), Vec::new());
        }
        let mut taker = Taker::new(&self.id);
        let Taken { mut said, calls } = taker.push(text);
        said.push_str(&taker.finish());
        (said, calls)
    }

    fn logprobs_json(&self, logprobs: &[TokenLogprob]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let one = |bytes: &[u8], logprob: f64| json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes});
        let content: Vec<Value> = logprobs
            .iter()
            .map(|token| {
                let mut told = one(&token.bytes, token.logprob);
                told["top_logprobs"] = token.top.iter().map(|(bytes, logprob)| one(bytes, *logprob)).collect();
                told
            })
            .collect();
        json!({"content": content, "refusal": null})
    }

    fn chunk(&self, delta: Value, logprobs: &[TokenLogprob], finish_reason: Value) -> StreamEvent {
        let logprobs = if logprobs.is_empty() { Value::Null } else { self.logprobs_json(logprobs) };
        let mut data = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
        });
        if self.include_usage {
            data["usage"] = Value::Null;
        }
        StreamEvent { event: None, data }
    }
}

fn finish_reason(finish: Finish, calls: bool) -> &'static str {
    match finish {
        Finish::Stop if calls => "tool_calls",
        finish => finish.as_str(),
    }
}

/// The same answer in chunks.
#[derive(Clone, Debug)]
pub struct ChatStream {
    reply: ChatReply,
    /// Where there may be calls.
    taker: Option<Taker>,
    calls: usize,
}

impl ChatStream {
    pub fn new(reply: ChatReply) -> ChatStream {
        let taker = reply.tools.then(|| Taker::new(&reply.id));
        ChatStream { reply, taker, calls: 0 }
    }

    /// First chunk: who speaks.
    pub fn open(&self) -> StreamEvent {
        self.reply.chunk(json!({"role": "assistant", "content": "", "refusal": null}), &[], Value::Null)
    }

    /// More text, or whole calls. Nothing while a call is being written.
    pub fn delta(&mut self, text: &str, logprobs: &[TokenLogprob]) -> Vec<StreamEvent> {
        let Taken { said, calls } = match &mut self.taker {
            Some(taker) => taker.push(text),
            None => Taken { said: text.to_owned(), calls: Vec::new() },
        };
        let mut chunks = Vec::new();
        // Tokens without text of their own are told of all the same.
        if !said.is_empty() || (self.reply.logprobs && !logprobs.is_empty()) {
            chunks.push(self.reply.chunk(json!({"content": said}), logprobs, Value::Null));
        }
        for call in calls {
            let mut call = call.to_json();
            call["index"] = self.calls.into();
            self.calls += 1;
            chunks.push(self.reply.chunk(json!({"tool_calls": [call]}), &[], Value::Null));
        }
        chunks
    }

    /// The end: why the text ended, and the usage where it was asked for. `extra` is at the top of the last one: a chunk
    /// without choices that nobody asked for would surprise programs.
    pub fn close(&mut self, finish: Finish, usage: super::Usage, extra: Map<String, Value>) -> Vec<StreamEvent> {
        let mut chunks = Vec::new();
        let rest = self.taker.as_mut().map(Taker::finish).unwrap_or_default();
        if !rest.is_empty() {
            chunks.push(self.reply.chunk(json!({"content": rest}), &[], Value::Null));
        }
        chunks.push(self.reply.chunk(json!({}), &[], finish_reason(finish, self.calls > 0).into()));
        if self.reply.include_usage {
            let data = json!({
                "id": self.reply.id,
                "object": "chat.completion.chunk",
                "created": self.reply.created,
                "model": self.reply.model,
                "choices": [],
                "usage": usage.to_json(),
            });
            chunks.push(StreamEvent { event: None, data });
        }
        if let Some(last) = chunks.last_mut() {
            last.data = with_extra(std::mem::take(&mut last.data), extra);
        }
        chunks
    }

    /// What a stream ends with when the answer breaks off: the headers with their status are long gone.
    pub fn fail(&self, error: &ApiError) -> StreamEvent {
        StreamEvent { event: None, data: error.to_json(&self.reply.id) }
    }
}

#[cfg(test)]
mod tests;
