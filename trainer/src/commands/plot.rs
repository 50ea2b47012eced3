//! `trainer plot`.

use std::path::PathBuf;

use super::output;
use crate::plot;

/// Flags of `trainer plot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories of training runs, also unfinished ones; or their log.jsonl.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Picture to write, SVG: training loss, held-out loss and tokens/s over tokens.
    #[arg(long, env = "SCONE_OUT")]
    out: PathBuf,
}

/// Runs `trainer plot`.
///
/// # Errors
/// A log that cannot be read, runs without a step, or a file that cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    let svg = plot::of_runs(&args.runs)?;
    output::write_file(&args.out, svg.as_bytes())
}
