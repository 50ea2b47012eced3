//! Ranks and counts of f-grams, from the fgrams.bin of the model directory.
//!
//! Tables do not carry them, and generating needs none, so the file is opened when somebody asks and
//! is read through each time: nothing of it stays in memory. It is read for one question at a time, and
//! beyond [`MOST_WAITING`] others a question is refused.

use std::{path::PathBuf, sync::Arc};

use scone_fgram::{Rank, SetFile};
use tokio::sync::{OnceCell, Semaphore};
use tracing::{info, warn};

use crate::error::Error;

/// Most questions that are answered or wait for their turn.
pub const MOST_WAITING: usize = 64;

/// An f-gram set that is asked for single f-grams.
#[derive(Debug)]
pub struct Ranks {
    path: PathBuf,
    /// Opened at the first question; `None` when it cannot be read.
    file: OnceCell<Option<Arc<SetFile>>>,
    turn: Semaphore,
    /// What is left of [`MOST_WAITING`].
    places: Semaphore,
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
        Self {
            path,
            file: OnceCell::new(),
            turn: Semaphore::new(1),
            places: Semaphore::new(MOST_WAITING),
        }
    }

    /// Finds an f-gram of the set with this hash. `None` when the file is of another set, cannot be
    /// read, or does not have it.
    ///
    /// # Errors
    /// [`Error::TooManyRanks`].
    pub async fn find(&self, set_hash: &str, ids: Vec<u32>) -> Result<Option<Ranked>, Error> {
        let most = MOST_WAITING;
        let place = self.places.try_acquire();
        let _place = place.map_err(|_| Error::TooManyRanks { most })?;
        let _turn = self.turn.acquire().await.map_err(|_| Error::Internal)?;
        Ok(self.read(set_hash, ids).await)
    }

    async fn read(&self, set_hash: &str, ids: Vec<u32>) -> Option<Ranked> {
        let file = self.file.get_or_init(|| open(self.path.clone())).await;
        let file = file.clone().filter(|file| file.hash() == set_hash)?;
        let set_size = file.len();
        let found = tokio::task::spawn_blocking(move || file.find(&ids)).await;
        match found.ok()? {
            Ok(rank) => rank.map(|rank| Ranked { rank, set_size }),
            Err(error) => {
                warn!(%error, "an f-gram set cannot be read");
                None
            }
        }
    }
}

async fn open(path: PathBuf) -> Option<Arc<SetFile>> {
    let opened = tokio::task::spawn_blocking(move || SetFile::open(path)).await;
    match opened.ok()? {
        Ok(file) => {
            info!(set = file.hash(), fgrams = file.len(), "f-gram set opened");
            Some(Arc::new(file))
        }
        Err(error) => {
            warn!(%error, "an f-gram set cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
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
}
