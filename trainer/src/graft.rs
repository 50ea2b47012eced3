//! A SCONE model from any base model: an f-gram model that gives the token embedding of the last
//! token, so that its table changes nothing. Training starts from it; tables of it are the test bed
//! for serving, as every token must be the base model's.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::Device;
use scone_files::write_atomic;
use scone_model::checkpoint::{FgramParts, ModelFiles, save_model_dir};
use scone_model::init_fgram_parameters;

use crate::fgram_set::load_set;
use crate::model_dir::{check_ids, copy_beside};
use crate::tokenizer::TextTokenizer;
use crate::training::config::FgramModelShape;
use crate::training::shape::fgram_model_config;

/// What a graft adds to the base model.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Blocks of the f-gram model.
    pub layers: usize,
    /// Seed of what is random in it, and without effect until it is trained.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { layers: 2, seed: 0 }
    }
}

/// Writes the model of `base` into `out`, in the type it is stored in, with the f-grams of the file
/// `fgrams` and a fresh f-gram model. Returns the model hash.
///
/// # Errors
/// A base model that cannot be read, an f-gram set of another tokenizer, or an `out` that holds a
/// model or cannot be written.
pub fn graft(base: &Path, fgrams: &Path, out: &Path, options: Options) -> Result<String> {
    ensure!(
        options.layers > 0,
        "the f-gram model needs at least 1 layer"
    );
    ensure!(
        !out.join("config.json").exists(),
        "{} already holds a model",
        out.display()
    );
    let cannot_read = || format!("cannot read the model in {}", base.display());
    let files = ModelFiles::open(base).with_context(cannot_read)?;
    let mut config = files.config().clone();
    config.set_torch_dtype(files.stored_dtype().torch());
    let dir = files.dir().to_owned();
    let path = dir.join("tokenizer.json");
    let tokenizer = TextTokenizer::load(&path)?;
    check_ids(&path, &tokenizer, &config)?;
    let set = load_set(fgrams, &tokenizer)?;
    let shape = FgramModelShape {
        num_hidden_layers: options.layers,
        ..FgramModelShape::default()
    };
    let fgram = fgram_model_config(&shape, &config, set.header().max_n);
    let own = init_fgram_parameters(&fgram, &config, options.seed)?;
    let main = files.read(&Device::Cpu).with_context(cannot_read)?;
    let cannot_write = || format!("cannot write the model to {}", out.display());
    std::fs::create_dir_all(out).with_context(cannot_write)?;
    write_atomic(&out.join("tokenizer.json"), tokenizer.json())?;
    set.write(out.join("fgrams.bin"))?;
    copy_beside(&dir, out)?;
    let parts = FgramParts {
        config: &fgram,
        parameters: &own,
        fgram_set_hash: &set.hash(),
    };
    let hash = save_model_dir(out, &config, &main, Some(parts)).with_context(cannot_write)?;
    hash.context("the saved model has no hash")
}
