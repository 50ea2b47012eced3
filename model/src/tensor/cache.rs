//! Keys and values of one sequence as tensors.

use crate::config::Shape;
use crate::error::Result;
use candle_core::Tensor;

/// Positions by which a cache grows.
const BLOCK: usize = 64;

/// Keys and values of the positions computed so far, `(capacity, Hkv·Dh)` each, a pair a layer, on
/// the model's device and in its type. Grows by doubling.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    width: usize,
    len: usize,
    max_positions: usize,
}

impl Cache {
    pub(crate) fn new(shape: &Shape) -> Self {
        Self {
            layers: vec![None; shape.num_layers],
            width: shape.heads().kv_width(),
            len: 0,
            max_positions: shape.max_positions,
        }
    }

    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether this cache is one of a model of this shape.
    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        self.layers.len() == shape.num_layers && self.width == shape.heads().kv_width()
    }

    /// Writes the next positions of a layer, and returns keys and values of the whole sequence
    /// with them.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let total = self.len + k.dim(0)?;
        let held = self.layers[layer].as_ref();
        let keys = self.write(held.map(|(keys, _)| keys), k, total)?;
        let values = self.write(held.map(|(_, values)| values), v, total)?;
        let seen = (keys.narrow(0, 0, total)?, values.narrow(0, 0, total)?);
        self.layers[layer] = Some((keys, values));
        Ok(seen)
    }

    /// `held` with `new` after the positions that count, grown if it has no room for `total`.
    fn write(&self, held: Option<&Tensor>, new: &Tensor, total: usize) -> Result<Tensor> {
        let capacity = held.map_or(0, |held| held.dims()[0]);
        let whole = match held {
            Some(held) if capacity >= total => held.clone(),
            held => {
                let wanted = total.max(2 * capacity).next_multiple_of(BLOCK);
                let dims = (wanted.min(self.max_positions), self.width);
                let grown = Tensor::zeros(dims, new.dtype(), new.device())?;
                if let Some(held) = held {
                    grown.slice_set(&held.narrow(0, 0, self.len)?.contiguous()?, 0, 0)?;
                }
                grown
            }
        };
        whole.slice_set(&new.contiguous()?, 0, self.len)?;
        Ok(whole)
    }

    /// Counts positions that every layer was given.
    pub(crate) fn commit(&mut self, more: usize) {
        self.len += more;
    }
}
