//! Keys and values as tensors.

use crate::config::Shape;
use crate::error::Result;
use crate::kv_blocks::{KV_BLOCK_POSITIONS, Part};
use candle_core::{DType, Device, Tensor};

/// Keys and values of all blocks, `(blocks · positions, Hkv·Dh)` each, a pair a layer.
#[derive(Debug)]
pub(crate) struct Pool {
    layers: Vec<(Tensor, Tensor)>,
    width: usize,
    blocks: usize,
}

impl Pool {
    /// # Errors
    /// When the device has not the memory.
    pub(crate) fn new(shape: &Shape, dtype: DType, device: &Device, blocks: usize) -> Result<Self> {
        let width = shape.heads().kv_width();
        let dims = (blocks * KV_BLOCK_POSITIONS, width);
        let layer = |_| -> Result<_> {
            Ok((
                Tensor::zeros(dims, dtype, device)?,
                Tensor::zeros(dims, dtype, device)?,
            ))
        };
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

    /// Slots as [`write`](Self::write) wants them.
    pub(crate) fn rows(&self, slots: Vec<u32>, device: &Device) -> Result<Tensor> {
        let count = slots.len();
        let slots = Tensor::from_vec(slots, (count, 1), device)?;
        Ok(slots.broadcast_as((count, self.width))?.contiguous()?)
    }

    /// Writes keys and values of one layer, `(N, Hkv·Dh)` each, to N slots.
    pub(crate) fn write(&self, layer: usize, rows: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        let (keys, values) = &self.layers[layer];
        for (to, from) in [(keys, k), (values, v)] {
            to.scatter_set(rows, &from.to_dtype(to.dtype())?.contiguous()?, 0)?;
        }
        Ok(())
    }

    /// Keys and values of one layer at some slots, `(slots, Hkv·Dh)` each.
    pub(crate) fn read(
        &self,
        layer: usize,
        slots: &Tensor,
        dtype: DType,
    ) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        let gather = |x: &Tensor| x.index_select(slots, 0)?.to_dtype(dtype);
        Ok((gather(keys)?, gather(values)?))
    }
}

/// Where a position of a part is held.
pub(crate) fn slot(part: &Part<'_>, position: usize) -> u32 {
    let block = part.blocks[position / KV_BLOCK_POSITIONS];
    block * KV_BLOCK_POSITIONS as u32 + (position % KV_BLOCK_POSITIONS) as u32
}
