//! Cross-origin requests: which other sites' pages may call, by `--http-cors-origin`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

/// Any origin.
const ANY: &str = "*";

/// How long browsers may remember that a call is allowed, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The origins whose pages may call.
#[derive(Clone, Debug)]
pub(super) struct Origins(Arc<[String]>);

impl Origins {
    pub(super) fn new(origins: &[String]) -> Self {
        Self(origins.into())
    }

    /// What to answer a request with this origin; `None` when its page may not read the answer.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        if self.0.iter().any(|allowed| allowed == ANY) {
            return Some(HeaderValue::from_static(ANY));
        }
        let found = self.0.iter().any(|allowed| allowed.as_bytes() == origin);
        found.then(|| origin.clone())
    }
}

/// Answers what browsers ask before a call, and marks answers that other sites' pages may read.
pub(super) async fn cross_origin(
    State(origins): State<Origins>,
    request: Request,
    next: Next,
) -> Response {
    let allowed = origins.allowed(request.headers());
    let asked = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let asked = asked.cloned();
    let preflight = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match preflight {
        true => StatusCode::NO_CONTENT.into_response(),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    if !origins.0.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    let Some(allowed) = allowed else {
        return response;
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if preflight {
        let methods = HeaderValue::from_static("GET, POST");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        if let Some(asked) = asked {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
    } else {
        let exposed = HeaderValue::from_static("retry-after, retry-after-ms, x-request-id");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    response
}
