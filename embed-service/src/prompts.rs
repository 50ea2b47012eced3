//! Look-ups of prompts: long, and nobody's next token. They take turns on a few threads, so that decode
//! steps find a free one, and those that would wait too long for their turn are refused at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// More positions than a decode step has, or a prompt's share in one.
pub(crate) const PROMPT_POSITIONS: usize = 256;

/// Who waits and works, and how fast it went lately. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Prompts {
    turns: Arc<Semaphore>,
    threads: u32,
    pace: Arc<Pace>,
    max_wait: Duration,
    retry_delay: Duration,
}

#[derive(Debug, Default)]
struct Pace {
    /// Positions of those that wait or work.
    ahead: AtomicU64,
    /// Recent mean time of a position, in ns.
    position_ns: AtomicU64,
}

/// Positions that count until this is dropped.
#[derive(Debug)]
struct Ahead {
    pace: Arc<Pace>,
    positions: u64,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.pace.ahead.fetch_sub(self.positions, Ordering::Relaxed);
    }
}

/// A prompt's turn, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    ahead: Ahead,
    _thread: OwnedSemaphorePermit,
    began: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let new = took / self.ahead.positions.max(1);
        let old = self.ahead.pace.position_ns.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { (old * 7 + new) / 8 };
        let pace = &self.ahead.pace;
        pace.position_ns.store(mean, Ordering::Relaxed);
    }
}

impl Prompts {
    /// Turns on `threads` threads, for which nobody waits longer than `max_wait`.
    pub(crate) fn new(threads: u32, max_wait: Duration, retry_delay: Duration) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(threads as usize)),
            threads,
            pace: Arc::default(),
            max_wait,
            retry_delay,
        }
    }

    /// Waits for a turn to look so many positions up.
    ///
    /// # Errors
    /// [`Error::PromptsWait`] at once, when those before it take too long.
    pub(crate) async fn turn(&self, positions: usize) -> Result<Turn, Error> {
        let positions = positions as u64;
        let before = self.pace.ahead.fetch_add(positions, Ordering::Relaxed);
        let ahead = Ahead {
            pace: Arc::clone(&self.pace),
            positions,
        };
        if self.wait_behind(before) > self.max_wait {
            return Err(self.refused());
        }
        let thread = Arc::clone(&self.turns).acquire_owned().await;
        Ok(Turn {
            ahead,
            // Never closed.
            _thread: thread.map_err(|_| self.refused())?,
            began: Instant::now(),
        })
    }

    fn wait_behind(&self, positions: u64) -> Duration {
        let each = self.pace.position_ns.load(Ordering::Relaxed);
        Duration::from_nanos(positions.saturating_mul(each) / u64::from(self.threads.max(1)))
    }

    fn refused(&self) -> Error {
        Error::PromptsWait {
            positions: PROMPT_POSITIONS,
            limit: self.max_wait,
            retry_delay: self.retry_delay,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn those_that_would_wait_too_long_are_refused_and_nobody_else() {
        let prompts = Prompts::new(1, Duration::from_millis(100), Duration::ZERO);
        let first = prompts.turn(1000).await.unwrap();
        // Nothing is known yet: it waits.
        let waiting = tokio::spawn({
            let prompts = prompts.clone();
            async move { prompts.turn(1000).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(prompts.pace.ahead.load(Ordering::Relaxed), 2000);
        drop(first);
        waiting.await.unwrap().unwrap();
        assert_eq!(prompts.pace.ahead.load(Ordering::Relaxed), 0);

        prompts.pace.position_ns.store(100_000, Ordering::Relaxed);
        let _working = prompts.turn(1500).await.unwrap();
        let refused = prompts.turn(1).await.unwrap_err();
        assert!(matches!(refused, Error::PromptsWait { .. }), "{refused}");
        assert_eq!(prompts.pace.ahead.load(Ordering::Relaxed), 1500);
    }
}
