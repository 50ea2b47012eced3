//! Ranks and counts of f-grams, from the fgrams.bin of the model directory.
//!
//! Tables do not carry them, and generating needs none, so the file is opened when somebody asks and
//! is read through each time: nothing of it stays in memory. One is read at a time; those who wait
//! are as many as connections and their streams allow.

use std::{path::PathBuf, sync::Arc};

use scone_fgram::{Rank, SetFile};
use tokio::sync::{OnceCell, Semaphore};
use tracing::{info, warn};

/// An f-gram set that is asked for single f-grams.
#[derive(Debug)]
pub struct Ranks {
    path: PathBuf,
    /// Opened at the first question; `None` when it cannot be read.
    file: OnceCell<Option<Arc<SetFile>>>,
    turn: Semaphore,
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
        }
    }

    /// Finds an f-gram of the set with this hash. `None` when the file is of another set, cannot be
    /// read, or does not have it.
    pub async fn find(&self, set_hash: &str, ids: Vec<u32>) -> Option<Ranked> {
        let _turn = self.turn.acquire().await.ok()?;
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
