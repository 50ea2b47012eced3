//! What connections may take, and what happened to them.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::Semaphore;

/// What connections may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnectionLimits {
    /// Open at one time. One more is closed as soon as it is accepted.
    pub max_connections: usize,
    /// A connection ends after this long, 10 % more or less; none does when absent.
    pub max_age: Option<Duration>,
    /// How long the streams of an old connection may take to end before it is cut.
    pub age_grace: Duration,
}

impl Default for ConnectionLimits {
    /// No limits.
    fn default() -> Self {
        Self {
            max_connections: Semaphore::MAX_PERMITS,
            max_age: None,
            age_grace: Duration::ZERO,
        }
    }
}

/// What happens to connections; cheap to clone, clones share the values.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMetrics {
    /// Open now.
    pub open: Gauge,
    /// Closed at once because as many as allowed were open.
    pub refused: Counter,
    /// Ended because of their age.
    pub aged: Counter,
}

impl ConnectionMetrics {
    /// Registers them as `connections_open`, `connections_refused` and `connections_aged`, after
    /// the registry's prefix.
    pub fn register(&self, registry: &mut Registry) {
        let metrics = self.clone();
        registry.register("connections_open", "Connections open now", metrics.open);
        registry.register(
            "connections_refused",
            "Connections closed at once because as many as allowed were open",
            metrics.refused,
        );
        registry.register(
            "connections_aged",
            "Connections ended because of their age",
            metrics.aged,
        );
    }
}
