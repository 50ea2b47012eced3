//! A gRPC service that is on its port before it can answer.
//!
//! A table or model may load for minutes. A closed port looks like a dead process meanwhile, so
//! the port is served from the start: health says NOT_SERVING, and every call of the service is
//! refused until what it needs is there.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

/// A service that is set later; clones share it. Add it to a router instead of the service.
#[derive(Clone, Debug)]
pub struct LateService<S> {
    service: Arc<OnceLock<S>>,
    refusal: Status,
}

/// Sets the service of a [`LateService`]. Dropped without that, the calls are refused for good.
#[derive(Debug)]
pub struct SetService<S> {
    service: Arc<OnceLock<S>>,
}

/// A service whose calls end with `refusal` until it is set. UNAVAILABLE with a retry hint says
/// that another try, or another replica, may succeed.
#[must_use]
pub fn late_service<S>(refusal: Status) -> (LateService<S>, SetService<S>) {
    let service = Arc::new(OnceLock::new());
    let setter = SetService {
        service: Arc::clone(&service),
    };
    (LateService { service, refusal }, setter)
}

impl<S> SetService<S> {
    /// Calls that begin from now on are answered by `service`.
    pub fn set(self, service: S) {
        // Nobody else can set it: there is one setter, and this takes it.
        self.service.get_or_init(|| service);
    }
}

impl<S: NamedService> NamedService for LateService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for LateService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    /// Always ready, as the services that tonic generates are.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.service.get() {
            Some(service) => Box::pin(service.clone().call(request)),
            None => {
                let refusal = self.refusal.clone();
                Box::pin(async move { Ok(refusal.into_http()) })
            }
        }
    }
}
