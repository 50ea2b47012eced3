//! `trainer sweep`.

use std::path::PathBuf;

use scone_model::DeviceChoice;

use super::corpus_args::CacheArgs;
use super::output;
use crate::corpus::DEFAULT_TEXT_FIELD;
use crate::sweep::{Options, sweep};

/// Flags of `trainer sweep`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sweep, YAML: `config`, a training config; `set`, overrides of all runs; `runs`, overrides by
    /// name; `grid`, values to try by key.
    file: PathBuf,
    /// Overrides that go before those of the file, as in `training.tokens=2000000`.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Directory of the sweep: runs, results.jsonl, summary.md. The same command goes on where an
    /// earlier one stopped; runs that failed are tried again.
    #[arg(long, env = "SCONE_OUT")]
    out: PathBuf,
    /// Runs side by side; they share the processors.
    #[arg(long, env = "SCONE_JOBS", default_value_t = 1)]
    jobs: usize,
    /// Where to train: cpu or cuda:N; goes before the configs' `device`.
    #[arg(long, env = "SCONE_DEVICE")]
    device: Option<DeviceChoice>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs `trainer sweep`.
///
/// # Errors
/// Those of [`sweep`].
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut overrides = args.overrides;
    overrides.extend(args.device.map(|device| format!("device={device}")));
    let options = Options {
        overrides,
        corpus: args.cache.options(DEFAULT_TEXT_FIELD),
        jobs: args.jobs,
    };
    let table = sweep(&args.file, &args.out, &options)?;
    output::line(table.trim_end())
}
