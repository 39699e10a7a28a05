//! What a customer is told when a request cannot be served.

use serde_json::{Value, json};

use crate::wire::FailureKind;

/// An answer other than 2xx. The status follows who must act: 400 and 404 fix the request, 503 try again, 500 our bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    /// A word for programs; it never changes its meaning.
    pub code: &'static str,
    /// A sentence for people: what is wrong and what would be right.
    pub message: String,
    /// The field at fault, such as `messages[2].content`.
    pub param: Option<String>,
    /// Seconds after which the same request may succeed, for `Retry-After`.
    pub retry_after_secs: Option<u32>,
}

impl ApiError {
    /// The request is wrong as a whole (400).
    pub fn for_bad_request(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status: 400, code, message: message.into(), param: None, retry_after_secs: None }
    }

    /// One field is wrong (400).
    pub fn for_field(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::for_bad_request(code, message) }
    }

    /// Nothing here has that name (404).
    pub fn for_not_found(code: &'static str, param: &str, message: impl Into<String>) -> ApiError {
        ApiError { status: 404, ..ApiError::for_field(code, param, message) }
    }

    /// Not now (503).
    pub fn for_unavail(code: &'static str, message: impl Into<String>, retry_after_secs: u32) -> ApiError {
        ApiError { status: 503, retry_after_secs: Some(retry_after_secs), ..ApiError::for_bad_request(code, message) }
    }

    /// Our bug (500). The story behind it belongs into the log and not here.
    pub fn for_internal() -> ApiError {
        ApiError {
            status: 500,
            ..ApiError::for_bad_request("internal_error", "the agent failed; this is not the request's fault")
        }
    }

    /// What an engine's failure means to a customer. The engine's own words reach only the log, except
    /// where they are about the customer's text.
    pub fn for_engine(kind: FailureKind, message: &str) -> ApiError {
        match kind {
            FailureKind::Busy => {
                ApiError::for_unavail("engine_busy", "all places are taken and the queue is full; try again", 2)
            }
            FailureKind::EngineDied => {
                ApiError::for_unavail("engine_restarting", "the model is being started again; try again", 1)
            }
            FailureKind::TooLong => ApiError::for_bad_request("context_length_exceeded", message),
            FailureKind::Grammar => ApiError::for_bad_request(
                "invalid_schema",
                format!("the answer cannot be held to the schema that was asked for: {message}"),
            ),
            FailureKind::Invalid | FailureKind::Internal | FailureKind::State => ApiError::for_internal(),
        }
    }

    /// The body. `type` and `param` are what OpenAI's SDKs read beside our own fields.
    pub fn to_json(&self, request_id: &str) -> Value {
        let kind = match self.status {
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {
            "code": self.code,
            "message": self.message,
            "request_id": request_id,
            "type": kind,
            "param": self.param,
        }})
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status, self.code, self.message)
    }
}

impl std::error::Error for ApiError {}
