//! Model directories in Hugging Face layout.
//!
//! | file | content |
//! |---|---|
//! | `config.json`, `generation_config.json` | as `transformers` writes them |
//! | `model.safetensors` | main model, under `transformers`' names |
//! | `scone.json` | K, hashes, shape of A; a directory without it is a plain model |
//! | `fgram_model.safetensors` | A; serving does not need it |

mod weights;

use crate::config::{FgramModelConfig, ModelConfig, SconeConfig};
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::fgram_model::FgramModel;
use crate::init::{Parameters, var_builder};
use candle_core::Device;
use scone_files::write_atomic;
use sha2::{Digest, Sha256};
use std::path::Path;
pub use weights::{StoredDtype, read_parameters, write_parameters};

/// File name of the main model's weights.
pub const MODEL_FILE: &str = "model.safetensors";
/// File name of A's weights.
pub const FGRAM_MODEL_FILE: &str = "fgram_model.safetensors";

/// A model directory, loaded.
#[derive(Debug)]
pub struct LoadedModel {
    /// `config.json`.
    pub config: ModelConfig,
    /// `scone.json`, when there is one.
    pub scone: Option<SconeConfig>,
    /// The main model.
    pub decoder: Decoder,
    /// A, when `fgram_model.safetensors` is there.
    pub fgram: Option<FgramModel>,
    /// SHA-256 of `tokenizer.json` in lower-case hexadecimal, when the file is there.
    pub tokenizer_hash: Option<String>,
    /// Identifies A and T, as tables carry it; `None` for a plain model.
    pub model_hash: Option<String>,
}

/// Loads a model directory, weights as f32.
///
/// # Errors
/// A file that is missing, truncated or corrupt, a config that is not supported, a tensor that is
/// missing or has another shape, or weights of A and T that are not those `scone.json` names.
pub fn load_model_dir(dir: &Path, device: &Device) -> Result<LoadedModel> {
    let config = ModelConfig::load(dir)?;
    let scone = SconeConfig::load(dir)?;
    let parameters = weights::read_model(dir, device)?;
    let decoder = Decoder::load(&config, var_builder(&parameters, device))?;
    let fgram = match &scone {
        Some(scone) => load_fgram(dir, scone, &config, &decoder, device)?,
        None => None,
    };
    Ok(LoadedModel {
        model_hash: scone.as_ref().map(|s| s.model_hash.clone()),
        tokenizer_hash: tokenizer_hash(dir)?,
        config,
        scone,
        decoder,
        fgram,
    })
}

fn load_fgram(
    dir: &Path,
    scone: &SconeConfig,
    main: &ModelConfig,
    decoder: &Decoder,
    device: &Device,
) -> Result<Option<FgramModel>> {
    let path = dir.join(FGRAM_MODEL_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let parameters = read_parameters(&path, device)?;
    let fgram = FgramModel::load(&scone.fgram_model, main, var_builder(&parameters, device))?;
    let hash = model_hash(&parameters, decoder.token_embedding())?;
    if hash != scone.model_hash {
        return Err(Error::Weights {
            path,
            reason: format!(
                "these weights and the token embedding hash to {hash}, scone.json says {}",
                scone.model_hash
            ),
        });
    }
    Ok(Some(fgram))
}

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
/// hash, of the weights as stored.
///
/// # Errors
/// An unknown `torch_dtype`, or a file that cannot be written.
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
    let decoder = Decoder::load(config, var_builder(parameters, &Device::Cpu))?;
    let hash = model_hash(&stored, &dtype.round(decoder.token_embedding())?)?;
    let scone = SconeConfig {
        max_n: fgram.config.max_n,
        fgram_set_hash: fgram.fgram_set_hash.to_owned(),
        fgram_model: fgram.config.clone(),
        model_hash: hash.clone(),
    };
    write_atomic(&dir.join(SconeConfig::FILE), scone.to_json().as_bytes())?;
    Ok(Some(hash))
}

/// SHA-256, lower-case hexadecimal, over names, shapes and f32 values of A's weights in name
/// order and then of T: two models with the same hash have the same table.
///
/// # Errors
/// A tensor that cannot be read from its device.
pub fn model_hash(
    fgram_parameters: &Parameters,
    token_embedding: &candle_core::Tensor,
) -> Result<String> {
    let mut hash = Sha256::new();
    let named = fgram_parameters
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor));
    for (name, tensor) in named.chain([("token_embedding", token_embedding)]) {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((tensor.rank() as u64).to_le_bytes());
        for &dim in tensor.dims() {
            hash.update((dim as u64).to_le_bytes());
        }
        let values = tensor
            .to_dtype(candle_core::DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        for chunk in values.chunks(4096) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
            hash.update(&bytes);
        }
    }
    Ok(scone_files::hex(&hash.finalize()))
}

/// Hash of `tokenizer.json`; `None` when the directory has none.
fn tokenizer_hash(dir: &Path) -> Result<Option<String>> {
    match scone_files::sha256_file(&dir.join("tokenizer.json")) {
        Ok(hash) => Ok(Some(hash)),
        Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}
