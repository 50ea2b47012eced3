//! The port for operators: `GET /metrics` for Prometheus, `/debug/config` for people, `/health/ready`
//! and `/health/live` for probes that do not speak gRPC, or cannot reach it behind TLS.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    Error,
    connections::{ConnectionLimits, ConnectionMetrics, Connections},
    health::Health,
    started,
};

/// Connections at one time: a few scrapers and somebody who looks.
const MAX_CONNECTIONS: usize = 64;

/// How long a scraper may take to ask, and stay without asking again.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A running metrics endpoint. It stops when this value is dropped, so keep it until the drain
/// is over.
#[derive(Debug)]
pub struct MetricsEndpoint {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl MetricsEndpoint {
    /// Binds the port and starts to answer.
    ///
    /// # Errors
    /// When the port cannot be bound: a service without the metrics it was asked for must not
    /// start.
    pub async fn start(
        address: SocketAddr,
        registry: impl Into<Arc<Registry>>,
        health: Health,
    ) -> Result<Self, Error> {
        let bind_error = |source| Error::Bind {
            purpose: "metrics",
            address,
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        info!(%address, "metrics endpoint listening");
        let app = Router::new()
            .route("/metrics", routing::get(scrape))
            .with_state(registry.into())
            .route("/debug/config", routing::get(config))
            .route("/health/live", routing::get(StatusCode::OK))
            .route("/health/ready", routing::get(ready).with_state(health));
        let connections = Connections {
            listener,
            limits: ConnectionLimits {
                max_connections: MAX_CONNECTIONS,
                silence: HEAD_TIMEOUT,
                ..ConnectionLimits::default()
            },
            metrics: ConnectionMetrics::default(),
            // Probes and scrapers have no certificates.
            tls: None,
        };
        let task = tokio::spawn(connections.serve_http(app, CancellationToken::new()));
        Ok(Self { address, task })
    }

    /// Where it listens; the real port when port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsEndpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn scrape(State(registry): State<Arc<Registry>>) -> Response {
    exposition(&registry)
}

/// 200 when it is loaded and does not drain, 503 otherwise.
async fn ready(State(health): State<Health>) -> StatusCode {
    match health.is_serving() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// How the process was started; 404 when nobody recorded it.
async fn config() -> Response {
    match started::recorded() {
        Some(facts) => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            (json, format!("{facts:#}\n")).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The answer to a scrape, for services that have `/metrics` on another port as well.
#[must_use]
pub fn exposition(registry: &Registry) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
