//! What stands before every gRPC service: requests that are no gRPC are refused as HTTP says,
//! messages that are still arriving take a bounded amount of memory in all, and what a handler holds for
//! its answer is held until that was sent ([`unsent`]).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::body::Frame;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{
        BoxFuture, Bytes, Service,
        http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header},
    },
    server::NamedService,
};

use crate::{
    connections::{ConnectionLimits, ConnectionMetrics},
    unsent,
};

/// Bytes before each message of gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";

/// How prost begins to say that a message is not of its type.
const NO_MESSAGE: &str = "failed%20to%20decode%20Protobuf%20message";

/// Memory for messages that have begun to arrive and are not whole yet, of all clients together.
#[derive(Clone, Debug)]
pub struct MessageBudget {
    free: Arc<Semaphore>,
    bytes: usize,
    taken: Gauge,
}

impl MessageBudget {
    /// What these limits allow; the metrics show what is taken.
    #[must_use]
    pub fn new(limits: &ConnectionLimits, metrics: &ConnectionMetrics) -> Self {
        let bytes = limits.unfinished_bytes.min(u32::MAX as usize);
        let bytes = bytes.min(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(bytes)),
            bytes,
            taken: metrics.unfinished.clone(),
        }
    }

    /// Puts the guard before a service.
    pub fn guard<S>(&self, service: S) -> Guarded<S> {
        Guarded {
            service,
            budget: self.clone(),
        }
    }
}

/// A service with the guard before it.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    service: S,
    budget: MessageBudget,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if let Some(refusal) = no_grpc(request.method(), request.headers()) {
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        let budget = self.budget.clone();
        let request = request.map(|body| Body::new(Arriving::new(body, budget)));
        let answer = self.service.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            blame_the_client(response.headers_mut());
            Ok(unsent::tie(response))
        })
    }
}

/// The answer to what is no gRPC: 405 or 415.
fn no_grpc(method: &Method, headers: &HeaderMap) -> Option<Response<Body>> {
    let status = match headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
        _ if method != Method::POST => StatusCode::METHOD_NOT_ALLOWED,
        Some(kind) if kind.starts_with(b"application/grpc") => return None,
        _ => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    Some(response)
}

/// tonic answers INTERNAL to a message that is not of its type, as if the fault were ours.
fn blame_the_client(headers: &mut HeaderMap) {
    let is = |name, begins: &str| {
        let value = headers.get(name).map(HeaderValue::as_bytes);
        value.is_some_and(|value| value.starts_with(begins.as_bytes()))
    };
    if is(GRPC_STATUS, "13") && is(GRPC_MESSAGE, NO_MESSAGE) {
        let invalid = HeaderValue::from(Code::InvalidArgument as i32);
        headers.insert(GRPC_STATUS, invalid);
    }
}

/// The body of a request, whose bytes are counted until the message that they are of is whole.
struct Arriving {
    body: Body,
    budget: MessageBudget,
    message: Message,
    held: Held,
}

/// Bytes of a message that is not whole, given back when dropped.
struct Held {
    permit: Option<OwnedSemaphorePermit>,
    taken: Gauge,
}

impl Held {
    fn count(&self) -> i64 {
        let bytes = self.permit.as_ref().map(OwnedSemaphorePermit::num_permits);
        bytes.unwrap_or(0) as i64
    }

    fn give_back(&mut self) {
        self.taken.dec_by(self.count());
        self.permit = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Arriving {
    fn new(body: Body, budget: MessageBudget) -> Self {
        let taken = budget.taken.clone();
        Self {
            body,
            budget,
            message: Message::default(),
            held: Held {
                permit: None,
                taken,
            },
        }
    }

    fn count(&mut self, data: &[u8]) -> Result<(), Status> {
        let unfinished = self.message.take(data);
        if unfinished < data.len() {
            // What was there before belonged to a message that is whole now.
            self.held.give_back();
        }
        if unfinished == 0 {
            return Ok(());
        }
        let more = u32::try_from(unfinished).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.budget.free).try_acquire_many_owned(more) else {
            return Err(Status::resource_exhausted(format!(
                "{} bytes of messages that are still arriving are the limit of this server; try \
                 again later",
                self.budget.bytes
            )));
        };
        self.held.taken.inc_by(i64::from(more));
        match &mut self.held.permit {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }
}

impl tonic::codegen::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(context)) else {
            this.held.give_back();
            return Poll::Ready(None);
        };
        let counted = frame.and_then(|frame| match frame.data_ref() {
            Some(data) => this.count(data).map(|()| frame),
            None => Ok(frame),
        });
        Poll::Ready(Some(counted))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Where in a message a body stands.
#[derive(Debug, Default)]
struct Message {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are there.
    begun: usize,
    /// Bytes of the message that are to come.
    missing: usize,
}

impl Message {
    /// Takes bytes in; how many of them, the last ones, belong to a message that is not whole.
    fn take(&mut self, mut data: &[u8]) -> usize {
        let mut unfinished = 0;
        while !data.is_empty() {
            if self.begun < PREFIX {
                let more = data.len().min(PREFIX - self.begun);
                self.prefix[self.begun..self.begun + more].copy_from_slice(&data[..more]);
                self.begun += more;
                unfinished += more;
                data = &data[more..];
                if self.begun < PREFIX {
                    break;
                }
                let [_, a, b, c, d] = self.prefix;
                self.missing = u32::from_be_bytes([a, b, c, d]) as usize;
            }
            let more = data.len().min(self.missing);
            self.missing -= more;
            unfinished += more;
            data = &data[more..];
            if self.missing == 0 {
                self.begun = 0;
                unfinished = 0;
            }
        }
        unfinished
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A message of gRPC of so many bytes.
    fn message(bytes: usize) -> Vec<u8> {
        let mut message = vec![0];
        message.extend((bytes as u32).to_be_bytes());
        message.resize(PREFIX + bytes, 7);
        message
    }

    #[test]
    fn the_end_of_each_message_is_found_however_bytes_are_cut() {
        let all = [message(3), message(0), message(300), message(1)].concat();
        let ends = [8, 13, 318, 324];
        for size in 1..all.len() {
            let (mut state, mut at, mut held) = (Message::default(), 0, 0);
            for data in all.chunks(size) {
                let unfinished = state.take(data);
                at += data.len();
                held = if unfinished < data.len() {
                    unfinished
                } else {
                    held + unfinished
                };
                let last_end = ends.iter().rev().find(|&&end| end <= at).unwrap_or(&0);
                assert_eq!(held, at - last_end, "chunks of {size}, after {at}");
            }
        }
    }

    #[test]
    fn unfinished_messages_of_all_bodies_share_the_budget() {
        let limits = ConnectionLimits {
            unfinished_bytes: 100,
            ..ConnectionLimits::default()
        };
        let metrics = ConnectionMetrics::default();
        let taken = &metrics.unfinished;
        let budget = MessageBudget::new(&limits, &metrics);
        let body = || Arriving::new(Body::empty(), budget.clone());
        let (mut one, mut two) = (body(), body());
        let message = message(60);
        one.count(&message[..50]).unwrap();
        two.count(&message[..50]).unwrap();
        assert_eq!(taken.get(), 100);
        let refused = one.count(&message[50..51]).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("100 bytes"), "{refused}");
        drop(one);
        assert_eq!(taken.get(), 50);
        two.count(&message[50..]).unwrap();
        assert_eq!(taken.get(), 0, "whole messages are somebody else's");
    }
}
