//! `trainer benchmark`.

use std::path::PathBuf;

use super::output;
use crate::benchmark::benchmark;

/// Flags of `trainer benchmark`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure, YAML: `models`, each with `name`, `model` and how it is served (`table`,
    /// `row_dtype`, `weights`); `texts`, each with `name` and `input`; `max_tokens`, `context`,
    /// `stride`, `text_field`, `device`. The first model is what the others are compared with.
    file: PathBuf,
    /// Overrides, as in `max_tokens=5000`.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Directory to write: report.md, report.svg, report.jsonl.
    #[arg(long, env = "SCONE_OUT")]
    out: PathBuf,
}

/// Runs `trainer benchmark`.
///
/// # Errors
/// A file with mistakes, a model that cannot be read, or an evaluation that failed.
pub fn run(args: Args) -> anyhow::Result<()> {
    let report = benchmark(&args.file, &args.overrides, &args.out)?;
    output::line(report.trim_end())
}
