//! What of the flags can work, and the configuration they make.

use std::{
    fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf, thread::available_parallelism,
    time::Duration,
};

use scone_fgram::table::{MAX_TABLES, NamedDir, TableOptions, repeated_name};
use scone_service::connections::ConnectionLimits;
use scone_tls::ServerTls;

use super::args::ServeArgs;
use crate::{admission::Capacity, request::Limits};

/// From a request of one window to what a server can be asked to hold per stream.
const REQUEST_BYTES: RangeInclusive<u64> = 256..=(256 << 20);

/// Looking at a path more often would only keep the disk busy.
const LEAST_WATCH: Duration = Duration::from_millis(100);

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Table directories, or links to them, by name; they exist.
    pub tables: Vec<NamedDir>,
    /// A folder of more tables.
    pub folder: Option<PathBuf>,
    /// How long a table is retained after a switch.
    pub retain_table: Duration,
    /// How often to look whether it was replaced.
    pub watch_table: Option<Duration>,
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
    /// What connections speak, if it is not plain.
    pub tls: Option<ServerTls>,
    /// The collector that traces go to, if any.
    pub otlp_endpoint: Option<String>,
    /// Calls of one connection at one time.
    pub max_connection_streams: u32,
    /// How long an answer may stay unread while others are refused.
    pub stall_time: Duration,
    /// How long look-ups of prompts may wait for their turn.
    pub max_prompt_wait: Duration,
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
        let mut problems = problems(&args);
        let tls = args.connections.tls.open(&mut problems);
        let otlp_endpoint = args.limits.otlp.check(&mut problems);
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        let limits = args.limits;
        Ok(Self {
            tables: args.table,
            folder: args.tables,
            retain_table: args.retain_table,
            watch_table: args.watch_table,
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
            tls,
            otlp_endpoint,
            max_connection_streams: limits.max_connection_streams,
            stall_time: limits.stall_time,
            max_prompt_wait: limits.max_prompt_wait,
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
    for table in &args.table {
        problems.extend(folder_problem(&format!("--table {table}"), &table.dir));
    }
    if let Some(folder) = &args.tables {
        problems.extend(folder_problem(
            &format!("--tables {}", folder.display()),
            folder,
        ));
    }
    if let Some(name) = repeated_name(&args.table) {
        problems.push(format!("--table: the {name} table is there twice"));
    }
    if args.table.len() > MAX_TABLES {
        let got = args.table.len();
        problems.push(format!(
            "--table: {got} tables; at most {MAX_TABLES} are allowed"
        ));
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
    if args.watch_table.is_some_and(|every| every < LEAST_WATCH) {
        problems.push(format!("--watch-table is below {LEAST_WATCH:?}"));
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

/// `None` when the directory is there; whether it is a good table shows when it is opened.
fn folder_problem(flag: &str, dir: &std::path::Path) -> Option<String> {
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("{flag} is not a directory")),
        Err(error) => Some(format!("{flag}: {error}")),
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
            "--max-connections=0",
            "--threads=0",
        ]);
        let text = error.unwrap_err().to_string();
        for flag in [
            "--table /no/such/table",
            "--max-spans",
            "--max-request-bytes",
            "--max-inflight-bytes",
            "--max-connections",
            "--threads",
        ] {
            assert!(text.contains(flag), "{flag} is missing in:\n{text}");
        }
    }
}
