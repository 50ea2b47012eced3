//! One Lookup stream: requests in, answers out, in order.

use std::sync::Arc;

use futures_util::stream::{Stream, unfold};
use scone_proto::embed::v1::{LookupRequest, LookupResponse, lookup_response};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{admission::Admitted, lookup::Lookups};

/// What a stream needs for its whole life.
#[derive(Debug)]
pub(crate) struct LookupStream {
    /// Requests as they arrive.
    pub requests: Streaming<LookupRequest>,
    /// Answers them.
    pub lookups: Arc<Lookups>,
    /// Cancelled when the server shuts down.
    pub draining: CancellationToken,
    /// The place this stream takes among those allowed.
    pub _place: Admitted,
}

impl LookupStream {
    /// The answers, made as the transport asks for them.
    ///
    /// There is no task and no queue between request and answer. The transport reads one answer
    /// ahead, so while one is being sent the next is looked up; a client that does not read
    /// stops its own requests through HTTP/2 flow control, and one that goes away drops this
    /// stream and all its work (a look-up on the blocking pool is finished and thrown away).
    ///
    /// It ends when the client has closed its side; or, when the server drains, once no request
    /// is waiting. What the client sends later goes unanswered, and belongs to another replica.
    pub(crate) fn answers(
        self,
    ) -> impl Stream<Item = Result<LookupResponse, Status>> + Send + 'static {
        unfold(Some(self), |state| async move {
            let mut stream = state?;
            match stream.next_request().await {
                Ok(Some(request)) => {
                    let response = stream.answer(request).await;
                    Some((Ok(response), Some(stream)))
                }
                Ok(None) => None,
                // The transport broke, or a message did not decode: nothing sensible can follow.
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    async fn next_request(&mut self) -> Result<Option<LookupRequest>, Status> {
        // A client that always has a request waiting must not keep a worker to itself.
        tokio::task::consume_budget().await;
        tokio::select! {
            biased;
            request = self.requests.message() => request,
            () = self.draining.cancelled() => Ok(None),
        }
    }

    async fn answer(&self, request: LookupRequest) -> LookupResponse {
        let id = request.id;
        let result = match self.lookups.answer(&request).await {
            Ok(rows) => lookup_response::Result::Rows(rows),
            Err(error) => lookup_response::Result::Error(error.into()),
        };
        LookupResponse {
            id,
            result: Some(result),
        }
    }
}
