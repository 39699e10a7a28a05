//! HTTP errors: `{error: {code, message, request_id}}`. The status follows who must act.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use infer::api::ApiError;
use serde_json::Value;

/// A refusal that tells the caller what to do; the inner story goes to the log.
#[derive(Debug)]
pub struct Problem {
    error: ApiError,
    /// Stands in the body beside the error.
    beside: Option<Box<(&'static str, Value)>>,
}

impl Problem {
    pub fn for_not_found(message: impl Into<String>) -> Self {
        ApiError { status: 404, code: "not_found", message: message.into(), param: None, retry_after_secs: None }.into()
    }

    pub fn for_forbidden(message: impl Into<String>) -> Self {
        ApiError { status: 403, code: "forbidden", message: message.into(), param: None, retry_after_secs: None }.into()
    }

    pub fn for_conflict(code: &'static str, message: impl Into<String>) -> Self {
        ApiError { status: 409, code, message: message.into(), param: None, retry_after_secs: None }.into()
    }

    pub fn for_unavail(message: impl Into<String>, retry_after_secs: u32) -> Self {
        ApiError::for_unavail("unavailable", message, retry_after_secs).into()
    }

    pub fn for_internal(inner: impl std::fmt::Display) -> Self {
        tracing::error!(%inner, "internal error");
        ApiError::for_internal().into()
    }

    /// Puts `value` beside the error in the body, if there is one.
    pub fn with(self, name: &'static str, value: Option<Value>) -> Self {
        Self { beside: value.map(|value| Box::new((name, value))), ..self }
    }

    pub fn retry_after(mut self, secs: u32) -> Self {
        self.error.retry_after_secs = Some(secs);
        self
    }

    pub fn api(&self) -> &ApiError {
        &self.error
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        Self { error, beside: None }
    }
}

/// The body of a request, whose refusal is one of ours.
pub struct Posted(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Posted {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Bytes::from_request(request, state).await.map(Self).map_err(|rejection| {
            let (status, code) = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => (413, "body_too_large"),
                _ => (400, "broken_body"),
            };
            let message = match status {
                413 => format!("the body is longer than {} bytes", super::BODY_BYTES_MAX),
                _ => "the body did not arrive whole".to_owned(),
            };
            ApiError { status, ..ApiError::for_bad_request(code, message) }.into()
        })
    }
}

/// A short id under which the log and the caller speak of the same refusal.
pub fn fresh_id(prefix: &str) -> String {
    format!("{prefix}{}", hex::encode(rand::random::<[u8; 12]>()))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let request_id = fresh_id("req_");
        let status = StatusCode::from_u16(self.error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut body: Value = self.error.to_json(&request_id);
        if let Some(beside) = self.beside {
            let (name, value) = *beside;
            body[name] = value;
        }
        let mut response = (status, Json(body)).into_response();
        if let Some(secs) = self.error.retry_after_secs {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if let Ok(id) = HeaderValue::from_str(&request_id) {
            response.headers_mut().insert("x-request-id", id);
        }
        response
    }
}
