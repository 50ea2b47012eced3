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
    /// How long a gRPC connection may take to say that it is HTTP/2, and one of HTTP to send the head of a
    /// request; before that, how long the handshake of TLS may take.
    pub silence: Duration,
    /// Memory for gRPC messages that are still arriving, in bytes, of all connections together.
    pub unfinished_bytes: usize,
}

impl Default for ConnectionLimits {
    /// No limits.
    fn default() -> Self {
        Self {
            max_connections: Semaphore::MAX_PERMITS,
            max_age: None,
            age_grace: Duration::ZERO,
            silence: Duration::from_secs(60),
            unfinished_bytes: usize::MAX,
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
    /// Cut because they said nothing.
    pub silent: Counter,
    /// Cut because too many frames came that asked for nothing.
    pub flooded: Counter,
    /// Closed because there was no TLS with them.
    pub tls_failed: Counter,
    /// Bytes of gRPC messages that are still arriving.
    pub unfinished: Gauge,
}

impl ConnectionMetrics {
    /// Registers them as `connections_open`, `connections_refused`, `connections_aged`,
    /// `connections_silent`, `connections_flooded`, `connections_tls_failed` and `unfinished_message_bytes`, after the
    /// registry's prefix.
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
        registry.register(
            "connections_silent",
            "Connections cut because nothing came over them",
            metrics.silent,
        );
        registry.register(
            "connections_flooded",
            "Connections of HTTP/2 cut because of too many frames that ask for nothing, such as WINDOW_UPDATE",
            metrics.flooded,
        );
        registry.register(
            "connections_tls_failed",
            "Connections closed because they spoke no TLS, or showed no certificate that is trusted",
            metrics.tls_failed,
        );
        registry.register(
            "unfinished_message_bytes",
            "Bytes of gRPC messages that are still arriving",
            metrics.unfinished,
        );
    }
}
