//! Configs: Hugging Face's `config.json` for the llama (with qwen2 and qwen3) and gpt2 families, and `scone.json`.

mod gpt2;
mod llama;
mod refused;
mod rope;
mod scone;
mod shape;
mod tensors;

use crate::error::{Error, Result};
pub use gpt2::Gpt2Config;
pub use llama::{LlamaConfig, LlamaVariant};
pub use rope::{Rope, RopeScaling};
pub use scone::{FgramModelConfig, SconeConfig};
use serde::{Deserialize, Serialize};
pub use shape::{Family, Shape};
use std::path::Path;
pub use tensors::TensorSpec;

/// One token id or several, as `eos_token_id` of Hugging Face configs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// A single id.
    One(u32),
    /// A list of ids.
    Many(Vec<u32>),
}

impl TokenIds {
    /// The ids, in the order of the file.
    pub fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

/// A `config.json` of one of the families.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    /// RMSNorm, rotary positions, SwiGLU, grouped-query attention: llama, qwen2, qwen3.
    Llama(LlamaConfig),
    /// LayerNorm, learned positions, GELU, weights in Conv1D layout.
    Gpt2(Gpt2Config),
}

impl ModelConfig {
    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    /// Text that is not JSON, an unknown `model_type`, or a field this crate does not support:
    /// the error names the field.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::parse(text, Path::new("config.json"))
    }

    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), and when the file cannot be read.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(scone_files::Error::at("read", &path))?;
        Self::parse(&text, &path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let json = |source| Error::Json {
            path: path.to_owned(),
            source,
        };
        let mut value: serde_json::Value = serde_json::from_str(text).map_err(json)?;
        if let Some(fields) = value.as_object_mut() {
            // null is how `transformers` writes an absent field.
            fields.retain(|_, field| !field.is_null());
            // Newer files say `dtype`.
            if let Some(dtype) = fields.remove("dtype") {
                fields.entry("torch_dtype").or_insert(dtype);
            }
            refused::refuse(fields)?;
        }
        let config = match value.get("model_type").and_then(|v| v.as_str()) {
            Some("llama" | "qwen2" | "qwen3") => {
                Self::Llama(serde_json::from_value(value).map_err(json)?)
            }
            Some("gpt2") => Self::Gpt2(serde_json::from_value(value).map_err(json)?),
            Some(other) => {
                return Err(Error::config(
                    "model_type",
                    format!("`{other}` is not supported, use llama, qwen2, qwen3 or gpt2"),
                ));
            }
            None => {
                return Err(Error::config(
                    "model_type",
                    "is missing, expected llama, qwen2, qwen3 or gpt2",
                ));
            }
        };
        config.validate()?;
        Ok(config)
    }

    /// The text of a `config.json` that `transformers` reads.
    pub fn to_json(&self) -> String {
        let value = match self {
            Self::Llama(c) => serde_json::to_value(c),
            Self::Gpt2(c) => serde_json::to_value(c),
        };
        let mut value = value.expect("plain structs of numbers and strings serialise");
        let class = match self {
            Self::Llama(c) => c.model_type.class(),
            Self::Gpt2(_) => "GPT2LMHeadModel",
        };
        value["architectures"] = serde_json::json!([class]);
        if let Self::Gpt2(_) = self {
            value["model_type"] = "gpt2".into();
        }
        let mut text = serde_json::to_string_pretty(&value).expect("a JSON value prints");
        text.push('\n');
        text
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first field that cannot be used.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Llama(c) => c.validate(),
            Self::Gpt2(c) => c.validate(),
        }?;
        self.shape().validate()
    }

    /// The numbers the layers are built from, the same for both families.
    pub fn shape(&self) -> Shape {
        match self {
            Self::Llama(c) => c.shape(),
            Self::Gpt2(c) => c.shape(),
        }
    }

    /// Width of an embedding.
    pub fn hidden_size(&self) -> usize {
        self.shape().hidden_size
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.shape().vocab_size
    }

    /// Number of transformer blocks.
    pub fn num_layers(&self) -> usize {
        self.shape().num_layers
    }

    /// Most positions of one sequence.
    pub fn max_positions(&self) -> usize {
        self.shape().max_positions
    }

    /// Whether the output layer is the token embedding.
    pub fn tied(&self) -> bool {
        match self {
            Self::Llama(c) => c.tie_word_embeddings,
            Self::Gpt2(c) => c.tie_word_embeddings,
        }
    }

    /// Beginning-of-text id.
    pub fn bos_token_id(&self) -> Option<u32> {
        match self {
            Self::Llama(c) => c.bos_token_id,
            Self::Gpt2(c) => c.bos_token_id,
        }
    }

    /// End-of-text ids; empty when the model has none.
    pub fn eos_token_ids(&self) -> &[u32] {
        let ids = match self {
            Self::Llama(c) => c.eos_token_id.as_ref(),
            Self::Gpt2(c) => c.eos_token_id.as_ref(),
        };
        ids.map_or(&[], TokenIds::as_slice)
    }

    /// Type the weights are stored in: `float32`, `float16` or `bfloat16`.
    pub fn torch_dtype(&self) -> &str {
        match self {
            Self::Llama(c) => &c.torch_dtype,
            Self::Gpt2(c) => &c.torch_dtype,
        }
    }

    /// Sets [`torch_dtype`](Self::torch_dtype), for a save in another type.
    pub fn set_torch_dtype(&mut self, name: &str) {
        match self {
            Self::Llama(c) => name.clone_into(&mut c.torch_dtype),
            Self::Gpt2(c) => name.clone_into(&mut c.torch_dtype),
        }
    }
}

fn default_torch_dtype() -> String {
    "float32".to_owned()
}

fn default_initializer_range() -> f64 {
    0.02
}

fn is_false(flag: &bool) -> bool {
    !*flag
}
