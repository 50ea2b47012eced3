//! The attention half of a block: projections around the attention operation.

use super::linear::Linear;
use super::norm::Norm;
use super::weights::Weights;
use crate::config::{Family, Shape};
use crate::error::Result;
use crate::layout::Heads;
use candle_core::DType;

/// Attention with its input and output projections.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) input: Input,
    pub(crate) head_norms: Option<HeadNorms>,
    pub(crate) output: Linear,
    pub(crate) heads: Heads,
}

/// The norms that each head of queries and keys goes through before it turns (qwen3).
#[derive(Clone, Debug)]
pub(crate) struct HeadNorms {
    pub(crate) q: Norm,
    pub(crate) k: Norm,
}

/// The projections to queries, keys and values.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Split {
        q: Linear,
        k: Linear,
        v: Linear,
    },
    /// Query, key and value side by side in one weight: gpt2's `c_attn`, and any model's on a device
    /// where one product is faster than three.
    Joint(Linear),
}

impl Attention {
    pub(crate) fn load(shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        let d = shape.hidden_size;
        let heads = shape.heads();
        let (q_width, kv_width) = (heads.q_width(), heads.kv_width());
        let (input, output) = match shape.family {
            Family::Llama => {
                let load = match shape.qkv_bias {
                    true => Linear::load_biased,
                    false => Linear::load,
                };
                let split = Input::Split {
                    q: load(d, q_width, &w.below("q_proj"))?,
                    k: load(d, kv_width, &w.below("k_proj"))?,
                    v: load(d, kv_width, &w.below("v_proj"))?,
                };
                (split, Linear::load(q_width, d, &w.below("o_proj"))?)
            }
            Family::Gpt2 => (
                Input::Joint(Linear::load_conv1d(d, heads.width(), &w.below("c_attn"))?),
                Linear::load_conv1d(q_width, d, &w.below("c_proj"))?,
            ),
        };
        let head_norms = match shape.qk_norm {
            true => Some(HeadNorms {
                q: Norm::load_head(shape, &w.below("q_norm"))?,
                k: Norm::load_head(shape, &w.below("k_norm"))?,
            }),
            false => None,
        };
        Ok(Self {
            input,
            head_norms,
            output,
            heads,
        })
    }

    /// The same half with its weights in another type, and queries, keys and values in one product.
    pub(crate) fn cast(&self, dtype: DType) -> Result<Self> {
        let head_norms = self.head_norms.as_ref().map(|norms| norms.cast(dtype));
        Ok(Self {
            input: match &self.input {
                Input::Split { q, k, v } => Input::Joint(Linear::joint(&[q, k, v])?.cast(dtype)?),
                Input::Joint(joint) => Input::Joint(joint.cast(dtype)?),
            },
            head_norms: head_norms.transpose()?,
            output: self.output.cast(dtype)?,
            heads: self.heads,
        })
    }
}

impl HeadNorms {
    fn cast(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            q: self.q.cast(dtype)?,
            k: self.k.cast(dtype)?,
        })
    }
}
