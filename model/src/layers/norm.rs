//! The norm of each family.

use super::weights::Weights;
use crate::config::{Family, Shape};
use crate::error::Result;
use candle_core::{DType, Tensor};

/// RMSNorm (llama) or LayerNorm (gpt2) over the width.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    Rms {
        weight: Tensor,
        eps: f32,
    },
    Layer {
        weight: Tensor,
        bias: Tensor,
        eps: f32,
    },
}

impl Norm {
    pub(crate) fn load(shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        let width = [shape.hidden_size];
        let weight = w.get(&width, "weight")?;
        let eps = shape.norm_eps as f32;
        Ok(match shape.family {
            Family::Llama => Self::Rms { weight, eps },
            Family::Gpt2 => Self::Layer {
                weight,
                bias: w.get(&width, "bias")?,
                eps,
            },
        })
    }

    /// An RMSNorm over one head.
    pub(crate) fn load_head(shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        Ok(Self::Rms {
            weight: w.get(&[shape.head_dim], "weight")?,
            eps: shape.norm_eps as f32,
        })
    }

    /// The same norm in another type.
    pub(crate) fn cast(&self, dtype: DType) -> Result<Self> {
        Ok(match self {
            Self::Rms { weight, eps } => Self::Rms {
                weight: weight.to_dtype(dtype)?,
                eps: *eps,
            },
            Self::Layer { weight, bias, eps } => Self::Layer {
                weight: weight.to_dtype(dtype)?,
                bias: bias.to_dtype(dtype)?,
                eps: *eps,
            },
        })
    }
}
