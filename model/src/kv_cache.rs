//! Keys and values of one sequence.

use crate::config::Shape;
use crate::error::Result;
use candle_core::Tensor;

/// Positions by which a cache grows.
const BLOCK: usize = 64;

/// Keys and values of the positions of one sequence that were computed, in f32, where the model
/// is.
///
/// Grows by blocks of 64 positions, doubling, up to the model's positions; nothing is copied in a
/// step that finds room. A position costs `2 · layers · Hkv · Dh · 4` bytes.
#[derive(Debug)]
pub struct KvCache {
    /// One pair a block of the model; a position is a row of `width` numbers.
    pub(crate) layers: Vec<LayerCache>,
    /// The same on a device other than the CPU; only one of the two is ever filled.
    pub(crate) tensors: Vec<Option<TensorCache>>,
    pub(crate) width: usize,
    len: usize,
    max_positions: usize,
}

/// Keys and values `(capacity, width)` on a device.
#[derive(Clone, Debug)]
pub(crate) struct TensorCache {
    keys: Tensor,
    values: Tensor,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl KvCache {
    /// An empty cache for a model of this shape.
    pub fn new(shape: &Shape) -> Self {
        Self {
            layers: vec![LayerCache::default(); shape.num_layers],
            tensors: vec![None; shape.num_layers],
            width: shape.num_kv_heads * shape.head_dim,
            len: 0,
            max_positions: shape.max_positions,
        }
    }

    /// Number of positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of positions that can still be added.
    pub fn room(&self) -> usize {
        self.max_positions - self.len
    }

    /// Forgets all but the first `len` positions; nothing happens when there are no more.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.rollback();
    }

    /// Forgets everything; the memory is kept for the next sequence.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let host = |layer: &LayerCache| layer.keys.capacity() + layer.values.capacity();
        let device = |layer: &TensorCache| 2 * layer.keys.elem_count();
        let numbers = self.layers.iter().map(host).sum::<usize>()
            + self.tensors.iter().flatten().map(device).sum::<usize>();
        numbers * size_of::<f32>()
    }

    /// Writes the next positions of a layer on their device, and returns keys and values of the
    /// whole sequence with them.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let total = self.len + k.dim(0)?;
        let grow = |old: Option<&Tensor>, new: &Tensor| -> Result<Tensor> {
            let held = old.map_or(0, |old| old.dims()[0]);
            let whole = match old {
                Some(old) if held >= total => old.clone(),
                old => {
                    let wanted = total.max(2 * held).next_multiple_of(BLOCK);
                    let dims = (wanted.min(self.max_positions), self.width);
                    let whole = Tensor::zeros(dims, new.dtype(), new.device())?;
                    if let Some(old) = old {
                        whole.slice_set(&old.narrow(0, 0, self.len)?.contiguous()?, 0, 0)?;
                    }
                    whole
                }
            };
            whole.slice_set(&new.contiguous()?, 0, self.len)?;
            Ok(whole)
        };
        let old = self.tensors[layer].as_ref();
        let keys = grow(old.map(|c| &c.keys), k)?;
        let values = grow(old.map(|c| &c.values), v)?;
        let seen = (keys.narrow(0, 0, total)?, values.narrow(0, 0, total)?);
        self.tensors[layer] = Some(TensorCache { keys, values });
        Ok(seen)
    }

    /// Makes room for `more` positions in every layer.
    pub(crate) fn reserve(&mut self, more: usize) {
        let needed = self.len + more;
        for layer in &mut self.layers {
            for values in [&mut layer.keys, &mut layer.values] {
                let held = values.capacity() / self.width.max(1);
                if held < needed {
                    let blocks = needed.max(2 * held).next_multiple_of(BLOCK);
                    let positions = blocks.min(self.max_positions);
                    values.reserve_exact(positions * self.width - values.len());
                }
            }
        }
    }

    /// Counts positions that every layer was given.
    pub(crate) fn commit(&mut self, more: usize) {
        self.len += more;
    }

    /// Drops what an interrupted step left behind.
    pub(crate) fn rollback(&mut self) {
        for layer in &mut self.layers {
            layer.keys.truncate(self.len * self.width);
            layer.values.truncate(self.len * self.width);
        }
    }
}

/// A part of a [`step`](crate::Decoder::step): the next `len` positions of one sequence.
#[derive(Debug)]
pub struct Segment<'a> {
    /// What came before; the step adds its positions.
    pub cache: &'a mut KvCache,
    /// Number of rows of the step that are this sequence's, 1 or more.
    pub len: usize,
}
