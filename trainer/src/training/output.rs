//! The model directory a finished run leaves behind.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use scone_files::{write_atomic, write_atomic_with};
use scone_model::checkpoint::{FgramParts, MODEL_FILE, StoredDtype, save_model_dir};
use serde_json::json;

use super::config::{TrainConfig, Trainable};
use super::prepare::Prepared;
use crate::model_dir::copy_beside;

/// Rounds the weights in memory to the stored type, so that what is evaluated at the end is what
/// is in the files.
pub(super) fn round_weights(prepared: &Prepared) -> Result<()> {
    let dtype = StoredDtype::from_torch(prepared.model_config.torch_dtype())?;
    if dtype == StoredDtype::F32 {
        // Nothing to round, and candle refuses to set a variable to its own storage.
        return Ok(());
    }
    for var in prepared.network.vars().values() {
        var.set(&dtype.round(&var.as_detached_tensor())?)?;
    }
    Ok(())
}

/// Writes `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json` and, with
/// f-grams, `scone.json`, `fgram_model.safetensors`, `fgrams.bin` into `out`. Config and weights of a
/// base model that was not trained are its files, byte for byte, where it has them as two files.
pub(super) fn write_model(config: &TrainConfig, prepared: &Prepared, out: &Path) -> Result<()> {
    if config.control.is_some() {
        tracing::info!("a control: scored, but no model is written");
        return Ok(());
    }
    let (main, fgram) = prepared.network.parameters();
    let set_hash = &prepared.hashes.fgram_set;
    let parts = prepared.fgrams.as_ref().map(|fgrams| FgramParts {
        config: &fgrams.config,
        parameters: &fgram,
        fgram_set_hash: set_hash,
    });
    write_atomic(&out.join("tokenizer.json"), prepared.tokenizer.json())?;
    match &prepared.base {
        Some(base) => copy_beside(&base.dir, out)?,
        None => write_atomic(
            &out.join("generation_config.json"),
            generation_config(prepared).as_bytes(),
        )?,
    }
    if let Some(fgrams) = &prepared.fgrams {
        fgrams.set.write(out.join("fgrams.bin"))?;
    }
    save_model_dir(out, &prepared.model_config, &main, parts)
        .with_context(|| format!("cannot write the model to {}", out.display()))?;
    match &prepared.base {
        Some(base) if base.plain && config.trainable == Trainable::FgramModel => {
            // The same numbers are there already, under our header and our choice of keys.
            copy(&base.dir, out, MODEL_FILE)?;
            copy(&base.dir, out, "config.json")
        }
        _ => Ok(()),
    }
}

/// Copies a file that may be larger than memory.
fn copy(from: &Path, to: &Path, name: &str) -> Result<()> {
    let from = from.join(name);
    let mut file = File::open(&from).with_context(|| format!("cannot read {}", from.display()))?;
    write_atomic_with(&to.join(name), |out| std::io::copy(&mut file, out))?;
    Ok(())
}

/// Defaults of generation, in the words of `transformers`.
fn generation_config(prepared: &Prepared) -> String {
    let config = json!({
        "_from_model_config": true,
        "bos_token_id": prepared.eos,
        "eos_token_id": prepared.eos,
        "do_sample": true,
    });
    let mut text = serde_json::to_string_pretty(&config).expect("a JSON value prints");
    text.push('\n');
    text
}
