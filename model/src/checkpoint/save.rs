//! Writing a model directory.

use super::dtype::StoredDtype;
use super::hash::model_hash;
use super::names::{FGRAM_MODEL_FILE, MODEL_FILE};
use super::safetensors::write_parameters;
use crate::config::{FgramModelConfig, ModelConfig, SconeConfig};
use crate::error::{Error, Result};
use crate::init::Parameters;
use candle_core::Tensor;
use scone_files::write_atomic;
use std::path::Path;

/// What A adds to a directory to be saved.
#[derive(Clone, Copy, Debug)]
pub struct FgramParts<'a> {
    /// Shape of A.
    pub config: &'a FgramModelConfig,
    /// Weights of A.
    pub parameters: &'a Parameters,
    /// Hash of `fgrams.bin`.
    pub fgram_set_hash: &'a str,
}

/// Writes `config.json`, `model.safetensors` and, with A, `fgram_model.safetensors` and
/// `scone.json`, each by atomic rename, in the type `torch_dtype` of the config. Returns the model
/// hash, of the weights as stored. The weights may be on any device.
///
/// # Errors
/// An unknown `torch_dtype`, no token embedding among the weights, or a file that cannot be
/// written.
pub fn save_model_dir(
    dir: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
    fgram: Option<FgramParts<'_>>,
) -> Result<Option<String>> {
    let dtype = StoredDtype::from_torch(config.torch_dtype())?;
    std::fs::create_dir_all(dir).map_err(scone_files::Error::at("create", dir))?;
    write_parameters(&dir.join(MODEL_FILE), parameters, dtype)?;
    write_atomic(&dir.join("config.json"), config.to_json().as_bytes())?;
    let Some(fgram) = fgram else {
        return Ok(None);
    };
    write_parameters(&dir.join(FGRAM_MODEL_FILE), fgram.parameters, dtype)?;
    let stored = dtype.round_all(fgram.parameters)?;
    let hash = model_hash(&stored, &dtype.round(token_embedding(config, parameters)?)?)?;
    let scone = SconeConfig {
        max_n: fgram.config.max_n,
        fgram_set_hash: fgram.fgram_set_hash.to_owned(),
        fgram_model: fgram.config.clone(),
        model_hash: hash.clone(),
    };
    write_atomic(&dir.join(SconeConfig::FILE), scone.to_json().as_bytes())?;
    Ok(Some(hash))
}

fn token_embedding<'a>(config: &ModelConfig, parameters: &'a Parameters) -> Result<&'a Tensor> {
    let name = config.token_embedding_name();
    let bare = name.strip_prefix("transformer.").unwrap_or(name);
    let found = parameters.get(name).or_else(|| parameters.get(bare));
    found.ok_or_else(|| Error::MissingTensor { name: name.into() })
}
