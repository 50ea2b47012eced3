//! What a request needs a key for: everything but what is in [`OPEN`], whether it is there or not.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{error::Refusal, page};
use crate::keys::ApiKeys;

/// For probes and scrapers, which have no key.
const OPEN: [&str; 2] = ["/health", "/metrics"];

/// Refuses a request without a key; one with a key carries it on.
pub(super) async fn authenticated(
    State(keys): State<ApiKeys>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    // The page is the same everywhere, and asks for the key.
    if OPEN.contains(&path) || page::has(path) {
        return next.run(request).await;
    }
    match keys.caller(request.headers()) {
        Ok(key) => {
            request.extensions_mut().insert(key);
            next.run(request).await
        }
        Err(error) => Refusal::from(error).into_response(),
    }
}
