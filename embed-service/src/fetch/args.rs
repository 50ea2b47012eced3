//! The flags of `embed-service fetch`.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, builder::BoolishValueParser};
use scone_service::args::parse_duration;

/// The flags of `embed-service fetch`.
#[derive(Args, Clone, Debug)]
pub struct FetchArgs {
    /// Table directory to copy, a path or file:// URL; s3://, gs:// and az:// URLs in a program built
    /// with the feature object-store.
    #[arg(long, env = "SCONE_EMBED_FETCH_FROM", value_name = "DIR|URL")]
    pub from: String,

    /// Folder for the versions. Each is a directory named after its table; the link `current` in it
    /// points to the one fetched last, and is what `serve --table` should be given.
    #[arg(long, env = "SCONE_EMBED_FETCH_TO", value_name = "DIR")]
    pub to: PathBuf,

    /// Versions to keep, the current one included. Of the others those that were fetched last stay;
    /// the rest, and copies that were never finished, are removed after a switch.
    #[arg(
        long,
        env = "SCONE_EMBED_FETCH_KEEP",
        value_name = "N",
        default_value = "2"
    )]
    pub keep: NonZeroUsize,

    /// How long to wait for a table where there is none yet, with a unit (s, m, h).
    #[arg(
        long,
        env = "SCONE_EMBED_FETCH_WAIT",
        value_name = "DURATION",
        default_value = "0s",
        value_parser = parse_duration
    )]
    pub wait: Duration,

    /// Go on, and look for another table this often, with a unit (s, m, h), until SIGTERM; absent:
    /// fetch once.
    #[arg(long, env = "SCONE_EMBED_FETCH_EVERY", value_name = "DURATION", value_parser = parse_interval)]
    pub every: Option<Duration>,

    /// Print one JSON object a version instead of text.
    #[arg(long, env = "SCONE_EMBED_FETCH_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// A duration that does not keep a source busy.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(interval)
}
