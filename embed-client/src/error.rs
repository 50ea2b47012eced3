//! What can go wrong.

use std::time::Duration;

use scone_proto::retry_pushback;
use tonic::Status;

use crate::facts::Incompatible;

/// Why a client cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Not every shard had a replica in time. Says what is missing and what was met instead.
    #[error("{0}")]
    NotReady(String),
    /// All replicas that were reached serve another model's table.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
}

/// Why look-ups got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No embed-service answered in time. Another try may succeed.
    #[error("the embed tier did not answer: {0}")]
    Unavailable(String),
    /// An answer was damaged or contradicts the table's facts. Another try may not help.
    #[error("the embed tier gave a bad answer: {0}")]
    BadAnswer(String),
}

/// Why a replica cannot be used now.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Unusable {
    /// For the log, and for callers who wait for the replica.
    pub(crate) why: String,
    /// How long it asked to be left alone; zero when it did not.
    pub(crate) retry_after: Duration,
}

impl Unusable {
    /// It answered `call` with a status.
    pub(crate) fn refused(call: &str, status: &Status) -> Self {
        Self {
            why: format!("{call}: {status}"),
            retry_after: retry_pushback(status).unwrap_or_default(),
        }
    }
}

impl From<String> for Unusable {
    fn from(why: String) -> Self {
        let retry_after = Duration::ZERO;
        Self { why, retry_after }
    }
}
