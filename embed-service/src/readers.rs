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

/// All calls whose answers may stay unread.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    calls: Arc<Mutex<HashMap<u64, Call>>>,
    next: Arc<AtomicU64>,
    stall_time: Duration,
    /// Connections that were cut.
    cut: Counter,
}

#[derive(Debug)]
struct Call {
    answers: Arc<Mutex<Answers>>,
    cut: CancellationToken,
}

/// How far the answers of a call are.
#[derive(Debug, Default)]
struct Answers {
    /// Made, and not sent.
    unread: usize,
    /// When the last one was sent, or the first of these made.
    progress: Option<Instant>,
}

/// One call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    readers: Readers,
    id: u64,
    answers: Arc<Mutex<Answers>>,
}

/// An answer that was made, until it is dropped: then it was sent, or never will be.
#[derive(Debug)]
pub(crate) struct Unread {
    answers: Arc<Mutex<Answers>>,
}

impl Readers {
    /// Nobody yet; those unread for `stall_time` may be cut.
    pub(crate) fn new(stall_time: Duration, cut: Counter) -> Self {
        Self {
            calls: Arc::default(),
            next: Arc::default(),
            stall_time,
            cut,
        }
    }

    /// A call over a connection that `cut` cuts.
    pub(crate) fn enter(&self, cut: CancellationToken) -> Reader {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let answers = Arc::default();
        let call = Call {
            answers: Arc::clone(&answers),
            cut,
        };
        lock(&self.calls).insert(id, call);
        Reader {
            readers: self.clone(),
            id,
            answers,
        }
    }

    /// Cuts the connections of all calls that have unread answers, none of which was sent for too long.
    pub(crate) fn cut_stalled(&self) {
        for call in lock(&self.calls).values() {
            let progress = lock(&call.answers).progress;
            let stalled = progress.is_some_and(|at| at.elapsed() >= self.stall_time);
            if stalled && !call.cut.is_cancelled() {
                call.cut.cancel();
                self.cut.inc();
            }
        }
    }
}

impl Reader {
    /// There is an answer; it is unread until the value is dropped.
    pub(crate) fn answered(&self) -> Unread {
        self.answering().made()
    }

    /// To say so from another task.
    pub(crate) fn answering(&self) -> Answering {
        Answering(Arc::clone(&self.answers))
    }
}

/// Who makes answers of a call.
#[derive(Debug)]
pub(crate) struct Answering(Arc<Mutex<Answers>>);

impl Answering {
    /// There is an answer.
    pub(crate) fn made(self) -> Unread {
        let mut answers = lock(&self.0);
        answers.unread += 1;
        answers.progress.get_or_insert_with(Instant::now);
        drop(answers);
        Unread { answers: self.0 }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let mut answers = lock(&self.answers);
        answers.unread -= 1;
        answers.progress = (answers.unread > 0).then(Instant::now);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        lock(&self.readers.calls).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics with a lock held; if it did, counts and lists would still be whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_with_an_unread_answer_are_cut() {
        let readers = Readers::new(Duration::ZERO, Counter::default());
        let tokens = [(); 3].map(|()| CancellationToken::new());
        let [idle, reads, stalls] = tokens.clone().map(|cut| readers.enter(cut));
        drop(reads.answered());
        let unread = stalls.answered();
        readers.cut_stalled();
        let cut = tokens.each_ref().map(CancellationToken::is_cancelled);
        assert_eq!(cut, [false, false, true]);
        readers.cut_stalled();
        assert_eq!(readers.cut.get(), 1);
        drop((idle, reads, stalls, unread));
        assert!(lock(&readers.calls).is_empty());
    }

    #[test]
    fn one_that_reads_slowly_is_not_cut() {
        let readers = Readers::new(Duration::from_secs(3600), Counter::default());
        let token = CancellationToken::new();
        let reader = readers.enter(token.clone());
        let progress = || lock(&reader.answers).progress;
        let (first, second) = (reader.answered(), reader.answered());
        let made = progress();
        drop(second);
        assert!(progress() > made, "one was sent");
        readers.cut_stalled();
        assert!(!token.is_cancelled());
        drop(first);
        assert_eq!(progress(), None);
    }
}
