//! The decoder tier: text in, text out, streamed, with continuous batching over an f-gram table.
//!
//! ```text
//! client ──gRPC──> server ─┐ intake ──Request──> engine thread ──one look-up a step──> embed tier
//! client ──HTTP──> http ───┘        <──bounded──  scheduler, KV blocks, sampling       (table here, or
//!        <─deltas─                     channel    scone_model::Decoder                  embed-services)
//! ```
//!
//! - [`server`] is gRPC and [`http`] OpenAI's API; both come in by the [`intake`].
//! - [`request`] checks everything a client sends before any work is queued.
//! - [`scheduler`] decides which sequences take part in a step: sequences join and leave between
//!   steps, prompts go in chunks, decoding goes first.
//! - [`engine`] is one thread that owns the model. A step makes ONE look-up for the whole batch,
//!   replaces the token embedding by the row of the longest f-gram where one matched, runs the
//!   model, samples, and sends.
//! - [`embed_tier`] gives the rows, from a table in this process or from embed-services.
//! - [`sequence`] and [`text`] know when a text ends and what of it may be sent.
//! - [`explain`] says what the row of an f-gram did: the model is run with it and without.
//!
//! The tokens of a request depend on the request, its seed and the model only: not on the batch it
//! runs in, nor on where the rows come from.
//!
//! A plain model (a directory without scone.json) is served as well: it has no f-grams, so there is
//! no table and no look-up.
//!
//! Who may call is said by TLS with certificates of clients ([`config`]) and by [`keys`]; there are no
//! users.

pub mod chat;
pub mod client;
pub mod config;
pub mod embed_tier;
pub mod engine;
pub mod error;
pub mod explain;
mod freed_memory;
pub mod generate;
pub mod http;
pub mod intake;
pub mod keys;
pub mod kv;
pub mod metrics;
pub mod model;
pub mod places;
pub mod ranks;
pub mod request;
pub mod scheduler;
pub mod sequence;
pub mod server;
pub mod startup;
pub mod step_pace;
mod table_cache;
pub mod terminal;
pub mod text;
pub mod traces;
pub mod turns;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use scone_proto::decoder::v1::decoder_service_server::DecoderServiceServer;
use scone_service::{
    announce::Listening,
    certificates::register_expiry,
    connections::{ConnectionMetrics, Connections},
    grpc::{Drained, bind_for, serve_until, server_builder},
    guard::MessageBudget,
    health::{Health, HealthGrpc},
    late::{LateService, SetService, late_service},
    metrics::MetricsEndpoint,
    reflection::with_reflection,
    traces::Exporting,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::server::Router};
use tracing::{error, info, warn};

pub use config::Config;
pub use error::Error;

use crate::{
    config::EmbedSource, engine::EngineHandle, http::SetReady, intake::Intake, metrics::Metrics,
    server::DecoderService, traces::Tracing,
};

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
    let (exporting, tracing) = start_tracing(&config)?;
    // First loading ends and new requests are refused, later the port and the connections close.
    let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
    let (health, health_service) = Health::register(&[SERVICE_NAME]).await;
    let Ports {
        connections,
        mut http,
        set_http,
        listening,
        _endpoint,
    } = Ports::open(&config, listener, &metrics, &health, &closing).await?;
    let engine = Arc::new(OnceLock::new());
    let _loading_ends_with_this = draining.clone().drop_guard();
    let (service, set_grpc) = late_service(Error::Loading.into());
    let (router, _followed) = grpc_router(&config, &connections, service, health_service)?;
    let finish = Finish {
        health: health.clone(),
        draining: draining.clone(),
        engine: engine.clone(),
        limit: config.drain_timeout,
    };
    let shutdown = finish.generations_after(shutdown);
    let held = engine.clone();
    let serving = async {
        // The engine ends with the last handle: not before both ports are closed.
        let _held = held;
        let served = serve_until(
            router,
            connections,
            shutdown,
            &health,
            closing,
            LAST_MESSAGES,
        );
        let served = served.await;
        // It was told to close with the port of gRPC; what is still open is cut as this ends.
        let _ = tokio::time::timeout(LAST_MESSAGES, http.join_next()).await;
        served
    };
    tokio::pin!(serving);
    let fronts = Fronts { set_grpc, set_http };
    let started = tokio::select! {
        _ = &mut serving => return Ok(()),
        started = start_engine(&config, (metrics, tracing), &draining, engine, fronts) => started,
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
    if let Some(exporting) = exporting {
        exporting.finish().await;
    }
    Ok(())
}

/// What sends spans, if they are asked for.
fn start_tracing(config: &Config) -> Result<(Option<Exporting>, Tracing), Error> {
    let Some(traces) = &config.traces else {
        return Ok((None, Tracing::default()));
    };
    let (exporting, tracer) = Exporting::start(&traces.endpoint, "decoder-service", traces.sample)
        .map_err(|error| Error::Config(format!("--otlp-endpoint: {error}")))?;
    let every_step = traces.every_step;
    Ok((Some(exporting), Tracing { tracer, every_step }))
}

/// Where this process is reached.
struct Ports {
    /// Of gRPC.
    connections: Connections,
    /// Serves HTTP until it is dropped, or told to close.
    http: JoinSet<()>,
    set_http: Option<SetReady>,
    listening: Listening,
    /// Answers until it is dropped.
    _endpoint: Option<MetricsEndpoint>,
}

impl Ports {
    /// Limits and counts the connections of `listener`, and opens the ports of HTTP and of the
    /// metrics. HTTP closes its port at `closing`.
    async fn open(
        config: &Config,
        listener: TcpListener,
        metrics: &Metrics,
        health: &Health,
        closing: &CancellationToken,
    ) -> Result<Self, Error> {
        let mut registry = metrics.registry();
        let connections = Connections {
            listener,
            limits: config.connections,
            metrics: ConnectionMetrics::default(),
            tls: config.tls.clone(),
        };
        connections.metrics.register(&mut registry);
        let http_connections = match &config.http {
            Some(http) => Some(Connections {
                listener: bind_for("HTTP", http.listen).await?,
                limits: config.connections,
                metrics: ConnectionMetrics::default(),
                tls: config.tls.clone(),
            }),
            None => None,
        };
        if let Some(http) = &http_connections {
            http.metrics
                .register(registry.sub_registry_with_prefix("http"));
        }
        if let Some(tls) = config.tls.clone() {
            register_expiry(&mut registry, "tls_certificate", move || tls.ends());
        }
        if let EmbedSource::Remote(options) = &config.model.embed
            && let Some(tls) = options.tls.clone()
        {
            let ends = move || tls.client.ends();
            register_expiry(&mut registry, "embed_tls_certificate", ends);
        }
        if let Some(keys) = &config.api_keys {
            let help = "Calls without an API key that is known";
            registry.register("unauthenticated", help, keys.refused.clone());
        }
        let registry = Arc::new(registry);
        let endpoint = match config.metrics_listen {
            Some(address) => {
                let (registry, health) = (registry.clone(), health.clone());
                Some(MetricsEndpoint::start(address, registry, health).await?)
            }
            None => None,
        };
        let address = |of: &Connections| of.listener.local_addr().map_err(Error::Address);
        let listening = Listening {
            service: "decoder",
            address: address(&connections)?,
            http: http_connections.as_ref().map(address).transpose()?,
            metrics: endpoint.as_ref().map(MetricsEndpoint::address),
        };
        let mut serving = JoinSet::new();
        let mut set_http = None;
        if let (Some(http), Some(connections)) = (&config.http, http_connections) {
            let (router, set) = http::router(http, registry, config.api_keys.clone());
            set_http = Some(set);
            serving.spawn(connections.serve_http(router, closing.clone()));
        }
        Ok(Self {
            connections,
            http: serving,
            set_http,
            listening,
            _endpoint: endpoint,
        })
    }
}

/// The protocols that wait for an engine.
struct Fronts {
    set_grpc: SetService<GrpcService>,
    set_http: Option<SetReady>,
}

impl Fronts {
    fn set(self, intake: Intake) {
        let intake = Arc::new(intake);
        if let Some(http) = self.set_http {
            http.set(intake.clone());
        }
        let decoder = DecoderService::new(intake);
        self.set_grpc.set(DecoderServiceServer::new(decoder));
    }
}

/// Loads the model, starts an engine over it and sets the services. The receiver resolves when the
/// engine's thread ends.
async fn start_engine(
    config: &Config,
    (metrics, tracing): (Metrics, Tracing),
    draining: &CancellationToken,
    engine: Arc<OnceLock<EngineHandle>>,
    fronts: Fronts,
) -> Result<oneshot::Receiver<()>, Error> {
    let counted = (metrics.clone(), tracing.tracer.clone());
    let prepared = startup::prepare(&config.model, counted, draining.clone());
    let (parts, tier) = prepared.await?;
    let info = parts.info.clone();
    let (handle, ended) = engine::start(config.engine, parts)?;
    engine.get_or_init(|| handle.clone());
    let (config, draining) = (config.engine, draining.clone());
    let intake = Intake::new(info, tier, handle, config, metrics, draining);
    fronts.set(intake.traced(tracing));
    Ok(ended)
}

/// The service, its health and reflection on one port, and what follows the file of keys until it is
/// dropped.
fn grpc_router(
    config: &Config,
    connections: &Connections,
    service: LateService<GrpcService>,
    health: HealthGrpc,
) -> Result<(Router, JoinSet<()>), Error> {
    let budget = MessageBudget::new(&connections.limits, &connections.metrics);
    let routes = Routes::new(budget.guard(service)).add_service(budget.guard(health));
    let descriptors = scone_proto::FILE_DESCRIPTOR_SET;
    let mut routes = with_reflection(routes, descriptors, SERVICE_NAME, &budget)
        .map_err(|error| Error::Reflection(error.into()))?;
    let mut followed = JoinSet::new();
    if let Some(keys) = &config.api_keys {
        routes = server::authenticated(routes, keys.clone());
        followed.spawn(keys.clone().follow());
    }
    let router = server_builder()
        .max_concurrent_streams(config.max_connection_streams)
        .add_routes(routes);
    Ok((router, followed))
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
