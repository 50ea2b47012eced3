//! Keys and values in host memory, laid out for the attention kernel.

use crate::config::Shape;
use crate::cpu::kernels::ahead::ask_for;
use crate::cpu::kernels::half::{decode_all, encode};
use crate::error::{Error, Result};
use crate::kv_blocks::{KV_BLOCK_POSITIONS, KvDtype};
use crate::layout::Heads;

/// The blocks of all layers. Memory is taken from the system when a block is first written.
#[derive(Debug)]
pub(crate) struct Pool {
    layers: Vec<Layer>,
    heads: Heads,
    blocks: usize,
}

/// One layer's blocks. In a block a key head is `[Dh][position]`, so that the scores of all its
/// positions are computed side by side, and a value head `[position][Dh]`.
#[derive(Debug)]
struct Layer {
    keys: Numbers,
    values: Numbers,
}

#[derive(Debug)]
enum Numbers {
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl Numbers {
    fn new(dtype: KvDtype, len: usize) -> Self {
        match dtype {
            KvDtype::F16 => Self::F16(vec![0; len]),
            KvDtype::F32 => Self::F32(vec![0.0; len]),
        }
    }

    fn set(&mut self, at: usize, value: f32) {
        match self {
            Self::F16(numbers) => numbers[at] = encode(value),
            Self::F32(numbers) => numbers[at] = value,
        }
    }

    /// Numbers from `at` on, through `scratch` where they are not f32.
    #[inline(always)]
    fn get<'a>(&'a self, at: usize, len: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        match self {
            Self::F16(numbers) => {
                let out = &mut scratch[..len];
                decode_all(&numbers[at..at + len], out);
                out
            }
            Self::F32(numbers) => &numbers[at..at + len],
        }
    }

    /// Numbers from `at` on will be read soon.
    #[inline(always)]
    fn ask_for(&self, at: usize, len: usize) {
        match self {
            Self::F16(numbers) => ask_for(&numbers[at..at + len]),
            Self::F32(numbers) => ask_for(&numbers[at..at + len]),
        }
    }
}

impl Pool {
    /// # Errors
    /// When the sizes are beyond what the machine can address.
    pub(crate) fn new(shape: &Shape, dtype: KvDtype, blocks: usize) -> Result<Self> {
        let heads = shape.heads();
        let numbers = blocks.checked_mul(KV_BLOCK_POSITIONS * heads.kv_width());
        let Some(numbers) = numbers.filter(|n| n.checked_mul(8).is_some()) else {
            return Err(Error::Argument(format!("{blocks} blocks are too many")));
        };
        let layer = || Layer {
            keys: Numbers::new(dtype, numbers),
            values: Numbers::new(dtype, numbers),
        };
        Ok(Self {
            layers: (0..shape.num_layers).map(|_| layer()).collect(),
            heads,
            blocks,
        })
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Whether this pool is one of a model of this shape.
    pub(crate) fn fits(&self, shape: &Shape) -> bool {
        self.layers.len() == shape.num_layers && self.heads == shape.heads()
    }

    fn head(&self, block: u32, kv_head: usize) -> usize {
        (block as usize * self.heads.num_kv_heads + kv_head)
            * self.heads.head_dim
            * KV_BLOCK_POSITIONS
    }

    /// Writes one position's keys and values, `Hkv·Dh` each.
    pub(crate) fn write(&mut self, layer: usize, block: u32, slot: usize, k: &[f32], v: &[f32]) {
        let dim = self.heads.head_dim;
        let both = k.chunks(dim).zip(v.chunks(dim));
        for (kv_head, (k, v)) in both.enumerate() {
            let at = self.head(block, kv_head);
            let layer = &mut self.layers[layer];
            for (d, (k, v)) in k.iter().zip(v).enumerate() {
                layer.keys.set(at + d * KV_BLOCK_POSITIONS + slot, *k);
                layer.values.set(at + slot * dim + d, *v);
            }
        }
    }

    /// A key head of a block will be read soon.
    #[inline(always)]
    pub(crate) fn ask_for_keys(&self, layer: usize, block: u32, kv_head: usize) {
        let len = self.heads.head_dim * KV_BLOCK_POSITIONS;
        self.layers[layer]
            .keys
            .ask_for(self.head(block, kv_head), len);
    }

    /// A value head of a block will be read soon.
    #[inline(always)]
    pub(crate) fn ask_for_values(&self, layer: usize, block: u32, kv_head: usize) {
        let len = self.heads.head_dim * KV_BLOCK_POSITIONS;
        self.layers[layer]
            .values
            .ask_for(self.head(block, kv_head), len);
    }

    /// One key head of a block, `[Dh][position]`.
    #[inline(always)]
    pub(crate) fn keys<'a>(
        &'a self,
        layer: usize,
        block: u32,
        kv_head: usize,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let len = self.heads.head_dim * KV_BLOCK_POSITIONS;
        let at = self.head(block, kv_head);
        self.layers[layer].keys.get(at, len, scratch)
    }

    /// One value head of a block, `[position][Dh]`.
    #[inline(always)]
    pub(crate) fn values<'a>(
        &'a self,
        layer: usize,
        block: u32,
        kv_head: usize,
        scratch: &'a mut [f32],
    ) -> &'a [f32] {
        let len = self.heads.head_dim * KV_BLOCK_POSITIONS;
        let at = self.head(block, kv_head);
        self.layers[layer].values.get(at, len, scratch)
    }
}
