//! The model directory a finished run leaves behind.

use std::path::Path;

use anyhow::{Context as _, Result};
use scone_files::write_atomic;
use scone_model::checkpoint::{FgramParts, StoredDtype, save_model_dir};
use serde_json::json;

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
/// f-grams, `scone.json`, `fgram_model.safetensors`, `fgrams.bin` into `out`.
pub(super) fn write_model(prepared: &Prepared, out: &Path) -> Result<()> {
    let (main, fgram) = prepared.network.parameters();
    let set_hash = &prepared.hashes.fgram_set;
    let parts = prepared.fgrams.as_ref().map(|fgrams| FgramParts {
        config: &fgrams.config,
        parameters: &fgram,
        fgram_set_hash: set_hash,
    });
    write_atomic(&out.join("tokenizer.json"), prepared.tokenizer.json())?;
    match &prepared.base_dir {
        Some(base) => copy_beside(base, out)?,
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
