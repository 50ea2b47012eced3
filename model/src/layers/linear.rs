//! A matrix product with an optional bias, in either weight layout.

use super::Weights;
use crate::error::Result;
use crate::ops::{self, WeightLayout};
use candle_core::Tensor;

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

    /// gpt2's `Conv1D`: weight `(in, out)` and a bias.
    pub(crate) fn load_conv1d(inputs: usize, outputs: usize, w: &Weights<'_>) -> Result<Self> {
        Ok(Self {
            weight: w.get(&[inputs, outputs], "weight")?,
            bias: Some(w.get(&[outputs], "bias")?),
            layout: WeightLayout::InOut,
        })
    }

    /// Outputs `start..start + len` of this layer as a layer of their own; the gradient reaches
    /// the whole weight. Only for the `(in, out)` layout, where it is a view.
    pub(crate) fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self {
            weight: self.weight.narrow(1, start, len)?,
            bias: match &self.bias {
                Some(bias) => Some(bias.narrow(0, start, len)?),
                None => None,
            },
            layout: self.layout,
        })
    }

    /// `(N, in)` to `(N, out)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = ops::linear(x, &self.weight, self.layout)?;
        match &self.bias {
            Some(bias) => ops::composed::add_bias(&y, bias),
            None => Ok(y),
        }
    }
}
