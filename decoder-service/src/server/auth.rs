//! What a call needs a key for: everything but health, whether it is there or not.

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use tonic::{Status, service::Routes};

use crate::keys::ApiKeys;

/// Kubernetes' probes have no key.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Puts the check before all services.
#[must_use]
pub fn authenticated(routes: Routes, keys: ApiKeys) -> Routes {
    let routes = routes.prepare().into_axum_router();
    routes.layer(from_fn_with_state(keys, check)).into()
}

/// Refuses a call without a key; one with a key carries it on.
async fn check(State(keys): State<ApiKeys>, mut request: Request, next: Next) -> Response {
    if request.uri().path().starts_with(OPEN) {
        return next.run(request).await;
    }
    match keys.caller(request.headers()) {
        Ok(key) => {
            request.extensions_mut().insert(key);
            next.run(request).await
        }
        Err(error) => Status::from(error).into_http::<Body>(),
    }
}
