//! When to stop.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

/// Resolves at the first SIGTERM (Kubernetes, systemd) or SIGINT (Ctrl-C).
///
/// The handlers are installed by the call, not by the first poll, so a signal that arrives
/// while a table or model loads is not lost and does not kill the process.
pub fn shutdown_signal() -> impl Future<Output = ()> + Send + 'static {
    let terminate = install(SignalKind::terminate(), "SIGTERM");
    let interrupt = install(SignalKind::interrupt(), "SIGINT");
    async move {
        let name = tokio::select! {
            () = received(terminate) => "SIGTERM",
            () = received(interrupt) => "SIGINT",
        };
        info!(signal = name, "shutdown asked for");
    }
}

fn install(kind: SignalKind, name: &'static str) -> Option<Signal> {
    signal(kind)
        .inspect_err(|error| warn!(signal = name, %error, "cannot catch signal"))
        .ok()
}

/// Never resolves when the handler could not be installed: the signal then acts as by default.
async fn received(signal: Option<Signal>) {
    match signal {
        Some(mut signal) => {
            signal.recv().await;
        }
        None => pending().await,
    }
}
