//! What signals ask for: to stop, or to look at the files again.

use std::{future::pending, sync::Arc};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
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

/// Told at each SIGHUP. Signals that come while nobody waits count as one.
///
/// The handler is installed by the call; it must be made inside a runtime.
#[must_use]
pub fn reload_signal() -> Arc<Notify> {
    let told = Arc::new(Notify::new());
    if let Some(mut hangup) = install(SignalKind::hangup(), "SIGHUP") {
        let teller = Arc::clone(&told);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                info!(signal = "SIGHUP", "reload asked for");
                teller.notify_one();
            }
        });
    }
    told
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
