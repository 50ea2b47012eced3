//! A service with both its ports.

use std::{net::SocketAddr, time::Duration};

use candle_core::Device;
use decoder_service::{
    Config,
    config::{EmbedSource, ModelConfig},
    engine::OnLookupFailure,
    http::HttpConfig,
};
use scone_fgram::TableOptions;
use scone_model::{Dtype, KvDtype, WeightType};
use scone_proto::decoder::v1::decoder_service_client::DecoderServiceClient;
use scone_service::connections::ConnectionLimits;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use crate::{
    client::{get, request, try_receive},
    common::{self, Fixture, fixture, limits},
};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Service {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), decoder_service::Error>>,
    _fixture: Fixture,
}

/// An address that is free now, and may be somebody's a moment later.
async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

impl Service {
    pub async fn start(max_batch: usize, max_queue: usize) -> Self {
        Self::with(max_batch, max_queue, |_, _| {}).await
    }

    /// With another config; the fixture's model may be changed, too.
    pub async fn with(
        max_batch: usize,
        max_queue: usize,
        change: impl FnOnce(&mut Config, &Fixture),
    ) -> Self {
        let fixture = fixture();
        let mut config = config(&fixture);
        config.engine.limits = limits(max_batch, max_queue, 64);
        config.engine.max_per_client = max_batch + max_queue;
        change(&mut config, &fixture);
        loop {
            let http = free_address().await;
            config.http.as_mut().unwrap().listen = http;
            let any = "127.0.0.1:0".parse().unwrap();
            let listener = scone_service::grpc::bind(any).await.unwrap();
            let grpc = listener.local_addr().unwrap();
            let (stop, stopped) = oneshot::channel();
            let shutdown = async {
                stopped.await.ok();
            };
            let mut task = tokio::spawn(decoder_service::run(config.clone(), listener, shutdown));
            match eventually_healthy(http, &mut task).await {
                Ok(()) => {
                    return Self {
                        http,
                        grpc,
                        stop: Some(stop),
                        task,
                        _fixture: fixture,
                    };
                }
                // Somebody was faster.
                Err(decoder_service::Error::Service(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn grpc(&self) -> DecoderServiceClient<Channel> {
        let url = format!("http://{}", self.grpc);
        let channel = Channel::from_shared(url).unwrap().connect().await;
        DecoderServiceClient::new(channel.unwrap())
    }

    /// Begins to shut down.
    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for the end of a service that was told to stop.
    pub async fn ended(self) {
        timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    /// The value of a metric.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = get(self.http, "/metrics").await.body;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

/// Waits for the first good answer, or the end of the service.
async fn eventually_healthy(
    http: SocketAddr,
    task: &mut JoinHandle<Result<(), decoder_service::Error>>,
) -> Result<(), decoder_service::Error> {
    let healthy = async {
        // The port is bound soon after the start.
        loop {
            if let Ok(mut socket) = TcpStream::connect(http).await {
                let health = request("GET", "/health", &[], "");
                let sent = socket.write_all(health.as_bytes()).await;
                if sent.is_ok()
                    && let Ok(answer) = try_receive(socket).await
                    && answer.status == 200
                {
                    return;
                }
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        healthy = timeout(PATIENCE, healthy) => {
            healthy.unwrap();
            Ok(())
        }
        ended = task => ended.unwrap(),
    }
}

fn config(fixture: &Fixture) -> Config {
    Config {
        model: ModelConfig {
            model: fixture.model.clone(),
            chat_template: None,
            device: Device::Cpu,
            dtype: Dtype::F32,
            weights: WeightType::F32,
            embed: EmbedSource::Table(fixture.table.clone()),
            tables: Vec::new(),
            table: TableOptions::default(),
            kv_memory: 4 << 20,
            kv_dtype: KvDtype::F32,
            on_lookup_failure: OnLookupFailure::Fail,
        },
        engine: common::engine_config(limits(1, 1, 64)),
        http: Some(HttpConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            cors_origins: Vec::new(),
            heartbeat: PATIENCE,
        }),
        connections: ConnectionLimits::default(),
        api_keys: None,
        tls: None,
        max_connection_streams: 256,
        traces: None,
        metrics_listen: None,
        drain_timeout: PATIENCE,
    }
}
