//! Keys and values of one sequence.

use crate::config::Shape;

/// Positions by which a cache grows.
const BLOCK: usize = 64;

/// Keys and values of the positions of one sequence that were computed, in f32 in host memory.
///
/// Grows by blocks of 64 positions, doubling, up to the model's positions; nothing is copied in a
/// step that finds room. A position costs `2 · layers · Hkv · Dh · 4` bytes.
#[derive(Debug)]
pub struct KvCache {
    /// One pair a block of the model; a position is a row of `width` numbers.
    pub(crate) layers: Vec<LayerCache>,
    pub(crate) width: usize,
    len: usize,
    max_positions: usize,
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

    /// Host memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let held = |layer: &LayerCache| layer.keys.capacity() + layer.values.capacity();
        self.layers.iter().map(held).sum::<usize>() * size_of::<f32>()
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
