//! The main model that a run starts from: fresh weights, or those of a base model.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use candle_core::Device;
use scone_model::checkpoint::{MODEL_FILE, ModelFiles, StoredDtype, model_hash};
use scone_model::{ModelConfig, Parameters, init_parameters};

use super::config::{ModelShape, TrainConfig};
use super::shape::{eos_id, model_config};
use crate::model_dir::check_ids;
use crate::tokenizer::TextTokenizer;

/// Config and first weights of a main model.
pub(super) struct MainModel {
    /// With the type that the trained model is stored in.
    pub(super) config: ModelConfig,
    pub(super) parameters: Parameters,
    /// Identifies the weights of a base model; empty without one.
    pub(super) hash: String,
    /// Where a base model is.
    pub(super) base: Option<BaseFiles>,
}

/// The files of a base model.
#[derive(Debug, Clone)]
pub(super) struct BaseFiles {
    /// The directory of the tokenizer and all others.
    pub(super) dir: PathBuf,
    /// Whether config and weights are two files there, as they are written.
    pub(super) plain: bool,
}

impl MainModel {
    /// Weights drawn from the seed.
    pub(super) fn fresh(
        config: &TrainConfig,
        shape: &ModelShape,
        tokenizer: &TextTokenizer,
    ) -> Result<Self> {
        let eos = eos_id(tokenizer, None)?;
        let dtype = config.output.dtype.unwrap_or_default().into();
        let model = model_config(shape, dtype, tokenizer.vocab_size(), eos)?;
        Ok(Self {
            parameters: init_parameters(&model, config.training.seed)?,
            config: model,
            hash: String::new(),
            base: None,
        })
    }

    /// The weights of a directory in Hugging Face layout or of a GGUF file.
    pub(super) fn read(
        config: &TrainConfig,
        base: &Path,
        tokenizer: &TextTokenizer,
    ) -> Result<Self> {
        let cannot_read = || format!("key `base`: cannot read the model {}", base.display());
        let files = ModelFiles::open(base).with_context(cannot_read)?;
        let mut model = files.config().clone();
        model.set_torch_dtype(stored_dtype(config, &files)?.torch());
        check_ids(&config.tokenizer_path(), tokenizer, &model)?;
        let (sequence, limit) = (config.training.sequence_length, model.max_positions());
        ensure!(
            sequence <= limit,
            "training.sequence_length = {sequence} is above the {limit} positions of {}",
            base.display()
        );
        // Read once more than is kept on a device: training may be on another one.
        let parameters = files.read(&Device::Cpu).with_context(cannot_read)?;
        let table = parameters.get(model.token_embedding_name());
        let table = table.with_context(|| format!("{} has no token embedding", base.display()))?;
        Ok(Self {
            hash: model_hash(&parameters, table)?,
            parameters,
            config: model,
            base: Some(BaseFiles {
                dir: files.dir().to_owned(),
                plain: base.join(MODEL_FILE).is_file(),
            }),
        })
    }

    /// The config of a base model.
    pub(super) fn base_config(&self) -> Option<&ModelConfig> {
        self.base.as_ref().map(|_| &self.config)
    }
}

/// What the trained model is stored in: the base's type, or the one asked for, which must not touch
/// weights that are not trained.
fn stored_dtype(config: &TrainConfig, files: &ModelFiles) -> Result<StoredDtype> {
    let own = files.stored_dtype();
    let Some(asked) = config.output.dtype.map(StoredDtype::from) else {
        return Ok(own);
    };
    ensure!(
        asked == own || config.trainable.rest(),
        "output.dtype = {}, but the weights of the base model that are not trained stay in {}: leave \
         it out",
        asked.torch(),
        own.torch()
    );
    Ok(asked)
}
