//! The main model's files: opened, checked against the config, and then read.

use super::dtype::StoredDtype;
use super::file::{Located, TensorFile, locate, unusable};
use super::gguf;
use super::hash::{NumbersDigest, base_hash, numbers_digest};
use super::names::{INDEX_FILE, MODEL_FILE};
use super::safetensors;
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::device::host;
use crate::error::{Error, Result};
use crate::init::Parameters;
use crate::layers::{Source, Weights};
use crate::weight_type::WeightType;
use candle_core::{Device, Tensor};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Config and weights of a main model. Opening reads headers only, and checks that every tensor the
/// config implies is there, in its shape and within its file.
#[derive(Debug)]
pub struct ModelFiles {
    dir: PathBuf,
    config: ModelConfig,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Located>,
    /// What was read so far, where the base hash is wanted.
    digests: Option<RefCell<BTreeMap<String, NumbersDigest>>>,
}

impl ModelFiles {
    /// Opens the model of a directory in Hugging Face layout, or a GGUF file: itself, or the only
    /// one of a directory without safetensors.
    ///
    /// # Errors
    /// A file that is missing or corrupt, a config that is not supported, or a tensor that is
    /// missing or has another shape.
    pub fn open(path: &Path) -> Result<Self> {
        let (config, files) = match gguf_file(path)? {
            Some(file) => {
                let (config, weights) = gguf::open(&file)?;
                (config, vec![weights])
            }
            None => (ModelConfig::load(path)?, open_weights(path)?),
        };
        let tensors = locate(&files, &config.tensors())?;
        Ok(Self {
            dir: model_dir(path).to_owned(),
            config,
            files,
            tensors,
            digests: None,
        })
    }

    /// The same, and each tensor is hashed when it is first read: the [base hash](Self::base_hash)
    /// then needs no reading of its own, and is in what is loaded.
    #[must_use]
    pub fn hashing(self) -> Self {
        Self {
            digests: Some(RefCell::default()),
            ..self
        }
    }

    /// Whether [`hashing`](Self::hashing) was asked for.
    pub fn hashes(&self) -> bool {
        self.digests.is_some()
    }

    /// Identifies the weights of the main model, whatever files and types they are stored in:
    /// SHA-256, lower-case hexadecimal, over names, shapes and f32 values (`docs/formats.md`). Reads
    /// what was not hashed when it was read, one tensor at a time.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn base_hash(&self) -> Result<String> {
        let read = self
            .digests
            .as_ref()
            .map(|digests| digests.borrow().clone());
        let mut digests = read.unwrap_or_default();
        let mut specs = self.config.tensors();
        for spec in &specs {
            if !digests.contains_key(&spec.name) {
                let digest = numbers_digest(&self.numbers(&spec.name)?.0);
                digests.insert(spec.name.clone(), digest);
            }
        }
        specs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let hashed = specs.iter();
        let hashed = hashed.filter_map(|spec| Some((spec, digests.get(&spec.name)?)));
        Ok(base_hash(hashed))
    }

    /// The directory of the tokenizer and all other files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The narrowest type that holds every weight as it is stored.
    pub fn stored_dtype(&self) -> StoredDtype {
        let mut types = self.tensors.values().map(|tensor| tensor.dtype);
        let first = types.next().unwrap_or(StoredDtype::F32);
        match types.all(|dtype| dtype == first) {
            true => first,
            false => StoredDtype::F32,
        }
    }

    /// Reads the weights as f32, under the names the config has for them.
    ///
    /// # Errors
    /// A file that cannot be read, or a number that is infinite or none.
    pub fn read(&self, device: &Device) -> Result<Parameters> {
        let names = self.tensors.keys();
        names
            .map(|name| Ok((name.clone(), self.read_one(name, device)?)))
            .collect()
    }

    fn read_one(&self, name: &str, device: &Device) -> Result<Tensor> {
        let (numbers, shape) = self.numbers(name)?;
        if let Some(digests) = &self.digests
            && !digests.borrow().contains_key(name)
        {
            let digest = numbers_digest(&numbers);
            digests.borrow_mut().insert(name.to_owned(), digest);
        }
        Ok(Tensor::from_vec(numbers, shape, device)?)
    }

    fn numbers(&self, name: &str) -> Result<(Vec<f32>, &[usize])> {
        let missing = || Error::MissingTensor { name: name.into() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        self.files[tensor.file].numbers(&tensor.stored_as)
    }

    /// Builds the model, with each tensor read when its layer asks for it: a layer that keeps its
    /// weights in another form need not have all others beside it in f32.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn decoder(&self, device: &Device) -> Result<Decoder> {
        let source = Reading {
            files: self,
            device,
        };
        Decoder::from_weights(&self.config, &Weights::new(&source))
    }

    /// As [`decoder`](Self::decoder), with its weights [packed](Decoder::pack) for serving on the
    /// CPU: no more than one layer's weights are there in f32 at a time.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn packed_decoder(&self, kind: WeightType) -> Result<Decoder> {
        let source = Reading {
            files: self,
            device: &host(),
        };
        Decoder::from_weights_packed(&self.config, &Weights::new(&source), kind)
    }

    /// T, `(V, D)`, in f32.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn token_embedding(&self, device: &Device) -> Result<Tensor> {
        self.read_one(self.config.token_embedding_name(), device)
    }
}

/// Tensors read on demand.
struct Reading<'a> {
    files: &'a ModelFiles,
    device: &'a Device,
}

impl Source for Reading<'_> {
    fn contains(&self, name: &str) -> bool {
        self.files.tensors.contains_key(name)
    }

    fn get(&self, name: &str) -> Result<Tensor> {
        self.files.read_one(name, self.device)
    }
}

/// The directory that the other files of a model are in: of `path`, or `path` itself.
pub fn model_dir(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if path.is_file() && parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) if path.is_file() => parent,
        _ => path,
    }
}

/// The GGUF file that holds the weights, if one does.
fn gguf_file(path: &Path) -> Result<Option<PathBuf>> {
    if path.is_file() {
        return Ok(Some(path.to_owned()));
    }
    let is_there = |name| path.join(name).exists();
    if is_there(MODEL_FILE) || is_there(INDEX_FILE) {
        return Ok(None);
    }
    let failed = || scone_files::Error::at("read", path);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed())? {
        let file = entry.map_err(failed())?.path();
        if file
            .extension()
            .is_some_and(|extension| extension == "gguf")
        {
            found.push(file);
        }
    }
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [one, ..] => Err(unusable(one, "it is not the only one there; name the file")),
    }
}

/// `model.safetensors`, or the parts that `model.safetensors.index.json` lists.
fn open_weights(dir: &Path) -> Result<Vec<TensorFile>> {
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
