//! The next positions of several sequences, on top of what the pool holds of them.

use super::attention::{Rotary, cached};
use super::block::{Attend, blocks};
use super::pool::{Pool, slots};
use crate::error::Result;
use crate::kv_blocks::Part;
use crate::layers::Block;
use crate::layout::Heads;
use candle_core::Tensor;

/// `x (N, D)`, the rows of all parts end to end, through the blocks. The caches get the new
/// positions; after an error they are as before.
pub(crate) fn step(
    layers: &[Block],
    x: &Tensor,
    pool: &Pool,
    parts: &[Part<'_>],
    heads: Heads,
    frequencies: Option<&[f32]>,
) -> Result<Tensor> {
    let rotary = match frequencies {
        Some(frequencies) => {
            let positions: Vec<usize> = parts
                .iter()
                .flat_map(|part| part.held..part.held + part.len)
                .collect();
            let positions = positions.into_iter();
            Some(Rotary::new(positions, frequencies, x.device())?)
        }
        None => None,
    };
    let slots = parts.iter().map(|part| slots(part, x.device()));
    let mut sequences = Sequences {
        pool,
        slots: slots.collect::<Result<_>>()?,
        parts,
        heads,
        rotary,
    };
    blocks(layers, x, &mut sequences)
}

struct Sequences<'a> {
    pool: &'a Pool,
    parts: &'a [Part<'a>],
    /// Of each part.
    slots: Vec<Tensor>,
    heads: Heads,
    rotary: Option<Rotary>,
}

impl Attend for Sequences<'_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let heads = &self.heads;
        let (q, k) = match &self.rotary {
            Some(rotary) => (rotary.turn(q, heads)?, rotary.turn(k, heads)?),
            None => (q.clone(), k.clone()),
        };
        let mut mixed = Vec::with_capacity(self.parts.len());
        let mut start = 0;
        for (part, slots) in self.parts.iter().zip(&self.slots) {
            let rows = |x: &Tensor| x.narrow(0, start, part.len);
            let (k, v) = (rows(&k)?, rows(v)?);
            let (keys, values) = self.pool.append(layer, part, slots, &k, &v)?;
            mixed.push(cached(&rows(&q)?, &keys, &values, heads)?);
            start += part.len;
        }
        Ok(Tensor::cat(&mixed, 0)?)
    }
}
