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

    /// Writes the next positions of a part, `(len, Hkv·Dh)` each, and returns keys and values of
    /// its positions `slots`, `(held + len, Hkv·Dh)`, in the type of `k`.
    pub(crate) fn append(
        &self,
        layer: usize,
        part: &Part<'_>,
        slots: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        let (mut at, end) = (part.held, part.held + part.len);
        while at < end {
            // Positions of one block lie side by side.
            let next = end.min((at / KV_BLOCK_POSITIONS + 1) * KV_BLOCK_POSITIONS);
            let slot = slot(part, at);
            for (to, from) in [(keys, k), (values, v)] {
                let rows = from.narrow(0, at - part.held, next - at)?;
                to.slice_set(&rows.to_dtype(to.dtype())?.contiguous()?, 0, slot)?;
            }
            at = next;
        }
        let gather = |x: &Tensor| x.index_select(slots, 0)?.to_dtype(k.dtype());
        Ok((gather(keys)?, gather(values)?))
    }
}

/// Where the positions of a part are, held ones and new ones: `(held + len)`.
pub(crate) fn slots(part: &Part<'_>, device: &Device) -> Result<Tensor> {
    let end = part.held + part.len;
    let slots: Vec<u32> = (0..end).map(|at| slot(part, at) as u32).collect();
    Ok(Tensor::from_vec(slots, end, device)?)
}

fn slot(part: &Part<'_>, position: usize) -> usize {
    let block = part.blocks[position / KV_BLOCK_POSITIONS] as usize;
    block * KV_BLOCK_POSITIONS + position % KV_BLOCK_POSITIONS
}
