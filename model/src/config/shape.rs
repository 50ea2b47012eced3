//! The sizes both families share, and their limits.

use super::rope::Rope;
use crate::error::{Error, Result};
use crate::layout::Heads;
use std::sync::Arc;

/// Which family's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RMSNorm and SwiGLU.
    Llama,
    /// LayerNorm and GELU, weights in Conv1D layout.
    Gpt2,
}

/// What a stack of blocks is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Which blocks.
    pub family: Family,
    /// D, width of an embedding.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// H, query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// V, number of token ids.
    pub vocab_size: usize,
    /// Most positions of a sequence.
    pub max_positions: usize,
    /// Added to the variance in the norms.
    pub norm_eps: f64,
    /// Rotary positions; `None` where positions are learned.
    pub rope: Option<Rope>,
    /// Whether queries, keys and values have a bias (qwen2; gpt2 has one everywhere).
    pub qkv_bias: bool,
    /// Whether each head of queries and keys goes through an RMSNorm before it turns (qwen3).
    pub qk_norm: bool,
}

/// Most elements one weight may have; keeps sizes and byte counts far from overflow.
const MAX_ELEMENTS: usize = 1 << 36;

impl Shape {
    /// How the rows of queries, keys and values are cut into heads.
    pub(crate) fn heads(&self) -> Heads {
        Heads {
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Rotary frequencies of a head, `Dh/2` of them; `None` without rotary positions.
    pub(crate) fn rotary_frequencies(&self) -> Option<Arc<[f32]>> {
        let rope = self.rope.as_ref()?;
        Some(rope.frequencies(self.head_dim).into())
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let gpt2 = self.family == Family::Gpt2;
        let name = |llama, other| if gpt2 { other } else { llama };
        let limits = [
            (name("hidden_size", "n_embd"), self.hidden_size, 1 << 16),
            (
                name("intermediate_size", "n_inner"),
                self.intermediate_size,
                1 << 20,
            ),
            (
                name("num_hidden_layers", "n_layer"),
                self.num_layers,
                1 << 10,
            ),
            (
                name("num_attention_heads", "n_head"),
                self.num_heads,
                1 << 10,
            ),
            ("num_key_value_heads", self.num_kv_heads, 1 << 10),
            ("head_dim", self.head_dim, 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 24),
            (
                name("max_position_embeddings", "n_positions"),
                self.max_positions,
                1 << 24,
            ),
        ];
        for (field, value, limit) in limits {
            if value == 0 || value > limit {
                return Err(Error::config(
                    field,
                    format!("must be from 1 to {limit}, got {value}"),
                ));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(Error::config(
                "num_key_value_heads",
                format!(
                    "{} does not divide num_attention_heads, {}",
                    self.num_kv_heads, self.num_heads
                ),
            ));
        }
        if self.rope.is_some() && !self.head_dim.is_multiple_of(2) {
            return Err(Error::config(
                "head_dim",
                format!("must be even for rotary positions, got {}", self.head_dim),
            ));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(Error::config(
                name("rms_norm_eps", "layer_norm_epsilon"),
                format!("must be above 0 and below 1, got {}", self.norm_eps),
            ));
        }
        if let Some(Rope { theta, .. }) = self.rope
            && !(theta.is_finite() && theta > 0.0)
        {
            return Err(Error::config(
                "rope_theta",
                format!("must be positive, got {theta}"),
            ));
        }
        self.validate_elements()
    }

    fn validate_elements(&self) -> Result<()> {
        let rows = self
            .vocab_size
            .max(self.intermediate_size)
            .max(self.num_heads * self.head_dim);
        if rows * self.hidden_size > MAX_ELEMENTS {
            return Err(Error::config(
                if self.family == Family::Gpt2 {
                    "n_embd"
                } else {
                    "hidden_size"
                },
                format!("makes a weight of more than {MAX_ELEMENTS} elements"),
            ));
        }
        Ok(())
    }
}
