//! The feed-forward half of a block.

use super::linear::Linear;
use super::weights::Weights;
use crate::config::{Family, Shape};
use crate::error::Result;
use candle_core::DType;

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

    /// The same half in another type.
    pub(crate) fn cast(&self, dtype: DType) -> Result<Self> {
        Ok(match self {
            Self::Swiglu { gate, up, down } => Self::Swiglu {
                gate: gate.cast(dtype)?,
                up: up.cast(dtype)?,
                down: down.cast(dtype)?,
            },
            Self::Gelu { fc, proj } => Self::Gelu {
                fc: fc.cast(dtype)?,
                proj: proj.cast(dtype)?,
            },
        })
    }
}
