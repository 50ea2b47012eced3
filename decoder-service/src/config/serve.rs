//! From the flags of the service to what is checked.

use std::{net::SocketAddr, time::Duration};

use scone_service::connections::ConnectionLimits;
use scone_tls::ServerTls;

use super::{
    args::{HttpListen, ServeArgs},
    model::ModelConfig,
    problems::Problems,
};
use crate::{
    engine::EngineConfig, error::Error, http::HttpConfig, keys::ApiKeys, scheduler::Limits,
};

/// Most sequences that may be asked for in a step.
const MOST_BATCH: usize = 1024;

/// Most sequences that may be asked for in the queue, and tokens in a step.
const MOST_QUEUE: usize = 65536;

/// The checked form of [`ServeArgs`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Model and table.
    pub model: ModelConfig,
    /// Batch, queue, steps and clients.
    pub engine: EngineConfig,
    /// How HTTP is served, if it is.
    pub http: Option<HttpConfig>,
    /// Of connections, for each port.
    pub connections: ConnectionLimits,
    /// Who may call; anybody when absent.
    pub api_keys: Option<ApiKeys>,
    /// What both ports speak, if it is not plain.
    pub tls: Option<ServerTls>,
    /// Calls of one gRPC connection at one time.
    pub max_connection_streams: u32,
    /// Where traces go, if anywhere.
    pub traces: Option<TraceConfig>,
    /// Prometheus endpoint.
    pub metrics_listen: Option<SocketAddr>,
    /// How long running generations may take to end after SIGTERM.
    pub drain_timeout: Duration,
}

/// How requests are traced.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// The collector.
    pub endpoint: String,
    /// Share of the requests without a caller's trace that are recorded.
    pub sample: f64,
    /// Whether every decoding step's look-up has a span.
    pub every_step: bool,
}

impl ServeArgs {
    /// Checks the flags and makes the device ready.
    ///
    /// # Errors
    /// [`Error::Flags`] names every flag that is wrong, those of the model included, with its
    /// limit.
    pub fn check(&self) -> Result<Config, Error> {
        let mut problems = Problems::default();
        let model = self.model.config(&mut problems);
        problems.range("--max-batch", self.max_batch, 1..=MOST_BATCH);
        problems.range("--max-queue", self.max_queue, 1..=MOST_QUEUE);
        if let Some(most) = self.max_per_client {
            problems.range("--max-per-client", most, 1..=self.places().max(1));
        }
        if self.max_queue_time.is_zero() {
            problems.add("--max-queue-time is 0; at least 1ms is needed");
        }
        let least = self.max_batch.saturating_add(1);
        if !(least..=MOST_QUEUE).contains(&self.max_step_tokens) {
            problems.add(format!(
                "--max-step-tokens is {}; allowed is {least} (one more than --max-batch) to \
                 {MOST_QUEUE}",
                self.max_step_tokens
            ));
        }
        if self.max_connection_streams == 0 {
            problems.add("--max-connection-streams is 0; at least 1 is needed");
        }
        self.connections.check(&mut problems.0);
        let tls = self.connections.tls.open(&mut problems.0);
        let api_keys = self.open_api_keys(&mut problems);
        let traces = self.traces(&mut problems);
        self.check_http(&mut problems);
        problems.or(model.map(|model| Config {
            model,
            engine: EngineConfig {
                limits: Limits {
                    max_batch: self.max_batch,
                    max_queue: self.max_queue,
                    max_step_tokens: self.max_step_tokens,
                },
                on_lookup_failure: self.model.on_lookup_failure,
                prefix_cache: self.prefix_cache,
                step_target: self.step_target,
                client_timeout: self.client_timeout,
                stall_time: self.stall_time,
                max_queue_time: self.max_queue_time,
                max_per_client: self.per_client(),
            },
            http: self.http(),
            connections: self.connections.limits(),
            api_keys,
            tls,
            max_connection_streams: self.max_connection_streams,
            traces,
            metrics_listen: self.metrics_listen,
            drain_timeout: self.drain_timeout,
        }))
    }

    fn open_api_keys(&self, problems: &mut Problems) -> Option<ApiKeys> {
        let opened = ApiKeys::open(self.api_keys.clone()?);
        opened
            .inspect_err(|error| problems.add(format!("--api-keys {error}")))
            .ok()
    }

    fn traces(&self, problems: &mut Problems) -> Option<TraceConfig> {
        if !(0.0..=1.0).contains(&self.trace_sample) {
            let got = self.trace_sample;
            problems.add(format!("--trace-sample is {got}; allowed is 0 to 1"));
        }
        Some(TraceConfig {
            endpoint: self.otlp.check(&mut problems.0)?,
            sample: self.trace_sample,
            every_step: self.trace_steps,
        })
    }

    fn places(&self) -> usize {
        self.max_batch.saturating_add(self.max_queue)
    }

    fn per_client(&self) -> usize {
        let most = self.places();
        self.max_per_client.unwrap_or(most - most / 4)
    }

    fn http(&self) -> Option<HttpConfig> {
        match self.http_listen {
            HttpListen::None => None,
            HttpListen::At(listen) => Some(HttpConfig {
                listen,
                cors_origins: self.http_cors_origin.clone(),
                heartbeat: self.http_heartbeat,
            }),
        }
    }

    fn check_http(&self, problems: &mut Problems) {
        problems.interval("--http-heartbeat", self.http_heartbeat);
        for origin in &self.http_cors_origin {
            let named = origin.split_once("://").is_some_and(|(scheme, host)| {
                !scheme.is_empty() && !host.is_empty() && !host.contains('/')
            });
            if origin != "*" && !named {
                problems.add(format!(
                    "--http-cors-origin {origin}: expected an origin such as https://example.org, \
                     or *"
                ));
            }
        }
    }
}
