//! The API that is sold: OpenAI's, as its documentation describes it, strictly.
//!
//! Every documented field is either done or refused with a 400 that names it, and so is every
//! unknown one: nothing is silently ignored. A refused field whose value asks for nothing
//! (`null`, `n: 1`, `logprobs: false`) is let through, because the SDKs send such values.
//!
//! Requests become plain values; answers are built as JSON from plain values. HTTP is the caller's.

pub mod chat;
mod error;
pub mod models;
pub mod responses;
mod strict;

pub use chat::{ChatCompletionRequest, ChatReply};
pub use error::ApiError;
pub use models::models_list;
pub use responses::{ResponseReply, ResponseStream, ResponsesRequest};

use serde_json::{Map, Value};

use crate::wire::Generate;

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
}

impl Role {
    /// The word that templates and stored conversations use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }

    /// The inverse of [`Role::as_str`], for stored conversations.
    pub fn parse(word: &str) -> Option<Role> {
        match word {
            "system" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            _ => None,
        }
    }
}

/// One turn of a conversation; text parts are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// How tokens are chosen. `None` is the default below.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 (greedy) to 2.
    pub temperature: Option<f32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    pub seed: Option<u64>,
}

/// Temperature of a request that names none. OpenAI's own default is 1, which makes a model of this
/// size ramble; this and the next come from the example on SmolLM2's model card. `top_p` is only
/// defaulted together with the temperature, so that a caller who sets one of them gets what it says.
pub const TEMPERATURE_DEFAULT: f32 = 0.2;
pub const TOP_P_DEFAULT: f32 = 0.9;

impl Sampling {
    /// The engine's request for this prompt. `seed` is used where the customer chose none: chance is the
    /// caller's, so that it can be recorded.
    pub fn generate(self, prompt: String, max_tokens: u32, stop: Vec<String>, seed: u64) -> Generate {
        let top_p_default = if self.temperature.is_none() { TOP_P_DEFAULT } else { 1.0 };
        Generate {
            prompt,
            // The templates write the first token themselves, as Hugging Face's do.
            add_bos: false,
            max_tokens,
            temperature: self.temperature.unwrap_or(TEMPERATURE_DEFAULT),
            top_p: self.top_p.unwrap_or(top_p_default),
            top_k: 0,
            seed: self.seed.unwrap_or(seed),
            stop,
        }
    }
}

/// What an answer used, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
}

impl Usage {
    /// Prompt and answer together; both are bounded by the context, so the sum saturates only in theory.
    pub fn total_tokens(self) -> u32 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
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
