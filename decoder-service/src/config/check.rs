//! From what was typed to what is checked. All mistakes are reported at once, before a model is
//! loaded or a port bound.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use candle_core::Device;
use scone_embed_client::{Address, Options};
use scone_fgram::{
    RowDtype, TableOptions,
    table::{MAX_TABLES, NamedDir, repeated_name},
};
use scone_model::{DeviceChoice, Dtype, KvDtype, WeightType};
use scone_service::connections::ConnectionLimits;
use scone_tls::ServerTls;

use super::args::{HttpListen, ModelArgs, ServeArgs};
use crate::{
    engine::{EngineConfig, OnLookupFailure},
    error::Error,
    http::HttpConfig,
    keys::ApiKeys,
    scheduler::Limits,
};

/// More often would be a load of its own.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Most sequences that may be asked for in a step.
const MOST_BATCH: usize = 1024;

/// Most sequences that may be asked for in the queue, and tokens in a step.
const MOST_QUEUE: usize = 65536;

/// Where rows come from.
#[derive(Clone, Debug)]
pub enum EmbedSource {
    /// A table directory, opened by this process.
    Table(PathBuf),
    /// Embed-services.
    Remote(Box<Options>),
    /// The table of the model, built on first use; nothing for a plain model.
    FromModel(CacheOptions),
}

/// Where and how tables are built on first use.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// The cache folder.
    pub dir: PathBuf,
    /// Stored type of the rows.
    pub dtype: RowDtype,
}

/// The checked form of [`ModelArgs`].
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Model directory.
    pub model: PathBuf,
    /// Chat template in place of the model's.
    pub chat_template: Option<PathBuf>,
    /// Where the model computes.
    pub device: Device,
    /// Type of the numbers it computes in; there is one.
    pub dtype: Dtype,
    /// Type that the weights are held in.
    pub weights: WeightType,
    /// Where rows of the default table come from, or all rows.
    pub embed: EmbedSource,
    /// Tables in this process beside the default one.
    pub tables: Vec<NamedDir>,
    /// How to open each table in this process.
    pub table: TableOptions,
    /// Memory for keys and values, in bytes.
    pub kv_memory: u64,
    /// Type of keys and values.
    pub kv_dtype: KvDtype,
    /// What to do without an answer of the embed tier.
    pub on_lookup_failure: OnLookupFailure,
}

impl ModelConfig {
    /// Whether there are tables that others made: they may have been made over this model by another
    /// f-gram model, which only its base hash tells.
    pub fn has_foreign_tables(&self) -> bool {
        !matches!(self.embed, EmbedSource::FromModel(_)) || !self.tables.is_empty()
    }
}

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

/// The mistakes found so far, each naming its flag.
#[derive(Debug, Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// Adds a problem unless `value` is in `allowed`.
    fn range(&mut self, flag: &str, value: usize, allowed: RangeInclusive<usize>) {
        if !allowed.contains(&value) {
            let (least, most) = allowed.into_inner();
            self.add(format!("{flag} is {value}; allowed is {least} to {most}"));
        }
    }

    /// Adds a problem unless `dir` is a directory.
    fn directory(&mut self, flag: &str, dir: &Path) {
        if !dir.is_dir() {
            self.add(format!("{flag} {}: no such directory", dir.display()));
        }
    }

    /// The checked value, which is there when there are no problems.
    fn or<T>(self, checked: Option<T>) -> Result<T, Error> {
        match checked {
            Some(checked) if self.0.is_empty() => Ok(checked),
            _ => Err(Error::Flags(self.0)),
        }
    }
}

impl ModelArgs {
    /// Checks the flags and makes the device ready.
    ///
    /// # Errors
    /// [`Error::Flags`] names every flag that is wrong, with its limit.
    pub fn check(&self) -> Result<ModelConfig, Error> {
        let mut problems = Problems::default();
        let config = self.config(&mut problems);
        problems.or(config)
    }

    /// `None` only with a problem.
    fn config(&self, problems: &mut Problems) -> Option<ModelConfig> {
        let model = self.model.clone().unwrap_or_else(demo_model);
        // A file is a GGUF file.
        if !model.is_file() {
            problems.directory("--model", &model);
        }
        let opened = self.device.open();
        let device = opened.inspect_err(|error| {
            problems.add(format!("--{error}"));
        });
        let weights = match (self.weights, self.device) {
            (Some(weights), DeviceChoice::Cpu) => weights,
            (None, DeviceChoice::Cpu) => WeightType::default_here(),
            (None | Some(WeightType::F32), _) => WeightType::F32,
            (Some(weights), device) => {
                problems.add(format!(
                    "--weights {weights} needs --device cpu; {device} takes f32"
                ));
                weights
            }
        };
        if self.dtype != Dtype::F32 && self.device == DeviceChoice::Cpu {
            problems.add(format!(
                "--dtype {} needs a GPU; on a CPU models compute in f32, and --weights says what \
                 they read",
                self.dtype
            ));
        }
        let embed = self.source(problems);
        self.numbers(problems);
        Some(ModelConfig {
            model,
            chat_template: self.chat_template.clone(),
            device: device.ok()?,
            dtype: self.dtype,
            weights,
            embed: embed?,
            tables: self.named_tables(),
            table: TableOptions {
                hot_bytes: self.hot_bytes / self.table_count(),
                ..TableOptions::default()
            },
            kv_memory: self.kv_memory,
            kv_dtype: self.kv_dtype,
            on_lookup_failure: self.on_lookup_failure,
        })
    }

    fn numbers(&self, problems: &mut Problems) {
        problems.range("--threads", self.threads, 0..=1024);
        problems.range("--io-threads", self.io_threads, 1..=64);
        if self.lookup_timeout.is_zero() {
            problems.add("--lookup-timeout is 0; at least 1ms is needed");
        }
        for (flag, interval) in [
            ("--embed-resolve-interval", self.embed_resolve_interval),
            ("--embed-poll-interval", self.embed_poll_interval),
        ] {
            if interval < SHORTEST_INTERVAL {
                let (got, least) = (interval.as_millis(), SHORTEST_INTERVAL.as_millis());
                problems.add(format!("{flag} is {got}ms; at least {least}ms is needed"));
            }
        }
    }

    fn source(&self, problems: &mut Problems) -> Option<EmbedSource> {
        for table in &self.table {
            problems.directory("--table", &table.dir);
        }
        if let Some(name) = repeated_name(&self.table) {
            problems.add(format!("--table: the {name} table is there twice"));
        }
        if self.table.len() > MAX_TABLES {
            let got = self.table.len();
            problems.add(format!(
                "--table: {got} tables; at most {MAX_TABLES} are allowed"
            ));
        }
        let mut tables = self.table.iter();
        if let Some(default) = tables.find(|table| table.name.is_default()) {
            return Some(EmbedSource::Table(default.dir.clone()));
        }
        if !self.embed.is_empty() {
            let tls = self.embed_tls.open(&mut problems.0);
            let options = Options {
                tls,
                timeout: self.lookup_timeout,
                start_timeout: self.embed_start_timeout,
                resolve_interval: self.embed_resolve_interval,
                poll_interval: self.embed_poll_interval,
                hedge: self.embed_hedge,
                ..Options::new(self.addresses(problems))
            };
            return Some(EmbedSource::Remote(Box::new(options)));
        }
        let dir = self.cache_dir.clone().or_else(scone_files::cache_dir);
        if dir.is_none() {
            let unset = "neither XDG_CACHE_HOME nor HOME is an absolute path";
            problems.add(format!("--cache-dir is needed: {unset}"));
        }
        Some(EmbedSource::FromModel(CacheOptions {
            dir: dir?,
            dtype: self.table_dtype,
        }))
    }

    fn named_tables(&self) -> Vec<NamedDir> {
        let named = self.table.iter().filter(|table| !table.name.is_default());
        named.cloned().collect()
    }

    /// Tables in this process, of which the default one always is.
    fn table_count(&self) -> u64 {
        1 + self.named_tables().len() as u64
    }

    fn addresses(&self, problems: &mut Problems) -> Vec<Address> {
        let mut addresses = Vec::new();
        let tls = self.embed_tls.embed_tls_ca.is_some();
        for text in &self.embed {
            match text.split_once("://") {
                Some(("http", _)) if tls => problems.add(format!(
                    "--embed {text}: plain, and --embed-tls-ca asks for TLS; leave http:// away"
                )),
                Some(("https", _)) if !tls => {
                    problems.add(format!("--embed {text}: TLS needs --embed-tls-ca"));
                }
                _ => {}
            }
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(problem) => problems.add(format!("--embed {text}: {problem}")),
            }
        }
        addresses
    }
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
}

impl ServeArgs {
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
        if self.http_heartbeat < SHORTEST_INTERVAL {
            let (got, least) = (
                self.http_heartbeat.as_millis(),
                SHORTEST_INTERVAL.as_millis(),
            );
            problems.add(format!(
                "--http-heartbeat is {got}ms; at least {least}ms is needed"
            ));
        }
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

/// `models/demo` here, else where this program was built.
fn demo_model() -> PathBuf {
    let here = PathBuf::from("models/demo");
    if here.is_dir() {
        return here;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    if source.is_dir() { source } else { here }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn parse(args: &[&str]) -> Result<ServeArgs, clap::Error> {
        let args = ["test", "--cache-dir", "/c"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| cli.serve)
    }

    fn check(args: &[&str]) -> Result<Config, Error> {
        parse(args).unwrap().check()
    }

    /// One mistake of every part: model, device, threads, embed tier, limits.
    #[test]
    fn all_mistakes_are_named_together_with_their_limits() {
        let error = check(&[
            "--model=/no/such/model",
            "--device=cuda:99",
            "--io-threads=0",
            "--embed=a,b:1,c",
            "--embed-poll-interval=0s",
            "--lookup-timeout=0s",
            "--max-batch=0",
            "--max-queue=0",
            "--max-queue-time=0s",
            "--max-per-client=2",
            "--max-step-tokens=0",
        ])
        .unwrap_err();
        let Error::Flags(problems) = &error else {
            panic!("{error}");
        };
        let expected = [
            "--model /no/such/model: no such directory",
            "--device cuda:99: ",
            "--embed a: ",
            "--embed c: ",
            "--io-threads is 0; allowed is 1 to 64",
            "--lookup-timeout is 0; ",
            "--embed-poll-interval is 0ms; at least 10ms",
            "--max-batch is 0; allowed is 1 to 1024",
            "--max-queue is 0; allowed is 1 to 65536",
            "--max-per-client is 2; allowed is 1 to 1",
            "--max-queue-time is 0; at least 1ms is needed",
            "--max-step-tokens is 0; allowed is 1 ",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, beginning) in problems.iter().zip(expected) {
            assert!(problem.starts_with(beginning), "{problem}");
        }
        assert_eq!(error.to_string().lines().count(), 1 + expected.len());
    }

    #[test]
    fn mistakes_of_one_source_of_rows_are_found_with_the_others() {
        let error = check(&["--model=/no/model", "--table=/no/table", "--threads=9999"]);
        let text = error.unwrap_err().to_string();
        for part in [
            "--model /no/model",
            "--table /no/table",
            "--threads is 9999",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let args = ["--model=.", "--max-batch=64", "--max-step-tokens=64"];
        let text = check(&args).unwrap_err().to_string();
        assert!(text.contains("allowed is 65"), "{text}");
        let most = usize::MAX.to_string();
        let text = check(&["--model=.", "--max-batch", &most]).unwrap_err();
        assert!(text.to_string().contains("--max-batch is"), "{text}");
    }

    #[test]
    fn tables_have_names_of_their_own_and_share_the_memory() {
        let config = check(&["--model=.", "--table=a=.", "--table=b=.", "--hot-bytes=90"]).unwrap();
        assert!(matches!(config.model.embed, EmbedSource::FromModel(_)));
        let tables: Vec<String> = config
            .model
            .tables
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(tables, ["a=.", "b=."]);
        assert_eq!(config.model.table.hot_bytes, 30);
        let config = check(&["--model=.", "--table=.,a=."]).unwrap();
        assert!(matches!(config.model.embed, EmbedSource::Table(dir) if dir == Path::new(".")));
        assert_eq!(config.model.tables.len(), 1);
        let twice = check(&["--model=.", "--table=a=.", "--table=a=."]).unwrap_err();
        assert!(
            twice.to_string().contains("the a table is there twice"),
            "{twice}"
        );
        let none = parse(&["--table", "none=."]).unwrap_err().to_string();
        assert!(none.contains("no name of a table"), "{none}");
    }

    #[test]
    fn device_and_dtype_default_to_what_is_always_there() {
        let config = check(&["--model=."]).unwrap();
        assert!(config.model.device.is_cpu());
        assert_eq!(config.model.dtype, Dtype::F32);
        for (flag, value) in [
            ("--device", "tpu"),
            ("--device", "cuda:x"),
            ("--dtype", "f8"),
        ] {
            let error = parse(&[flag, value]).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
        let error = check(&["--model=.", "--dtype=bf16"]).unwrap_err();
        assert!(error.to_string().contains("--dtype bf16 needs a GPU"));
    }

    #[test]
    fn weights_of_every_type_are_for_the_cpu_and_f32_for_gpus_too() {
        let default = check(&["--model=."]).unwrap().model.weights;
        assert_eq!(default, WeightType::default_here());
        for weights in WeightType::ALL {
            let flag = format!("--weights={weights}");
            let config = check(&["--model=.", &flag]).unwrap();
            assert_eq!(config.model.weights, weights);
            let refused = check(&["--model=.", "--device=cuda:99", &flag]).unwrap_err();
            let named = refused
                .to_string()
                .contains(&format!("--weights {weights} needs"));
            assert_eq!(named, weights != WeightType::F32, "{refused}");
        }
        let error = parse(&["--weights", "f16"]).unwrap_err().to_string();
        assert!(
            error.contains("--weights") && error.contains("int4"),
            "{error}"
        );
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_compiled_in_is_refused_by_name() {
        let error = check(&["--model=.", "--device=cuda"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--device cuda:0") && error.contains("cpu"),
            "{error}"
        );
    }

    #[test]
    fn schemes_of_addresses_agree_with_the_flags_of_tls() {
        let refused = |args: &[&str]| check(args).unwrap_err().to_string();
        let plain = refused(&["--model=.", "--embed=https://a:1"]);
        assert!(plain.contains("--embed https://a:1: TLS needs"), "{plain}");
        let ca = "--embed-tls-ca=/no/ca.crt";
        let mixed = refused(&["--model=.", "--embed=http://a:1", ca]);
        assert!(mixed.contains("leave http:// away"), "{mixed}");
        assert!(
            mixed.contains("--embed-tls-ca: cannot read /no/ca.crt"),
            "{mixed}"
        );
        let nobody = parse(&[ca]).unwrap_err().to_string();
        assert!(nobody.contains("--embed <ADDRESSES>"), "{nobody}");
        let half = parse(&["--embed=a:1", "--embed-tls-cert=/a", ca]).unwrap_err();
        assert!(half.to_string().contains("--embed-tls-key"), "{half}");
    }

    #[test]
    fn several_replicas_may_be_named() {
        let config = check(&["--model", ".", "--embed", "http://a:1,b:2,file:/c"]).unwrap();
        let EmbedSource::Remote(remote) = config.model.embed else {
            panic!("not remote");
        };
        let addresses: Vec<String> = remote.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["a:1", "b:2", "file:/c"]);
    }
}
