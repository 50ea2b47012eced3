//! A sequence with all it owns in the engine.

use std::{sync::Arc, time::Instant};

use scone_model::sampling::Sampler;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;

use super::{
    EngineConfig,
    ahead::Ahead,
    mailbox::{Mailbox, State},
};
use crate::{
    embed_tier::TableFacts,
    error::Error,
    kv::SequenceBlocks,
    places::{Places, Share},
    sequence::Sequence,
};

/// A sequence that waits or runs.
pub(super) struct Live {
    pub(super) sequence: Sequence,
    pub(super) sampler: Sampler,
    /// Taken when the sequence gets a slot of the batch.
    pub(super) blocks: Option<SequenceBlocks>,
    /// Where all its rows are from.
    pub(super) rows: Rows,
    /// Rows of its next positions, if they were asked for already.
    pub(super) ahead: Option<Ahead>,
    /// Given back before the mailbox goes: a client that has seen the end may come again at once.
    pub(super) place: Place,
    pub(super) mailbox: Mailbox,
    pub(super) span: Span,
}

/// Where the rows of a sequence are from, from its first step to its last.
#[derive(Clone, Debug)]
pub(super) enum Rows {
    /// It never had a slot.
    NotChosen,
    /// From nowhere: a plain model, or a request for no table.
    Plain,
    /// From the version of its table that was current when it first got a slot.
    Table(Arc<TableFacts>),
}

impl Rows {
    pub(super) fn table(&self) -> Option<&Arc<TableFacts>> {
        match self {
            Self::Table(table) => Some(table),
            Self::NotChosen | Self::Plain => None,
        }
    }
}

/// What a sequence is counted by.
pub(super) struct Place {
    /// Among those that run or wait, or among those whose clients do not read.
    permit: OwnedSemaphorePermit,
    beside: bool,
    _share: Option<Arc<Share>>,
}

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit, share: Option<Arc<Share>>) -> Self {
        Self {
            permit,
            beside: false,
            _share: share,
        }
    }

    /// Whether its client let it wait so long that it does not count among those that run or wait.
    pub(super) fn is_beside(&self) -> bool {
        self.beside
    }

    /// Counts the sequence no more among those that run or wait; `false` when too many stand beside
    /// these.
    pub(super) fn step_aside(&mut self, places: &Places) -> bool {
        if self.beside {
            return true;
        }
        let Some(permit) = places.beside() else {
            return false;
        };
        self.permit = permit;
        self.beside = true;
        true
    }
}

/// A sequence that is over and whose last message its client did not take yet.
pub(super) struct Closing {
    /// Held until the message is gone, so that slow clients cannot pile up; as in [`Live`], given back
    /// before the mailbox goes.
    pub(super) place: Place,
    pub(super) mailbox: Mailbox,
    pub(super) deadline: Option<Instant>,
    /// Generated.
    pub(super) tokens: u32,
}

impl Live {
    /// Why the sequence has to end before its next step, if it has to.
    pub(super) fn ended_by_client(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        places: &Places,
    ) -> Result<State, Error> {
        let state = self.mailbox.flush(now);
        if state == State::Gone {
            return Err(Error::Cancelled);
        }
        if self.blocks.is_none() && !self.sequence.has_started() {
            let (arrived, most) = (self.sequence.request().arrived, config.max_queue_time);
            if now.saturating_duration_since(arrived) > most {
                return Err(Error::QueueTooLong {
                    most,
                    retry_after: most,
                });
            }
        }
        if self.sequence.request().deadline.is_some_and(|at| at <= now) {
            return Err(Error::DeadlineExceeded {
                tokens: self.sequence.usage().completion_tokens,
            });
        }
        let silence = self.mailbox.blocked_for(now);
        let stalled = silence >= config.client_timeout
            || silence >= config.stall_time && !self.place.step_aside(places);
        if stalled {
            return Err(Error::ClientStalled(silence));
        }
        Ok(state)
    }
}

impl Closing {
    /// Whether there is nothing more to do for the client.
    pub(super) fn done(&mut self, now: Instant, config: &EngineConfig, places: &Places) -> bool {
        if self.mailbox.flush(now) != State::Blocked {
            return true;
        }
        let silence = self.mailbox.blocked_for(now);
        let late = self.deadline.is_some_and(|at| at <= now);
        let stalled = silence >= config.client_timeout
            || silence >= config.stall_time && !self.place.step_aside(places);
        let why = match (late, stalled) {
            (true, _) => Error::DeadlineExceeded {
                tokens: self.tokens,
            },
            (false, true) => Error::ClientStalled(silence),
            (false, false) => return false,
        };
        self.mailbox.post(Err(why));
        self.mailbox.flush(now);
        true
    }
}
