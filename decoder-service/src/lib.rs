//! The decoder tier: text in, text out, streamed, with continuous batching over an f-gram table.
//!
//! ```text
//! client ──Generate──> server ──Request──> engine thread ──one look-up a step──> embed tier
//!        <──deltas────        <──bounded──  scheduler, KV blocks, sampling       (table here, or
//!                               channel     scone_model::Decoder                  embed-services)
//! ```
//!
//! - [`request`] checks everything a client sends before any work is queued.
//! - [`scheduler`] decides which sequences take part in a step: sequences join and leave between
//!   steps, prompts go in chunks, decoding goes first.
//! - [`engine`] is one thread that owns the model. A step makes ONE look-up for the whole batch,
//!   replaces the token embedding by the row of the longest f-gram where one matched, runs the
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
mod freed_memory;
pub mod generate;
pub mod kv;
pub mod metrics;
pub mod model;
pub mod request;
pub mod scheduler;
pub mod sequence;
pub mod server;
pub mod startup;
pub mod step_pace;
mod table_cache;
pub mod text;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use scone_proto::decoder::v1::decoder_service_server::DecoderServiceServer;
use scone_service::{
    announce::Listening,
    connections::{ConnectionMetrics, Connections},
    grpc::{Drained, serve_until, server_builder},
    health::Health,
    late::{LateService, SetService, late_service},
    metrics::MetricsEndpoint,
    reflection::with_reflection,
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tracing::{error, info, warn};

pub use config::Config;
pub use error::Error;

use crate::{engine::EngineHandle, metrics::Metrics, server::DecoderService};

/// The service as it is on the port.
type GrpcService = DecoderServiceServer<DecoderService>;

/// How long the last messages of ended generations may be on their way when the port closes.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// Name of the service in health checks.
pub use scone_proto::decoder::v1::decoder_service_server::SERVICE_NAME;

/// Loads the model, then serves until `shutdown` resolves and running generations have ended, or
/// the drain timeout passed. While the model is loading the port is served already: health says
/// NOT_SERVING and requests are told UNAVAILABLE, so that a slow start is not taken for a hung
/// process.
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
    let Ports {
        connections,
        listening,
        _endpoint,
    } = Ports::open(&config, listener, &metrics).await?;
    let engine = Arc::new(OnceLock::new());
    // First loading ends and new requests are refused, later the port and the connections close.
    let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
    let _loading_ends_with_this = draining.clone().drop_guard();
    let (service, set_service) = late_service(Error::Loading.into());
    let (router, health) = router(service).await?;
    let finish = Finish {
        health: health.clone(),
        draining: draining.clone(),
        engine: engine.clone(),
        limit: config.drain_timeout,
    };
    let shutdown = finish.generations_after(shutdown);
    let serving = serve_until(
        router,
        connections,
        shutdown,
        &health,
        closing,
        LAST_MESSAGES,
    );
    tokio::pin!(serving);
    let started = tokio::select! {
        _ = &mut serving => return Ok(()),
        started = start_engine(&config, metrics, &draining, engine, set_service) => started,
    };
    let mut engine_ended = match started {
        Err(Error::Stopped) => {
            serving.await;
            return Ok(());
        }
        started => started?,
    };
    if !draining.is_cancelled() {
        health.set_serving().await;
        listening.announce();
    }
    let drained = served_or_engine_lost(serving, &mut engine_ended).await?;
    if drained == Drained::Complete {
        // Nothing runs any more, so the engine closes the table now. A connection that is slow to
        // close may still hold a handle; that is no reason to wait for long.
        let _ = tokio::time::timeout(Duration::from_secs(1), engine_ended).await;
    }
    Ok(())
}

/// Where this process is reached.
struct Ports {
    connections: Connections,
    listening: Listening,
    /// Answers until it is dropped.
    _endpoint: Option<MetricsEndpoint>,
}

impl Ports {
    /// Limits and counts the connections of `listener`, and opens the port of the metrics.
    async fn open(
        config: &Config,
        listener: TcpListener,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
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
        let listening = Listening {
            service: "decoder",
            address: connections.listener.local_addr().map_err(Error::Address)?,
            metrics: endpoint.as_ref().map(MetricsEndpoint::address),
        };
        Ok(Self {
            connections,
            listening,
            _endpoint: endpoint,
        })
    }
}

/// Loads the model, starts an engine over it and sets the service. The receiver resolves when the
/// engine's thread ends.
async fn start_engine(
    config: &Config,
    metrics: Metrics,
    draining: &CancellationToken,
    engine: Arc<OnceLock<EngineHandle>>,
    service: SetService<GrpcService>,
) -> Result<oneshot::Receiver<()>, Error> {
    let prepared = startup::prepare(&config.model, metrics.clone(), draining.clone());
    let (parts, tier) = prepared.await?;
    let info = parts.info.clone();
    let (handle, ended) = engine::start(config.engine, parts)?;
    engine.get_or_init(|| handle.clone());
    let (config, draining) = (config.engine, draining.clone());
    let decoder = DecoderService::new(info, tier, handle, config, metrics, draining);
    service.set(DecoderServiceServer::new(decoder));
    Ok(ended)
}

/// The service, its health and reflection on one port.
async fn router(service: LateService<GrpcService>) -> Result<(Router, Health), Error> {
    let (health, health_service) = Health::register(&[SERVICE_NAME]).await;
    let router = server_builder()
        .add_service(service)
        .add_service(health_service);
    let router = with_reflection(router, scone_proto::FILE_DESCRIPTOR_SET, SERVICE_NAME)
        .map_err(|error| Error::Reflection(error.into()))?;
    Ok((router, health))
}

/// What the first half of a drain works on.
struct Finish {
    health: Health,
    draining: CancellationToken,
    /// Empty while the model is loading.
    engine: Arc<OnceLock<EngineHandle>>,
    limit: Duration,
}

impl Finish {
    /// The first half of a drain: connections stay open, so that new requests are told UNAVAILABLE
    /// instead of meeting a closed port, while running and waiting generations end.
    async fn generations_after(self, shutdown: impl Future<Output = ()>) {
        shutdown.await;
        self.health.set_not_serving().await;
        self.draining.cancel();
        let Some(engine) = self.engine.get() else {
            info!("told to stop before the model was loaded");
            return;
        };
        let limit = self.limit;
        info!(limit_ms = limit.as_millis() as u64, "finishing generations");
        if tokio::time::timeout(limit, engine.idle()).await.is_err() {
            warn!("drain timeout passed, giving up on the generations still running");
            engine.give_up();
        }
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
