//! The service over a socket, beside the least that could be there instead.
//!
//! All clients are equally thin: a blocking thread for each connection, requests encoded before the
//! clock starts, answers taken as bytes. What an answer holds is checked apart, untimed.

mod connection;
pub mod echo;
mod grpc;
pub mod redis;

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use integration_tests::cluster::{ANY_PORT, Service};
use prost::Message as _;
use scone_fgram::TokenId;
use scone_fgram::table::{HOT_ROW_OVERHEAD, Manifest, Span};
use scone_proto::embed::v1::{
    self as proto, LookupRequest, LookupResponse, LookupRows, lookup_response,
};

pub use connection::Connection;
pub use grpc::Stream;

/// The rpc that answers a decoder.
pub const LOOKUP: &str = "/scone.embed.v1.EmbedService/Lookup";

/// An embed-service in a process of its own.
#[derive(Debug)]
pub struct Embed {
    service: Service,
    table_id: String,
}

impl Embed {
    /// Starts it on a table that nobody else has open, with a hot set for `hot_rows` rows.
    ///
    /// # Errors
    /// When the table is not whole.
    ///
    /// # Panics
    /// When the service does not start.
    pub fn start(table: &Path, hot_rows: usize) -> Result<Self> {
        let manifest = Manifest::read(table)?;
        let hot_bytes = hot_rows as u64 * (manifest.row_bytes() as u64 + HOT_ROW_OVERHEAD);
        let flags = ["--hot-bytes", &hot_bytes.to_string()];
        Ok(Self {
            service: Service::embed_at(ANY_PORT, PathBuf::from(table), &flags),
            table_id: manifest.table_id,
        })
    }

    /// Opens a connection with one Lookup stream.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(&self) -> Result<Stream> {
        Stream::open(&self.service.address, LOOKUP)
    }

    /// The message for these spans, as a decoder sends it.
    pub fn question(&self, ids: &[TokenId], spans: &[Span]) -> Bytes {
        let spans = spans.iter().map(|span| proto::Span {
            context: span.context,
            answers: span.answers,
        });
        let request = LookupRequest {
            id: 1,
            token_ids: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            spans: spans.collect(),
            table_id: Some(self.table_id.clone()),
            table: String::new(),
            traceparent: String::new(),
        };
        request.encode_to_vec().into()
    }
}

/// Checks that an answer of embed-service holds `rows`, one for each position.
///
/// # Errors
/// When it does not, saying what it holds instead.
pub fn check_answer(answer: &[u8], rows: &[u8]) -> Result<()> {
    let found = rows_of(answer)?;
    ensure!(
        found.row_index.is_empty(),
        "rows of distinct f-grams in order"
    );
    ensure!(found.rows == rows, "embed-service sent a wrong row");
    Ok(())
}

/// Checks that an answer of embed-service is one, and no refusal.
///
/// # Errors
/// When it is not, with the reason.
pub fn check_complete(answer: &Bytes) -> Result<()> {
    rows_of(answer).map(drop)
}

fn rows_of(answer: &[u8]) -> Result<LookupRows> {
    match LookupResponse::decode(answer)?.result {
        Some(lookup_response::Result::Rows(rows)) => Ok(rows),
        Some(lookup_response::Result::Error(error)) => bail!("refused: {}", error.message),
        None => bail!("an answer without a result"),
    }
}

/// Starts this program again as the echo server.
///
/// # Errors
/// When it ends at once.
pub fn start_echo() -> Result<Service> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--echo-server");
    Service::try_start("echo", command)
        .ok()
        .context("the echo server ended at start")
}

/// What some connections saw.
#[derive(Debug, Default)]
pub struct Timings {
    /// Of each question, sorted.
    pub times: Vec<Duration>,
    /// Questions answered in a second, over all connections.
    pub rate: f64,
}

/// Asks one question after another on every connection at once, for about `time`.
///
/// # Errors
/// When a connection breaks.
pub fn drive(
    connections: &mut [Box<dyn Connection>],
    questions: &[Bytes],
    time: Duration,
) -> Result<Timings> {
    ensure!(!questions.is_empty(), "nothing to ask");
    let count = connections.len();
    let start = Barrier::new(count);
    let results: Vec<_> = std::thread::scope(|scope| {
        let mut running = Vec::with_capacity(count);
        for (number, connection) in connections.iter_mut().enumerate() {
            // Each begins elsewhere, so that they do not ask for the same rows at the same time.
            let first = number * questions.len() / count;
            let own = questions.iter().cycle().skip(first);
            let start = &start;
            running.push(scope.spawn(move || {
                start.wait();
                drive_one(&mut **connection, own, time)
            }));
        }
        let joined = running.into_iter().map(|thread| thread.join());
        joined.collect()
    });
    let mut timings = Timings::default();
    for result in results {
        let (times, took) = result.unwrap_or_else(|panic| resume_unwind(panic))?;
        timings.rate += times.len() as f64 / took.as_secs_f64();
        timings.times.extend(times);
    }
    timings.times.sort_unstable();
    Ok(timings)
}

fn drive_one<'a>(
    connection: &mut dyn Connection,
    questions: impl Iterator<Item = &'a Bytes>,
    time: Duration,
) -> Result<(Vec<Duration>, Duration)> {
    let mut times = Vec::new();
    let begin = Instant::now();
    for question in questions {
        let start = Instant::now();
        connection.ask(question)?;
        times.push(start.elapsed());
        if begin.elapsed() >= time {
            break;
        }
    }
    Ok((times, begin.elapsed()))
}
