//! Bodies of requests: bounded in length, time and number before anything is parsed.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::BytesMut;
use serde_json::{Map, Value};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_stream::StreamExt as _;

use super::{error::Refusal, fields::Fields};
use crate::error::Error;

/// Longest body in bytes; gRPC takes messages as long.
pub(super) const MAX_BODY_BYTES: usize = 4 << 20;

/// Bytes of all bodies that have arrived and are not parsed yet. A body counts as it arrives, so
/// that a slow client holds no more than it has sent; one for which there is no room waits.
const BUDGET_BYTES: usize = 64 << 20;

/// How long a body may take to arrive, waiting for room included.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bodies from this length on are parsed off the network threads, [`LONG_PARSES`] at a time: parsed
/// JSON takes up to a dozen times the memory.
const LONG_BODY_BYTES: usize = 64 << 10;

/// Long bodies parsed at one time; others wait.
const LONG_PARSES: usize = 4;

/// Reads bodies, a bounded number of bytes at a time.
#[derive(Debug)]
pub(super) struct Bodies {
    /// In bytes.
    budget: Arc<Semaphore>,
    long_parses: Arc<Semaphore>,
    patience: Duration,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            budget: Arc::new(Semaphore::new(BUDGET_BYTES)),
            long_parses: Arc::new(Semaphore::new(LONG_PARSES)),
            patience: BODY_TIMEOUT,
        }
    }
}

/// A body, or what has arrived of it; counts among those being worked on while it lives.
struct Counted {
    bytes: BytesMut,
    permit: OwnedSemaphorePermit,
}

impl Bodies {
    /// Reads a body and makes something of its fields; `parse` gets the bytes as well.
    pub(super) async fn parse<T: Send + 'static>(
        &self,
        headers: &HeaderMap,
        body: Body,
        parse: impl FnOnce(Fields, &[u8]) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let body = self.read(headers, body).await?;
        let long = body.bytes.len() >= LONG_BODY_BYTES;
        let parse = move || {
            let parsed = parse(fields(&body.bytes)?, &body.bytes);
            drop(body.permit);
            parsed
        };
        if !long {
            return parse();
        }
        let turn = self.long_parses.clone().acquire_owned().await;
        let parsed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            parse()
        });
        parsed.await.map_err(|_| Refusal::from(Error::Internal))?
    }

    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Counted, Refusal> {
        let announced = headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > MAX_BODY_BYTES) {
            return Err(Refusal::too_large(MAX_BODY_BYTES));
        }
        let Ok(permit) = self.budget.clone().try_acquire_many_owned(0) else {
            return Err(Refusal::too_many_bodies());
        };
        let mut read = Counted {
            bytes: BytesMut::new(),
            permit,
        };
        match timeout(self.patience, self.read_all(body, &mut read)).await {
            Ok(all) => all.map(|()| read),
            Err(_elapsed) if self.budget.available_permits() == 0 => {
                Err(Refusal::too_many_bodies())
            }
            Err(_elapsed) => Err(Refusal::too_slow(self.patience)),
        }
    }

    async fn read_all(&self, body: Body, read: &mut Counted) -> Result<(), Refusal> {
        let mut parts = body.into_data_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|_| Refusal::bad_request("the body ended early"))?;
            if read.bytes.len() + part.len() > MAX_BODY_BYTES {
                return Err(Refusal::too_large(MAX_BODY_BYTES));
            }
            // Fits: it is at most MAX_BODY_BYTES.
            let room = self.budget.clone().acquire_many_owned(part.len() as u32);
            match room.await {
                Ok(room) => read.permit.merge(room),
                // The semaphore is never closed.
                Err(_closed) => return Err(Refusal::too_many_bodies()),
            }
            read.bytes.extend_from_slice(&part);
        }
        Ok(())
    }
}

fn fields(bytes: &[u8]) -> Result<Fields, Refusal> {
    match serde_json::from_slice::<Map<String, Value>>(bytes) {
        Ok(map) => Ok(Fields::new(map)),
        Err(error) => Err(Refusal::bad_request(format!(
            "the body is no JSON object: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use axum::response::IntoResponse as _;
    use bytes::Bytes;

    use super::*;

    /// Reads a body and keeps what it counts for.
    async fn read(bodies: &Bodies, body: Body) -> Result<Counted, Refusal> {
        bodies.read(&HeaderMap::new(), body).await
    }

    fn whole(length: usize) -> Body {
        Body::from(Bytes::from(vec![b' '; length]))
    }

    const SHORT: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn bodies_that_have_arrived_are_bounded_together() {
        let mut bodies = Bodies::default();
        let mut held = Vec::new();
        for _ in 0..BUDGET_BYTES / MAX_BODY_BYTES {
            held.push(read(&bodies, whole(MAX_BODY_BYTES)).await.unwrap());
        }
        bodies.patience = SHORT;
        let refused = read(&bodies, whole(1)).await.err().unwrap();
        assert_eq!(refused.into_response().status(), 429);
        held.pop();
        bodies.patience = BODY_TIMEOUT;
        assert_eq!(read(&bodies, whole(1)).await.unwrap().bytes.len(), 1);
    }

    #[tokio::test]
    async fn a_slow_body_holds_what_it_has_sent_and_not_for_long() {
        let mut bodies = Bodies::default();
        let slow = || {
            let first = tokio_stream::once(Ok::<_, std::io::Error>(Bytes::from_static(b"{")));
            Body::from_stream(first.chain(tokio_stream::pending()))
        };
        {
            let reading = read(&bodies, slow());
            tokio::pin!(reading);
            assert!(timeout(SHORT, &mut reading).await.is_err());
            assert_eq!(bodies.budget.available_permits(), BUDGET_BYTES - 1);
        }
        assert_eq!(bodies.budget.available_permits(), BUDGET_BYTES);
        bodies.patience = SHORT;
        let refused = read(&bodies, slow()).await.err().unwrap();
        assert_eq!(refused.into_response().status(), 408);
        assert_eq!(bodies.budget.available_permits(), BUDGET_BYTES);
    }
}
