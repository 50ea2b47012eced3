//! One transformer block, pre-norm in both families.

use super::attention::Attention;
use super::mlp::Mlp;
use super::norm::Norm;
use super::weights::Weights;
use crate::config::{Family, Shape};
use crate::error::Result;
use candle_core::DType;

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: Norm,
    pub(crate) attention: Attention,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp: Mlp,
}

impl Block {
    /// Loads the block whose tensors lie below `w`.
    pub(crate) fn load(shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        let names = match shape.family {
            Family::Llama => ["input_layernorm", "self_attn", "post_attention_layernorm"],
            Family::Gpt2 => ["ln_1", "attn", "ln_2"],
        };
        Ok(Self {
            attention_norm: Norm::load(shape, &w.below(names[0]))?,
            attention: Attention::load(shape, &w.below(names[1]))?,
            mlp_norm: Norm::load(shape, &w.below(names[2]))?,
            mlp: Mlp::load(shape, &w.below("mlp"))?,
        })
    }

    /// The same block with its weights in another type.
    pub(crate) fn cast(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            attention_norm: self.attention_norm.cast(dtype)?,
            attention: self.attention.cast(dtype)?,
            mlp_norm: self.mlp_norm.cast(dtype)?,
            mlp: self.mlp.cast(dtype)?,
        })
    }
}
