//! What stays until an answer was sent: hyper and h2 take an answer from its body, whole when it is one
//! message, and keep it until the client has room and the socket takes it. Whoever wants to bound such bytes
//! must count them until then.

use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use hyper::body::{Frame, SizeHint};
use tonic::{
    Status,
    body::Body,
    codegen::{Bytes, http::Response},
};

/// A permit, a guard: what somebody else gets when it is dropped.
type Held = Box<dyn Any + Send>;

/// Holds things until the bytes of an answer that are made next were sent, or cannot be sent any more.
///
/// A handler puts a clone into the extensions of its response; [`guard`](crate::guard) does the rest.
#[derive(Clone, Default)]
pub struct Unsent {
    held: Arc<Mutex<Vec<Held>>>,
}

impl fmt::Debug for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsent").finish_non_exhaustive()
    }
}

impl Unsent {
    /// Holds `thing` until the bytes that leave the body next are gone: to be called before the message
    /// that it belongs to is given away.
    pub fn hold(&self, thing: impl Any + Send) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(Box::new(thing));
    }

    /// Ties what is held to these bytes.
    fn tie(&self, bytes: Bytes) -> Bytes {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_empty() {
            return bytes;
        }
        let _held = std::mem::take(&mut *held);
        Bytes::from_owner(Tied { bytes, _held })
    }
}

/// Bytes, and what goes with the last of their clones.
struct Tied {
    bytes: Bytes,
    _held: Vec<Held>,
}

impl AsRef<[u8]> for Tied {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The response, whose bytes carry what its handler holds, if it does.
pub(crate) fn tie(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<Unsent>() {
        Some(unsent) => response.map(|body| Body::new(Leaving { body, unsent })),
        None => response,
    }
}

/// The body of such a response.
struct Leaving {
    body: Body,
    unsent: Unsent,
}

impl tonic::codegen::Body for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let unsent = &self.unsent;
        Poll::Ready(frame.map(|frame| Ok(frame?.map_data(|data| unsent.tie(data)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::future::poll_fn;

    use super::*;

    /// A body of one frame a message, and of nothing else.
    struct Messages(Vec<&'static [u8]>);

    impl tonic::codegen::Body for Messages {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let next = self.0.pop();
            Poll::Ready(next.map(|bytes| Ok(Frame::data(Bytes::from_static(bytes)))))
        }
    }

    async fn next(body: &mut Body) -> Option<Bytes> {
        let frame = poll_fn(|context| {
            let body = Pin::new(&mut *body);
            tonic::codegen::Body::poll_frame(body, context)
        });
        frame.await.map(|frame| frame.unwrap().into_data().unwrap())
    }

    #[tokio::test]
    async fn what_is_held_goes_with_the_last_of_its_bytes_or_with_the_body() {
        let unsent = Unsent::default();
        let mut response = Response::new(Body::new(Messages(vec![b"two", b"one"])));
        response.extensions_mut().insert(unsent.clone());
        let mut body = tie(response).into_body();
        let permits = [(); 3].map(|()| Arc::new(()));
        let free = || {
            permits
                .each_ref()
                .map(|permit| Arc::strong_count(permit) == 1)
        };

        unsent.hold(Arc::clone(&permits[0]));
        let mut one = next(&mut body).await.unwrap();
        unsent.hold(Arc::clone(&permits[1]));
        let two = next(&mut body).await.unwrap();
        assert_eq!((&one[..], &two[..]), (&b"one"[..], &b"two"[..]));
        let rest = one.split_off(1);
        drop(one);
        assert_eq!(free(), [false, false, true], "some bytes are left");
        drop(rest);
        assert_eq!(free(), [true, false, true]);
        drop(two);
        unsent.hold(Arc::clone(&permits[2]));
        drop(unsent);
        assert_eq!(free(), [true, true, false]);
        drop(body);
        assert_eq!(free(), [true, true, true], "it will not be sent any more");
    }
}
