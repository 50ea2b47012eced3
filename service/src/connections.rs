//! The connections of a gRPC server: how many, and how old they may get.
//!
//! A client keeps its connections, so replicas that are added later would get no work. A
//! connection therefore ends after a time: its long-lived streams end first, GOAWAY tells the
//! client to open another, and what still runs after a grace period is cut.
//!
//! tonic's own `max_connection_age` is not used: it is the same for all connections, which then
//! come back all at once; and with a grace period (0.14) it cuts them without a GOAWAY.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::sleep,
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{
    Extensions,
    transport::server::{Connected, Router},
};
use tracing::{debug, warn};

use crate::grpc::incoming;

/// How long to wait when the system refuses to accept (out of file descriptors, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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

/// A bound port and the limits of its connections.
#[derive(Debug)]
pub struct Connections {
    /// Where clients connect.
    pub listener: TcpListener,
    /// How many, and for how long.
    pub limits: ConnectionLimits,
    /// Counts them.
    pub metrics: ConnectionMetrics,
}

impl From<TcpListener> for Connections {
    /// Without limits.
    fn from(listener: TcpListener) -> Self {
        Self {
            listener,
            limits: ConnectionLimits::default(),
            metrics: ConnectionMetrics::default(),
        }
    }
}

/// When the connection of a request is to end: at its age, or when the server drains. Handlers
/// of long-lived streams watch it and finish; a request from elsewhere gets a token that is
/// never cancelled.
#[must_use]
pub fn ending(extensions: &Extensions) -> CancellationToken {
    let found = extensions.get::<ConnectionInfo>();
    found.map(|info| info.ending.clone()).unwrap_or_default()
}

impl Connections {
    /// Accepts and serves connections until `draining` is cancelled; then the port is closed, and
    /// this returns when the last connection has ended.
    pub(crate) async fn serve(self, router: Router, draining: CancellationToken) {
        let places = Arc::new(Semaphore::new(self.limits.max_connections));
        let mut served = JoinSet::new();
        let mut accepted = incoming(self.listener);
        loop {
            let stream = tokio::select! {
                () = draining.cancelled() => break,
                Some(_) = served.join_next() => continue,
                Some(stream) = accepted.next() => stream,
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                debug!(limit = self.limits.max_connections, "too many connections");
                self.metrics.refused.inc();
                continue;
            };
            let connection = OneConnection {
                router: router.clone(),
                limits: self.limits,
                metrics: self.metrics.clone(),
                ending: draining.child_token(),
            };
            served.spawn(connection.serve(stream, place));
        }
        drop(accepted);
        while served.join_next().await.is_some() {}
    }
}

/// The life of one connection.
struct OneConnection {
    router: Router,
    limits: ConnectionLimits,
    metrics: ConnectionMetrics,
    ending: CancellationToken,
}

impl OneConnection {
    async fn serve(self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let (ending, cut) = (self.ending, CancellationToken::new());
        // A drain that gives up drops this, and with it what is still open.
        let _cut_when_dropped = cut.clone().drop_guard();
        let socket = Socket {
            stream,
            cut: Box::pin(cut.clone().cancelled_owned()),
            ending: ending.clone(),
            _place: Place::take(place, &self.metrics.open),
            // The server below waits for `ending`, so it must not outlive the connection.
            _closed: ending.clone().drop_guard(),
        };
        // A stream that ends would mean shutdown to tonic.
        let socket = tokio_stream::once(Ok::<_, io::Error>(socket));
        let socket = socket.chain(tokio_stream::pending());
        let stopped = ending.clone().cancelled_owned();
        let serving = self.router.serve_with_incoming_shutdown(socket, stopped);
        tokio::pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            () = grow_old(self.limits.max_age) => {
                self.metrics.aged.inc();
                ending.cancel();
                match tokio::time::timeout(self.limits.age_grace, &mut serving).await {
                    Ok(served) => served,
                    Err(_elapsed) => {
                        debug!("cutting an old connection");
                        cut.cancel();
                        serving.await
                    }
                }
            }
        };
        if let Err(error) = served {
            warn!(%error, "cannot serve a connection");
        }
    }
}

/// Waits for the age at which one connection ends.
async fn grow_old(max_age: Option<Duration>) {
    match max_age {
        Some(age) => sleep(jittered(age)).await,
        None => std::future::pending().await,
    }
}

/// 10 % more or less at random, so that connections opened together do not end together.
fn jittered(age: Duration) -> Duration {
    // The standard library's only source of randomness: the keys of a new hasher.
    let random = RandomState::new().build_hasher().finish();
    let share = random as f64 / u64::MAX as f64;
    age.mul_f64(0.9 + 0.2 * share)
}

/// A place among the connections allowed, shown by a gauge.
struct Place {
    _permit: OwnedSemaphorePermit,
    open: Gauge,
}

impl Place {
    fn take(permit: OwnedSemaphorePermit, open: &Gauge) -> Self {
        open.inc();
        Self {
            _permit: permit,
            open: open.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// A TCP connection that can be cut from outside.
struct Socket {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    ending: CancellationToken,
    _place: Place,
    _closed: DropGuard,
}

/// What requests know of their connection.
#[derive(Clone, Debug)]
struct ConnectionInfo {
    ending: CancellationToken,
}

impl Connected for Socket {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo {
            ending: self.ending.clone(),
        }
    }
}

impl Socket {
    /// The socket, or an error once it was cut; the caller's task is woken then.
    fn uncut(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.uncut(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.uncut(cx)?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.uncut(cx)?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.uncut(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_by_a_tenth() {
        let age = Duration::from_secs(100);
        let ages: Vec<Duration> = (0..200).map(|_| jittered(age)).collect();
        let (low, high) = (Duration::from_secs(90), Duration::from_secs(110));
        assert!(ages.iter().all(|age| (low..=high).contains(age)));
        assert!(ages.iter().any(|one| *one != ages[0]));
    }
}
