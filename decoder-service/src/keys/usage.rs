//! What the calls with one key take.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::KeyLimits;
use crate::error::Error;

/// When to try again while as many sequences of a key run as may.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a key uses, whatever its limits are at the time.
#[derive(Debug)]
pub(super) struct Usage {
    /// Tells keys apart, whatever they are called.
    pub(super) id: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    running: u32,
    /// Tokens that may be used now: filled over a minute up to its limit, and below zero when calls that
    /// were let in took more.
    tokens: f64,
    filled: Instant,
}

impl State {
    fn fill(&mut self, per_minute: f64, now: Instant) {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * per_minute / 60.0).min(per_minute);
        self.filled = now;
    }
}

impl Usage {
    /// Of a key that nobody has used.
    pub(super) fn new(limits: &KeyLimits) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let state = State {
            running: 0,
            tokens: limits.tokens_per_minute.map_or(0.0, f64::from),
            filled: Instant::now(),
        };
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            state: Mutex::new(state),
        }
    }

    /// Counts a call with so many sequences in.
    pub(super) fn take(&self, limits: &KeyLimits, sequences: u32) -> Result<(), Error> {
        self.take_at(limits, sequences, Instant::now())
    }

    fn take_at(&self, limits: &KeyLimits, sequences: u32, now: Instant) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let running = state.running.saturating_add(sequences);
        if let Some(most) = limits.max_concurrent
            && running > most
        {
            let retry_after = RETRY_AFTER;
            return Err(Error::KeyBusy { most, retry_after });
        }
        if let Some(tokens_per_minute) = limits.tokens_per_minute {
            let per_minute = f64::from(tokens_per_minute);
            state.fill(per_minute, now);
            // What a call takes shows as it runs, so it is let in as long as there is something left.
            if state.tokens < 1.0 {
                let seconds = (1.0 - state.tokens) * 60.0 / per_minute;
                return Err(Error::KeyRate {
                    tokens_per_minute,
                    retry_after: Duration::from_secs_f64(seconds),
                });
            }
        }
        state.running = running;
        Ok(())
    }

    /// Counts tokens.
    pub(super) fn charge(&self, limits: &KeyLimits, tokens: usize) {
        self.charge_at(limits, tokens, Instant::now());
    }

    fn charge_at(&self, limits: &KeyLimits, tokens: usize, now: Instant) {
        if let Some(per_minute) = limits.tokens_per_minute {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.fill(f64::from(per_minute), now);
            state.tokens -= tokens as f64;
        }
    }

    /// Counts a call out.
    pub(super) fn give_back(&self, sequences: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = state.running.saturating_sub(sequences);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tokens_come_back_over_a_minute_and_what_was_taken_too_much_is_waited_for() {
        let limits = KeyLimits {
            max_concurrent: None,
            tokens_per_minute: Some(60),
        };
        let usage = Usage::new(&limits);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        usage.take_at(&limits, 1, start).unwrap();
        // Twice as many as are there: what was let in is not cut.
        usage.charge_at(&limits, 120, start);
        let refused = usage.take_at(&limits, 1, after(10)).unwrap_err();
        let Error::KeyRate { retry_after, .. } = refused else {
            panic!("{refused}");
        };
        // 60 are missing and 10 have come; so has the time between the first line and `start`.
        assert_eq!(retry_after.as_secs_f64().ceil(), 51.0);
        assert!(usage.take_at(&limits, 1, after(59)).is_err());
        usage.take_at(&limits, 1, after(62)).unwrap();
        // No more than a minute's are saved up.
        usage.take_at(&limits, 1, after(10_000)).unwrap();
        usage.charge_at(&limits, 60, after(10_000));
        assert!(usage.take_at(&limits, 1, after(10_000)).is_err());
    }

    #[test]
    fn refused_calls_take_nothing() {
        let limits = KeyLimits {
            max_concurrent: Some(3),
            tokens_per_minute: None,
        };
        let usage = Usage::new(&limits);
        usage.take(&limits, 2).unwrap();
        assert!(usage.take(&limits, 2).is_err());
        assert!(usage.take(&limits, u32::MAX).is_err());
        usage.take(&limits, 1).unwrap();
        usage.give_back(2);
        usage.take(&limits, 2).unwrap();
    }
}
