//! The page at `/`: plain files in the binary.

use axum::{
    Router,
    http::{HeaderName, header},
    response::{IntoResponse as _, Response},
    routing::get,
};

use super::Shared;

/// Path, type and content of each file.
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    (
        "/page/style.css",
        "text/css; charset=utf-8",
        include_str!("style.css"),
    ),
    (
        "/page/page.js",
        "text/javascript; charset=utf-8",
        include_str!("page.js"),
    ),
];

/// Only what comes from here may run, be shown or be called.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The routes of the page.
pub(super) fn routes() -> Router<Shared> {
    FILES.into_iter().fold(Router::new(), |router, file| {
        router.route(file.0, get(move || async move { page(file.1, file.2) }))
    })
}

/// Whether it has this file.
pub(super) fn has(path: &str) -> bool {
    FILES.iter().any(|file| file.0 == path)
}

fn page(content_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ];
    (headers, content).into_response()
}
