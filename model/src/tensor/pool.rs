//! Keys and values as tensors.

use crate::config::Shape;
use crate::error::Result;
use crate::kv_blocks::{KV_BLOCK_POSITIONS, Part};
use candle_core::{DType, Device, Tensor};

/// Keys and values of all blocks, `(2, blocks · positions, Hkv·Dh)` a layer.
#[derive(Debug)]
pub(crate) struct Pool {
    layers: Vec<Tensor>,
    width: usize,
    blocks: usize,
}

impl Pool {
    /// # Errors
    /// When the device has not the memory.
    pub(crate) fn new(shape: &Shape, dtype: DType, device: &Device, blocks: usize) -> Result<Self> {
        let width = shape.heads().kv_width();
        let dims = (2, blocks * KV_BLOCK_POSITIONS, width);
        let layer = |_| Ok(Tensor::zeros(dims, dtype, device)?);
        Ok(Self {
            layers: (0..shape.num_layers).map(layer).collect::<Result<_>>()?,
            width,
            blocks,
        })
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Whether this pool is one of a model of this shape.
    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        self.layers.len() == shape.num_layers && self.width == shape.heads().kv_width()
    }

    /// Keys and values of one layer.
    pub(crate) fn layer(&self, layer: usize) -> &Tensor {
        &self.layers[layer]
    }
}

/// Where a position of a part is held.
pub(crate) fn slot(part: &Part<'_>, position: usize) -> u32 {
    let block = part.blocks[position / KV_BLOCK_POSITIONS];
    block * KV_BLOCK_POSITIONS as u32 + (position % KV_BLOCK_POSITIONS) as u32
}
