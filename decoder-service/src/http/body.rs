//! Bodies of requests: bounded in length, time and number before anything is parsed.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, header},
};
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{error::Refusal, fields::Fields};
use crate::error::Error;

/// Longest body in bytes; gRPC takes messages as long.
pub(super) const MAX_BODY_BYTES: usize = 4 << 20;

/// Bytes of all bodies that are being read and parsed at one time. Parsed JSON takes up to a dozen
/// times the memory, so this bounds that as well.
const BUDGET_BYTES: usize = 16 << 20;

/// How long a body may take to arrive, and may wait for others.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bodies from this length on are parsed off the network threads.
const LONG_BODY_BYTES: usize = 64 << 10;

/// Reads bodies, a bounded number at a time.
#[derive(Debug)]
pub(super) struct Bodies {
    /// In bytes.
    budget: Arc<Semaphore>,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            budget: Arc::new(Semaphore::new(BUDGET_BYTES)),
        }
    }
}

/// A body that counts among those being worked on while it lives.
struct Counted {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
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
        let parse = move || parse(fields(&body.bytes)?, &body.bytes);
        if !long {
            return parse();
        }
        let parsed = tokio::task::spawn_blocking(parse).await;
        parsed.map_err(|_| Refusal::from(Error::Internal))?
    }

    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Counted, Refusal> {
        let announced = headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let most = announced.unwrap_or(MAX_BODY_BYTES);
        if most > MAX_BODY_BYTES {
            return Err(Refusal::too_large(MAX_BODY_BYTES));
        }
        // Fits: MAX_BODY_BYTES is far below.
        let permit = self.budget.clone().acquire_many_owned(most as u32);
        let permit = timeout(BODY_TIMEOUT, permit).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Refusal::too_many_bodies());
        };
        let read = timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await;
        let bytes = read.map_err(|_elapsed| Refusal::too_slow(BODY_TIMEOUT))?;
        let bytes = bytes.map_err(|error| match announced {
            None if is_length_limit(&error) => Refusal::too_large(MAX_BODY_BYTES),
            _ => Refusal::bad_request("the body ended early"),
        })?;
        Ok(Counted {
            bytes,
            _permit: permit,
        })
    }
}

/// Whether reading stopped at the limit; axum says so in words and types of a crate of its own.
fn is_length_limit(error: &axum::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|source| source.to_string().contains("length limit"))
}

fn fields(bytes: &[u8]) -> Result<Fields, Refusal> {
    match serde_json::from_slice::<Map<String, Value>>(bytes) {
        Ok(map) => Ok(Fields::new(map)),
        Err(error) => Err(Refusal::bad_request(format!(
            "the body is no JSON object: {error}"
        ))),
    }
}
