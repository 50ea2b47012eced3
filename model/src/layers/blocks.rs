//! The blocks of a model, one after the other.

use super::{Block, Positions, Weights};
use crate::config::Shape;
use crate::error::Result;
use crate::ops::fused;
use crate::train::{Buffers, FlatBlock, Stack};
use candle_core::Tensor;

/// Blocks and what training them on a CPU needs.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    flat: FlatBlock,
    rope_theta: Option<f64>,
    buffers: Buffers,
}

impl Blocks {
    /// Loads the blocks below `w`, by number.
    pub(crate) fn load(shape: &Shape, w: &Weights<'_>) -> Result<Self> {
        let blocks = (0..shape.num_layers)
            .map(|i| Block::load(shape, &w.below(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            blocks,
            flat: FlatBlock::new(shape),
            rope_theta: shape.rope_theta,
            buffers: Buffers::default(),
        })
    }

    pub(crate) fn as_slice(&self) -> &[Block] {
        &self.blocks
    }

    /// `(N, D)` to `(N, D)`; gradients reach the input and every weight.
    pub(crate) fn forward(&self, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        if fused(&[x]) {
            let (flat, theta) = (&self.flat, self.rope_theta);
            return Stack::apply(flat, theta, &self.blocks, &self.buffers, x, positions);
        }
        let mut x = x.clone();
        for block in &self.blocks {
            x = block.forward(&x, positions)?;
        }
        Ok(x)
    }
}
