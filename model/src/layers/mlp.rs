//! The feed-forward half of a block.

use super::{Linear, Weights};
use crate::config::{Family, Shape};
use crate::error::Result;
use crate::ops;
use candle_core::Tensor;

/// SwiGLU (llama) or GELU (gpt2).
#[derive(Clone, Debug)]
pub(crate) enum Mlp {
    Swiglu {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    Gelu {
        fc: Linear,
        proj: Linear,
    },
}

impl Mlp {
    pub(crate) fn load(shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        let (d, f) = (shape.hidden_size, shape.intermediate_size);
        Ok(match shape.family {
            Family::Llama => Self::Swiglu {
                gate: Linear::load(d, f, &w.below("gate_proj"))?,
                up: Linear::load(d, f, &w.below("up_proj"))?,
                down: Linear::load(f, d, &w.below("down_proj"))?,
            },
            Family::Gpt2 => Self::Gelu {
                fc: Linear::load_conv1d(d, f, &w.below("c_fc"))?,
                proj: Linear::load_conv1d(f, d, &w.below("c_proj"))?,
            },
        })
    }

    /// `(N, D)` to `(N, D)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Swiglu { gate, up, down } => {
                let act = ops::composed::swiglu(&gate.forward(x)?, &up.forward(x)?)?;
                down.forward(&act)
            }
            Self::Gelu { fc, proj } => proj.forward(&ops::composed::gelu(&fc.forward(x)?)?),
        }
    }
}
