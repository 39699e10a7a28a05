//! Errors in OpenAI's shape, so that its SDKs raise what their users expect.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pay::buyer::{Error, Kind};
use serde_json::json;

const DAY_SECS: u64 = 86_400;

/// An answer of the proxy's own.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: String,
    retry_after_secs: Option<u64>,
}

impl Problem {
    pub fn for_bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
    }

    pub fn for_too_long(bytes_max: usize) -> Self {
        let message = format!("the request is longer than {bytes_max} bytes, the most that an agent reads");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "request_too_large", message)
    }

    pub fn for_browser() -> Self {
        let message = "a web page may not spend this budget: requests with an Origin are refused";
        Self::new(StatusCode::FORBIDDEN, "invalid_request_error", "origin_refused", message)
    }

    pub fn for_not_found(path: &str) -> Self {
        let message = format!("there is nothing at {path}; the base URL ends in /v1");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "not_found", message)
    }

    /// Nothing was paid.
    pub fn for_unreachable(message: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "agent_unreachable", message);
        Self { retry_after_secs: Some(2), ..problem }
    }

    /// A call that `error` ended. `now` is real time, for when the budget opens again.
    pub fn for_call(error: &Error, now: u64) -> Self {
        match error.kind {
            Kind::Unreachable => Self::for_unreachable(format!("{error}; nothing was paid")),
            Kind::OutcomeUnknown => Self {
                retry_after_secs: Some(2),
                ..Self::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "server_error",
                    "outcome_unknown",
                    format!(
                        "{error}; nobody knows yet whether the payment was taken. Ask exactly the same again: the same \
                         payment is sent, so it costs nothing more"
                    ),
                )
            },
            Kind::TooExpensive => Self::new(
                StatusCode::PAYMENT_REQUIRED,
                "invalid_request_error",
                "price_over_limit",
                format!("{error}; nothing was paid. Raise --max-usdc or --budget, or ask for fewer max_tokens"),
            ),
            Kind::BudgetUsed => {
                let left = DAY_SECS - now % DAY_SECS;
                let message = format!(
                    "{error}; nothing was paid. The budget opens again at 00:00 UTC, in {} h {} min; or raise --budget",
                    left / 3_600,
                    left % 3_600 / 60
                );
                let problem =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota", message);
                Self { retry_after_secs: Some(left), ..problem }
            }
            Kind::Refused => Self::new(
                StatusCode::PAYMENT_REQUIRED,
                "invalid_request_error",
                "payment_refused",
                format!("{error}; the payer may be out of USDC"),
            ),
            Kind::NoAllowance => Self::new(
                StatusCode::PAYMENT_REQUIRED,
                "invalid_request_error",
                "no_allowance",
                format!("{error}; nothing was paid. Approve Permit2 once by a transaction of the payer's"),
            ),
            Kind::WrongSeller | Kind::BadAnswer => Self::new(
                StatusCode::BAD_GATEWAY,
                "server_error",
                "not_the_agent",
                format!("{error}; nothing was paid to it"),
            ),
            Kind::InUse | Kind::Usage => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "proxy_error", error.to_string())
            }
        }
    }

    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code, message: message.into(), retry_after_secs: None }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "message": self.message, "type": self.kind, "param": null, "code": self.code } });
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        // SDKs repeat a 429 by themselves; until tomorrow that is in vain, and they know this header.
        if !self.status.is_server_error() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        (self.status, headers, Body::from(body.to_string())).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_budget_says_when_it_opens_again() {
        let error = Error { kind: Kind::BudgetUsed, url: "http://a".into(), message: "asks 1".into() };
        let problem = Problem::for_call(&error, 20 * DAY_SECS + 82_800);
        assert_eq!(problem.retry_after_secs, Some(3_600));
        assert!(problem.message.contains("in 1 h 0 min"), "{}", problem.message);
    }
}
