//! `trainer graft`.

use std::path::PathBuf;

use super::output;
use crate::graft::{Options, graft};

/// Flags of `trainer graft`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a model in Hugging Face layout, or a GGUF file; tokenizer.json is there too.
    #[arg(long, env = "SCONE_BASE")]
    base: PathBuf,
    /// f-gram set, mined with that tokenizer.
    #[arg(long, env = "SCONE_FGRAMS")]
    fgrams: PathBuf,
    /// Model directory to write.
    #[arg(long, env = "SCONE_OUT")]
    out: PathBuf,
    /// Blocks of the f-gram model.
    #[arg(long, env = "SCONE_LAYERS", default_value_t = Options::default().layers)]
    layers: usize,
    /// Seed of the f-gram model's weights, those that have no effect until they are trained.
    #[arg(long, env = "SCONE_SEED", default_value_t = Options::default().seed)]
    seed: u64,
}

/// Runs `trainer graft`.
///
/// # Errors
/// Those of [`graft`].
pub fn run(args: Args) -> anyhow::Result<()> {
    let options = Options {
        layers: args.layers,
        seed: args.seed,
    };
    let hash = graft(&args.base, &args.fgrams, &args.out, options)?;
    output::line(format_args!(
        "{}: grafted, model hash {hash}",
        args.out.display()
    ))
}
