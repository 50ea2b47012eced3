//! Who asks over HTTP: the same for all endpoints that generate.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{HeaderName, HeaderValue, request::Parts},
    response::Response,
};
use scone_proto::{TRACEPARENT, TraceContext};
use scone_service::connections::far_end;

use super::Shared;
use crate::{client::Client, keys::Key, request::Draft};

/// A client's own name of a request, for logs; the answer has it too.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who asks, as all drafts of a request are signed.
pub(super) struct Caller {
    id: Option<HeaderValue>,
    client: Option<Client>,
    key: Option<Arc<Key>>,
    /// The caller's span.
    trace: Option<TraceContext>,
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Infallible> {
        let trace = parts.headers.get(TRACEPARENT);
        Ok(Self {
            id: parts.headers.get(REQUEST_ID).cloned(),
            client: far_end(&parts.extensions).map(Client::Connection),
            key: parts.extensions.get::<Arc<Key>>().cloned(),
            trace: trace.and_then(|text| TraceContext::read(text.to_str().ok()?)),
        })
    }
}

impl Caller {
    /// Signs a draft.
    pub(super) fn sign(&self, draft: &mut Draft) {
        let text = self.id.as_ref().and_then(|id| id.to_str().ok());
        draft.request_id = text.unwrap_or_default().to_owned();
        draft.client = self.client;
        draft.key = self.key.clone();
        draft.caller = self.trace;
    }

    /// Gives an answer the name that its request has.
    pub(super) fn answer(self, response: &mut Response) {
        if let Some(id) = self.id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
    }
}
