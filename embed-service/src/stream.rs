//! One Lookup stream: requests in, answers out, each as soon as it is there.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use futures_util::stream::{FuturesUnordered, Stream, StreamExt as _, unfold};
use scone_proto::embed::v1::{LookupRequest, LookupResponse, lookup_response};
use scone_service::unsent::Unsent;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Status, Streaming};

use crate::{
    admission::Admitted,
    error::Error,
    lookup::{Answer, Lookups},
    readers::{Reader, Unread},
};

/// Requests of one stream that may wait for the disk at one time. When there are so many, no
/// further one is read until one of them is answered. So a client that reads no answers holds the
/// bytes of these and of one more.
const MAX_WAITING: usize = 8;

/// Requests that are still taken after the stream was told to end, as long as each is there
/// already; a client that always has one waiting would keep the stream open otherwise.
const LAST_REQUESTS: usize = 64;

type Answering = Pin<Box<dyn Future<Output = (u64, Result<Answer, Error>)> + Send>>;

/// An answer that had to wait for the disk, and is unread since it is there.
type Waited = (u64, Result<Answer, Error>, Unread);

/// A stream and its state.
pub(crate) struct LookupStream {
    /// Requests as they arrive; `None` when no more are taken.
    requests: Option<Streaming<LookupRequest>>,
    /// Answers them.
    lookups: Arc<Lookups>,
    /// Those that wait for the disk, at most [`MAX_WAITING`].
    waiting: FuturesUnordered<AbortOnDropHandle<Waited>>,
    /// Has what answers take of the bytes in flight until they were sent.
    unsent: Unsent,
    /// Cancelled when the connection is too old, or the server shuts down.
    ending: CancellationToken,
    /// How many requests were taken since then.
    taken_since_ending: usize,
    /// Whether its client reads.
    reader: Reader,
    /// One of the streams allowed, until this is dropped.
    _permit: Admitted,
}

impl LookupStream {
    /// A stream that has answered nothing yet.
    pub(crate) fn new(
        requests: Streaming<LookupRequest>,
        lookups: Arc<Lookups>,
        ending: CancellationToken,
        reader: Reader,
        permit: Admitted,
        unsent: Unsent,
    ) -> Self {
        Self {
            requests: Some(requests),
            lookups,
            waiting: FuturesUnordered::new(),
            unsent,
            ending,
            taken_since_ending: 0,
            reader,
            _permit: permit,
        }
    }

    /// The answers, made as the transport asks for them.
    ///
    /// There is no task and no queue between request and answer. A request whose rows are in
    /// memory is answered on the spot; one that waits for the disk lets those after it pass. The
    /// transport asks again when it has passed the last answer on, so a client that does not read
    /// stops its own requests, and holds the bytes of those that the transport took and has not sent, of
    /// one more, and of those that wait for the disk. One that goes away drops this stream and all its work (a look-up on the blocking
    /// pool is finished and thrown away).
    ///
    /// It ends when the client has closed its side; or, when it is told to, once no request is
    /// there. What the client sends later goes unanswered, and belongs to another connection.
    pub(crate) fn answers(
        self,
    ) -> impl Stream<Item = Result<LookupResponse, Status>> + Send + 'static {
        unfold(self, |mut stream| async move {
            let answer = stream.next().await?;
            Some((answer, stream))
        })
    }

    async fn next(&mut self) -> Option<Result<LookupResponse, Status>> {
        loop {
            if self.requests.is_none() && self.waiting.is_empty() {
                return None;
            }
            // A client that always has a request waiting must not keep a worker to itself.
            tokio::task::consume_budget().await;
            let may_take = self.requests.is_some() && self.waiting.len() < MAX_WAITING;
            let request = tokio::select! {
                biased;
                Some(answered) = self.waiting.next() => {
                    return Some(match answered {
                        Ok((id, answer, unread)) => Ok(self.respond(id, answer, unread)),
                        Err(error) => Err(Error::Interrupted(error).into()),
                    });
                }
                request = next_request(&mut self.requests, &self.ending), if may_take => request,
            };
            match request {
                Ok(Some(request)) => {
                    self.count_after_ending();
                    if let Some(response) = self.begin(request).await {
                        return Some(Ok(response));
                    }
                }
                Ok(None) => self.requests = None,
                // The transport broke, or a message did not decode: nothing sensible can follow.
                Err(status) => {
                    self.requests = None;
                    self.waiting.clear();
                    return Some(Err(status));
                }
            }
        }
    }

    /// Answers a request, unless it has to wait for the disk.
    async fn begin(&mut self, request: LookupRequest) -> Option<LookupResponse> {
        let lookups = Arc::clone(&self.lookups);
        let mut answering: Answering =
            Box::pin(async move { (request.id, lookups.answer(&request).await) });
        match poll_fn(|cx| Poll::Ready(answering.as_mut().poll(cx))).await {
            Poll::Ready((id, answer)) => {
                let unread = self.reader.answered();
                Some(self.respond(id, answer, unread))
            }
            Poll::Pending => {
                // On a task of its own, so that it is known to be there when the transport does not ask.
                let reader = self.reader.answering();
                let task = tokio::spawn(async move {
                    let (id, answer) = answering.await;
                    (id, answer, reader.made())
                });
                self.waiting.push(AbortOnDropHandle::new(task));
                None
            }
        }
    }

    fn respond(
        &mut self,
        id: u64,
        answer: Result<Answer, Error>,
        unread: Unread,
    ) -> LookupResponse {
        let result = match answer {
            Ok(answer) => {
                self.unsent.hold((unread, answer.admitted));
                lookup_response::Result::Rows(answer.rows)
            }
            Err(error) => {
                self.unsent.hold(unread);
                lookup_response::Result::Error(error.into())
            }
        };
        LookupResponse {
            id,
            result: Some(result),
        }
    }

    fn count_after_ending(&mut self) {
        if self.ending.is_cancelled() {
            self.taken_since_ending += 1;
            if self.taken_since_ending >= LAST_REQUESTS {
                self.requests = None;
            }
        }
    }
}

/// `None` when no more come, or the stream is to end and none is there.
async fn next_request(
    requests: &mut Option<Streaming<LookupRequest>>,
    ending: &CancellationToken,
) -> Result<Option<LookupRequest>, Status> {
    let Some(requests) = requests else {
        return Ok(None);
    };
    tokio::select! {
        biased;
        request = requests.message() => request,
        () = ending.cancelled() => Ok(None),
    }
}
