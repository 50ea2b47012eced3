//! `config.json` of the llama family, as `transformers`' `LlamaConfig`, `Qwen2Config` and
//! `Qwen3Config` write it.

use super::{
    Family, Rope, Shape, TokenIds, default_initializer_range, default_torch_dtype, is_false,
};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which model of the llama family; they have the same blocks but for what is said here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LlamaVariant {
    /// Without biases.
    #[default]
    Llama,
    /// Queries, keys and values have a bias.
    Qwen2,
    /// Every head of queries and keys is normed; `head_dim` is 128 unless the file says otherwise.
    Qwen3,
}

impl LlamaVariant {
    /// Name of the class that `transformers` loads such a model with.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// Fields of a llama `config.json` that this crate uses, under the file's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Which model of the family.
    #[serde(default)]
    pub model_type: LlamaVariant,
    /// Width of an embedding.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; absent: as many as query heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Width of one head; absent: `hidden_size / num_attention_heads`, or 128 (qwen3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Most positions of a sequence.
    #[serde(default = "default_max_positions")]
    pub max_position_embeddings: usize,
    /// Added to the mean square in the norms.
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary angles.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Scaled rotary positions: absent, or of type `default`, `linear` or `llama3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<serde_json::Value>,
    /// Newer files keep `rope_theta` and the scaling in here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<serde_json::Value>,
    /// Must be `silu`.
    #[serde(default = "default_act")]
    pub hidden_act: String,
    /// Must be false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub attention_bias: bool,
    /// Must be false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mlp_bias: bool,
    /// Whether the output layer is the token embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Beginning-of-text id.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// End-of-text id or ids.
    #[serde(default)]
    pub eos_token_id: Option<TokenIds>,
    /// Type of the stored weights.
    #[serde(default = "default_torch_dtype")]
    pub torch_dtype: String,
    /// Standard deviation of fresh weights.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
}

fn default_max_positions() -> usize {
    2048
}

fn default_eps() -> f64 {
    1e-6
}

fn default_theta() -> f64 {
    10_000.0
}

fn default_act() -> String {
    "silu".to_owned()
}

impl LlamaConfig {
    /// A config of the given sizes with the family's defaults: tied, as many key and value heads
    /// as query heads.
    pub fn new(
        vocab_size: usize,
        hidden_size: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        intermediate_size: usize,
        max_position_embeddings: usize,
    ) -> Self {
        Self {
            model_type: LlamaVariant::Llama,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: None,
            head_dim: None,
            vocab_size,
            max_position_embeddings,
            rms_norm_eps: 1e-5,
            rope_theta: default_theta(),
            rope_scaling: None,
            rope_parameters: None,
            hidden_act: default_act(),
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_id: None,
            torch_dtype: default_torch_dtype(),
            initializer_range: default_initializer_range(),
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.hidden_act != "silu" {
            let reason = format!("`{}` is not supported, use silu", self.hidden_act);
            return Err(Error::config("hidden_act", reason));
        }
        if self.attention_bias {
            return Err(Error::config("attention_bias", "true is not supported"));
        }
        if self.mlp_bias {
            return Err(Error::config("mlp_bias", "true is not supported"));
        }
        self.rope()?;
        if self.num_attention_heads == 0 {
            return Err(Error::config("num_attention_heads", "must be above 0"));
        }
        if self.head_dim().is_none() && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let reason = format!(
                "{} is not a multiple of num_attention_heads, {}, and head_dim is absent",
                self.hidden_size, self.num_attention_heads
            );
            return Err(Error::config("hidden_size", reason));
        }
        Ok(())
    }

    fn head_dim(&self) -> Option<usize> {
        let qwen3 = (self.model_type == LlamaVariant::Qwen3).then_some(128);
        self.head_dim.or(qwen3)
    }

    fn rope(&self) -> Result<Rope> {
        let fields = [
            ("rope_parameters", &self.rope_parameters),
            ("rope_scaling", &self.rope_scaling),
        ];
        let given = fields
            .into_iter()
            .filter_map(|(field, value)| Some((field, value.as_ref()?)))
            .map(|(field, value)| Rope::from_json(field, self.rope_theta, value))
            .collect::<Result<Vec<_>>>()?;
        match given.as_slice() {
            [] => Ok(Rope {
                theta: self.rope_theta,
                scaling: None,
            }),
            [one] => Ok(*one),
            [both, other, ..] if both.scaling == other.scaling || other.scaling.is_none() => {
                Ok(*both)
            }
            _ => Err(Error::config(
                "rope_scaling",
                "says something else than rope_parameters",
            )),
        }
    }

    pub(super) fn shape(&self) -> Shape {
        let heads = self.num_attention_heads;
        Shape {
            family: Family::Llama,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            num_heads: heads,
            num_kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim().unwrap_or(self.hidden_size / heads.max(1)),
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps,
            // A scaling that cannot be read does not validate.
            rope: self.rope().ok(),
            qkv_bias: self.model_type == LlamaVariant::Qwen2,
            qk_norm: self.model_type == LlamaVariant::Qwen3,
        }
    }
}
