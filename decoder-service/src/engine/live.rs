//! A sequence with all it owns in the engine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use scone_model::sampling::Sampler;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;

use super::{
    ahead::Ahead,
    mailbox::{Mailbox, State},
};
use crate::{embed_tier::TableFacts, error::Error, kv::SequenceBlocks, sequence::Sequence};

/// A sequence that waits or runs.
pub(super) struct Live {
    pub(super) sequence: Sequence,
    pub(super) sampler: Sampler,
    /// Taken when the sequence gets a slot of the batch.
    pub(super) blocks: Option<SequenceBlocks>,
    /// The table version of all its rows: the current one when it first got a slot. `None` for a
    /// plain model.
    pub(super) table: Option<Arc<TableFacts>>,
    /// Rows of its next positions, if they were asked for already.
    pub(super) ahead: Option<Ahead>,
    pub(super) mailbox: Mailbox,
    /// Counts the sequence among those that run or wait.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) span: Span,
}

/// A sequence that is over and whose last message its client did not take yet.
pub(super) struct Closing {
    pub(super) mailbox: Mailbox,
    pub(super) deadline: Option<Instant>,
    /// Held until the message is gone, so that slow clients cannot pile up.
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Live {
    /// Why the sequence has to end before its next step, if it has to.
    pub(super) fn ended_by_client(
        &mut self,
        now: Instant,
        client_timeout: Duration,
    ) -> Result<State, Error> {
        let state = self.mailbox.flush(now);
        if state == State::Gone {
            return Err(Error::Cancelled);
        }
        if self.sequence.request().deadline.is_some_and(|at| at <= now) {
            return Err(Error::DeadlineExceeded {
                tokens: self.sequence.usage().completion_tokens,
            });
        }
        if self.mailbox.blocked_for(now) >= client_timeout {
            return Err(Error::ClientStalled(client_timeout));
        }
        Ok(state)
    }
}

impl Closing {
    /// Whether there is nothing more to do for the client.
    pub(super) fn done(&mut self, now: Instant, client_timeout: Duration) -> bool {
        self.mailbox.flush(now) != State::Blocked
            || self.deadline.is_some_and(|at| at <= now)
            || self.mailbox.blocked_for(now) >= client_timeout
    }
}
