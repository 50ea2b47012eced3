//! Answers one request: check, admit, look up.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use scone_fgram::table::LookupResult;
use scone_proto::{
    TraceContext,
    embed::v1::{LookupRequest, LookupRows},
};
use scone_service::traces::{Kind, Span, Tracer, Value};
use tokio::task::spawn_blocking;
use tracing::debug;

use crate::{
    admission::{Admission, Admitted},
    error::Error,
    metrics::Metrics,
    prompts::{PROMPT_POSITIONS, Prompts, Turn},
    request::{Limits, Query},
    tables::{ServedTable, Tables, shown},
};

/// Answers that may take more bytes than this are copied on the blocking pool, warm or not.
///
/// A prompt of 2,048 positions is megabytes of copies and of fresh pages, some milliseconds of a
/// worker, behind which decode steps wait. Measured on two busy cores, warm mapped rows of 4 KiB,
/// two streams of such prompts beside one of steps of 32 windows, three rounds of 5 s: the p99 of
/// the steps fell from 3.7, 7.0 and 3.3 ms to 2.7, 5.0 and 2.5 ms, their p50 stayed at 0.12 ms,
/// and the prompts took no longer.
const INLINE_BYTES: u64 = 1 << 20;

/// Everything a request needs, shared by all streams and unary calls.
#[derive(Debug)]
pub(crate) struct Lookups {
    /// Which tables answer.
    pub tables: Arc<Tables>,
    /// The most one request may ask.
    pub limits: Limits,
    /// The most all requests may ask together.
    pub admission: Admission,
    /// Turns of long ones.
    pub prompts: Prompts,
    /// Counters and times.
    pub metrics: Metrics,
    /// Spans of look-ups that are traced.
    pub tracer: Tracer,
}

/// The rows for one request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// As they travel.
    pub rows: LookupRows,
    /// What they take of the bytes in flight; hold it until they are on their way.
    pub admitted: Admitted,
}

impl Lookups {
    /// Answers one request and counts how it ended.
    ///
    /// The first poll answers it when all rows are in memory; only rows that must be read from
    /// the disk go to the blocking pool.
    ///
    /// # Errors
    /// When the request is malformed, refused for overload, for a table that is not served, or
    /// the table fails.
    pub(crate) async fn answer(&self, request: &LookupRequest) -> Result<Answer, Error> {
        // Nobody looks at the clock for a look-up that is not traced.
        let traced = self.tracer.is_on() && !request.traceparent.is_empty();
        let began = traced.then(Instant::now);
        let answer = self.check_and_look_up(request).await;
        if let Some(began) = began {
            self.trace(request, &answer, began);
        }
        if let Err(error) = &answer {
            self.metrics.outcome(error.code());
            debug!(request.id, %error, "refused");
        }
        answer
    }

    /// Tells of a look-up that is over, if its caller wants that.
    fn trace(&self, request: &LookupRequest, answer: &Result<Answer, Error>, began: Instant) {
        let Some(caller) = TraceContext::read(&request.traceparent) else {
            return;
        };
        let Some(context) = self.tracer.child(caller) else {
            return;
        };
        let names = (context, caller.span_id);
        self.tracer.record(span(request, answer, names, began));
    }

    async fn check_and_look_up(&self, request: &LookupRequest) -> Result<Answer, Error> {
        self.limits.check(request)?;
        let served = self
            .tables
            .wanted(&request.table, request.table_id.as_deref())?;
        let query = Query::read(request, served.info.vocab_size)?;
        let admitted = self
            .admission
            .admit(served.largest_answer(query.answers()))?;
        let turn = match query.answers() > PROMPT_POSITIONS {
            true => Some(self.prompts.turn(query.answers()).await?),
            false => None,
        };
        let started = Instant::now();
        let (result, mut admitted) = look_up(&served, query, (admitted, turn)).await?;
        admitted.shrink_to(bytes_of(&result));
        let row_bytes = served.info.row_bytes as usize;
        let rows = result.rows.len().checked_div(row_bytes).unwrap_or(0);
        let took = started.elapsed();
        self.metrics.answered(&result.match_lengths, rows, took);
        debug!(
            request.id,
            positions = result.match_lengths.len(),
            rows,
            took_us = took.as_micros() as u64,
            "answered"
        );
        let rows = to_wire(served.info.table_id.clone(), result);
        Ok(Answer { rows, admitted })
    }
}

/// The span of a look-up that is over, with its own name and its parent's. What a client wrote in it is
/// bounded: thousands of spans wait to be sent.
fn span(
    request: &LookupRequest,
    answer: &Result<Answer, Error>,
    (context, parent): (TraceContext, u64),
    began: Instant,
) -> Span {
    let rows = answer.as_ref().map(|answer| &answer.rows);
    let positions = rows.map_or(0, |rows| rows.match_lengths.len());
    let bytes = rows.map_or(0, |rows| rows.rows.len());
    Span {
        name: "look-up",
        kind: Kind::Server,
        context,
        parent: Some(parent),
        began,
        ended: Instant::now(),
        attributes: vec![
            ("positions", Value::Count(positions as u64)),
            ("rows.bytes", Value::Count(bytes as u64)),
            ("table", Value::Text(shown(&request.table))),
        ],
        error: answer.as_ref().err().map(ToString::to_string),
    }
}

/// Copies what is in memory here, and has the rest read by the blocking pool: a worker that waits
/// for a disk serves nobody else, but giving a decode step to another thread costs two wake-ups,
/// as much as its look-up.
///
/// The admission goes with the work, so a look-up whose client has left still counts until it is
/// over.
async fn look_up(
    served: &Arc<ServedTable>,
    query: Query,
    (admitted, turn): (Admitted, Option<Turn>),
) -> Result<(LookupResult, Admitted), Error> {
    let mut result = LookupResult::default();
    let served = Arc::clone(served);
    if served.largest_answer(query.answers()) > INLINE_BYTES {
        return on_the_pool(move || {
            let _turn = turn;
            served.table.lookup(&query.ids, &query.spans, &mut result)?;
            Ok((result, admitted))
        })
        .await;
    }
    let table = &served.table;
    match table.lookup_in_memory(&query.ids, &query.spans, &mut result)? {
        None => Ok((result, admitted)),
        Some(cold) => {
            on_the_pool(move || {
                let _turn = turn;
                served.table.fetch_cold(cold, &mut result)?;
                Ok((result, admitted))
            })
            .await
        }
    }
}

/// What an answer takes until it is sent, about.
fn bytes_of(result: &LookupResult) -> usize {
    let lists = result.match_lengths.len() + size_of::<u32>() * result.row_index.len();
    result.rows.len() + lists + size_of::<LookupRows>()
}

async fn on_the_pool<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(Error::Interrupted)?
}

/// Moves the bytes into the message; rows are not copied.
fn to_wire(table_id: String, result: LookupResult) -> LookupRows {
    let in_order = result.rows_are_in_order();
    LookupRows {
        table_id,
        match_lengths: Bytes::from(result.match_lengths),
        row_index: if in_order {
            Vec::new()
        } else {
            result.row_index
        },
        rows: Bytes::from(result.rows),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::{
        metrics::{counter::Counter, gauge::Gauge},
        registry::Registry,
    };
    use tonic::Code;

    use super::*;
    use crate::{admission::Capacity, readers::Readers};

    #[tokio::test]
    async fn before_a_table_is_open_the_caller_is_told_to_come_back() {
        let retry_delay = Duration::from_millis(7);
        let capacity = Capacity {
            max_inflight_bytes: 1,
            max_streams: 1,
            retry_delay,
        };
        let tables = Arc::new(Tables::loading(retry_delay));
        let lookups = Lookups {
            metrics: Metrics::register(&mut Registry::default(), Arc::clone(&tables)),
            tables,
            limits: Limits {
                max_request_bytes: 1000,
                max_spans: 1,
                max_positions: 1,
            },
            admission: Admission::new(
                &capacity,
                (Gauge::default(), Gauge::default()),
                Readers::new(Duration::ZERO, Counter::default()),
            ),
            prompts: Prompts::new(1, Duration::ZERO, retry_delay),
            tracer: Tracer::default(),
        };
        let answer = lookups.answer(&LookupRequest::default()).await;
        let error = answer.expect_err("no table is open");
        assert_eq!(error.code(), Code::Unavailable);
        assert_eq!(error.retry_delay(), Some(retry_delay));
    }

    #[test]
    fn a_span_says_a_table_again_no_longer_than_a_name_may_be() {
        let context = TraceContext {
            trace_id: 1,
            span_id: 2,
            sampled: true,
        };
        let request = LookupRequest {
            table: "x".repeat(60_000),
            ..LookupRequest::default()
        };
        let span = span(&request, &Err(Error::NoSpans), (context, 3), Instant::now());
        let table = Value::Text("x".repeat(64));
        assert_eq!(span.attributes[2], ("table", table));
        assert!(span.error.is_some_and(|error| error.contains("spans")));
    }

    #[test]
    fn row_index_is_left_out_only_when_it_says_nothing() {
        let rows = |row_index: &[u32]| {
            let row_index = row_index.to_vec();
            let result = LookupResult {
                row_index,
                ..LookupResult::default()
            };
            to_wire(String::new(), result).row_index
        };
        assert!(rows(&[]).is_empty());
        assert!(rows(&[0, 1, 2]).is_empty());
        assert_eq!(rows(&[0, 1, 0]), [0, 1, 0]);
        assert_eq!(rows(&[0, 0]), [0, 0]);
    }
}
