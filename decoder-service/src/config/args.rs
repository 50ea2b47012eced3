//! The flags of `serve` and `generate`, with their help. What they may be is checked elsewhere.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, builder::BoolishValueParser};
use scone_fgram::{RowDtype, table::NamedDir};
use scone_model::{DeviceChoice, Dtype, KvDtype, WeightType};
use scone_service::{
    args::{parse_bytes, parse_duration},
    connections::{ConnectionArgs, ConnectionNames},
    traces::OtlpArgs,
};

use super::embed_tls::EmbedTlsArgs;
use crate::engine::OnLookupFailure;

/// The model and where its f-gram rows come from; the same for `serve` and `generate`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and table")]
pub struct ModelArgs {
    /// Model directory in Hugging Face layout, or a GGUF file with its tokenizer.json beside it.
    /// Default: models/demo in the current directory or in the source tree this program was built
    /// from.
    #[arg(long, env = "SCONE_MODEL", value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// File with a chat template (Jinja, as in chat_template.jinja), in place of the model's own.
    #[arg(long, env = "SCONE_CHAT_TEMPLATE", value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Where the model computes: cpu, cuda (the first GPU) or cuda:N. A GPU needs a program built
    /// with --features cuda.
    #[arg(
        long,
        env = "SCONE_DEVICE",
        value_name = "DEVICE",
        default_value = "cpu"
    )]
    pub device: DeviceChoice,

    /// Type of the numbers the model computes in: f32, or on a GPU f16 or bf16.
    #[arg(long, env = "SCONE_DTYPE", value_name = "DTYPE", default_value = "f32")]
    pub dtype: Dtype,

    /// Type that the weights are held in on a CPU: f32, bf16, int8 or int4. Narrower ones take less
    /// memory and are faster; f32 is as the model was trained. Default: bf16 where the processor
    /// multiplies it (AVX512-BF16), else f32. A GPU holds them in --dtype.
    #[arg(long, env = "SCONE_WEIGHTS", value_name = "TYPE")]
    pub weights: Option<WeightType>,

    /// Table directory, to look up rows in this process; NAME=DIR for one that requests have to
    /// name. May be given several times, with commas between in the environment. Without a
    /// --table that has no name and without --embed, the table of a SCONE model is built from the
    /// model directory on first use and kept in the cache folder. Tables must have been made of this
    /// model, or of table adapters over it; a model without scone.json takes those of adapters, and
    /// without a default table gives its own tokens to requests that name none.
    #[arg(
        long,
        env = "SCONE_TABLE",
        value_name = "[NAME=]DIR",
        value_delimiter = ',',
        conflicts_with = "embed"
    )]
    pub table: Vec<NamedDir>,

    /// Addresses of embed-services with commas between: host:port, where every IP address of the
    /// name is a replica, or file:PATH, a file with one host:port a line. At least one replica of
    /// each shard.
    #[arg(
        long,
        env = "SCONE_EMBED",
        value_name = "ADDRESSES",
        value_delimiter = ','
    )]
    pub embed: Vec<String>,

    /// Memory for the rows used most when the table is in this process, with a unit (KiB, MiB,
    /// GiB); 0 holds none. Of a mapped table so much is read into the page cache at start. Several
    /// tables have equal shares.
    #[arg(
        long,
        env = "SCONE_HOT_BYTES",
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes
    )]
    pub hot_bytes: u64,

    /// Stored type of the rows of a table built on first use: f32, f16, bf16, int8 or int4.
    #[arg(
        long,
        env = "SCONE_TABLE_DTYPE",
        value_name = "DTYPE",
        default_value = "f16"
    )]
    pub table_dtype: RowDtype,

    /// Folder for tables built on first use. Default: $XDG_CACHE_HOME/scone, else ~/.cache/scone.
    #[arg(long, env = "SCONE_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// How long one look-up at embed-services may take, tries at other replicas included, with a
    /// unit (ms, s).
    #[arg(
        long,
        env = "SCONE_LOOKUP_TIMEOUT",
        value_name = "DURATION",
        default_value = "500ms",
        value_parser = parse_duration
    )]
    pub lookup_timeout: Duration,

    /// How long to wait at start until every shard has an embed-service, with a unit (s, m).
    #[arg(
        long,
        env = "SCONE_EMBED_START_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = parse_duration
    )]
    pub embed_start_timeout: Duration,

    /// How often the names of embed-services are resolved and files of addresses read again, with
    /// a unit (ms, s, m); new replicas get look-ups, removed ones are drained.
    #[arg(
        long,
        env = "SCONE_EMBED_RESOLVE_INTERVAL",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = parse_duration
    )]
    pub embed_resolve_interval: Duration,

    /// How often each embed-service is asked which table versions it answers for, with a unit (ms,
    /// s, m).
    #[arg(
        long,
        env = "SCONE_EMBED_POLL_INTERVAL",
        value_name = "DURATION",
        default_value = "1s",
        value_parser = parse_duration
    )]
    pub embed_poll_interval: Duration,

    /// Send a look-up that is later than the recent 99th percentile to a second replica as well,
    /// at most 5 in 100: true or false.
    #[arg(
        long,
        env = "SCONE_EMBED_HEDGE",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub embed_hedge: bool,

    /// TLS towards embed-services.
    #[command(flatten)]
    pub embed_tls: EmbedTlsArgs,

    /// Memory for keys and values of all running sequences, with a unit (MiB, GiB). Sequences get it
    /// in blocks of 16 positions as they grow; when it runs out the youngest one waits and is
    /// computed again. It also bounds the context.
    #[arg(
        long,
        env = "SCONE_KV_MEMORY",
        value_name = "BYTES",
        default_value = "1GiB",
        value_parser = parse_bytes
    )]
    pub kv_memory: u64,

    /// Type of keys and values: f16, or f32 for twice the memory.
    #[arg(
        long,
        env = "SCONE_KV_DTYPE",
        value_name = "DTYPE",
        default_value = "f16"
    )]
    pub kv_dtype: KvDtype,

    /// What to do when no embed-service answers: end the generations concerned with UNAVAILABLE,
    /// or go on with the token embedding and count it (usage.fallback_positions and metrics).
    #[arg(
        long,
        env = "SCONE_ON_LOOKUP_FAILURE",
        value_name = "WHAT",
        value_enum,
        default_value_t = OnLookupFailure::Fail
    )]
    pub on_lookup_failure: OnLookupFailure,

    /// Threads that compute; 0 is one for each CPU. A full batch keeps them all busy.
    #[arg(
        long,
        env = "SCONE_THREADS",
        value_name = "N",
        default_value_t = 0,
        help_heading = "Threads"
    )]
    pub threads: usize,

    /// Threads for the network; they only pass messages on.
    #[arg(
        long,
        env = "SCONE_IO_THREADS",
        value_name = "N",
        default_value_t = 2,
        help_heading = "Threads"
    )]
    pub io_threads: usize,
}

/// The flags of `decoder-service serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Model, table and threads.
    #[command(flatten)]
    pub model: ModelArgs,

    /// Address and port of gRPC; port 0 takes a free one. Without --tls-client-ca and --api-keys anybody
    /// may call, so the default is this machine only; use 0.0.0.0:7400 inside a cluster.
    #[arg(
        long,
        env = "SCONE_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7400",
        help_heading = "Service"
    )]
    pub listen: SocketAddr,

    /// Address and port of HTTP: OpenAI's API and a page to try the model; port 0 takes a free one,
    /// "none" is no HTTP. TLS and API keys are for this port as well.
    #[arg(
        long,
        env = "SCONE_HTTP_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7480",
        help_heading = "Service"
    )]
    pub http_listen: HttpListen,

    /// File of API keys, a line each: NAME KEY [max_concurrent=N] [tokens_per_minute=N]. Calls must then
    /// send one (authorization: Bearer KEY), over gRPC and HTTP; it is looked at every 2 seconds.
    #[arg(
        long,
        env = "SCONE_API_KEYS",
        value_name = "FILE",
        help_heading = "Service"
    )]
    pub api_keys: Option<PathBuf>,

    /// Origins, as scheme://host:port, whose web pages may call the HTTP API, with commas
    /// between; * is any. Default: none but the service's own page.
    #[arg(
        long,
        env = "SCONE_HTTP_CORS_ORIGIN",
        value_name = "ORIGINS",
        value_delimiter = ',',
        help_heading = "Service"
    )]
    pub http_cors_origin: Vec<String>,

    /// Silence of an HTTP stream after which a comment is sent, so that proxies and clients do not
    /// give up on it, with a unit (ms, s, m).
    #[arg(
        long,
        env = "SCONE_HTTP_HEARTBEAT",
        value_name = "DURATION",
        default_value = "15s",
        value_parser = parse_duration,
        help_heading = "Service"
    )]
    pub http_heartbeat: Duration,

    /// Address and port of the Prometheus endpoint, GET /metrics; none when absent.
    #[arg(
        long,
        env = "SCONE_METRICS_LISTEN",
        value_name = "ADDRESS",
        help_heading = "Service"
    )]
    pub metrics_listen: Option<SocketAddr>,

    /// How long running generations may take to end after SIGTERM, with a unit (ms, s, m, h); those
    /// still running then end with UNAVAILABLE, and at most a second later the process does.
    #[arg(
        long,
        env = "SCONE_DRAIN_TIMEOUT",
        value_name = "DURATION",
        default_value = "25s",
        value_parser = parse_duration,
        help_heading = "Service"
    )]
    pub drain_timeout: Duration,

    /// Most sequences computed in one step, 1 to 1024. Memory is bounded by
    /// --kv-memory.
    #[arg(
        long,
        env = "SCONE_MAX_BATCH",
        value_name = "N",
        default_value_t = 16,
        help_heading = "Limits"
    )]
    pub max_batch: usize,

    /// Most sequences that wait for a slot in the batch, 1 to 65536; more are refused
    /// with RESOURCE_EXHAUSTED at once, and go before others when they come back as they are told.
    /// --max-queue-time bounds the time that they wait.
    #[arg(
        long,
        env = "SCONE_MAX_QUEUE",
        value_name = "N",
        default_value_t = 256,
        help_heading = "Limits"
    )]
    pub max_queue: usize,

    /// Most tokens of one step, prompts and decoding together; above --max-batch. Longer prompts
    /// are computed over several steps, so that they do not hold up the other generations.
    #[arg(
        long,
        env = "SCONE_MAX_STEP_TOKENS",
        value_name = "N",
        default_value_t = 256,
        help_heading = "Limits"
    )]
    pub max_step_tokens: usize,

    /// Share what is computed of texts that begin alike: true or false.
    #[arg(
        long,
        env = "SCONE_PREFIX_CACHE",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        help_heading = "Limits"
    )]
    pub prefix_cache: bool,

    /// Most time that prompts may add to a step in which other streams decode, with a unit (ms, s).
    /// Less where an ordinary step is shorter, so that streams wait less than two of those.
    #[arg(
        long,
        env = "SCONE_STEP_TARGET",
        value_name = "DURATION",
        default_value = "50ms",
        value_parser = parse_duration,
        help_heading = "Limits"
    )]
    pub step_target: Duration,

    /// How long a client may leave its stream unread before its generation ends with ABORTED. With a
    /// unit (ms, s, m).
    #[arg(
        long,
        env = "SCONE_CLIENT_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = parse_duration,
        help_heading = "Limits"
    )]
    pub client_timeout: Duration,

    /// How long a client may leave its stream unread before it counts no more among those that run and
    /// wait, and its slot and memory go to others that wait for them; its generation goes on when
    /// it reads again. With a unit (ms, s).
    #[arg(
        long,
        env = "SCONE_STALL_TIME",
        value_name = "DURATION",
        default_value = "250ms",
        value_parser = parse_duration,
        help_heading = "Limits"
    )]
    pub stall_time: Duration,

    /// Longest time to wait for a slot in the batch, with a unit (ms, s, m). What would wait longer, by how fast
    /// sequences end now, is refused at once with RESOURCE_EXHAUSTED, and so is what has.
    #[arg(
        long,
        env = "SCONE_MAX_QUEUE_TIME",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_duration,
        help_heading = "Limits"
    )]
    pub max_queue_time: Duration,

    /// Most sequences of one client that run and wait: of an API key, else of a connection. More are refused
    /// with RESOURCE_EXHAUSTED. Default: three quarters of --max-batch + --max-queue.
    #[arg(
        long,
        env = "SCONE_MAX_PER_CLIENT",
        value_name = "N",
        help_heading = "Limits"
    )]
    pub max_per_client: Option<usize>,

    /// Most calls of one gRPC connection at one time; more wait at the client.
    #[arg(
        long,
        env = "SCONE_MAX_CONNECTION_STREAMS",
        value_name = "N",
        default_value_t = 256,
        help_heading = "Connections"
    )]
    pub max_connection_streams: u32,

    /// Share of the requests that are traced, 0 to 1, of those that come without a `traceparent`, which
    /// says it itself.
    #[arg(
        long,
        env = "SCONE_TRACE_SAMPLE",
        value_name = "SHARE",
        default_value_t = 0.01,
        help_heading = "Traces"
    )]
    pub trace_sample: f64,

    /// In traces, give the look-up of every decoding step a span, not only those of prompts.
    #[arg(long, env = "SCONE_TRACE_STEPS", value_parser = BoolishValueParser::new(), help_heading = "Traces")]
    pub trace_steps: bool,

    /// Where traces go.
    #[command(flatten)]
    pub otlp: OtlpArgs,

    /// Limits of connections.
    #[command(flatten)]
    pub connections: ConnectionArgs<Names>,
}

/// Where HTTP is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpListen {
    /// Nowhere.
    None,
    /// At this address.
    At(SocketAddr),
}

impl FromStr for HttpListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            address => address.parse().map(Self::At).map_err(|_| {
                "expected an address and port such as 127.0.0.1:7480, or none".to_owned()
            }),
        }
    }
}

/// The environment variables of the connection flags.
#[derive(Clone, Debug)]
pub struct Names;

impl ConnectionNames for Names {
    const MAX_CONNECTIONS: &'static str = "SCONE_MAX_CONNECTIONS";
    const MAX_CONNECTION_AGE: &'static str = "SCONE_MAX_CONNECTION_AGE";
    const MAX_CONNECTION_AGE_GRACE: &'static str = "SCONE_MAX_CONNECTION_AGE_GRACE";
    const CONNECTION_SILENCE: &'static str = "SCONE_CONNECTION_SILENCE";
    const MAX_UNFINISHED_BYTES: &'static str = "SCONE_MAX_UNFINISHED_BYTES";
    const TLS_CERT: &'static str = "SCONE_TLS_CERT";
    const TLS_KEY: &'static str = "SCONE_TLS_KEY";
    const TLS_CLIENT_CA: &'static str = "SCONE_TLS_CLIENT_CA";
    /// A generation may be long, and one whose client does not read ends by itself.
    const DEFAULT_GRACE: &'static str = "1h";
}
