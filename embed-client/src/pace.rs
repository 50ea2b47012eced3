//! When a look-up counts as late, and how many late ones may be sent twice.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Latencies remembered for each size class.
const WINDOW: usize = 512;
/// The p99 is computed again after this many look-ups; before the first time nothing is late.
const REFRESH: usize = 64;
/// Less than this is never late: a context switch on a busy machine takes as long.
const FLOOR: Duration = Duration::from_millis(1);
/// Look-ups of at most this many answers are of the size of a decode step, others of a prompt.
const SMALL_ANSWERS: usize = 64;
/// A look-up earns one, a second copy of one costs `COST`: 5 in 100. At most `SAVED` are kept.
const COST: u32 = 20;
const SAVED: u32 = 10 * COST;

/// Recent latencies of look-ups of about one size.
#[derive(Debug, Default)]
struct Latencies {
    recent: Mutex<Recent>,
    /// In microseconds; 0: not known yet.
    p99_us: AtomicU64,
}

#[derive(Debug, Default)]
struct Recent {
    /// A ring, in microseconds.
    samples: Vec<u32>,
    next: usize,
    since_refresh: usize,
}

impl Latencies {
    fn record(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        // No code panics with the lock held.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.samples.len() < WINDOW {
            recent.samples.push(took);
        } else {
            let next = recent.next;
            recent.samples[next] = took;
        }
        recent.next = (recent.next + 1) % WINDOW;
        recent.since_refresh += 1;
        if recent.since_refresh < REFRESH {
            return;
        }
        recent.since_refresh = 0;
        let mut sorted = recent.samples.clone();
        drop(recent);
        let at = sorted.len() * 99 / 100;
        let (_, p99, _) = sorted.select_nth_unstable(at);
        self.p99_us.store(u64::from(*p99).max(1), Ordering::Relaxed);
    }

    fn late_after(&self) -> Option<Duration> {
        match self.p99_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us).max(FLOOR)),
        }
    }
}

/// Recent latencies by size, and the allowance of second copies.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    small: Latencies,
    large: Latencies,
    allowance: AtomicU32,
}

impl Pace {
    fn latencies(&self, answers: usize) -> &Latencies {
        if answers <= SMALL_ANSWERS {
            &self.small
        } else {
            &self.large
        }
    }

    /// A replica answered a look-up.
    pub(crate) fn record(&self, answers: usize, took: Duration) {
        self.latencies(answers).record(took);
    }

    /// After how long a look-up is later than the recent p99 of its size; `None` while there are
    /// too few to tell.
    pub(crate) fn late_after(&self, answers: usize) -> Option<Duration> {
        self.latencies(answers).late_after()
    }

    /// A look-up begins.
    pub(crate) fn earn(&self) {
        let more = |saved: u32| (saved < SAVED).then_some(saved + 1);
        // Full already: nothing to add.
        let _ = self
            .allowance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Whether a second copy may be sent; it is paid for then.
    pub(crate) fn spend(&self) -> bool {
        let less = |saved: u32| saved.checked_sub(COST);
        self.allowance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_is_later_than_the_p99_of_the_same_size() {
        let pace = Pace::default();
        assert_eq!(pace.late_after(1), None);
        for i in 0..200 {
            let took = if i % 50 == 0 { 90 } else { 5 };
            pace.record(1, Duration::from_millis(took));
        }
        assert_eq!(pace.late_after(1), Some(Duration::from_millis(90)));
        assert_eq!(pace.late_after(1000), None);
        for _ in 0..2 * WINDOW {
            pace.record(1, Duration::from_micros(5));
        }
        assert_eq!(pace.late_after(1), Some(FLOOR), "old ones are forgotten");
    }

    #[test]
    fn one_look_up_in_twenty_may_be_sent_twice() {
        let pace = Pace::default();
        let mut sent = 0;
        for _ in 0..1000 {
            pace.earn();
            sent += u32::from(pace.spend());
        }
        assert_eq!(sent, 50);
        for _ in 0..100_000 {
            pace.earn();
        }
        let burst = (0..100).filter(|_| pace.spend()).count();
        assert_eq!(burst, 10, "what is saved is bounded");
    }
}
