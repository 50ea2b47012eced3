//! Reading a model directory.

use super::file::{locate, unusable};
use super::hash::model_hash;
use super::model_files::ModelFiles;
use super::names::FGRAM_MODEL_FILE;
use super::safetensors;
use crate::config::{ModelConfig, SconeConfig, TensorSpec};
use crate::decoder::Decoder;
use crate::error::Result;
use crate::fgram_model::FgramModel;
use crate::init::{Parameters, var_builder};
use candle_core::Device;
use std::path::{Path, PathBuf};

/// A model directory, loaded.
#[derive(Debug)]
pub struct LoadedModel {
    /// Where its other files are: the directory, also of a model that is one file.
    pub dir: PathBuf,
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

/// Loads a model directory, or a GGUF file with its other files beside it, weights as f32. The
/// headers of all files are checked against the config before the first number is read.
///
/// # Errors
/// A file that is missing, truncated or corrupt, a config that is not supported, a tensor that is
/// missing, has another shape or holds a number that is infinite or none, or weights of A and T
/// that are not those `scone.json` names.
pub fn load_model_dir(path: &Path, device: &Device) -> Result<LoadedModel> {
    let files = ModelFiles::open(path)?;
    let dir = files.dir().to_owned();
    let config = files.config().clone();
    let scone = SconeConfig::load(&dir)?;
    let decoder = files.decoder(device)?;
    let fgram = match &scone {
        Some(scone) => load_fgram(&dir, scone, &config, &decoder, device)?,
        None => None,
    };
    Ok(LoadedModel {
        model_hash: scone.as_ref().map(|s| s.model_hash.clone()),
        tokenizer_hash: tokenizer_hash(&dir)?,
        dir,
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
    let tensors = scone.fgram_model.tensors(main)?;
    let parameters = read_fgram(&path, &tensors, device)?;
    let fgram = FgramModel::load(&scone.fgram_model, main, var_builder(&parameters, device))?;
    let hash = model_hash(&parameters, decoder.token_embedding())?;
    if hash != scone.model_hash {
        let reason = format!(
            "these weights and the token embedding hash to {hash}, scone.json says {}",
            scone.model_hash
        );
        return Err(unusable(&path, reason));
    }
    Ok(Some(fgram))
}

/// A's weights.
fn read_fgram(path: &Path, wanted: &[TensorSpec], device: &Device) -> Result<Parameters> {
    let files = [safetensors::open(path)?];
    let found = locate(&files, wanted)?.into_iter();
    found
        .map(|(name, tensor)| Ok((name, files[0].read(&tensor.stored_as, device)?)))
        .collect()
}

/// Hash of `tokenizer.json`; `None` when the directory has none.
fn tokenizer_hash(dir: &Path) -> Result<Option<String>> {
    match scone_files::sha256_file(&dir.join("tokenizer.json")) {
        Ok(hash) => Ok(Some(hash)),
        Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}
