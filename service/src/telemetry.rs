//! Logs: to stderr, as text for people or JSON for collectors.

use std::io::{self, IsTerminal as _};

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt};

use crate::Error;

/// The log flags, to be flattened into a service's own arguments.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// What to log on stderr: a level (error, warn, info, debug, trace), or targets with levels
    /// such as "warn,embed_service=debug".
    #[arg(
        long,
        env = "SCONE_LOG",
        value_name = "FILTER",
        default_value = "info",
        global = true
    )]
    pub log: String,

    /// How to write a log line.
    #[arg(
        long,
        env = "SCONE_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t = LogFormat::Text,
        global = true
    )]
    pub log_format: LogFormat,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One line for a person, coloured on a terminal.
    Text,
    /// One JSON object for a log collector.
    Json,
}

/// Starts logging to stderr; stdout stays free for results.
///
/// # Errors
/// When the filter does not parse, or logging was started before in this process.
pub fn init(args: &LogArgs) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&args.log).map_err(|source| Error::LogFilter {
        filter: args.log.clone(),
        source,
    })?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(Error::LogInit)
}
