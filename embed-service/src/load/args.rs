//! The flags of `embed-service load`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use scone_service::client_tls::{ClientTlsArgs, ClientTlsNames};

/// The flags of `embed-service load`.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Addresses to ask, with commas between; streams are spread over them in turn.
    #[arg(
        long,
        env = "SCONE_LOAD_ADDR",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7300"
    )]
    pub addr: Vec<String>,

    /// Ask for f-grams of this table directory, which may be the one that is being served.
    #[arg(
        long,
        env = "SCONE_EMBED_TABLE",
        value_name = "DIR",
        required_unless_present = "ids"
    )]
    pub table: Option<PathBuf>,

    /// Ask for the text in this file, not for single f-grams: token ids, unsigned 32-bit
    /// little-endian.
    #[arg(long, env = "SCONE_LOAD_IDS", value_name = "FILE")]
    pub ids: Option<PathBuf>,

    /// How f-grams of --table are drawn: `zipf` takes the row of rank r with a weight of 1/r, as
    /// in text; `uniform` takes all alike.
    #[arg(long, env = "SCONE_LOAD_DRAW", value_enum, default_value_t = Draw::Zipf)]
    pub draw: Draw,

    /// Streams, each on a connection of its own, with one request on its way at a time.
    #[arg(
        long,
        env = "SCONE_LOAD_STREAMS",
        value_name = "N",
        default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub streams: u32,

    /// Windows of a request: sequences of one decode step.
    #[arg(
        long,
        env = "SCONE_LOAD_WINDOWS",
        value_name = "B",
        default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub windows: u32,

    /// Ask for prompts instead: one span of so many positions a request.
    #[arg(
        long,
        env = "SCONE_LOAD_PROMPT_POSITIONS",
        value_name = "P",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub prompt_positions: Option<u32>,

    /// How long to measure, in seconds.
    #[arg(
        long,
        env = "SCONE_LOAD_SECONDS",
        value_name = "S",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub seconds: u64,

    /// How long to ask before that without measuring, in seconds.
    #[arg(
        long,
        env = "SCONE_LOAD_WARM_UP_SECONDS",
        value_name = "S",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(0..=600)
    )]
    pub warm_up_seconds: u64,

    /// Most requests to measure, over all streams.
    #[arg(
        long,
        env = "SCONE_LOAD_MAX_REQUESTS",
        value_name = "N",
        default_value_t = 5_000_000,
        value_parser = clap::value_parser!(u64).range(1..=100_000_000)
    )]
    pub max_requests: u64,

    /// Where the drawing of f-grams begins; the same seed asks the same.
    #[arg(long, env = "SCONE_LOAD_SEED", value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// TLS towards the servers.
    #[command(flatten)]
    pub tls: ClientTlsArgs<TlsNames>,

    /// Print one JSON object for each result instead of text.
    #[arg(long)]
    pub json: bool,
}

/// The environment variables of the flags of TLS.
#[derive(Clone, Debug)]
pub struct TlsNames;

impl ClientTlsNames for TlsNames {
    const CA: &'static str = "SCONE_LOAD_TLS_CA";
    const CERT: &'static str = "SCONE_LOAD_TLS_CERT";
    const KEY: &'static str = "SCONE_LOAD_TLS_KEY";
    const NAME: &'static str = "SCONE_LOAD_TLS_NAME";
}

/// How f-grams are drawn from a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Draw {
    /// The row of rank r with a weight of 1/r.
    Zipf,
    /// All rows alike.
    Uniform,
}

/// What one request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Shape {
    /// A decode step of so many sequences.
    Windows(u32),
    /// A prompt of so many positions.
    Prompt(u32),
}

impl LoadArgs {
    /// What each request asks for.
    pub(super) fn shape(&self) -> Shape {
        match self.prompt_positions {
            Some(positions) => Shape::Prompt(positions),
            None => Shape::Windows(self.windows),
        }
    }
}
