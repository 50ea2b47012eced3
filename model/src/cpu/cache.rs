//! Keys and values of one sequence in host memory.

use crate::config::Shape;

/// Positions by which a cache grows.
const BLOCK: usize = 64;

/// Keys and values of the positions computed so far, in f32.
///
/// Grows by blocks of 64 positions, doubling, up to the model's positions; nothing is copied in a
/// step that finds room. A position costs `2 · layers · Hkv · Dh · 4` bytes.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<LayerCache>,
    /// Numbers of a position, of keys or of values.
    width: usize,
    len: usize,
    max_positions: usize,
}

/// One layer's; a position is a row of `width` numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl Cache {
    pub(crate) fn new(shape: &Shape) -> Self {
        Self {
            layers: vec![LayerCache::default(); shape.num_layers],
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

    pub(crate) fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Makes room for `more` positions in every layer, and drops what an interrupted step left
    /// behind.
    pub(crate) fn begin(&mut self, more: usize) {
        let (held, needed) = (self.len * self.width, self.len + more);
        for layer in &mut self.layers {
            for values in [&mut layer.keys, &mut layer.values] {
                values.truncate(held);
                let capacity = values.capacity() / self.width.max(1);
                if capacity < needed {
                    let blocks = needed.max(2 * capacity).next_multiple_of(BLOCK);
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
}
