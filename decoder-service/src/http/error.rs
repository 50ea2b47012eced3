//! Refusals as clients of OpenAI's API read them: `{"error": {message, type, param, code}}`.

use std::time::Duration;

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{embed_tier::LookupError, error::Error};

/// When to try again a request that met a service which is loading or shutting down.
const SOON: Duration = Duration::from_secs(1);

/// Why a request is not answered.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// One of OpenAI's types of errors.
    kind: &'static str,
    message: String,
    /// The field that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// The request is wrong as a whole.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field is wrong; the problem goes on where the field's name ends.
    pub(super) fn field(field: &str, problem: impl AsRef<str>) -> Self {
        let message = format!("{field} {}", problem.as_ref());
        Self {
            param: Some(field.to_owned()),
            ..Self::bad_request(message)
        }
    }

    /// There is nothing of that name.
    pub(super) fn not_found(message: impl Into<String>, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        }
    }

    /// The path is there, but not for this method.
    pub(super) fn method_not_allowed(message: impl Into<String>) -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(status, "invalid_request_error", message)
    }

    /// The body is longer than may be.
    pub(super) fn too_large(most: usize) -> Self {
        let message = format!("the body is too large; at most {most} bytes are allowed");
        Self {
            code: Some("body_too_large"),
            ..Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request_error",
                message,
            )
        }
    }

    /// The body did not come in time.
    pub(super) fn too_slow(limit: Duration) -> Self {
        let message = format!("the body did not arrive within {} s", limit.as_secs());
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            message,
        )
    }

    /// Too many bodies are being read.
    pub(super) fn too_many_bodies() -> Self {
        Self {
            code: Some("overloaded"),
            retry_after: Some(SOON),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "too many requests are being read; try again later",
            )
        }
    }

    /// Of an error that ends a request, also in the middle of a stream.
    pub(super) fn json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

/// Fields of a draft under the names that requests of this protocol have for them.
fn field_over_http(field: &str) -> &str {
    match field {
        "text" | "token_ids" => "prompt",
        field => field,
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (text, outcome) = (error.to_string(), error.outcome());
        let unavailable = |code, text| Self {
            code: Some(code),
            retry_after: Some(SOON),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", text)
        };
        let limited = |code, retry_after, text| Self {
            code: Some(code),
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", text)
        };
        let internal = |text: String| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Self::new(status, "server_error", text)
        };
        match error {
            Error::InvalidField { field, problem } => Self::field(field_over_http(field), problem),
            Error::UnknownTable(_) => Self::not_found(text, "model_not_found"),
            Error::QueueFull { retry_after, .. }
            | Error::QueueTooLong { retry_after, .. }
            | Error::ClientBusy { retry_after, .. }
            | Error::KeyBusy { retry_after, .. } => limited(outcome, retry_after, text),
            Error::KeyRate { retry_after, .. } => limited("rate_limit_exceeded", retry_after, text),
            Error::Unauthenticated => Self {
                code: Some("invalid_api_key"),
                ..Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", text)
            },
            Error::TooMuchText { .. } | Error::TooManyRanks { .. } => limited(outcome, SOON, text),
            Error::Loading => unavailable("loading", text),
            Error::Draining => unavailable("draining", text),
            Error::DeadlineExceeded { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", text)
            }
            Error::Cancelled | Error::ClientStalled(_) => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", text)
            }
            Error::Lookup(LookupError::Unavailable(_)) => {
                unavailable("embed_tier_unavailable", text)
            }
            Error::Lookup(LookupError::BadAnswer(_)) => {
                internal("the embed tier gave a bad answer; see the log".to_owned())
            }
            Error::Incompatible(_) => internal(text),
            // Ours, not the client's: no paths, no details.
            Error::Flags(_)
            | Error::Config(_)
            | Error::EmbedTier(_)
            | Error::TableInUse { .. }
            | Error::Thread { .. }
            | Error::Interrupted(_)
            | Error::Stopped
            | Error::Address(_)
            | Error::Reflection(_)
            | Error::Output(_)
            | Error::Input(_)
            | Error::Server { .. }
            | Error::Files(_)
            | Error::File { .. }
            | Error::Model(_)
            | Error::Table(_)
            | Error::Decode(_)
            | Error::Service(_)
            | Error::Internal => internal(Error::Internal.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = self.json().to_string();
        let content_type = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (self.status, content_type, body).into_response();
        let headers = response.headers_mut();
        let mut set = |name, value: String| {
            // Digits and words only.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1000).max(1);
            set(header::RETRY_AFTER, seconds.to_string());
            set(
                HeaderName::from_static("retry-after-ms"),
                after.as_millis().to_string(),
            );
        }
        if self.status == StatusCode::UNAUTHORIZED {
            set(header::WWW_AUTHENTICATE, "Bearer".to_owned());
        }
        // Clients repeat what failed on our side by themselves; a request that is wrong stays so.
        if self.retry_after.is_some() || self.status.is_client_error() {
            let should = self.retry_after.is_some();
            set(
                HeaderName::from_static("x-should-retry"),
                should.to_string(),
            );
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_full_queue_says_when_to_try_again() {
        let response = Refusal::from(Error::QueueFull {
            running_and_waiting: 3,
            retry_after: Duration::from_millis(1250),
        })
        .into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        for (name, value) in [
            ("retry-after", "2"),
            ("retry-after-ms", "1250"),
            ("x-should-retry", "true"),
        ] {
            assert_eq!(response.headers()[name], value);
        }
    }

    #[test]
    fn a_wrong_field_is_named_as_clients_know_it() {
        let refusal = Refusal::from(Error::InvalidField {
            field: "token_ids",
            problem: "has the id 9; ids are below 4".into(),
        });
        let error = &refusal.json()["error"];
        assert_eq!(error["param"], "prompt");
        assert_eq!(error["message"], "prompt has the id 9; ids are below 4");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["code"].is_null());
        assert_eq!(refusal.into_response().headers()["x-should-retry"], "false");
    }

    #[test]
    fn our_own_failures_tell_the_client_nothing_of_our_files() {
        let refusal = Refusal::from(Error::File {
            action: "read",
            path: "/secret".into(),
            source: "denied".into(),
        });
        assert!(!refusal.json().to_string().contains("secret"));
    }
}
