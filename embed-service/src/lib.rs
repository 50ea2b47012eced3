//! The embedding tier: token ids in, rows of the f-gram table out, over gRPC.
//!
//! ```text
//! Lookup stream ─> stream ─> lookup ─> request (checks) ─> admission ─> scone_fgram::Table
//! LookupOnce ────> server ──────┘                                          │
//! LookupRows <─────────────────────────────────────────────────────────────┘
//! ```
//!
//! The rule of matching, the rows and the hot set are `scone-fgram`'s; this crate adds the wire,
//! its limits, and operation: health, reflection, metrics, drain. It holds no model.
//!
//! [`run`] is the seam for tests: own configuration, own listener on port 0, own shutdown.

mod admission;
pub mod config;
pub mod error;
pub mod inspect;
mod lookup;
mod metrics;
mod request;
mod server;
mod stream;
mod tables;
pub mod verify;

use std::sync::Arc;

use prometheus_client::registry::Registry;
use scone_proto::embed::v1::embed_service_server::SERVICE_NAME;
use scone_service::{
    announce::Listening,
    grpc::{self, Drained},
    health::Health,
    metrics::MetricsEndpoint,
    reflection::with_reflection,
};
use tokio::{net::TcpListener, task::spawn_blocking};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tracing::info;

pub use admission::Capacity;
pub use config::Config;
pub use error::{Error, RunError};
pub use request::Limits;

use crate::{
    admission::Admission, lookup::Lookups, metrics::Metrics, server::Server, tables::ServedTable,
    tables::Tables,
};

/// Serves the table until `shutdown` resolves, then drains. Once the table is open and the port
/// answers, says where it listens, in the log and as one JSON line on stdout.
///
/// # Errors
/// When the table cannot be opened, the metrics port cannot be bound, or the server fails.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<Drained, RunError> {
    run_with(config, listener, shutdown, |listening| listening.announce()).await
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
    ready: impl FnOnce(&Listening),
) -> Result<Drained, RunError> {
    let address = listener.local_addr().map_err(RunError::Address)?;
    let mut registry = Registry::default();
    let lookups = lookups(&config, &mut registry);
    let endpoint = match config.metrics_listen {
        Some(address) => Some(MetricsEndpoint::start(address, registry).await?),
        None => None,
    };
    let draining = CancellationToken::new();
    let (router, health) = router(&lookups, &draining).await?;
    let serving = grpc::serve_until(
        router,
        listener,
        shutdown,
        &health,
        draining.clone(),
        config.drain_timeout,
    );
    tokio::pin!(serving);

    tokio::select! {
        // Told to stop before the table was open.
        drained = &mut serving => return Ok(drained?),
        served = open(&config) => lookups.tables.serve(served?),
    }
    if !draining.is_cancelled() {
        health.set_serving().await;
        ready(&Listening {
            service: "embed",
            address,
            metrics: endpoint.as_ref().map(MetricsEndpoint::address),
        });
    }
    Ok(serving.await?)
}

fn lookups(config: &Config, registry: &mut Registry) -> Arc<Lookups> {
    let tables = Arc::new(Tables::loading(config.capacity.retry_delay));
    let metrics = Metrics::register(registry, Arc::clone(&tables));
    let inflight = metrics.inflight_positions.clone();
    let open = metrics.streams_open.clone();
    Arc::new(Lookups {
        tables,
        limits: config.limits,
        admission: Admission::new(&config.capacity, inflight, open),
        metrics,
    })
}

/// The service, its health and reflection on one port.
async fn router(
    lookups: &Arc<Lookups>,
    draining: &CancellationToken,
) -> Result<(Router, Health), RunError> {
    let (health, health_service) = Health::register(&[SERVICE_NAME]).await;
    let router = grpc::server_builder()
        .add_service(Server::service(Arc::clone(lookups), draining.clone()))
        .add_service(health_service);
    let router = with_reflection(router, scone_proto::FILE_DESCRIPTOR_SET, SERVICE_NAME)?;
    Ok((router, health))
}

/// Opens the table off the async workers: it reads files and may take long.
async fn open(config: &Config) -> Result<Arc<ServedTable>, RunError> {
    info!(table = %config.table.display(), options = ?config.table_options, "opening table");
    let (dir, options, limits) = (
        config.table.clone(),
        config.table_options.clone(),
        config.limits,
    );
    let opened = spawn_blocking(move || ServedTable::open(&dir, &options, &limits)).await;
    let served = opened.map_err(RunError::Interrupted)??;
    let (info, stats) = (&served.info, served.table.stats());
    info!(
        table.id = info.table_id,
        table.rows = info.rows,
        table.store = info.store,
        table.shard = format!("{}/{}", info.shard_index, info.shard_count),
        row.dim = info.dim,
        row.bytes = info.row_bytes,
        hot_set.rows = stats.rows,
        hot_set.bytes = stats.bytes,
        "table open"
    );
    Ok(Arc::new(served))
}
