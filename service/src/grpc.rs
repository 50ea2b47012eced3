//! Settings of the gRPC server that both services need, and its life from bind to drain.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Router};
use tracing::{info, warn};

pub use crate::listener::{KEEPALIVE_INTERVAL, bind, bind_for, incoming};
use crate::{connections::Connections, health::Health};

/// HTTP/2 window of one stream: how much a client may send ahead of what its call has taken.
///
/// A server's windows pace what clients send, not what it answers; that is for the client's
/// windows. What clients send is small: a decode step's look-ups are some KiB and a prompt's at
/// most some 100 KiB, so many fit; a text to continue has up to 4 MiB and takes a few round trips.
/// A client that sends and is not served costs no more memory than this.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// HTTP/2 window of one connection, shared by its streams.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A peer that does not answer a ping this long is gone.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A server with the windows and keepalive above. Frames have HTTP/2's default size, in which most
/// requests fit. Message size limits belong to the generated service types.
#[must_use]
pub fn server_builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// How serving ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drained {
    /// Every stream finished.
    Complete,
    /// The drain timeout passed with streams still open; they are cut.
    TimedOut,
}

/// Serves until `shutdown` resolves, then drains: health says NOT_SERVING, `draining` is
/// cancelled (handlers of long-lived streams watch it, or [`ending`], and finish), the port is
/// closed, and open streams get up to `drain_timeout` to end. Both ends of a drain are a normal
/// exit (code 0).
///
/// [`ending`]: crate::connections::ending
pub async fn serve_until(
    router: Router,
    connections: impl Into<Connections>,
    shutdown: impl Future<Output = ()>,
    health: &Health,
    draining: CancellationToken,
    drain_timeout: Duration,
) -> Drained {
    let serving = connections.into().serve(router, draining.clone());
    tokio::pin!(serving);
    tokio::select! {
        // It ends when it drains, and only the line below tells it to.
        () = &mut serving => return Drained::Complete,
        () = shutdown => {}
    }
    info!(
        drain.timeout_ms = drain_timeout.as_millis() as u64,
        "draining"
    );
    health.close().await;
    draining.cancel();
    match timeout(drain_timeout, serving).await {
        Ok(()) => {
            info!("drained");
            Drained::Complete
        }
        Err(_elapsed) => {
            warn!("drain timeout passed, giving up on the streams still open");
            Drained::TimedOut
        }
    }
}
