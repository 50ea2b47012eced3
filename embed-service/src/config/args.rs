//! From what was typed to what is checked. All mistakes are reported at once, before a port is
//! bound or a table opened.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread::available_parallelism,
    time::Duration,
};

use clap::{Args, builder::BoolishValueParser};
use scone_fgram::table::TableOptions;
use scone_service::{
    args::{parse_bytes, parse_duration},
    connections::{ConnectionArgs, ConnectionLimits, ConnectionNames},
};

use crate::{admission::Capacity, request::Limits};

/// The flags of `embed-service serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Table directory, as `trainer precompute` writes it, or a symbolic link to one. At SIGHUP it
    /// is looked at again, and another table there is opened and switched to while requests go
    /// on; one that cannot be served is refused, with the reason in the log.
    #[arg(long, env = "SCONE_EMBED_TABLE", value_name = "DIR")]
    pub table: PathBuf,

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

    /// Address and port of gRPC; port 0 takes a free one. There is no encryption and no
    /// authentication, so the default is this machine only; use 0.0.0.0:7300 inside a cluster.
    #[arg(
        long,
        env = "SCONE_EMBED_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7300"
    )]
    pub listen: SocketAddr,

    /// Memory for the rows used most, with a unit (KiB, MiB, GiB, kB, MB, GB); 0 for none. A sled
    /// table holds them in its hot set; of a mapped table so much is read into the page cache when
    /// it is opened. For each open table: two after a switch, three while the next one is opened.
    #[arg(
        long,
        env = "SCONE_EMBED_HOT_BYTES",
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes
    )]
    pub hot_bytes: u64,

    /// Memory for sled's own page cache, with a unit; pages count as they are on disk, so
    /// the process takes up to about twice as much.
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
    /// clients, with a unit; a request counts with the most rows it may get (one of LookupOnce
    /// until its answer is made). Beyond, requests are refused with RESOURCE_EXHAUSTED.
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

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The table directory, or a link to it; it exists.
    pub table: PathBuf,
    /// How long a table is retained after a switch.
    pub retain_table: Duration,
    /// How to open it.
    pub table_options: TableOptions,
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// Where metrics are, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// Of one request.
    pub limits: Limits,
    /// Of all requests together.
    pub capacity: Capacity,
    /// Of connections.
    pub connections: ConnectionLimits,
    /// Calls of one connection at one time.
    pub max_connection_streams: u32,
    /// Threads of the async runtime, at least 1.
    pub threads: usize,
    /// Threads of the blocking pool, at least 1.
    pub read_threads: usize,
}

impl Config {
    /// Checks everything that can be checked without opening the table.
    ///
    /// # Errors
    /// Every mistake, each naming its flag.
    pub fn from_args(args: ServeArgs) -> Result<Self, ConfigError> {
        let problems = problems(&args);
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        let limits = args.limits;
        Ok(Self {
            table: args.table,
            retain_table: args.retain_table,
            table_options: TableOptions {
                hot_bytes: args.hot_bytes,
                warm: !args.no_warm,
                verify: args.verify,
                store_cache_bytes: args.store_cache_bytes,
                ..TableOptions::default()
            },
            listen: args.listen,
            metrics_listen: args.metrics_listen,
            drain_timeout: args.drain_timeout,
            limits: Limits {
                max_request_bytes: limits.max_request_bytes,
                max_spans: limits.max_spans,
                max_positions: limits.max_positions,
            },
            capacity: Capacity {
                max_inflight_bytes: limits.max_inflight_bytes,
                max_streams: limits.max_streams,
                retry_delay: limits.retry_delay,
            },
            connections: args.connections.limits(),
            max_connection_streams: limits.max_connection_streams,
            threads: limits.threads.unwrap_or_else(default_threads),
            read_threads: limits.read_threads,
        })
    }
}

/// One worker that waits for a disk must not stop health checks, hence at least two.
fn default_threads() -> usize {
    available_parallelism().map_or(2, |cores| cores.get().max(2))
}

fn problems(args: &ServeArgs) -> Vec<String> {
    let limits = &args.limits;
    let mut problems = Vec::new();
    if let Some(problem) = table_problem(&args.table) {
        problems.push(problem);
    }
    let at_least_one = [
        ("--max-positions", u64::from(limits.max_positions)),
        ("--max-spans", u64::from(limits.max_spans)),
        ("--max-inflight-bytes", limits.max_inflight_bytes),
        ("--max-streams", u64::from(limits.max_streams)),
        (
            "--max-connection-streams",
            u64::from(limits.max_connection_streams),
        ),
        ("--threads", limits.threads.unwrap_or(1) as u64),
        ("--read-threads", limits.read_threads as u64),
    ];
    for (flag, _) in at_least_one.iter().filter(|(_, value)| *value == 0) {
        problems.push(format!("{flag} is 0, at least 1 is needed"));
    }
    args.connections.check(&mut problems);
    if !REQUEST_BYTES.contains(&limits.max_request_bytes) {
        problems.push(format!(
            "--max-request-bytes is {}, it must be {} to {} bytes",
            limits.max_request_bytes,
            REQUEST_BYTES.start(),
            REQUEST_BYTES.end()
        ));
    }
    problems
}

/// From a request of one window to what a server can be asked to hold per stream.
const REQUEST_BYTES: std::ops::RangeInclusive<u64> = 256..=(256 << 20);

/// `None` when the directory is there; whether it is a good table shows when it is opened.
fn table_problem(dir: &Path) -> Option<String> {
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("--table {} is not a directory", dir.display())),
        Err(error) => Some(format!("--table {}: {error}", dir.display())),
    }
}

/// All mistakes of a configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    /// One line each.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot work:")?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        let cli = Cli::try_parse_from([&["embed-service"], flags].concat()).unwrap();
        Config::from_args(cli.serve)
    }

    #[test]
    fn defaults_are_consistent() {
        let config = config(&["--table", "."]).unwrap();
        assert_eq!(config.listen, ([127, 0, 0, 1], 7300).into());
        assert_eq!(config.table_options, TableOptions::default());
        assert!(config.threads >= 2);
    }

    #[test]
    fn reports_all_mistakes_at_once() {
        let error = config(&[
            "--table=/no/such/table",
            "--max-spans=0",
            "--max-request-bytes=1",
            "--max-inflight-bytes=0",
            "--threads=0",
        ]);
        let text = error.unwrap_err().to_string();
        for flag in [
            "--table /no/such/table",
            "--max-spans",
            "--max-request-bytes",
            "--max-inflight-bytes",
            "--threads",
        ] {
            assert!(text.contains(flag), "{flag} is missing in:\n{text}");
        }
    }
}
