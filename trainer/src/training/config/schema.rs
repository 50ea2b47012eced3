//! The keys of a training config, their types and defaults.

use std::path::PathBuf;

use scone_model::checkpoint::{StoredDtype, model_dir};
use scone_model::{DeviceChoice, Dtype};
use serde::{Deserialize, Serialize};

use super::optimizer::OptimizerConfig;
use super::source::Source;
use super::training::TrainingConfig;

/// Everything that defines a training run. Field names are the keys of the YAML file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// What to train on and what to evaluate on.
    pub data: DataConfig,
    /// Path of `tokenizer.json`; default: that of `base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Path of the f-gram set. Absent: a plain model without f-grams, by the same code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fgrams: Option<PathBuf>,
    /// Take only so many f-grams of the set, the first of its ranking; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_fgrams: Option<usize>,
    /// Model to start from: a directory in Hugging Face layout, or a GGUF file. Give this or
    /// `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// What is trained of a `base` and its f-gram model.
    #[serde(default)]
    pub trainable: Trainable,
    /// Shape of a main model that starts from random weights. Give this or `base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelShape>,
    /// Rows in place of A, to compare it with. Such a run leaves no model: nothing serves them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlKind>,
    /// Shape of the f-gram model A. Ignored without `fgrams`.
    pub fgram_model: FgramModelShape,
    /// Batches, length and evaluation.
    pub training: TrainingConfig,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// What is written at the end.
    pub output: OutputConfig,
    /// Where to compute: cpu or cuda:N.
    #[serde(default = "default_device")]
    pub device: DeviceChoice,
    /// Element type of weights and activations while training: f32.
    #[serde(default = "default_dtype", with = "as_text")]
    pub dtype: Dtype,
    /// Whether a GPU may round the factors of f32 products to TF32.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tf32: bool,
}

/// A value in the words of its `Display` and `FromStr`.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(value: &impl Display, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// `data`: corpus files. Paths are relative to the current directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training text, in the forms that `--input` takes, each a path or `{path: P, weight: W}`; all
    /// are mixed. An epoch has each document of a source W times, once when only the path is given.
    pub train: Vec<Source>,
    /// Held-out text; each file is reported by its name and all together.
    #[serde(default)]
    pub valid: Vec<PathBuf>,
    /// Field of a .jsonl line that holds the text.
    #[serde(default = "default_text_field")]
    pub text_field: String,
}

/// Which weights change; the others stay as `base` has them, bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Trainable {
    /// Main model and f-gram model.
    #[default]
    #[serde(rename = "all")]
    All,
    /// The f-gram model alone: the result is a table for an untouched base model.
    #[serde(rename = "fgram_model")]
    FgramModel,
    /// The f-gram model and the token embedding T, with it a tied output layer.
    #[serde(rename = "fgram_model+embeddings")]
    FgramModelAndEmbeddings,
    /// The token embedding alone, without f-grams.
    #[serde(rename = "embeddings")]
    Embeddings,
}

impl Trainable {
    /// Whether the f-gram model is trained, if there is one.
    pub fn fgram_model(self) -> bool {
        self != Self::Embeddings
    }

    /// Whether the token embedding is trained.
    pub fn embeddings(self) -> bool {
        self != Self::FgramModel
    }

    /// Whether all other weights of the main model are trained.
    pub fn rest(self) -> bool {
        self == Self::All
    }
}

/// `control`: rows that are trained as they are, with no model behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ControlKind {
    /// A row for each f-gram of `fgrams`, in place of the token embedding where it ends.
    Direct,
    /// A row for each token, added to its embedding; without `fgrams`.
    Unigram,
    /// Rows that the last two tokens are hashed to, added to the embedding; without `fgrams`.
    Bigram {
        /// How many.
        rows: usize,
    },
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

impl From<OutputDtype> for StoredDtype {
    fn from(dtype: OutputDtype) -> Self {
        match dtype {
            OutputDtype::F32 => Self::F32,
            OutputDtype::Bf16 => Self::Bf16,
            OutputDtype::F16 => Self::F16,
        }
    }
}

/// `output`: the model directory written at the end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// f32, bf16 or f16; default: that of `base`, otherwise f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<OutputDtype>,
}

fn default_device() -> DeviceChoice {
    DeviceChoice::Cpu
}
fn default_dtype() -> Dtype {
    Dtype::F32
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

impl TrainConfig {
    /// Path of `tokenizer.json`: `tokenizer`, or the file beside the weights of `base`.
    pub fn tokenizer_path(&self) -> PathBuf {
        match (&self.tokenizer, &self.base) {
            (None, Some(base)) => model_dir(base).join("tokenizer.json"),
            (path, _) => path.clone().unwrap_or_default(),
        }
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
}
