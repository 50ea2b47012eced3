//! What can go wrong.

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
