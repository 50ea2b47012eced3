//! The configuration of a training run: a YAML file and `key.sub=value` overrides.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_yaml_ng::{Mapping, Value};

/// Everything that defines a training run. Field names are the keys of the YAML file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// What to train on and what to evaluate on.
    pub data: DataConfig,
    /// Path of `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Path of the f-gram set. Absent: a plain model without f-grams, by the same code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fgrams: Option<PathBuf>,
    /// Shape of the main model.
    pub model: ModelShape,
    /// Shape of the f-gram model A. Ignored without `fgrams`.
    pub fgram_model: FgramModelShape,
    /// Batches, length and evaluation.
    pub training: TrainingConfig,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// What is written at the end.
    pub output: OutputConfig,
}

/// `data`: corpus files. Paths are relative to the current directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training text: .txt, .jsonl, .jsonl.zst, .jsonl.gz; all files are mixed.
    pub train: Vec<PathBuf>,
    /// Held-out text; each file is reported by its name and all together.
    #[serde(default)]
    pub valid: Vec<PathBuf>,
    /// Field of a .jsonl line that holds the text.
    #[serde(default = "default_text_field")]
    pub text_field: String,
}

/// The families of main models that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// RMSNorm, rotary positions, SwiGLU, grouped-query attention.
    Llama,
    /// LayerNorm, learned positions, GELU.
    Gpt2,
}

/// `model`: the main model, in the words of a Hugging Face `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// llama or gpt2.
    pub family: Family,
    /// Width d of the model and of every f-gram row.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Key/value heads; default: as many as attention heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Width of the feed-forward layer; default: 4 times hidden_size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Longest context the model file claims; at least training.sequence_length.
    pub max_position_embeddings: usize,
    /// Whether the output layer is T itself.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// Base of the rotary angles (llama); default 10,000.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
}

/// `fgram_model`: A. Width and block are those of the main model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FgramModelShape {
    /// Transformer blocks.
    pub num_hidden_layers: usize,
    /// Attention heads; default: those of the main model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_attention_heads: Option<usize>,
    /// Width of the feed-forward layer; default: that of the main model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Whether A ends in a norm of its own.
    pub final_norm: bool,
}

impl Default for FgramModelShape {
    fn default() -> Self {
        Self {
            num_hidden_layers: 2,
            num_attention_heads: None,
            intermediate_size: None,
            final_norm: false,
        }
    }
}

/// `training`: batches, length, evaluation, checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Positions of one training window.
    pub sequence_length: usize,
    /// Positions of one step; a multiple of sequence_length.
    pub batch_tokens: usize,
    /// Optimiser steps. Give this or `tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Training positions in all, rounded up to whole steps. Give this or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Seed of initial weights and data order.
    #[serde(default)]
    pub seed: u64,
    /// Steps between lines in log.jsonl.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
    /// Steps between evaluations on data.valid; 0: only at the end.
    #[serde(default = "default_eval_every")]
    pub eval_every: u64,
    /// Most positions evaluated of each valid file while training.
    #[serde(default = "default_eval_tokens")]
    pub eval_tokens: u64,
    /// Steps between checkpoints; 0: only at the end.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// Worker threads; absent: one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

impl TrainingConfig {
    /// Number of optimiser steps, from `steps` or `tokens`.
    pub fn total_steps(&self) -> u64 {
        match (self.steps, self.tokens) {
            (Some(steps), _) => steps,
            (None, Some(tokens)) => tokens.div_ceil(self.batch_tokens as u64),
            (None, None) => 0,
        }
    }
}

/// `optimizer`: AdamW, warm-up and cosine decay. Defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the last step, as a share of the peak.
    pub min_lr_ratio: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled weight decay, of matrices only (not of norms, biases and positions' vectors).
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub clip: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            min_lr_ratio: 0.1,
            warmup_steps: 100,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip: 1.0,
        }
    }
}

/// Element types of the written model files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputDtype {
    /// 32-bit float.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

/// `output`: the model directory written at the end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// f32, bf16 or f16.
    pub dtype: OutputDtype,
}

fn default_text_field() -> String {
    crate::corpus::DEFAULT_TEXT_FIELD.to_owned()
}
fn yes() -> bool {
    true
}
fn default_rope_theta() -> f64 {
    10_000.0
}
fn default_log_every() -> u64 {
    20
}
fn default_eval_every() -> u64 {
    250
}
fn default_eval_tokens() -> u64 {
    32_768
}
fn default_checkpoint_every() -> u64 {
    250
}

impl TrainConfig {
    /// Reads `path`, applies `overrides` (`optimizer.lr=3e-3`) and checks every field.
    ///
    /// # Errors
    /// Names the file and the key that is unknown, missing, of the wrong type or out of range.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the training config {}", path.display()))?;
        Self::parse(&text, overrides).with_context(|| format!("in {}", path.display()))
    }

    /// [`TrainConfig::load`] on the text of a file.
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        let value: Value = serde_yaml_ng::from_str(text).context("not valid YAML")?;
        let Value::Mapping(mut root) = value else {
            bail!("the training config must be a mapping of keys")
        };
        for spec in overrides {
            apply_override(&mut root, spec)?;
        }
        let config = Self::from_mapping(root)?;
        config.validate()?;
        Ok(config)
    }

    /// The effective config as YAML, every default written out.
    pub fn to_yaml(&self) -> Result<String> {
        serde_yaml_ng::to_string(self).context("cannot write the config as YAML")
    }

    /// Takes the sections one by one, so that an error names the section it is in.
    fn from_mapping(mut root: Mapping) -> Result<Self> {
        let config = Self {
            data: section(&mut root, "data")?.context("missing key `data`")?,
            tokenizer: section(&mut root, "tokenizer")?.context("missing key `tokenizer`")?,
            fgrams: section(&mut root, "fgrams")?,
            model: section(&mut root, "model")?.context("missing key `model`")?,
            fgram_model: section(&mut root, "fgram_model")?.unwrap_or_default(),
            training: section(&mut root, "training")?.context("missing key `training`")?,
            optimizer: section(&mut root, "optimizer")?.unwrap_or_default(),
            output: section(&mut root, "output")?.unwrap_or_default(),
        };
        if let Some(key) = root.keys().next() {
            bail!(
                "unknown key `{}`; known: data, tokenizer, fgrams, model, fgram_model, training, \
                 optimizer, output",
                key.as_str().unwrap_or("?")
            );
        }
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        ensure!(!self.data.train.is_empty(), "data.train is empty");
        self.model.validate()?;
        let heads = self.fgram_heads();
        ensure!(
            heads > 0 && self.model.hidden_size.is_multiple_of(heads),
            "fgram_model.num_attention_heads = {heads} does not divide model.hidden_size = {}",
            self.model.hidden_size
        );
        positive(
            "fgram_model.num_hidden_layers",
            self.fgram_model.num_hidden_layers,
        )?;
        self.validate_training()?;
        self.optimizer.validate()
    }

    fn validate_training(&self) -> Result<()> {
        let training = &self.training;
        positive("training.sequence_length", training.sequence_length)?;
        ensure!(
            training.sequence_length <= self.model.max_position_embeddings,
            "training.sequence_length = {} is above model.max_position_embeddings = {}",
            training.sequence_length,
            self.model.max_position_embeddings
        );
        ensure!(
            training.batch_tokens > 0
                && training
                    .batch_tokens
                    .is_multiple_of(training.sequence_length),
            "training.batch_tokens = {} is not a multiple of training.sequence_length = {}",
            training.batch_tokens,
            training.sequence_length
        );
        ensure!(
            training.steps.is_some() != training.tokens.is_some(),
            "give exactly one of training.steps and training.tokens"
        );
        ensure!(
            training.total_steps() > 0,
            "training.steps or training.tokens must be above 0"
        );
        ensure!(
            training.log_every > 0,
            "training.log_every must be at least 1"
        );
        ensure!(
            training.threads != Some(0),
            "training.threads must be at least 1"
        );
        Ok(())
    }

    /// Attention heads of A.
    pub fn fgram_heads(&self) -> usize {
        self.fgram_model
            .num_attention_heads
            .unwrap_or(self.model.num_attention_heads)
    }

    /// Width of A's feed-forward layer.
    pub fn fgram_intermediate_size(&self) -> usize {
        self.fgram_model
            .intermediate_size
            .unwrap_or_else(|| self.model.intermediate_size())
    }
}

impl ModelShape {
    /// Width of the feed-forward layer.
    pub fn intermediate_size(&self) -> usize {
        self.intermediate_size.unwrap_or(4 * self.hidden_size)
    }

    /// Key/value heads.
    pub fn num_key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn validate(&self) -> Result<()> {
        positive("model.hidden_size", self.hidden_size)?;
        positive("model.num_hidden_layers", self.num_hidden_layers)?;
        positive("model.num_attention_heads", self.num_attention_heads)?;
        positive("model.num_key_value_heads", self.num_key_value_heads())?;
        positive("model.intermediate_size", self.intermediate_size())?;
        positive(
            "model.max_position_embeddings",
            self.max_position_embeddings,
        )?;
        ensure!(
            self.hidden_size.is_multiple_of(self.num_attention_heads),
            "model.num_attention_heads = {} does not divide model.hidden_size = {}",
            self.num_attention_heads,
            self.hidden_size
        );
        ensure!(
            self.num_attention_heads
                .is_multiple_of(self.num_key_value_heads()),
            "model.num_key_value_heads = {} does not divide model.num_attention_heads = {}",
            self.num_key_value_heads(),
            self.num_attention_heads
        );
        if self.family == Family::Gpt2 {
            ensure!(
                self.num_key_value_heads() == self.num_attention_heads,
                "model.num_key_value_heads is not a field of the gpt2 family"
            );
        } else {
            ensure!(
                (self.hidden_size / self.num_attention_heads).is_multiple_of(2),
                "model.hidden_size / model.num_attention_heads must be even for rotary positions"
            );
        }
        ensure!(self.rope_theta > 0.0, "model.rope_theta must be above 0");
        Ok(())
    }
}

impl OptimizerConfig {
    fn validate(&self) -> Result<()> {
        let share = |name: &str, value: f64| {
            ensure!(
                (0.0..1.0).contains(&value),
                "optimizer.{name} = {value} is not in [0, 1)"
            );
            Ok(())
        };
        ensure!(
            self.lr.is_finite() && self.lr > 0.0,
            "optimizer.lr must be above 0"
        );
        ensure!(
            (0.0..=1.0).contains(&self.min_lr_ratio),
            "optimizer.min_lr_ratio = {} is not in [0, 1]",
            self.min_lr_ratio
        );
        share("beta1", self.beta1)?;
        share("beta2", self.beta2)?;
        ensure!(self.eps > 0.0, "optimizer.eps must be above 0");
        ensure!(
            self.weight_decay >= 0.0,
            "optimizer.weight_decay must not be negative"
        );
        ensure!(self.clip >= 0.0, "optimizer.clip must not be negative");
        Ok(())
    }
}

fn positive(name: &str, value: usize) -> Result<()> {
    ensure!(value > 0, "{name} must be at least 1");
    Ok(())
}

/// Removes `key` from `root` and reads it; `None` when absent or null.
fn section<T: DeserializeOwned>(root: &mut Mapping, key: &str) -> Result<Option<T>> {
    match root.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let read = serde_yaml_ng::from_value(value);
            read.map(Some).with_context(|| format!("key `{key}`"))
        }
    }
}

/// Sets the value of `a.b=value`; the value is read as YAML, so `[x, y]`, `3e-3`, `null` work.
fn apply_override(root: &mut Mapping, spec: &str) -> Result<()> {
    let (path, text) = spec
        .split_once('=')
        .with_context(|| format!("override `{spec}` is not of the form key=value"))?;
    let mut value: Value = serde_yaml_ng::from_str(text)
        .with_context(|| format!("override `{path}`: value `{text}` is not YAML"))?;
    // YAML 1.1 wants a dot in a float: `3e-3` would be a string.
    if let Value::String(text) = &value
        && let Ok(number) = text.parse::<f64>()
        && number.is_finite()
    {
        value = Value::from(number);
    }
    let keys: Vec<&str> = path.trim().split('.').collect();
    ensure!(
        keys.iter().all(|key| !key.is_empty()),
        "override `{spec}` has an empty key"
    );
    let (last, parents) = keys.split_last().context("override without a key")?;
    let mut at = root;
    for key in parents {
        let entry = at
            .entry(Value::from(*key))
            .or_insert(Value::Mapping(Mapping::new()));
        if entry.is_null() {
            *entry = Value::Mapping(Mapping::new());
        }
        at = entry
            .as_mapping_mut()
            .with_context(|| format!("override `{path}`: `{key}` is not a section"))?;
    }
    at.insert(Value::from(*last), value);
    Ok(())
}

/// The keys in which two configs differ, as dotted paths with both values.
pub fn differences(old: &TrainConfig, new: &TrainConfig) -> Result<Vec<Difference>> {
    let (old, new) = (serde_json::to_value(old)?, serde_json::to_value(new)?);
    let mut found = Vec::new();
    compare("", &old, &new, &mut found);
    Ok(found)
}

/// One key of [`differences`].
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Dotted path.
    pub key: String,
    /// Value in the old config, as JSON.
    pub old: String,
    /// Value in the new config, as JSON.
    pub new: String,
}

fn compare(
    path: &str,
    old: &serde_json::Value,
    new: &serde_json::Value,
    found: &mut Vec<Difference>,
) {
    use serde_json::Value as Json;
    if let (Json::Object(a), Json::Object(b)) = (old, new) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let inner = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            compare(
                &inner,
                a.get(key).unwrap_or(&Json::Null),
                b.get(key).unwrap_or(&Json::Null),
                found,
            );
        }
    } else if old != new {
        found.push(Difference {
            key: path.to_owned(),
            old: old.to_string(),
            new: new.to_string(),
        });
    }
}

/// Keys that may change between a checkpoint and its continuation: they do not enter the weights.
const FREE_KEYS: [&str; 7] = [
    "data.valid",
    "training.log_every",
    "training.eval_every",
    "training.eval_tokens",
    "training.checkpoint_every",
    "training.threads",
    "output.dtype",
];

/// Refuses to continue a run of `old` as `new` when they would not give the same weights.
///
/// # Errors
/// Names every key that differs.
pub fn check_resumable(old: &TrainConfig, new: &TrainConfig) -> Result<()> {
    let different: Vec<String> = differences(old, new)?
        .into_iter()
        .filter(|d| !FREE_KEYS.contains(&d.key.as_str()))
        .map(|d| format!("{} was {} and is now {}", d.key, d.old, d.new))
        .collect();
    ensure!(
        different.is_empty(),
        "cannot continue the run in this directory with another config: {}; use the old value, or \
         another --out directory",
        different.join("; ")
    );
    Ok(())
}

#[cfg(test)]
mod tests;
