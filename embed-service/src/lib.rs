//! The embedding tier: token ids in, rows of the f-gram table out, over gRPC.
//!
//! ```text
//! Lookup stream ─> stream ─> lookup ─> request (checks) ─> admission ─> scone_fgram::Table
//! LookupOnce ────> server ──────┘                                          │
//! LookupRows <─────────────────────────────────────────────────────────────┘
//! SIGHUP ────────> switch ──> tables (the current version, and the one retained)
//! ```
//!
//! The rule of matching, the rows and the hot set are `scone-fgram`'s; this crate adds the wire,
//! its limits, and operation: health, reflection, metrics, drain. It holds no model.
//!
//! [`run`] is the seam for tests: own configuration, own listener on port 0, own shutdown.

mod admission;
pub mod config;
pub mod error;
pub mod fetch;
pub mod inspect;
pub mod load;
mod lookup;
mod metrics;
mod prompts;
mod readers;
mod request;
mod server;
mod stream;
mod switch;
mod tables;
pub mod upsert;
pub mod verify;
pub mod watch;

use std::sync::Arc;

use prometheus_client::registry::Registry;
use scone_proto::embed::v1::embed_service_server::SERVICE_NAME;
use scone_service::{
    announce::Listening,
    certificates::register_expiry,
    connections::Connections,
    grpc::{self, Drained},
    guard::MessageBudget,
    health::Health,
    metrics::MetricsEndpoint,
    reflection::with_reflection,
    traces::{Exporting, Tracer},
};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::server::Router};

pub use admission::Capacity;
pub use config::Config;
pub use error::{Error, RunError, TableError};
pub use request::Limits;

use crate::{
    admission::Admission, lookup::Lookups, metrics::Metrics, prompts::Prompts, readers::Readers,
    server::Server, switch::Switcher, tables::Tables,
};

/// Serves the table until `shutdown` resolves, then drains. Once the table is open and the port
/// answers, says where it listens, in the log and as one JSON line on stdout. Looks at the table's
/// path again whenever `reload` is notified.
///
/// # Errors
/// When the table cannot be opened, or the metrics port cannot be bound.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
    reload: Arc<Notify>,
) -> Result<Drained, RunError> {
    let ready = |listening: &Listening| listening.announce();
    run_with(config, listener, shutdown, reload, ready).await
}

/// As [`run`], but calls `ready` instead of printing.
///
/// While the table is being opened the port is served already: health says NOT_SERVING and
/// look-ups are answered UNAVAILABLE, so that a slow start is not taken for a hung process.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
    reload: Arc<Notify>,
    ready: impl FnOnce(&Listening),
) -> Result<Drained, RunError> {
    let address = listener.local_addr().map_err(RunError::Address)?;
    let mut registry = Registry::default();
    let (exporting, tracer) = start_tracing(&config)?;
    let lookups = lookups(&config, &mut registry, tracer);
    if let Some(tls) = config.tls.clone() {
        let registry = registry.sub_registry_with_prefix("scone_embed");
        register_expiry(registry, "tls_certificate", move || tls.ends());
    }
    let (router, health) = router(&lookups, &config).await?;
    let endpoint = match config.metrics_listen {
        Some(address) => Some(MetricsEndpoint::start(address, registry, health.clone()).await?),
        None => None,
    };
    let draining = CancellationToken::new();
    let connections = Connections {
        listener,
        limits: config.connections,
        metrics: lookups.metrics.connections.clone(),
        tls: config.tls.clone(),
    };
    let serving = grpc::serve_until(
        router,
        connections,
        shutdown,
        &health,
        draining.clone(),
        config.drain_timeout,
    );
    tokio::pin!(serving);

    let switcher = Switcher {
        config: Arc::new(config),
        tables: Arc::clone(&lookups.tables),
        metrics: lookups.metrics.clone(),
    };
    tokio::select! {
        // Told to stop before the table was open.
        drained = &mut serving => return Ok(drained),
        opened = switcher.open_first() => opened?,
    }
    if !draining.is_cancelled() {
        health.set_serving().await;
        ready(&Listening {
            service: "embed",
            address,
            http: None,
            metrics: endpoint.as_ref().map(MetricsEndpoint::address),
        });
    }
    let drained = tokio::select! {
        drained = serving => drained,
        never = switcher.run(&reload) => match never {},
    };
    if let Some(exporting) = exporting {
        exporting.finish().await;
    }
    Ok(drained)
}

/// What sends spans, if they are asked for. Traces are begun by callers alone.
fn start_tracing(config: &Config) -> Result<(Option<Exporting>, Tracer), RunError> {
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok((None, Tracer::default()));
    };
    let (exporting, tracer) =
        Exporting::start(endpoint, "embed-service", 0.0).map_err(RunError::Otlp)?;
    Ok((Some(exporting), tracer))
}

fn lookups(config: &Config, registry: &mut Registry, tracer: Tracer) -> Arc<Lookups> {
    let tables = Arc::new(Tables::loading(config.capacity.retry_delay));
    let metrics = Metrics::register(registry, Arc::clone(&tables));
    let inflight = metrics.inflight_bytes.clone();
    let open = metrics.streams_open.clone();
    let readers = Readers::new(config.stall_time, metrics.stalled.clone());
    Arc::new(Lookups {
        tables,
        limits: config.limits,
        admission: Admission::new(&config.capacity, (inflight, open), readers),
        prompts: Prompts::new(
            // One of the processor's threads at least is left to decode steps.
            config.threads.saturating_sub(1).max(1) as u32,
            config.max_prompt_wait,
            config.capacity.retry_delay,
        ),
        metrics,
        tracer,
    })
}

/// The service, its health and reflection on one port.
async fn router(lookups: &Arc<Lookups>, config: &Config) -> Result<(Router, Health), RunError> {
    let (health, health_service) = Health::register(&[SERVICE_NAME]).await;
    let budget = MessageBudget::new(&config.connections, &lookups.metrics.connections);
    let routes = Routes::new(budget.guard(Server::service(Arc::clone(lookups))))
        .add_service(budget.guard(health_service));
    let descriptors = scone_proto::FILE_DESCRIPTOR_SET;
    let routes = with_reflection(routes, descriptors, SERVICE_NAME, &budget)?;
    let router = grpc::server_builder()
        .max_concurrent_streams(config.max_connection_streams)
        .add_routes(routes);
    Ok((router, health))
}
