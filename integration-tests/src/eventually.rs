//! Waiting for a condition, with a bound and without a fixed sleep.

use std::time::{Duration, Instant};

/// How long a test waits for something that should happen at once. Generous: the machine may be
/// busy, and only a failing test waits that long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two looks at the condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Calls `probe` until it returns a value, and returns the value.
///
/// # Panics
/// When `patience` has passed; `what` says what was waited for.
pub fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "no {what} within {patience:?}");
        std::thread::sleep(INTERVAL);
    }
}

/// [`eventually_within`] for an asynchronous `probe`.
///
/// # Panics
/// When [`PATIENCE`] has passed; `what` says what was waited for.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Bounds a future by [`PATIENCE`].
///
/// # Panics
/// When the time has passed; `what` says what was waited for.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("no {what} within {PATIENCE:?}"),
    }
}
