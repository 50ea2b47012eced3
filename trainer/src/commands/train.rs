//! `trainer train`.

use std::path::{Path, PathBuf};
#[cfg(feature = "mpi")]
use std::sync::Arc;

use scone_model::DeviceChoice;

use super::corpus_args::CacheArgs;
use crate::training::config::TrainConfig;
#[cfg(feature = "mpi")]
use crate::training::ranks::{Mpi, Ranks as _};
use crate::training::{RunOptions, train};

/// Flags of `trainer train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Training config, YAML.
    #[arg(long, env = "SCONE_CONFIG")]
    config: PathBuf,
    /// Overrides of config keys, as in `optimizer.lr=3e-3` or `fgrams=null`.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Where to train: cpu or cuda:N; goes before the config's `device`.
    #[arg(long, env = "SCONE_DEVICE")]
    device: Option<DeviceChoice>,
    /// Directory of the run: checkpoints, log.jsonl, train.yaml, and at the end the model. The
    /// same command goes on where an earlier one stopped.
    #[arg(long, env = "SCONE_OUT")]
    out: PathBuf,
    /// Train as one of the processes that mpirun started; each computes its part of every step. Needs
    /// the feature `mpi`; --out has to be on storage that all of them see.
    #[arg(long, env = "SCONE_MPI")]
    mpi: bool,
    /// Stop after this many steps in all, as if killed; nothing is written then but what is due.
    #[arg(long, hide = true)]
    stop_after: Option<u64>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs `trainer train`.
///
/// # Errors
/// Mistakes in the config, and those of [`train`].
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut overrides = args.overrides;
    overrides.extend(args.device.map(|device| format!("device={device}")));
    let config = TrainConfig::load(&args.config, &overrides)?;
    let options = RunOptions {
        corpus: args.cache.options(&config.data.text_field),
        stop_after: args.stop_after,
        ranks: None,
    };
    if args.mpi {
        return run_as_rank(&config, &args.out, options);
    }
    train(&config, &args.out, &options)?;
    Ok(())
}

/// Trains as one of the processes of an MPI job. Ends all of them when this one fails: the others would
/// wait for it.
#[cfg(feature = "mpi")]
fn run_as_rank(config: &TrainConfig, out: &Path, mut options: RunOptions) -> anyhow::Result<()> {
    let mpi = Arc::new(Mpi::join()?);
    tracing::info!(rank = mpi.rank(), ranks = mpi.count(), "joined the MPI job");
    options.ranks = Some(mpi.clone());
    if let Err(error) = train(config, out, &options) {
        tracing::error!("rank {} of {}: {error:#}", mpi.rank(), mpi.count());
        mpi.abort();
    }
    Ok(())
}

#[cfg(not(feature = "mpi"))]
fn run_as_rank(_: &TrainConfig, _: &Path, _: RunOptions) -> anyhow::Result<()> {
    anyhow::bail!("--mpi: this program was built without MPI (cargo build --features mpi)")
}
