//! `trainer train`.

use std::path::PathBuf;

use scone_model::DeviceChoice;

use super::corpus_args::CacheArgs;
use crate::training::config::TrainConfig;
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
    };
    train(&config, &args.out, &options)?;
    Ok(())
}
