//! A matrix product with an optional bias, in either weight layout.

use super::weights::Weights;
use crate::error::Result;
use crate::layout::WeightLayout;
use candle_core::{DType, Tensor};

/// `y = x W (+ b)`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) layout: WeightLayout,
}

impl Linear {
    /// llama's `nn.Linear` without bias: weight `(out, in)`.
    pub(crate) fn load(inputs: usize, outputs: usize, w: &Weights<'_>) -> Result<Self> {
        Ok(Self {
            weight: w.get(&[outputs, inputs], "weight")?,
            bias: None,
            layout: WeightLayout::OutIn,
        })
    }

    /// As [`load`](Self::load), with a bias: qwen2's queries, keys and values.
    pub(crate) fn load_biased(inputs: usize, outputs: usize, w: &Weights<'_>) -> Result<Self> {
        Ok(Self {
            bias: Some(w.get(&[outputs], "bias")?),
            ..Self::load(inputs, outputs, w)?
        })
    }

    /// gpt2's `Conv1D`: weight `(in, out)` and a bias.
    pub(crate) fn load_conv1d(inputs: usize, outputs: usize, w: &Weights<'_>) -> Result<Self> {
        Ok(Self {
            weight: w.get(&[inputs, outputs], "weight")?,
            bias: Some(w.get(&[outputs], "bias")?),
            layout: WeightLayout::InOut,
        })
    }

    /// Layers of one input as one, their outputs side by side: all `(out, in)`, all with a bias or none.
    pub(crate) fn joint(parts: &[&Self]) -> Result<Self> {
        let weights: Vec<_> = parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<_> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        Ok(Self {
            weight: Tensor::cat(&weights, 0)?,
            bias: match biases.is_empty() {
                true => None,
                false => Some(Tensor::cat(&biases, 0)?),
            },
            layout: WeightLayout::OutIn,
        })
    }

    /// The same layer in another type.
    pub(crate) fn cast(&self, dtype: DType) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(dtype));
        Ok(Self {
            weight: self.weight.to_dtype(dtype)?,
            bias: bias.transpose()?,
            layout: self.layout,
        })
    }
}
