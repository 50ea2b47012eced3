//! The decoder tier: text in, text out, streamed, with continuous batching over an f-gram table.
//!
//! ```text
//! client ──Generate──> server ──Request──> engine thread ──one look-up a step──> embed tier
//!        <──deltas────        <──bounded──  scheduler, KV caches, sampling       (table here, or
//!                               channel     scone_model::Decoder                  embed-services)
//! ```
//!
//! - [`request`] checks everything a client sends before any work is queued.
//! - [`scheduler`] decides which sequences take part in a step: sequences join and leave between
//!   steps, prompts go in chunks, decoding goes first.
//! - [`engine`] is one thread that owns the model. A step makes ONE look-up for the whole batch,
//!   puts the row of the longest f-gram in place of the token embedding where one matched, runs the
//!   model, samples, and sends.
//! - [`embed_tier`] gives the rows, from a table in this process or from embed-services.
//! - [`sequence`] and [`text`] know when a text ends and what of it may be sent.
//!
//! The tokens of a request depend on the request, its seed and the model only: not on the batch it
//! runs in, nor on where the rows come from.
//!
//! A plain model (a directory without scone.json) is served as well: it has no f-grams, so there is
//! no table and no look-up.
//!
//! What it is not: it has no users, no encryption and no chat templates; those belong in front.

pub mod config;
pub mod embed_tier;
pub mod engine;
pub mod error;
pub mod generate;
pub mod metrics;
pub mod model;
pub mod request;
pub mod scheduler;
pub mod sequence;
pub mod server;
pub mod startup;
mod table_cache;
pub mod text;

use std::time::Duration;

use scone_proto::decoder::v1::decoder_service_server::DecoderServiceServer;
use scone_service::{
    announce::Listening,
    connections::{ConnectionMetrics, Connections},
    grpc::{Drained, serve_until, server_builder},
    health::Health,
    metrics::MetricsEndpoint,
    reflection::with_reflection,
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use config::Config;
pub use error::Error;

use crate::{engine::EngineHandle, metrics::Metrics, server::DecoderService};

/// How long the last messages of ended generations may be on their way when the port closes.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// Name of the service in health checks.
pub use scone_proto::decoder::v1::decoder_service_server::SERVICE_NAME;

/// Loads the model, then serves until `shutdown` resolves and running generations have ended, or
/// the drain timeout passed.
///
/// # Errors
/// When the model, table or embed tier cannot be used, a port cannot be bound, or the engine
/// thread ends before it was told to.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    info!(?config, "starting");
    let metrics = Metrics::default();
    let mut registry = metrics.registry();
    let connections = Connections {
        listener,
        limits: config.connections,
        metrics: ConnectionMetrics::default(),
    };
    connections.metrics.register(&mut registry);
    let endpoint = match config.metrics_listen {
        Some(address) => Some(MetricsEndpoint::start(address, registry).await?),
        None => None,
    };
    tokio::pin!(shutdown);
    let prepared = tokio::select! {
        prepared = startup::prepare(&config.model, metrics.clone()) => prepared?,
        () = &mut shutdown => {
            info!("told to stop before the model was loaded");
            return Ok(());
        }
    };
    let (parts, tier) = prepared;
    let info = parts.info.clone();
    let (engine, mut engine_ended) = engine::start(config.engine, parts)?;
    let address = connections
        .listener
        .local_addr()
        .map_err(|source| Error::File {
            action: "read the address of",
            path: "the gRPC listener".into(),
            source: source.into(),
        })?;
    // First new requests are refused, later the port and the connections close.
    let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
    let service = DecoderService::new(
        info,
        tier,
        engine.clone(),
        config.engine,
        metrics,
        draining.clone(),
    );
    let (health, health_service) = Health::register(&[SERVICE_NAME]).await;
    let router = server_builder()
        .add_service(DecoderServiceServer::new(service))
        .add_service(health_service);
    let router = with_reflection(router, scone_proto::FILE_DESCRIPTOR_SET, SERVICE_NAME)
        .map_err(|error| Error::Config(format!("reflection: {error}")))?;
    health.set_serving().await;
    Listening {
        service: "decoder",
        address,
        metrics: endpoint.as_ref().map(MetricsEndpoint::address),
    }
    .announce();
    let shutdown = async {
        shutdown.await;
        finish_generations(&health, &draining, &engine, config.drain_timeout).await;
    };
    let serving = serve_until(
        router,
        connections,
        shutdown,
        &health,
        closing,
        LAST_MESSAGES,
    );
    let drained = served_or_engine_lost(serving, &mut engine_ended).await?;
    drop(engine);
    if drained == Drained::Complete {
        // Nothing runs any more, so the engine closes the table now. A connection that is slow to
        // close may still hold a handle; that is no reason to wait for long.
        let _ = tokio::time::timeout(Duration::from_secs(1), engine_ended).await;
    }
    Ok(())
}

/// The first half of a drain: connections stay open, so that new requests are told UNAVAILABLE
/// instead of meeting a closed port, while running and waiting generations end.
async fn finish_generations(
    health: &Health,
    draining: &CancellationToken,
    engine: &EngineHandle,
    limit: Duration,
) {
    health.set_not_serving().await;
    draining.cancel();
    info!(limit_ms = limit.as_millis() as u64, "finishing generations");
    if tokio::time::timeout(limit, engine.idle()).await.is_err() {
        warn!("drain timeout passed, giving up on the generations still running");
        engine.give_up();
    }
}

/// A server whose engine is gone must not go on looking healthy.
async fn served_or_engine_lost(
    serving: impl Future<Output = Drained>,
    engine_ended: &mut oneshot::Receiver<()>,
) -> Result<Drained, Error> {
    tokio::select! {
        drained = serving => Ok(drained),
        _ = engine_ended => {
            error!("the engine thread ended unexpectedly");
            Err(Error::Internal)
        }
    }
}
