//! The way from the engine to one client, which may be slow or gone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::{error::Error, sequence::Delta};

/// Messages a client may be behind before its sequences pause.
pub const CAPACITY: usize = 32;

/// What a client receives: deltas, and at most one error, after which nothing comes.
pub type Message = Result<Delta, Error>;

/// Where a mailbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// All was handed over.
    Clear,
    /// The channel is full: the sequence has to pause.
    Blocked,
    /// The client went away.
    Gone,
}

/// Hands messages of one completion to the channel of its request, without ever blocking.
///
/// The channel is bounded. When it is full, one message waits here and grows by what still comes
/// of the step under way; the sequence then pauses, so no more than that is ever held.
///
/// An error needs no room: a place in the channel is kept for the first one of a request.
#[derive(Debug)]
pub(super) struct Mailbox {
    sender: mpsc::Sender<Message>,
    last: LastPlace,
    waiting: Option<Message>,
    blocked_since: Option<Instant>,
}

/// The place that is kept in a request's channel, until it is used.
#[derive(Clone, Debug)]
pub(super) struct LastPlace(Arc<Mutex<Option<mpsc::OwnedPermit<Message>>>>);

impl LastPlace {
    /// Keeps a place of a new channel.
    pub(super) fn of(sender: &mpsc::Sender<Message>) -> Self {
        let place = sender.clone().try_reserve_owned();
        Self(Arc::new(Mutex::new(place.ok())))
    }

    fn take(&self) -> Option<mpsc::OwnedPermit<Message>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Mailbox {
    pub(super) fn new(sender: mpsc::Sender<Message>, last: LastPlace) -> Self {
        Self {
            sender,
            last,
            waiting: None,
            blocked_since: None,
        }
    }

    /// Adds news. Nothing may follow an error.
    pub(super) fn post(&mut self, message: Message) {
        self.waiting = Some(match (self.waiting.take(), message) {
            (None, message) => message,
            (Some(Ok(mut first)), Ok(next)) => {
                first.merge(next);
                Ok(first)
            }
            // The client is told why it ends; the last words before may be lost.
            (_, Err(error)) | (Some(Err(error)), _) => Err(error),
        });
    }

    /// Hands over what waits, if the client took what came before.
    pub(super) fn flush(&mut self, now: Instant) -> State {
        if self.sender.is_closed() {
            return State::Gone;
        }
        let Some(message) = self.waiting.take() else {
            return State::Clear;
        };
        match self.sender.try_send(message) {
            Ok(()) => {
                self.blocked_since = None;
                State::Clear
            }
            Err(mpsc::error::TrySendError::Full(message)) => {
                if message.is_err()
                    && let Some(place) = self.last.take()
                {
                    place.send(message);
                    self.blocked_since = None;
                    return State::Clear;
                }
                self.waiting = Some(message);
                self.blocked_since.get_or_insert(now);
                State::Blocked
            }
            Err(mpsc::error::TrySendError::Closed(_)) => State::Gone,
        }
    }

    /// Whether the client has to take something before more is made for it.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// How long the client has taken nothing.
    pub(super) fn blocked_for(&self, now: Instant) -> Duration {
        self.blocked_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn text(text: &str) -> Message {
        Ok(Delta {
            text: text.into(),
            ..Delta::default()
        })
    }

    #[test]
    fn a_slow_client_gets_everything_in_order_and_nothing_grows() {
        let (sender, mut receiver) = mpsc::channel(2);
        let mut mailbox = mailbox(sender);
        let now = Instant::now();
        mailbox.post(text("a"));
        assert_eq!(mailbox.flush(now), State::Clear);
        mailbox.post(text("b"));
        assert_eq!(mailbox.flush(now), State::Blocked);
        mailbox.post(text("c"));
        let later = now + Duration::from_secs(3);
        assert_eq!(mailbox.flush(later), State::Blocked);
        assert_eq!(mailbox.blocked_for(later), Duration::from_secs(3));

        assert_eq!(receiver.try_recv().unwrap().unwrap().text, "a");
        assert_eq!(mailbox.flush(later), State::Clear);
        assert_eq!(mailbox.blocked_for(later), Duration::ZERO);
        assert_eq!(receiver.try_recv().unwrap().unwrap().text, "bc");
    }

    fn mailbox(sender: mpsc::Sender<Message>) -> Mailbox {
        let last = LastPlace::of(&sender);
        Mailbox::new(sender, last)
    }

    #[test]
    fn a_client_that_does_not_read_finds_out_why_it_ended() {
        let (sender, mut receiver) = mpsc::channel(2);
        let last = LastPlace::of(&sender);
        let mut both = [0, 1].map(|_| Mailbox::new(sender.clone(), last.clone()));
        drop((sender, last));
        let now = Instant::now();
        both[0].post(text("a"));
        assert_eq!(both[0].flush(now), State::Clear);
        for mailbox in &mut both {
            mailbox.post(text("b"));
            assert_eq!(mailbox.flush(now), State::Blocked);
        }
        both[0].post(Err(Error::ClientStalled(Duration::ZERO)));
        assert_eq!(both[0].flush(now), State::Clear);
        drop(both);
        assert_eq!(receiver.try_recv().unwrap().unwrap().text, "a");
        let error = receiver.try_recv().unwrap().unwrap_err();
        assert!(matches!(error, Error::ClientStalled(_)));
        assert_eq!(
            receiver.try_recv().unwrap_err(),
            mpsc::error::TryRecvError::Disconnected
        );
    }

    #[test]
    fn a_client_that_left_is_noticed_without_a_message() {
        let (sender, receiver) = mpsc::channel(1);
        let mut mailbox = mailbox(sender);
        assert_eq!(mailbox.flush(Instant::now()), State::Clear);
        drop(receiver);
        assert_eq!(mailbox.flush(Instant::now()), State::Gone);
    }
}
