//! How a server treats look-ups.

use std::{fmt, sync::Arc};

use scone_proto::embed::v1::{LookupError, LookupRows, lookup_response};
use tonic::Code;

/// Changes an answer before it is sent.
pub type Change = Arc<dyn Fn(LookupRows) -> LookupRows + Send + Sync>;

/// What a server does with look-ups.
#[derive(Clone, Default)]
pub enum Behaviour {
    /// Answers them.
    #[default]
    Answer,
    /// Reads them and never answers.
    Silent,
    /// Answers some with RESOURCE_EXHAUSTED, and the rest as usual.
    Exhausted {
        /// How many.
        times: u64,
        /// The retry delay it names.
        retry_delay_ms: u32,
    },
    /// Answers them wrong.
    Changed(Change),
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer => "Answer",
            Self::Silent => "Silent",
            Self::Exhausted { .. } => "Exhausted",
            Self::Changed(_) => "Changed",
        })
    }
}

impl Behaviour {
    /// What becomes of `answer`; nothing is sent for `None`.
    pub(crate) fn apply(
        &mut self,
        answer: lookup_response::Result,
    ) -> Option<lookup_response::Result> {
        match (self, answer) {
            (Self::Silent, _) => None,
            (
                Self::Exhausted {
                    times,
                    retry_delay_ms,
                },
                _,
            ) if *times > 0 => {
                *times -= 1;
                Some(refusal(
                    Code::ResourceExhausted,
                    "full",
                    Some(*retry_delay_ms),
                ))
            }
            (Self::Changed(change), lookup_response::Result::Rows(rows)) => {
                Some(lookup_response::Result::Rows(change(rows)))
            }
            (_, answer) => Some(answer),
        }
    }
}

/// An answer without rows.
pub(crate) fn refusal(
    code: Code,
    message: &str,
    retry_delay_ms: Option<u32>,
) -> lookup_response::Result {
    lookup_response::Result::Error(LookupError {
        code: code.into(),
        message: message.to_owned(),
        retry_delay_ms,
    })
}
