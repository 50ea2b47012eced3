//! Checks of a model directory that several commands make.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use scone_fgram::set::FgramSet;
use scone_model::checkpoint::LoadedModel;

use crate::fgram_set::load_set;
use crate::tokenizer::TextTokenizer;

/// `tokenizer.json` of a model directory; its ids must fit the model.
///
/// # Errors
/// When it cannot be read or has ids beyond the model's vocabulary.
pub fn read_tokenizer(dir: &Path, model: &LoadedModel) -> Result<TextTokenizer> {
    let tokenizer = TextTokenizer::load(&dir.join("tokenizer.json"))?;
    ensure!(
        tokenizer.vocab_size() as usize <= model.config.vocab_size(),
        "{} has {} ids, the model's vocab_size is {}",
        dir.join("tokenizer.json").display(),
        tokenizer.vocab_size(),
        model.config.vocab_size()
    );
    Ok(tokenizer)
}

/// `fgrams.bin` of a model directory, checked against `scone.json` and `tokenizer.json`.
///
/// # Errors
/// When it cannot be read, or belongs to another model or tokenizer.
pub fn read_fgram_set(dir: &Path, model: &LoadedModel) -> Result<FgramSet> {
    let scone = model
        .scone
        .as_ref()
        .with_context(|| format!("{} is a plain model: it has no scone.json", dir.display()))?;
    let set = load_set(&dir.join("fgrams.bin"), &read_tokenizer(dir, model)?)?;
    ensure!(
        set.hash() == scone.fgram_set_hash,
        "{} has hash {}, scone.json says {}: it is the set of another model",
        dir.join("fgrams.bin").display(),
        set.hash(),
        scone.fgram_set_hash
    );
    Ok(set)
}
