//! `config.json` of the gpt2 family, as `transformers`' `GPT2Config` writes it.

use super::{Family, Shape, TokenIds, default_initializer_range, default_torch_dtype, is_false};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Fields of a gpt2 `config.json` that this crate uses, under the file's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpt2Config {
    /// Width of an embedding.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Heads; divides `n_embd`.
    pub n_head: usize,
    /// Width of the feed-forward layer; absent: four times `n_embd`.
    #[serde(default)]
    pub n_inner: Option<usize>,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Most positions of a sequence (learned).
    pub n_positions: usize,
    /// Added to the variance in the norms.
    #[serde(default = "default_eps")]
    pub layer_norm_epsilon: f64,
    /// Must be `gelu_new`.
    #[serde(default = "default_act")]
    pub activation_function: String,
    /// Must be true.
    #[serde(default = "yes")]
    pub scale_attn_weights: bool,
    /// Must be false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the output layer is the token embedding.
    #[serde(default = "yes")]
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
    /// Kept zero in what we write: `transformers` would otherwise train with dropout 0.1.
    #[serde(default)]
    pub resid_pdrop: f64,
    /// As `resid_pdrop`.
    #[serde(default)]
    pub embd_pdrop: f64,
    /// As `resid_pdrop`.
    #[serde(default)]
    pub attn_pdrop: f64,
}

fn default_eps() -> f64 {
    1e-5
}

fn default_act() -> String {
    "gelu_new".to_owned()
}

fn yes() -> bool {
    true
}

impl Gpt2Config {
    /// A config of the given sizes with the family's defaults: tied, feed-forward four times as
    /// wide as the embedding.
    pub fn new(
        vocab_size: usize,
        n_embd: usize,
        n_layer: usize,
        n_head: usize,
        n_positions: usize,
    ) -> Self {
        Self {
            n_embd,
            n_layer,
            n_head,
            n_inner: None,
            vocab_size,
            n_positions,
            layer_norm_epsilon: default_eps(),
            activation_function: default_act(),
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_id: None,
            torch_dtype: default_torch_dtype(),
            initializer_range: default_initializer_range(),
            resid_pdrop: 0.0,
            embd_pdrop: 0.0,
            attn_pdrop: 0.0,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.activation_function != "gelu_new" {
            let reason = format!(
                "`{}` is not supported, use gelu_new",
                self.activation_function
            );
            return Err(Error::config("activation_function", reason));
        }
        if !self.scale_attn_weights {
            return Err(Error::config(
                "scale_attn_weights",
                "false is not supported",
            ));
        }
        if self.scale_attn_by_inverse_layer_idx {
            let reason = "true is not supported";
            return Err(Error::config("scale_attn_by_inverse_layer_idx", reason));
        }
        if self.n_head == 0 || !self.n_embd.is_multiple_of(self.n_head) {
            let reason = format!("{} does not divide n_embd, {}", self.n_head, self.n_embd);
            return Err(Error::config("n_head", reason));
        }
        Ok(())
    }

    pub(super) fn shape(&self) -> Shape {
        Shape {
            family: Family::Gpt2,
            hidden_size: self.n_embd,
            intermediate_size: self.n_inner.unwrap_or(self.n_embd.saturating_mul(4)),
            num_layers: self.n_layer,
            num_heads: self.n_head,
            num_kv_heads: self.n_head,
            head_dim: self.n_embd / self.n_head.max(1),
            vocab_size: self.vocab_size,
            max_positions: self.n_positions,
            norm_eps: self.layer_norm_epsilon,
            rope: None,
            qkv_bias: true,
            qk_norm: false,
        }
    }
}
