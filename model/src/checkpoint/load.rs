//! Reading a model directory.

use super::file::{locate, unusable};
use super::hash::model_hash;
use super::model_files::ModelFiles;
use super::names::FGRAM_MODEL_FILE;
use super::safetensors;
use crate::config::{ModelConfig, SconeConfig, TensorSpec};
use crate::decoder::Decoder;
use crate::device::host;
use crate::error::Result;
use crate::fgram_model::FgramModel;
use crate::init::{Parameters, var_builder};
use crate::weight_type::WeightType;
use candle_core::{Device, Tensor};
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
    /// Identifies the main model's weights; where the files were opened to be
    /// [hashed](ModelFiles::hashing).
    pub base_hash: Option<String>,
}

/// What a table is made with.
#[derive(Debug)]
pub struct TableModel {
    /// A.
    pub fgram: FgramModel,
    /// T, `(V, D)`.
    pub token_embedding: Tensor,
}

/// Loads a model directory, or a GGUF file with its other files beside it, weights as f32. The
/// headers of all files are checked against the config before the first number is read.
///
/// # Errors
/// A file that is missing, truncated or corrupt, a config that is not supported, a tensor that is
/// missing, has another shape or holds a number that is infinite or none, or weights of A and T
/// that are not those `scone.json` names.
pub fn load_model_dir(path: &Path, device: &Device) -> Result<LoadedModel> {
    load_model(&ModelFiles::open(path)?, device)
}

/// As [`load_model_dir`], of files that are open.
///
/// # Errors
/// As [`load_model_dir`].
pub fn load_model(files: &ModelFiles, device: &Device) -> Result<LoadedModel> {
    let scone = SconeConfig::load(files.dir())?;
    let decoder = files.decoder(device)?;
    let fgram = match &scone {
        Some(scone) => load_fgram(files, scone, decoder.token_embedding(), device)?,
        None => None,
    };
    loaded(files, scone, decoder, fgram)
}

/// As [`load_model`], for serving on the CPU: the main model's weights are
/// [packed](Decoder::pack) as they are read, so that no more than one layer of them is in memory
/// in f32 at a time. A is checked and not kept.
///
/// # Errors
/// As [`load_model_dir`].
pub fn load_packed_model(files: &ModelFiles, kind: WeightType) -> Result<LoadedModel> {
    let scone = SconeConfig::load(files.dir())?;
    if let Some(scone) = &scone {
        let token_embedding = files.token_embedding(&host())?;
        load_fgram(files, scone, &token_embedding, &host())?;
    }
    let decoder = files.packed_decoder(kind)?;
    loaded(files, scone, decoder, None)
}

/// Loads of a model directory what a table is made with; `None` for a plain model, or when
/// `fgram_model.safetensors` is not there.
///
/// # Errors
/// As [`load_model_dir`].
pub fn load_table_model(path: &Path, device: &Device) -> Result<Option<TableModel>> {
    let files = ModelFiles::open(path)?;
    let Some(scone) = SconeConfig::load(files.dir())? else {
        return Ok(None);
    };
    let token_embedding = files.token_embedding(device)?;
    let fgram = load_fgram(&files, &scone, &token_embedding, device)?;
    Ok(fgram.map(|fgram| TableModel {
        fgram,
        token_embedding,
    }))
}

fn loaded(
    files: &ModelFiles,
    scone: Option<SconeConfig>,
    decoder: Decoder,
    fgram: Option<FgramModel>,
) -> Result<LoadedModel> {
    Ok(LoadedModel {
        model_hash: scone.as_ref().map(|s| s.model_hash.clone()),
        base_hash: match files.hashes() {
            true => Some(files.base_hash()?),
            false => None,
        },
        tokenizer_hash: tokenizer_hash(files.dir())?,
        dir: files.dir().to_owned(),
        config: files.config().clone(),
        scone,
        decoder,
        fgram,
    })
}

fn load_fgram(
    files: &ModelFiles,
    scone: &SconeConfig,
    token_embedding: &Tensor,
    device: &Device,
) -> Result<Option<FgramModel>> {
    let path = files.dir().join(FGRAM_MODEL_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let main = files.config();
    let tensors = scone.fgram_model.tensors(main)?;
    let parameters = read_fgram(&path, &tensors, device)?;
    let fgram = FgramModel::load(&scone.fgram_model, main, var_builder(&parameters, device))?;
    let hash = model_hash(&parameters, token_embedding)?;
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
