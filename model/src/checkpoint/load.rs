//! Reading a model directory.

use super::file::{TensorFile, locate, unusable};
use super::hash::model_hash;
use super::names::{FGRAM_MODEL_FILE, INDEX_FILE, MODEL_FILE};
use super::safetensors;
use crate::config::{ModelConfig, SconeConfig, TensorSpec};
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::fgram_model::FgramModel;
use crate::init::{Parameters, var_builder};
use candle_core::Device;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

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

/// Loads a model directory, weights as f32. The headers of all files are checked against the config
/// before the first number is read.
///
/// # Errors
/// A file that is missing, truncated or corrupt, a config that is not supported, a tensor that is
/// missing, has another shape or holds a number that is infinite or none, or weights of A and T
/// that are not those `scone.json` names.
pub fn load_model_dir(dir: &Path, device: &Device) -> Result<LoadedModel> {
    let config = ModelConfig::load(dir)?;
    let scone = SconeConfig::load(dir)?;
    let tensors = config.tensors();
    let parameters = read(open_model(dir)?, &tensors, device)?;
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
    let tensors = scone.fgram_model.tensors(main)?;
    let parameters = read(vec![safetensors::open(&path)?], &tensors, device)?;
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

/// The tensors of a model, each under the name the config has for it; others are left alone.
fn read(mut files: Vec<TensorFile>, wanted: &[TensorSpec], device: &Device) -> Result<Parameters> {
    let found = locate(&files, wanted)?;
    let pairs = wanted.iter().zip(found);
    pairs
        .map(|(spec, (file, name))| Ok((spec.name.clone(), files[file].read(&name, device)?)))
        .collect()
}

/// `model.safetensors`, or the parts that `model.safetensors.index.json` lists.
fn open_model(dir: &Path) -> Result<Vec<TensorFile>> {
    let single = dir.join(MODEL_FILE);
    let index = dir.join(INDEX_FILE);
    if single.exists() || !index.exists() {
        return Ok(vec![safetensors::open(&single)?]);
    }
    let text = std::fs::read_to_string(&index).map_err(scone_files::Error::at("read", &index))?;
    let parsed: ShardIndex = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: index.clone(),
        source,
    })?;
    let open = |part: &String| {
        // A part is a file of this directory, whatever the index says.
        if part.contains(['/', '\\']) {
            return Err(unusable(
                &index,
                format!("`{part}` is not a plain file name"),
            ));
        }
        let mut file = safetensors::open(&dir.join(part))?;
        let listed = |name: &String| parsed.weight_map.get(name) == Some(part);
        file.entries.retain(|name, _| listed(name));
        Ok(file)
    };
    let parts: BTreeSet<&String> = parsed.weight_map.values().collect();
    parts.into_iter().map(open).collect()
}

#[derive(serde::Deserialize)]
struct ShardIndex {
    /// File of each tensor.
    weight_map: HashMap<String, String>,
}

/// Hash of `tokenizer.json`; `None` when the directory has none.
fn tokenizer_hash(dir: &Path) -> Result<Option<String>> {
    match scone_files::sha256_file(&dir.join("tokenizer.json")) {
        Ok(hash) => Ok(Some(hash)),
        Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}
