//! The flags of `embed-service serve`, with their help and defaults.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, builder::BoolishValueParser};
use scone_fgram::table::NamedDir;
use scone_service::{
    args::{parse_bytes, parse_duration},
    connections::{ConnectionArgs, ConnectionNames},
};

/// The flags of `embed-service serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Table directory, as `trainer precompute` writes it, or a symbolic link to one; NAME=DIR for
    /// one that requests have to name. May be given several times, with commas between in the
    /// environment. At SIGHUP it is looked at again, and another table there is opened and switched
    /// to while requests go on; one that cannot be served is refused, with the reason in the log.
    #[arg(
        long,
        env = "SCONE_EMBED_TABLE",
        value_name = "[NAME=]DIR",
        value_delimiter = ',',
        required_unless_present = "tables"
    )]
    pub table: Vec<NamedDir>,

    /// Folder whose subfolders, or links in it to folders, are tables by their names; "default" is
    /// the one for requests that name none. At SIGHUP, and with --watch-table, tables that came are
    /// opened, and those that went answer requests that name their version for --retain-table.
    #[arg(long, env = "SCONE_EMBED_TABLES", value_name = "FOLDER")]
    pub tables: Option<PathBuf>,

    /// How long the table before a switch still answers requests that name it, with a unit. It
    /// keeps its memory until then; the one before it is closed at the switch.
    #[arg(
        long,
        env = "SCONE_EMBED_RETAIN_TABLE",
        value_name = "DURATION",
        default_value = "5m",
        value_parser = parse_duration
    )]
    pub retain_table: Duration,

    /// How often to look whether other tables are at --table and in --tables, as at SIGHUP, with a unit (s, m);
    /// absent: only at SIGHUP.
    #[arg(
        long,
        env = "SCONE_EMBED_WATCH_TABLE",
        value_name = "DURATION",
        value_parser = parse_duration
    )]
    pub watch_table: Option<Duration>,

    /// Address and port of gRPC; port 0 takes a free one. Without --tls-client-ca anybody may ask, so
    /// the default is this machine only; use 0.0.0.0:7300 inside a cluster.
    #[arg(
        long,
        env = "SCONE_EMBED_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7300"
    )]
    pub listen: SocketAddr,

    /// Memory for the rows used most, with a unit (KiB, MiB, GiB, kB, MB, GB); 0 for none. A sled
    /// table holds them in its hot set; of a mapped table so much is read into the page cache when
    /// it is opened. Several tables have equal parts, by how many there are when each is opened; after a
    /// switch a table has its part twice, and three times while the next one is opened.
    #[arg(
        long,
        env = "SCONE_EMBED_HOT_BYTES",
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes
    )]
    pub hot_bytes: u64,

    /// Memory for sled's own page cache, with a unit; pages count as they are on disk, so
    /// the process takes up to about twice as much. Several tables have equal parts, too.
    #[arg(
        long,
        env = "SCONE_EMBED_STORE_CACHE_BYTES",
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes
    )]
    pub store_cache_bytes: u64,

    /// Start with none of the rows in memory instead of those most often served in training.
    #[arg(long, env = "SCONE_EMBED_NO_WARM", value_parser = BoolishValueParser::new())]
    pub no_warm: bool,

    /// Check every row and checksum of a table before it is served; slow for large ones.
    #[arg(long, env = "SCONE_EMBED_VERIFY", value_parser = BoolishValueParser::new())]
    pub verify: bool,

    /// How long open streams may take to end after SIGTERM, with a unit (ms, s, m, h).
    #[arg(
        long,
        env = "SCONE_EMBED_DRAIN_TIMEOUT",
        value_name = "DURATION",
        default_value = "25s",
        value_parser = parse_duration
    )]
    pub drain_timeout: Duration,

    /// Address and port of the Prometheus endpoint, GET /metrics; none when absent.
    #[arg(
        long,
        env = "SCONE_EMBED_METRICS_LISTEN",
        value_name = "ADDRESS",
        help_heading = "Metrics"
    )]
    pub metrics_listen: Option<SocketAddr>,

    /// Limits and threads.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Limits of connections.
    #[command(flatten)]
    pub connections: ConnectionArgs<Names>,
}

/// The environment variables of the connection flags.
#[derive(Clone, Debug)]
pub struct Names;

impl ConnectionNames for Names {
    const MAX_CONNECTIONS: &'static str = "SCONE_EMBED_MAX_CONNECTIONS";
    const MAX_CONNECTION_AGE: &'static str = "SCONE_EMBED_MAX_CONNECTION_AGE";
    const MAX_CONNECTION_AGE_GRACE: &'static str = "SCONE_EMBED_MAX_CONNECTION_AGE_GRACE";
    const CONNECTION_SILENCE: &'static str = "SCONE_EMBED_CONNECTION_SILENCE";
    const MAX_UNFINISHED_BYTES: &'static str = "SCONE_EMBED_MAX_UNFINISHED_BYTES";
    // Not SCONE_EMBED_TLS_CERT and the like: those are decoder-service's, as a client of this.
    const TLS_CERT: &'static str = "SCONE_EMBED_SERVER_TLS_CERT";
    const TLS_KEY: &'static str = "SCONE_EMBED_SERVER_TLS_KEY";
    const TLS_CLIENT_CA: &'static str = "SCONE_EMBED_SERVER_TLS_CLIENT_CA";
    const DEFAULT_GRACE: &'static str = "10s";
}

/// The limits of `embed-service serve`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Most token ids of one request, context included.
    #[arg(
        long,
        env = "SCONE_EMBED_MAX_POSITIONS",
        value_name = "N",
        default_value_t = 2048
    )]
    pub max_positions: u32,

    /// Most spans of one request.
    #[arg(
        long,
        env = "SCONE_EMBED_MAX_SPANS",
        value_name = "N",
        default_value_t = 1024
    )]
    pub max_spans: u32,

    /// Largest encoded request, with a unit.
    #[arg(
        long,
        env = "SCONE_EMBED_MAX_REQUEST_BYTES",
        value_name = "BYTES",
        default_value = "64KiB",
        value_parser = parse_bytes
    )]
    pub max_request_bytes: u64,

    /// Most bytes of rows being looked up or waiting for their client to read them, over all
    /// clients, with a unit; a request counts with the most rows it may get until its answer is made, and
    /// then with the answer until its last byte is sent. Beyond, requests are refused with RESOURCE_EXHAUSTED.
    #[arg(
        long,
        env = "SCONE_EMBED_MAX_INFLIGHT_BYTES",
        value_name = "BYTES",
        default_value = "256MiB",
        value_parser = parse_bytes
    )]
    pub max_inflight_bytes: u64,

    /// Most Lookup streams open at one time, over all clients.
    #[arg(
        long,
        env = "SCONE_EMBED_MAX_STREAMS",
        value_name = "N",
        default_value_t = 1024
    )]
    pub max_streams: u32,

    /// Most calls of one connection at one time, Lookup streams included; the client waits with
    /// one more.
    #[arg(
        long,
        env = "SCONE_EMBED_MAX_CONNECTION_STREAMS",
        value_name = "N",
        default_value_t = 128
    )]
    pub max_connection_streams: u32,

    /// How long look-ups of more than 256 positions may wait for their turn behind each other, with a unit;
    /// what would wait longer is refused with RESOURCE_EXHAUSTED. Shorter ones, of decode steps, do
    /// not wait for them.
    #[arg(
        long,
        env = "SCONE_EMBED_MAX_PROMPT_WAIT",
        value_name = "DURATION",
        default_value = "100ms",
        value_parser = parse_duration
    )]
    pub max_prompt_wait: Duration,

    /// How long an answer may stay unread while others are refused, with a unit; then its client's
    /// connection is cut.
    #[arg(
        long,
        env = "SCONE_EMBED_STALL_TIME",
        value_name = "DURATION",
        default_value = "250ms",
        value_parser = parse_duration
    )]
    pub stall_time: Duration,

    /// What a refused client is told to wait before it tries again, with a unit.
    #[arg(
        long,
        env = "SCONE_EMBED_RETRY_DELAY",
        value_name = "DURATION",
        default_value = "10ms",
        value_parser = parse_duration
    )]
    pub retry_delay: Duration,

    /// Threads that serve connections and rows in memory; the number of cores, at least 2, when
    /// absent.
    #[arg(long, env = "SCONE_EMBED_THREADS", value_name = "N")]
    pub threads: Option<usize>,

    /// Threads that read rows from the disk.
    #[arg(
        long,
        env = "SCONE_EMBED_READ_THREADS",
        value_name = "N",
        default_value_t = 8
    )]
    pub read_threads: usize,
}
