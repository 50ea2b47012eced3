//! Why a request was refused, and why the service could not run.

use std::{io, path::PathBuf, time::Duration};

use scone_fgram::ErrorKind;
use scone_proto::{embed::v1::LookupError, with_retry_pushback};
use tonic::{Code, Status};
use tracing::error;

/// Why one request was refused or failed. Each message names the field and its limit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The message is larger than `--max-request-bytes`.
    #[error("the request has {bytes} bytes, the limit is max_request_bytes = {limit}")]
    RequestTooLarge {
        /// Encoded size.
        bytes: usize,
        /// The limit.
        limit: u64,
    },
    /// Ids are not whole.
    #[error("token_ids has {bytes} bytes, which is not a multiple of 4 (each id is a u32)")]
    PartialTokenId {
        /// Length of the field.
        bytes: usize,
    },
    /// More ids than `--max-positions`.
    #[error("token_ids has {ids} ids, the limit is max_positions = {limit}")]
    TooManyPositions {
        /// Ids of the request.
        ids: usize,
        /// The limit.
        limit: u32,
    },
    /// An id the tokenizer cannot have made.
    #[error("token_ids[{index}] is {id}, the limit is vocab_size - 1 = {}", vocab_size - 1)]
    TokenIdOutOfRange {
        /// Which id.
        index: usize,
        /// Its value.
        id: u32,
        /// The table's vocabulary.
        vocab_size: u32,
    },
    /// Nothing to answer.
    #[error("spans is empty, at least 1 is needed")]
    NoSpans,
    /// More spans than `--max-spans`.
    #[error("spans has {spans} entries, the limit is max_spans = {limit}")]
    TooManySpans {
        /// Spans of the request.
        spans: usize,
        /// The limit.
        limit: u32,
    },
    /// A span that asks for nothing.
    #[error("spans[{index}].answers is 0, at least 1 is needed")]
    NoAnswers {
        /// Which span.
        index: usize,
    },
    /// Spans and ids disagree.
    #[error("spans cover {covered} ids, but token_ids has {ids}; they must be equal")]
    SpansDoNotCover {
        /// Sum of context and answers of all spans.
        covered: u64,
        /// Ids of the request.
        ids: usize,
    },
    /// The caller wants a table that is not here.
    #[error("there is no table {wanted:?} here; {served}")]
    UnknownTable {
        /// What the request says.
        wanted: String,
        /// Which tables there are.
        served: String,
    },
    /// The caller wants a table version that is not here.
    #[error("table_id is {wanted:?}, but this server serves {served}")]
    OtherTable {
        /// What the request says.
        wanted: String,
        /// What is served, the current version first.
        served: String,
    },
    /// As many bytes are in flight as `--max-inflight-bytes` allows.
    #[error("overloaded: {bytes} more bytes of rows exceed max_inflight_bytes = {limit}")]
    Overloaded {
        /// The most bytes of rows the request may get.
        bytes: u64,
        /// The limit.
        limit: u64,
        /// When to try again.
        retry_delay: Duration,
    },
    /// As many streams are open as `--max-streams` allows.
    #[error("overloaded: {limit} Lookup streams are open, which is the server's limit")]
    TooManyStreams {
        /// The limit.
        limit: u32,
        /// When to try again.
        retry_delay: Duration,
    },
    /// Look-ups of prompts would wait longer for their turn than they may.
    #[error(
        "overloaded: look-ups of more than {positions} positions would wait longer than \
         max_prompt_wait = {} ms",
        .limit.as_millis()
    )]
    PromptsWait {
        /// Above which a look-up is a prompt's.
        positions: usize,
        /// The limit.
        limit: Duration,
        /// When to try again.
        retry_delay: Duration,
    },
    /// The table is still being opened.
    #[error("the table is still being opened")]
    Loading {
        /// When to try again.
        retry_delay: Duration,
    },
    /// The table cannot answer.
    #[error(transparent)]
    Table(#[from] scone_fgram::Error),
    /// The look-up panicked or was cut off by the end of the process.
    #[error("the look-up did not finish")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl Error {
    /// The gRPC code, the same for streams and unary calls.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::RequestTooLarge { .. }
            | Self::PartialTokenId { .. }
            | Self::TooManyPositions { .. }
            | Self::TokenIdOutOfRange { .. }
            | Self::NoSpans
            | Self::TooManySpans { .. }
            | Self::NoAnswers { .. }
            | Self::SpansDoNotCover { .. } => Code::InvalidArgument,
            Self::UnknownTable { .. } => Code::NotFound,
            Self::OtherTable { .. } => Code::FailedPrecondition,
            Self::Overloaded { .. } | Self::TooManyStreams { .. } | Self::PromptsWait { .. } => {
                Code::ResourceExhausted
            }
            Self::Loading { .. } => Code::Unavailable,
            Self::Interrupted(_) => Code::Internal,
            Self::Table(error) => match error.kind() {
                ErrorKind::DataLoss => Code::DataLoss,
                // The request was validated before: anything the table refuses is our bug.
                ErrorKind::InvalidInput | ErrorKind::Mismatch | ErrorKind::Busy | ErrorKind::Io => {
                    Code::Internal
                }
            },
        }
    }

    /// When a retry may succeed; set for overload and loading.
    #[must_use]
    pub fn retry_delay(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_delay, .. }
            | Self::TooManyStreams { retry_delay, .. }
            | Self::PromptsWait { retry_delay, .. }
            | Self::Loading { retry_delay } => Some(*retry_delay),
            Self::RequestTooLarge { .. }
            | Self::PartialTokenId { .. }
            | Self::TooManyPositions { .. }
            | Self::TokenIdOutOfRange { .. }
            | Self::NoSpans
            | Self::TooManySpans { .. }
            | Self::NoAnswers { .. }
            | Self::SpansDoNotCover { .. }
            | Self::UnknownTable { .. }
            | Self::OtherTable { .. }
            | Self::Table(_)
            | Self::Interrupted(_) => None,
        }
    }

    /// What the client may read. Paths and causes of our own faults stay in the log.
    fn public_message(&self) -> String {
        match self.code() {
            Code::DataLoss => "the table is damaged; see the server's log".to_owned(),
            Code::Internal => "internal error; see the server's log".to_owned(),
            _ => self.to_string(),
        }
    }

    /// Writes our own faults to the log, with their causes; the client's faults are its own.
    fn log(&self) {
        if matches!(self.code(), Code::DataLoss | Code::Internal) {
            error!(error = self as &dyn std::error::Error, "look-up failed");
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.log();
        let status = Status::new(error.code(), error.public_message());
        match error.retry_delay() {
            Some(delay) => with_retry_pushback(status, delay),
            None => status,
        }
    }
}

impl From<Error> for LookupError {
    fn from(error: Error) -> Self {
        error.log();
        Self {
            code: error.code() as i32,
            message: error.public_message(),
            retry_delay_ms: error
                .retry_delay()
                .map(|delay| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)),
        }
    }
}

/// Why a table cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// `--table` does not lead to a directory.
    #[error("cannot follow {}", path.display())]
    Path {
        /// `--table`.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is incomplete, damaged, in use or cannot be read.
    #[error(transparent)]
    Fgram(#[from] scone_fgram::Error),
    /// One answer would be larger than allowed, or than gRPC clients can take.
    #[error(
        "an answer of max_positions = {positions} rows of {row_bytes} bytes is larger than \
         {limit} bytes; lower --max-positions, or raise --max-inflight-bytes up to 1GiB"
    )]
    AnswerTooLarge {
        /// `--max-positions`.
        positions: u32,
        /// Bytes of a row.
        row_bytes: u32,
        /// The limit.
        limit: u64,
    },
    /// Clients of the current table could not go on with it.
    #[error("its {field} is {found}, but the table served has {served}; start another server")]
    NotASuccessor {
        /// Which fact differs.
        field: &'static str,
        /// The current table's.
        served: String,
        /// The new table's.
        found: String,
    },
    /// There is no thread to open it with.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The thread that opened it panicked.
    #[error("opening it did not finish")]
    Interrupted,
}

/// Why the service could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The table cannot be served.
    #[error("cannot open the table")]
    Table(#[from] TableError),
    /// Ports or logs.
    #[error(transparent)]
    Service(#[from] scone_service::Error),
    /// The address that was bound cannot be read.
    #[error("cannot read the listening address")]
    Address(#[source] io::Error),
    /// The reflection service rejected our own descriptors.
    #[error("cannot build the reflection service")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The collector's address is none.
    #[error("--otlp-endpoint")]
    Otlp(#[source] tonic::transport::Error),
}
