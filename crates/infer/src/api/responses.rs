//! `POST /v1/responses`: an answer that can be stored and gone on from.

use serde_json::{Map, Value, json};

use super::chat::{content_text, role_without_tools};
use super::settings::{model_name, text_format};
use super::strict::{Fields, out_of_range, wrong_type};
use super::{
    Answered, ApiError, MESSAGES_MAX, Message, NAME_BYTES_MAX, Role, Sampling, Settings, StreamEvent, Usage, with_extra,
};
use crate::wire::{Finish, Grammar};

/// As a receipt's run names it.
pub const ROUTE: &str = "POST /v1/responses";
/// Longest text the caller of `instructions` may send, in bytes; the body's own limit is the same.
pub(super) const INSTRUCTIONS_BYTES_MAX: usize = 1 << 20;
/// OpenAI's own bounds of `metadata`.
pub(super) const METADATA_ENTRIES_MAX: usize = 16;
pub(super) const METADATA_VALUE_BYTES_MAX: usize = 512;

/// Documented fields that are refused whatever they say.
pub(super) const NOT_DONE: [&str; 15] = [
    "access_programs",
    "background_options",
    "conversation",
    "image",
    "max_tool_calls",
    "moderation",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "stream_options",
    "tool_choice",
    "context_management",
];

/// And those of which only values are let through that ask for nothing more.
pub(super) fn harmless() -> [(&'static str, Vec<Value>); 7] {
    [
        ("background", vec![json!(false)]),
        ("include", vec![json!([])]),
        ("parallel_tool_calls", vec![json!(true), json!(false)]),
        ("service_tier", vec![json!("auto"), json!("default")]),
        ("tools", vec![json!([])]),
        ("top_logprobs", vec![json!(0)]),
        ("truncation", vec![json!("disabled")]),
    ]
}

/// Documented fields of a message that are refused whatever they say.
pub(super) const NOT_DONE_IN_MESSAGE: [&str; 1] = ["phase"];

/// A request whose every field was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesRequest {
    pub model: String,
    /// At least one; a plain `input` is one message of the user.
    pub input: Vec<Message>,
    /// A system message for this answer alone: it is not handed on to those that follow.
    pub instructions: Option<String>,
    pub previous_response_id: Option<String>,
    /// Whether the answer is kept and can be gone on from. Absent: no, unlike OpenAI: nothing is kept unasked.
    pub store: bool,
    pub stream: bool,
    pub settings: Settings,
    /// Kept with the answer and sent back with it.
    pub metadata: Map<String, Value>,
    pub user: Option<String>,
}

impl ResponsesRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<ResponsesRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = model_name(&mut fields)?;
        let input = input(fields.required("input")?)?;
        let instructions = fields.string("instructions", INSTRUCTIONS_BYTES_MAX)?;
        let previous_response_id = fields.string("previous_response_id", NAME_BYTES_MAX)?;
        let store = fields.bool("store")?.unwrap_or(false);
        let stream = fields.bool("stream")?.unwrap_or(false);
        let max_tokens = fields.count("max_output_tokens")?;
        // OpenAI's responses have no `seed`, so that one is refused as unknown.
        let sampling = Sampling::take(&mut fields)?;
        let form = text_format(fields.take("text"))?;
        let metadata = metadata(fields.take("metadata"))?;
        let user = fields.string("user", NAME_BYTES_MAX)?;
        fields.only_of_each(&harmless())?;
        fields.finish(&NOT_DONE)?;
        Ok(ResponsesRequest {
            model,
            input,
            instructions,
            previous_response_id,
            store,
            stream,
            settings: Settings { max_tokens, sampling, form, ..Settings::default() },
            metadata,
            user,
        })
    }
}

impl ResponsesRequest {
    /// The whole conversation as the model sees it: instructions of this answer, what was said before, the new input.
    pub fn conversation(&self, before: Vec<Message>) -> Result<Vec<Message>, ApiError> {
        let instructions = self.instructions.iter().map(|text| Message::new(Role::System, text.clone()));
        let messages: Vec<Message> = instructions.chain(before).chain(self.input.iter().cloned()).collect();
        if messages.len() > MESSAGES_MAX {
            let message = format!("the conversation has more than {MESSAGES_MAX} messages; begin a new one");
            return Err(ApiError::for_field("invalid_value", "previous_response_id", message));
        }
        Ok(messages)
    }
}

fn input(value: Value) -> Result<Vec<Message>, ApiError> {
    let items = match value {
        Value::String(content) => return Ok(vec![Message::new(Role::User, content)]),
        Value::Array(items) => items,
        other => return Err(wrong_type("input".into(), "a string or a list of messages", &other)),
    };
    if items.is_empty() || items.len() > MESSAGES_MAX {
        let wanted = format!("1 to {MESSAGES_MAX} entries long, not {}", items.len());
        return Err(out_of_range("input".into(), wanted));
    }
    items.into_iter().enumerate().map(|(index, value)| item(format!("input[{index}]"), value)).collect()
}

/// A message; also one of our own output, sent back with its `id` and `status`.
fn item(path: String, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::from_value(path, value)?;
    fields.only("type", &[json!("message")])?;
    let role = role_without_tools(&mut fields)?;
    let content = fields.required("content")?;
    let content = content_text(fields.name("content"), content, &["input_text", "output_text"])?;
    fields.string("id", NAME_BYTES_MAX)?;
    fields.only("status", &[json!("completed"), json!("incomplete")])?;
    fields.finish(&NOT_DONE_IN_MESSAGE)?;
    Ok(Message::new(role, content))
}

fn metadata(value: Option<Value>) -> Result<Map<String, Value>, ApiError> {
    let entries = match value {
        None => return Ok(Map::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong_type("metadata".into(), "an object", &other)),
    };
    if entries.len() > METADATA_ENTRIES_MAX {
        let wanted = format!("at most {METADATA_ENTRIES_MAX} entries long, not {}", entries.len());
        return Err(out_of_range("metadata".into(), wanted));
    }
    for (name, value) in &entries {
        let fits = matches!(value, Value::String(text) if text.len() <= METADATA_VALUE_BYTES_MAX);
        if !fits || name.len() > NAME_BYTES_MAX {
            let wanted =
                format!("names of at most {NAME_BYTES_MAX} bytes with strings of at most {METADATA_VALUE_BYTES_MAX}");
            return Err(out_of_range("metadata".into(), wanted));
        }
    }
    Ok(entries)
}

/// What stays the same in every picture of one response.
#[derive(Clone, Debug)]
pub struct ResponseReply {
    /// `resp_…`
    pub id: String,
    /// `msg_…`, of the one message in the output.
    pub message_id: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The model that answers.
    pub model: String,
    pub request: ResponsesRequest,
}

impl ResponseReply {
    /// The finished response; `extra` is added at its top.
    pub fn whole(&self, answered: Answered<'_>, extra: Map<String, Value>) -> Value {
        self.finished(answered.text, answered.finish, answered.usage, extra)
    }

    fn finished(&self, text: &str, finish: Finish, usage: Usage, extra: Map<String, Value>) -> Value {
        let mut answer = self.picture(status(finish));
        answer["output"] = json!([self.message(text, status(finish))]);
        answer["usage"] = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens(),
        });
        if finish == Finish::Length {
            answer["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        with_extra(answer, extra)
    }

    fn picture(&self, status: &str) -> Value {
        let request = &self.request;
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": null,
            "instructions": request.instructions,
            "max_output_tokens": request.settings.max_tokens,
            "model": self.model,
            "output": [],
            "parallel_tool_calls": false,
            "previous_response_id": request.previous_response_id,
            "store": request.store,
            "temperature": request.settings.sampling.temperature,
            "text": {"format": self.format()},
            "tool_choice": "auto",
            "tools": [],
            "top_p": request.settings.sampling.top_p,
            "truncation": "disabled",
            "usage": null,
            "user": request.user,
            "metadata": request.metadata,
        })
    }

    fn format(&self) -> Value {
        match self.request.settings.form.as_ref().map(|form| &form.grammar) {
            Some(Grammar::JsonSchema(schema)) => json!({"type": "json_schema", "schema": schema}),
            Some(Grammar::Lark(_)) | None => json!({"type": "text"}),
        }
    }

    fn message(&self, text: &str, status: &str) -> Value {
        json!({
            "id": self.message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [text_part(text)],
        })
    }
}

fn status(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "completed",
        Finish::Length => "incomplete",
        Finish::Cancelled => "cancelled",
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The events of one streamed response, in the order in which the SDKs want them; it numbers them.
#[derive(Clone, Debug)]
pub struct ResponseStream {
    reply: ResponseReply,
    text: String,
    sequence_number: u64,
}

impl ResponseStream {
    pub fn new(reply: ResponseReply) -> ResponseStream {
        ResponseStream { reply, text: String::new(), sequence_number: 0 }
    }

    /// Everything that comes before the first text.
    pub fn open(&mut self) -> Vec<StreamEvent> {
        let picture = self.reply.picture("in_progress");
        let mut message = self.reply.message("", "in_progress");
        message["content"] = json!([]);
        let place = self.place();
        vec![
            self.event("response.created", json!({"response": picture})),
            self.event("response.in_progress", json!({"response": picture})),
            self.event("response.output_item.added", json!({"output_index": 0, "item": message})),
            self.event("response.content_part.added", with(place, json!({"part": text_part("")}))),
        ]
    }

    /// More text.
    pub fn delta(&mut self, text: &str) -> StreamEvent {
        self.text.push_str(text);
        let place = self.place();
        self.event("response.output_text.delta", with(place, json!({"delta": text, "logprobs": []})))
    }

    /// The end: the text as a whole, and the finished response with `extra` at its top.
    pub fn close(&mut self, finish: Finish, usage: Usage, extra: Map<String, Value>) -> Vec<StreamEvent> {
        let text = self.text.clone();
        let item = self.reply.message(&text, status(finish));
        let whole = self.reply.finished(&text, finish, usage, extra);
        let last = match finish {
            Finish::Length => "response.incomplete",
            Finish::Stop | Finish::Cancelled => "response.completed",
        };
        let place = self.place();
        vec![
            self.event("response.output_text.done", with(place.clone(), json!({"text": text, "logprobs": []}))),
            self.event("response.content_part.done", with(place, json!({"part": text_part(&text)}))),
            self.event("response.output_item.done", json!({"output_index": 0, "item": item})),
            self.event(last, json!({"response": whole})),
        ]
    }

    /// The end of a response that broke off.
    pub fn fail(&mut self, error: &ApiError) -> StreamEvent {
        let mut picture = self.reply.picture("failed");
        picture["error"] = json!({"code": error.code, "message": error.message});
        self.event("response.failed", json!({"response": picture}))
    }

    fn place(&self) -> Value {
        json!({"item_id": self.reply.message_id, "output_index": 0, "content_index": 0})
    }

    fn event(&mut self, name: &'static str, more: Value) -> StreamEvent {
        let head = json!({"type": name, "sequence_number": self.sequence_number});
        self.sequence_number += 1;
        StreamEvent { event: Some(name), data: with(head, more) }
    }
}

/// Both objects' fields in one.
fn with(head: Value, more: Value) -> Value {
    match more {
        Value::Object(fields) => with_extra(head, fields),
        _ => head,
    }
}

#[cfg(test)]
mod tests;
