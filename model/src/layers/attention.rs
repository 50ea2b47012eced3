//! The attention half of a block: projections around the attention operation.

use super::{Linear, Weights};
use crate::config::{Family, Shape};
use crate::error::Result;
use crate::fgram_model::PrefixTree;
use crate::ops::{self, Heads};
use candle_core::Tensor;
use std::sync::Arc;

/// Which earlier positions a position of an `(N, D)` activation sees.
#[derive(Clone, Debug)]
pub(crate) enum Positions {
    /// N = B·T: each sequence of T positions sees its own past.
    Sequences { batch: usize, len: usize },
    /// Each node of the tree sees its ancestors and itself.
    Tree(Arc<PrefixTree>),
}

/// Attention with its input and output projections.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) input: Input,
    pub(crate) output: Linear,
    pub(crate) heads: Heads,
}

/// The projections to queries, keys and values.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Split {
        q: Linear,
        k: Linear,
        v: Linear,
    },
    /// gpt2's `c_attn`: query, key and value side by side in one weight.
    Joint(Linear),
}

impl Attention {
    pub(crate) fn load(shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        let d = shape.hidden_size;
        let q_width = shape.num_heads * shape.head_dim;
        let kv_width = shape.num_kv_heads * shape.head_dim;
        let heads = Heads {
            num_heads: shape.num_heads,
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            rope_theta: shape.rope_theta,
        };
        let (input, output) = match shape.family {
            Family::Llama => (
                Input::Split {
                    q: Linear::load(d, q_width, &w.below("q_proj"))?,
                    k: Linear::load(d, kv_width, &w.below("k_proj"))?,
                    v: Linear::load(d, kv_width, &w.below("v_proj"))?,
                },
                Linear::load(q_width, d, &w.below("o_proj"))?,
            ),
            Family::Gpt2 => (
                Input::Joint(Linear::load_conv1d(
                    d,
                    q_width + 2 * kv_width,
                    &w.below("c_attn"),
                )?),
                Linear::load_conv1d(q_width, d, &w.below("c_proj"))?,
            ),
        };
        Ok(Self {
            input,
            output,
            heads,
        })
    }

    /// `(N, D)` to `(N, D)`.
    pub(crate) fn forward(&self, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        let (q, k, v) = self.project(x)?;
        let mixed = match positions {
            Positions::Sequences { batch, len } => {
                ops::composed::causal_attention(&q, &k, &v, &self.heads, *batch, *len)?
            }
            Positions::Tree(tree) => ops::composed::tree_attention(&q, &k, &v, &self.heads, tree)?,
        };
        self.output.forward(&mixed)
    }

    /// Queries `(N, H·Dh)`, keys and values `(N, Hkv·Dh)`.
    pub(crate) fn project(&self, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let q_width = self.heads.num_heads * self.heads.head_dim;
        let kv_width = self.heads.num_kv_heads * self.heads.head_dim;
        match &self.input {
            Input::Split { q, k, v } => Ok((q.forward(x)?, k.forward(x)?, v.forward(x)?)),
            // Cutting the weight is cheaper than cutting the activation and its gradient.
            Input::Joint(joint) => Ok((
                joint.narrow(0, q_width)?.forward(x)?,
                joint.narrow(q_width, kv_width)?.forward(x)?,
                joint.narrow(q_width + kv_width, kv_width)?.forward(x)?,
            )),
        }
    }
}
