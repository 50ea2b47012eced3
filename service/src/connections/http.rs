//! The life of HTTP/1 connections.

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use scone_tls::Protocol;
use tokio_util::sync::CancellationToken;
use tonic::{codegen::Service as _, transport::server::Connected as _};
use tracing::debug;

use super::{
    limits::{ConnectionLimits, ConnectionMetrics},
    serve::{Accepted, Connections, grow_old},
};

/// Largest head of a request in bytes, for reading; what is written has its own buffer.
const BUFFER_BYTES: usize = 64 << 10;

impl Connections {
    /// Accepts HTTP/1 connections until `draining` is cancelled; then the port is closed, and this
    /// returns when the last connection has ended. Dropping it cuts what is open.
    ///
    /// A connection whose peer closes its side is over, also in the middle of an answer: the
    /// future or the body of that answer is dropped at once.
    pub async fn serve_http(self, router: axum::Router, draining: CancellationToken) {
        let (limits, metrics) = (self.limits, self.metrics.clone());
        self.accept(Protocol::Http1, draining, move |accepted| {
            serve(accepted, router.clone(), limits, metrics.clone())
        })
        .await;
    }
}

async fn serve(
    accepted: Accepted,
    router: axum::Router,
    limits: ConnectionLimits,
    metrics: ConnectionMetrics,
) {
    let Accepted {
        transport,
        ending,
        cut: _,
    } = accepted;
    let info = transport.connect_info();
    // Requests know their connection, as those of gRPC do.
    let routed = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.silence)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(transport), routed);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        // A drain has a limit of its own, and drops this when it is over.
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = grow_old(limits.max_age) => {
            metrics.aged.inc();
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(limits.age_grace, &mut connection).await {
                Ok(served) => served,
                // Dropped, it is closed.
                Err(_elapsed) => return debug!("cutting an old connection"),
            }
        }
    };
    if let Err(error) = served {
        // Clients leave, and send what is no HTTP: neither is our failure.
        debug!(%error, "a connection ended early");
    }
}
