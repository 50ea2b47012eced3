//! From what was typed to what is checked. All mistakes are reported at once, before a model is
//! loaded or a port bound.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use scone_embed_client::{Address, Options};
use scone_fgram::{RowDtype, TableOptions};
use scone_service::{
    args::{parse_bytes, parse_duration},
    connections::{ConnectionArgs, ConnectionLimits, ConnectionNames},
};

use crate::{
    engine::{EngineConfig, OnLookupFailure},
    error::Error,
    scheduler::Limits,
};

/// More often would be a load of its own.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// The model and where its f-gram rows come from; the same for `serve` and `generate`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and table")]
pub struct ModelArgs {
    /// Model directory in Hugging Face layout. Default: models/demo in the current directory or in
    /// the source tree this program was built from.
    #[arg(long, env = "SCONE_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// Table directory, to look up rows in this process. Without --table and --embed, the table of
    /// a SCONE model is built from the model directory on first use and kept in the cache folder.
    #[arg(
        long,
        env = "SCONE_TABLE",
        value_name = "DIR",
        conflicts_with = "embed"
    )]
    pub table: Option<PathBuf>,

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
    /// GiB); 0 holds none. Of a mapped table so much is read into the page cache at start.
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

    /// How long one look-up at embed-services may take, tries at other replicas included, with a unit (ms, s).
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

    /// Address and port of gRPC; port 0 takes a free one. There is no encryption and no
    /// authentication, so the default is this machine only; use 0.0.0.0:7400 inside a cluster.
    #[arg(
        long,
        env = "SCONE_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7400",
        help_heading = "Service"
    )]
    pub listen: SocketAddr,

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

    /// Most sequences computed in one step, 1 to 1024. Each holds a KV cache that grows to the
    /// model's context.
    #[arg(
        long,
        env = "SCONE_MAX_BATCH",
        value_name = "N",
        default_value_t = 16,
        help_heading = "Limits"
    )]
    pub max_batch: usize,

    /// Most sequences that wait for a place, 1 to 65536; more are refused with
    /// RESOURCE_EXHAUSTED at once.
    #[arg(
        long,
        env = "SCONE_MAX_QUEUE",
        value_name = "N",
        default_value_t = 64,
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

    /// How long a client may leave its stream unread before its generation ends; until then its
    /// place in the batch is kept. With a unit (ms, s, m).
    #[arg(
        long,
        env = "SCONE_CLIENT_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = parse_duration,
        help_heading = "Limits"
    )]
    pub client_timeout: Duration,

    /// Limits of connections.
    #[command(flatten)]
    pub connections: ConnectionArgs<Names>,
}

/// The environment variables of the connection flags.
#[derive(Clone, Debug)]
pub struct Names;

impl ConnectionNames for Names {
    const MAX_CONNECTIONS: &'static str = "SCONE_MAX_CONNECTIONS";
    const MAX_CONNECTION_AGE: &'static str = "SCONE_MAX_CONNECTION_AGE";
    const MAX_CONNECTION_AGE_GRACE: &'static str = "SCONE_MAX_CONNECTION_AGE_GRACE";
    /// A generation may be long, and one whose client does not read ends by itself.
    const DEFAULT_GRACE: &'static str = "1h";
}

/// Where rows come from.
#[derive(Clone, Debug)]
pub enum EmbedSource {
    /// A table directory, opened by this process.
    Table(PathBuf),
    /// Embed-services.
    Remote(Options),
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
    /// Where rows come from.
    pub embed: EmbedSource,
    /// How to open a table in this process.
    pub table: TableOptions,
    /// What to do without an answer of the embed tier.
    pub on_lookup_failure: OnLookupFailure,
}

/// The checked form of [`ServeArgs`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Model and table.
    pub model: ModelConfig,
    /// Batch, queue, steps and clients.
    pub engine: EngineConfig,
    /// Of connections.
    pub connections: ConnectionLimits,
    /// Prometheus endpoint.
    pub metrics_listen: Option<SocketAddr>,
    /// How long running generations may take to end after SIGTERM.
    pub drain_timeout: Duration,
}

impl ModelArgs {
    /// Checks the flags.
    ///
    /// # Errors
    /// Names every flag that is wrong, with its limit.
    pub fn check(&self) -> Result<ModelConfig, Error> {
        let mut problems = Vec::new();
        self.collect(&mut problems);
        let model = self.model.clone().unwrap_or_else(demo_model);
        if !model.is_dir() {
            problems.push(format!("--model {}: no such directory", model.display()));
        }
        none_or_error(&problems)?;
        Ok(ModelConfig {
            model,
            embed: self.source()?,
            table: TableOptions {
                hot_bytes: self.hot_bytes,
                ..TableOptions::default()
            },
            on_lookup_failure: self.on_lookup_failure,
        })
    }

    fn collect(&self, problems: &mut Vec<String>) {
        if self.lookup_timeout.is_zero() {
            problems.push("--lookup-timeout is 0; at least 1ms is needed".to_owned());
        }
        if self.threads > 1024 || !(1..=64).contains(&self.io_threads) {
            problems.push("--threads must be 0 to 1024, --io-threads 1 to 64".to_owned());
        }
        for (flag, interval) in [
            ("--embed-resolve-interval", self.embed_resolve_interval),
            ("--embed-poll-interval", self.embed_poll_interval),
        ] {
            if interval < SHORTEST_INTERVAL {
                let (got, least) = (interval.as_millis(), SHORTEST_INTERVAL.as_millis());
                problems.push(format!("{flag} is {got}ms; at least {least}ms is needed"));
            }
        }
        for address in &self.embed {
            if let Err(problem) = address.parse::<Address>() {
                problems.push(format!("--embed {address}: {problem}"));
            }
        }
    }

    fn source(&self) -> Result<EmbedSource, Error> {
        if let Some(table) = &self.table {
            return Ok(EmbedSource::Table(table.clone()));
        }
        if !self.embed.is_empty() {
            let addresses = self.embed.iter().filter_map(|a| a.parse().ok());
            return Ok(EmbedSource::Remote(Options {
                timeout: self.lookup_timeout,
                start_timeout: self.embed_start_timeout,
                resolve_interval: self.embed_resolve_interval,
                poll_interval: self.embed_poll_interval,
                hedge: self.embed_hedge,
                ..Options::new(addresses.collect())
            }));
        }
        let dir = self.cache_dir.clone().or_else(user_cache).ok_or_else(|| {
            Error::Config("--cache-dir is needed: neither HOME nor XDG_CACHE_HOME is set".into())
        })?;
        Ok(EmbedSource::FromModel(CacheOptions {
            dir,
            dtype: self.table_dtype,
        }))
    }
}

impl ServeArgs {
    /// Checks the flags.
    ///
    /// # Errors
    /// Names the flags that are wrong, with their limits.
    pub fn check(&self) -> Result<Config, Error> {
        let mut problems = Vec::new();
        if !(1..=1024).contains(&self.max_batch) {
            problems.push(format!(
                "--max-batch is {}; allowed is 1 to 1024",
                self.max_batch
            ));
        }
        if !(1..=65536).contains(&self.max_queue) {
            problems.push(format!(
                "--max-queue is {}; allowed is 1 to 65536",
                self.max_queue
            ));
        }
        if !(self.max_batch + 1..=65536).contains(&self.max_step_tokens) {
            problems.push(format!(
                "--max-step-tokens is {}; allowed is {} (one more than --max-batch) to 65536",
                self.max_step_tokens,
                self.max_batch + 1
            ));
        }
        self.connections.check(&mut problems);
        none_or_error(&problems)?;
        Ok(Config {
            model: self.model.check()?,
            engine: EngineConfig {
                limits: Limits {
                    max_batch: self.max_batch,
                    max_queue: self.max_queue,
                    max_step_tokens: self.max_step_tokens,
                },
                on_lookup_failure: self.model.on_lookup_failure,
                client_timeout: self.client_timeout,
            },
            connections: self.connections.limits(),
            metrics_listen: self.metrics_listen,
            drain_timeout: self.drain_timeout,
        })
    }
}

fn none_or_error(problems: &[String]) -> Result<(), Error> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Config(problems.join("; ")))
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

/// The user's cache folder. These two variables belong to the system, so they are no flags.
fn user_cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))?;
    Some(cache.join("scone"))
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

    fn check(args: &[&str]) -> Result<Config, Error> {
        let args = ["test", "--cache-dir", "/c"].iter().chain(args);
        Cli::try_parse_from(args).unwrap().serve.check()
    }

    #[test]
    fn wrong_flags_are_named_together_with_their_limits() {
        let args = ["--model", ".", "--max-batch", "0", "--max-queue", "0"];
        let text = check(&args).unwrap_err().to_string();
        assert!(text.contains("--max-batch is 0") && text.contains("--max-queue is 0"));
        let args = [
            "--model",
            ".",
            "--max-batch",
            "64",
            "--max-step-tokens",
            "64",
        ];
        let text = check(&args).unwrap_err().to_string();
        assert!(text.contains("allowed is 65"), "{text}");
        let text = check(&["--model", "/no/such"]).unwrap_err().to_string();
        assert!(text.contains("/no/such"), "{text}");
        let args = [
            "--model",
            ".",
            "--embed",
            "a",
            "--embed-poll-interval",
            "0s",
        ];
        let text = check(&args).unwrap_err().to_string();
        assert!(text.contains("--embed a") && text.contains("at least 10ms"));
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
