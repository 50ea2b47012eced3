//! What several commands do with a model directory.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use scone_fgram::set::FgramSet;
use scone_files::write_atomic;
use scone_model::ModelConfig;
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

/// Refuses a tokenizer that has other ids than the model: a table is for both.
///
/// # Errors
/// Names the file and both numbers of ids.
pub fn check_ids(path: &Path, tokenizer: &TextTokenizer, config: &ModelConfig) -> Result<()> {
    ensure!(
        tokenizer.vocab_size() as usize == config.vocab_size(),
        "{} has {} ids, the model's vocab_size is {}: tables are for models whose ids are those of \
         the tokenizer",
        path.display(),
        tokenizer.vocab_size(),
        config.vocab_size()
    );
    Ok(())
}

/// Files that go with any weights, where there are any.
const BESIDE: [&str; 3] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// Copies what a model directory holds for generation and for other programs.
///
/// # Errors
/// When a file is there and cannot be read, or cannot be written.
pub fn copy_beside(from: &Path, to: &Path) -> Result<()> {
    for name in BESIDE {
        let path = from.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => write_atomic(&to.join(name), &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
    }
    Ok(())
}
