//! Accepts connections and serves each for as long as it may live.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    io,
    sync::Arc,
    time::Duration,
};

use scone_tls::{Protocol, ServerTls};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tracing::{debug, warn};

use super::{
    limits::{ConnectionLimits, ConnectionMetrics},
    socket::{Slot, Socket},
    transport::{Heard, NoTransport, Transport},
};
use crate::listener::incoming;

/// How long to wait when the system refuses to accept (out of file descriptors, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every HTTP/2 client begins with: the preface and the head of its settings.
const GREETING_BYTES: u64 = 24 + 9;

/// How long a client may take to answer that its connection is to end.
const DRAIN_SILENCE: Duration = Duration::from_secs(3);

/// A bound port and the limits of its connections.
#[derive(Debug)]
pub struct Connections {
    /// Where clients connect.
    pub listener: TcpListener,
    /// How many, and for how long.
    pub limits: ConnectionLimits,
    /// Counts them.
    pub metrics: ConnectionMetrics,
    /// What they must speak, if anything: clients without it are told so and cut.
    pub tls: Option<ServerTls>,
}

impl From<TcpListener> for Connections {
    /// Without limits and TLS.
    fn from(listener: TcpListener) -> Self {
        Self {
            listener,
            limits: ConnectionLimits::default(),
            metrics: ConnectionMetrics::default(),
            tls: None,
        }
    }
}

impl Connections {
    /// Accepts gRPC connections until `draining` is cancelled; then the port is closed, and this
    /// returns when the last connection has ended.
    pub(crate) async fn serve(self, router: Router, draining: CancellationToken) {
        let (limits, metrics) = (self.limits, self.metrics.clone());
        self.accept(Protocol::Http2, draining, move |accepted| {
            let connection = OneConnection {
                router: router.clone(),
                limits,
                metrics: metrics.clone(),
            };
            connection.serve(accepted)
        })
        .await;
    }

    /// Accepts connections until `draining` is cancelled, and has `serve` serve each; returns when
    /// the last of these has ended.
    pub(super) async fn accept<F>(
        self,
        protocol: Protocol,
        draining: CancellationToken,
        serve: impl Fn(Accepted) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let slots = Arc::new(Semaphore::new(self.limits.max_connections));
        let door = Arc::new(Door {
            tls: self.tls,
            protocol,
            longest: self.limits.silence,
            metrics: self.metrics.clone(),
        });
        // Ends with this function.
        let mut certificates = JoinSet::new();
        if let Some(tls) = &door.tls {
            certificates.spawn(tls.clone().follow());
        }
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
            let Ok(permit) = Arc::clone(&slots).try_acquire_owned() else {
                debug!(limit = self.limits.max_connections, "too many connections");
                self.metrics.refused.inc();
                continue;
            };
            let slot = Slot::take(permit, &self.metrics.open);
            let ending = draining.child_token();
            let (door, serve) = (Arc::clone(&door), serve.clone());
            served.spawn(async move {
                if let Some(accepted) = door.let_in(stream, slot, ending).await {
                    serve(accepted).await;
                }
            });
        }
        drop(accepted);
        while served.join_next().await.is_some() {}
    }
}

/// A connection that was accepted, and the two ways to end it.
pub(super) struct Accepted {
    pub(super) transport: Transport,
    /// Cancelled when the server drains; whoever cancels it ends this connection, gracefully.
    pub(super) ending: CancellationToken,
    /// Cuts it.
    pub(super) cut: CancellationToken,
}

/// What connections must do before they are served.
struct Door {
    tls: Option<ServerTls>,
    protocol: Protocol,
    /// The time for that.
    longest: Duration,
    metrics: ConnectionMetrics,
}

impl Door {
    async fn let_in(
        &self,
        stream: TcpStream,
        slot: Slot,
        ending: CancellationToken,
    ) -> Option<Accepted> {
        let cut = CancellationToken::new();
        let socket = Socket::new(stream, slot, cut.clone(), ending.clone());
        let secured = match &self.tls {
            None => Ok(Transport::plain(socket)),
            Some(tls) => Transport::secure(socket, tls, self.protocol, self.longest, &ending).await,
        };
        match secured {
            Ok(transport) => Some(Accepted {
                transport,
                ending,
                cut,
            }),
            Err(NoTransport::Silent) => {
                self.metrics.silent.inc();
                None
            }
            Err(NoTransport::Refused(error)) => {
                debug!(%error, "no TLS with a client");
                self.metrics.tls_failed.inc();
                None
            }
        }
    }
}

/// The life of one gRPC connection.
struct OneConnection {
    router: Router,
    limits: ConnectionLimits,
    metrics: ConnectionMetrics,
}

impl OneConnection {
    async fn serve(self, accepted: Accepted) {
        let Accepted {
            transport,
            ending,
            cut,
        } = accepted;
        let transport = transport.without_floods(&self.metrics.flooded);
        let heard = transport.heard();
        // A drain that gives up drops this, and with it what is still open.
        let _cut_when_dropped = cut.clone().drop_guard();
        // A stream that ends would mean shutdown to tonic.
        let socket = tokio_stream::once(Ok::<_, io::Error>(transport));
        let socket = socket.chain(tokio_stream::pending());
        let stopped = ending.clone().cancelled_owned();
        let serving = self.router.serve_with_incoming_shutdown(socket, stopped);
        tokio::pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            () = silence(&heard, &ending, self.limits.silence) => {
                self.metrics.silent.inc();
                debug!("cutting a silent connection");
                cut.cancel();
                serving.await
            }
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

/// Waits until a connection has to be cut because nothing comes over it: it has not begun to speak
/// HTTP/2 after `longest` or when the server drains; or the server drains and nobody answers that.
async fn silence(heard: &Heard, ending: &CancellationToken, longest: Duration) {
    tokio::select! {
        () = sleep(longest) => {
            if heard.bytes() < GREETING_BYTES {
                return;
            }
            ending.cancelled().await;
        }
        () = ending.cancelled() => {}
    }
    let before = heard.bytes();
    if before >= GREETING_BYTES {
        // Told that the connection is to end, a client that is there answers a ping.
        sleep(DRAIN_SILENCE).await;
        if heard.bytes() > before {
            std::future::pending().await
        }
    }
}

/// Waits for the age at which one connection ends.
pub(super) async fn grow_old(max_age: Option<Duration>) {
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
