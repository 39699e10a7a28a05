//! The API that is sold: OpenAI's, as its documentation describes it, strictly; and `rerank`, `classify`, `extract`
//! and `verify`, which OpenAI lacks.
//!
//! Every documented field is either done or refused with a 400 that names it, and so is every
//! unknown one: nothing is silently ignored. A refused field whose value asks for nothing
//! (`null`, `n: 1`, `logprobs: false`) is let through, because the SDKs send such values.
//!
//! Requests become plain values; answers are built as JSON from plain values. HTTP is the caller's.

pub mod batches;
pub mod chat;
pub mod classify;
pub mod completions;
pub mod embeddings;
mod error;
pub mod extract;
pub mod files;
pub mod models;
pub mod rerank;
pub mod responses;
pub mod schema;
mod settings;
mod strict;
mod tools;
pub mod verify;

pub use chat::{ChatCompletionRequest, ChatReply, ChatStream};
pub use classify::{ClassifyReply, ClassifyRequest};
pub use completions::{CompletionReply, CompletionRequest};
pub use embeddings::{EmbeddingReply, EmbeddingRequest};
pub use error::ApiError;
pub use extract::{ExtractReply, ExtractRequest};
pub use models::models_list;
pub use rerank::{RerankReply, RerankRequest};
pub use responses::{ResponseReply, ResponseStream, ResponsesRequest};
pub use settings::{Form, Sampling, Settings, TEMPERATURE_DEFAULT, TOP_P_DEFAULT};
pub(crate) use tools::{CLOSE as TOOL_CALL_CLOSE, OPEN as TOOL_CALL_OPEN};
pub use tools::{Tool, ToolCall, ToolChoice, Tools};
pub use verify::{VerifyReply, VerifyRequest};

use serde_json::{Map, Value, json};

use crate::wire::{Finish, TokenLogprob};

/// Most messages of one conversation.
pub const MESSAGES_MAX: usize = 1_000;
/// Most stop strings (OpenAI's own bound).
pub const STOP_MAX: usize = 4;
/// Longest stop string, in bytes: the engine holds that much text back while it streams. A choice.
pub const STOP_BYTES_MAX: usize = 256;
/// Longest name of a model, and the like, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Who says something in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `system`, and `developer`, which the models that run here were not trained on.
    System,
    User,
    Assistant,
    /// What a tool answered.
    Tool,
}

impl Role {
    /// The word that templates and stored conversations use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The inverse of [`Role::as_str`], for stored conversations.
    pub fn parse(word: &str) -> Option<Role> {
        match word {
            "system" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            "tool" => Some(Role::Tool),
            _ => None,
        }
    }
}

/// One turn of a conversation; text parts are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: String,
    /// Of an assistant.
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool: which call it answers.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A turn that is only text.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }
}

/// An answer as the engine made it.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    pub text: &'a str,
    /// One for each token, where they were asked for.
    pub logprobs: &'a [TokenLogprob],
    pub finish: Finish,
    pub usage: Usage,
}

/// What an answer used, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// Of them, those that were in the engine's context already.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
}

impl Usage {
    /// Prompt and answer together; both are bounded by the context, so the sum saturates only in theory.
    pub fn total_tokens(self) -> u32 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }

    /// As completions and chat completions spell it.
    fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens(),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }
}

/// One event of a stream, before HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEvent {
    /// Name of the event; chat completions have none.
    pub event: Option<&'static str>,
    pub data: Value,
}

impl StreamEvent {
    /// The event as server-sent text. JSON has no raw line breaks, so one `data` line is enough.
    pub fn to_sse(&self) -> bytes::Bytes {
        let mut text = String::new();
        if let Some(event) = self.event {
            text = format!("event: {event}\n");
        }
        text.push_str(&format!("data: {}\n\n", self.data));
        text.into()
    }
}

/// The last line of a stream of chat completion chunks.
pub const SSE_DONE: &str = "data: [DONE]\n\n";
/// A line that says only that the connection lives.
pub const SSE_KEEP_ALIVE: &str = ": keep-alive\n\n";

/// Adds our own fields (a receipt's id, say) to an answer, where SDKs ignore what they do not know.
fn with_extra(mut answer: Value, extra: Map<String, Value>) -> Value {
    if let Value::Object(fields) = &mut answer {
        fields.extend(extra);
    }
    answer
}
