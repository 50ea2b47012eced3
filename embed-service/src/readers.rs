//! Clients that do not read their answers: while others are refused, their connections are cut.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tokio_util::sync::CancellationToken;

/// Nothing is unread.
const READ: u64 = u64::MAX;

/// All calls whose answers may stay unread.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    calls: Arc<Mutex<HashMap<u64, Call>>>,
    next: Arc<AtomicU64>,
    began: Instant,
    stall_time: Duration,
    /// Connections that were cut.
    cut: Counter,
}

#[derive(Debug)]
struct Call {
    /// Milliseconds after the beginning at which the transport got the answer it has not sent, or
    /// [`READ`].
    unread_since: Arc<AtomicU64>,
    cut: CancellationToken,
}

/// One call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    readers: Readers,
    id: u64,
    unread_since: Arc<AtomicU64>,
}

impl Readers {
    /// Nobody yet; those unread for `stall_time` may be cut.
    pub(crate) fn new(stall_time: Duration, cut: Counter) -> Self {
        Self {
            calls: Arc::default(),
            next: Arc::default(),
            began: Instant::now(),
            stall_time,
            cut,
        }
    }

    /// A call over a connection that `cut` cuts.
    pub(crate) fn enter(&self, cut: CancellationToken) -> Reader {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let unread_since = Arc::new(AtomicU64::new(READ));
        let call = Call {
            unread_since: Arc::clone(&unread_since),
            cut,
        };
        self.lock().insert(id, call);
        Reader {
            readers: self.clone(),
            id,
            unread_since,
        }
    }

    /// Cuts the connections of all calls whose answers have been unread for too long.
    pub(crate) fn cut_stalled(&self) {
        let stall_time = u64::try_from(self.stall_time.as_millis()).unwrap_or(u64::MAX);
        let Some(latest) = millis(self.began).checked_sub(stall_time) else {
            return;
        };
        for call in self.lock().values() {
            let since = call.unread_since.load(Ordering::Relaxed);
            if since <= latest && !call.cut.is_cancelled() {
                call.cut.cancel();
                self.cut.inc();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// There is an answer for the transport.
    pub(crate) fn answered(&self) {
        self.answers().one();
    }

    /// To say so from another task.
    pub(crate) fn answers(&self) -> Answers {
        Answers {
            unread_since: Arc::clone(&self.unread_since),
            began: self.readers.began,
        }
    }

    /// The transport asks for the next one: the last was sent.
    pub(crate) fn sent(&self) {
        self.unread_since.store(READ, Ordering::Relaxed);
    }
}

/// The answers of a call.
#[derive(Debug)]
pub(crate) struct Answers {
    unread_since: Arc<AtomicU64>,
    began: Instant,
}

impl Answers {
    /// One is there; the first that is not sent decides.
    pub(crate) fn one(&self) {
        self.unread_since
            .fetch_min(millis(self.began), Ordering::Relaxed);
    }
}

/// Milliseconds since `began`.
fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(READ - 1)
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_with_an_unread_answer_are_cut() {
        let readers = Readers::new(Duration::ZERO, Counter::default());
        let tokens = [(); 3].map(|()| CancellationToken::new());
        let [idle, reads, stalls] = tokens.clone().map(|cut| readers.enter(cut));
        reads.answered();
        reads.sent();
        stalls.answered();
        readers.cut_stalled();
        let cut = tokens.each_ref().map(CancellationToken::is_cancelled);
        assert_eq!(cut, [false, false, true]);
        readers.cut_stalled();
        assert_eq!(readers.cut.get(), 1);
        drop((idle, reads, stalls));
        assert!(readers.lock().is_empty());

        let patient = Readers::new(Duration::from_secs(3600), Counter::default());
        let token = CancellationToken::new();
        let stalls = patient.enter(token.clone());
        stalls.answered();
        patient.cut_stalled();
        assert!(!token.is_cancelled());
    }
}
