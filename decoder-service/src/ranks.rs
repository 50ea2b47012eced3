//! Ranks and counts of f-grams, from the fgrams.bin of the model directory.
//!
//! Tables do not carry them, and generating needs none, so the file is opened when somebody asks and
//! is read through each time: nothing of it stays in memory. It is read for one question at a time, and
//! beyond [`MOST_WAITING`] others a question is refused.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use scone_fgram::{Rank, SetFile};
use tokio::{sync::Semaphore, task::spawn_blocking};
use tracing::{info, warn};

use crate::error::Error;

/// Most questions that are answered or wait for their turn.
pub const MOST_WAITING: usize = 64;

/// An f-gram set that is asked for single f-grams.
#[derive(Debug)]
pub struct Ranks {
    set: Arc<Set>,
    turn: Arc<Semaphore>,
    /// What is left of [`MOST_WAITING`].
    places: Arc<Semaphore>,
}

/// Where an f-gram stands among all of its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// Its rank and counts.
    pub rank: Rank,
    /// S: how many f-grams the set has.
    pub set_size: u64,
}

impl Ranks {
    /// Of a set file, which is opened when it is needed.
    pub fn new(path: PathBuf) -> Self {
        let file = OnceLock::new();
        Self {
            set: Arc::new(Set { path, file }),
            turn: Arc::new(Semaphore::new(1)),
            places: Arc::new(Semaphore::new(MOST_WAITING)),
        }
    }

    /// Finds an f-gram of the set with this hash. `None` when the file is of another set, cannot be
    /// read, or does not have it.
    ///
    /// # Errors
    /// [`Error::TooManyRanks`].
    pub async fn find(&self, set_hash: &str, ids: Vec<u32>) -> Result<Option<Ranked>, Error> {
        let (set, set_hash) = (Arc::clone(&self.set), set_hash.to_owned());
        self.in_turn(move || set.find(&set_hash, &ids)).await
    }

    /// Runs `work` on another thread, in turn. It is never begun when whoever asks has left before.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let most = MOST_WAITING;
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| Error::TooManyRanks { most })?;
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let turn = turn.map_err(|_| Error::Internal)?;
        let done = spawn_blocking(move || {
            // Held here: the work goes on when whoever asks has left.
            let _held = (place, turn);
            work()
        });
        done.await.map_err(|_| Error::Internal)
    }
}

/// The file of a set.
#[derive(Debug)]
struct Set {
    path: PathBuf,
    /// Opened at the first question; `None` when it cannot be read.
    file: OnceLock<Option<SetFile>>,
}

impl Set {
    /// Reads the file, so a thread should wait for it.
    fn find(&self, set_hash: &str, ids: &[u32]) -> Option<Ranked> {
        let file = self.file.get_or_init(|| self.open()).as_ref()?;
        if file.hash() != set_hash {
            return None;
        }
        let found = file.find(ids).inspect_err(|error| {
            warn!(%error, "an f-gram set cannot be read");
        });
        let rank = found.ok()??;
        let set_size = file.len();
        Some(Ranked { rank, set_size })
    }

    fn open(&self) -> Option<SetFile> {
        let opened = SetFile::open(&self.path).inspect_err(|error| {
            warn!(%error, "an f-gram set cannot be read");
        });
        let file = opened.ok()?;
        info!(set = file.hash(), fgrams = file.len(), "f-gram set opened");
        Some(file)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn questions_take_turns_and_beyond_their_limit_are_refused() {
        let ranks = Arc::new(Ranks::new(PathBuf::from("/nowhere/fgrams.bin")));
        let turn = ranks.turn.acquire().await.unwrap();
        let ask = || {
            let ranks = ranks.clone();
            tokio::spawn(async move { ranks.find("", vec![1, 2]).await })
        };
        let waiting: Vec<_> = (0..MOST_WAITING).map(|_| ask()).collect();
        while ranks.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = ranks.find("", vec![1, 2]).await;
        assert!(matches!(refused, Err(Error::TooManyRanks { .. })));
        drop(turn);
        for one in waiting {
            // There is no such file.
            assert_eq!(one.await.unwrap().unwrap(), None);
        }
        assert_eq!(ranks.places.available_permits(), MOST_WAITING);
    }

    /// Else whoever asks and leaves has the file read by ever more threads.
    #[tokio::test]
    async fn what_is_read_for_somebody_who_has_left_keeps_its_turn() {
        let ranks = Arc::new(Ranks::new(PathBuf::from("/nowhere/fgrams.bin")));
        let (gate, closed) = channel::<()>();
        let (begun, seen) = channel();
        let of_one = ranks.clone();
        let work = move || {
            begun.send(()).unwrap();
            let _opened = closed.recv();
        };
        let one = tokio::spawn(async move { of_one.in_turn(work).await });
        spawn_blocking(move || seen.recv()).await.unwrap().unwrap();
        one.abort();
        assert!(one.await.unwrap_err().is_cancelled());
        assert_eq!(ranks.turn.available_permits(), 0);
        assert_eq!(ranks.places.available_permits(), MOST_WAITING - 1);
        drop(gate);
        assert_eq!(ranks.find("", vec![1, 2]).await.unwrap(), None);
        assert_eq!(ranks.places.available_permits(), MOST_WAITING);
    }
}
