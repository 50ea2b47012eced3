//! How long the parts of a step take.

use std::time::Duration;

use serde_json::{Value, json};

/// Where the time between two log lines went.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) batch: Duration,
    pub(super) forward: Duration,
    pub(super) backward: Duration,
    pub(super) update: Duration,
}

impl Times {
    /// All of it.
    pub(super) fn total(&self) -> Duration {
        self.batch + self.forward + self.backward + self.update
    }

    /// Milliseconds a step.
    pub(super) fn json(&self, steps: u64) -> Value {
        let ms = |time: Duration| (time.as_secs_f64() * 1e5 / steps.max(1) as f64).round() / 100.0;
        json!({
            "batch": ms(self.batch),
            "forward": ms(self.forward),
            "backward": ms(self.backward),
            "update": ms(self.update),
        })
    }
}
