//! The next positions of several sequences, on top of their KV caches.

use super::attention::{Rotary, cached};
use super::block::{Attend, blocks};
use super::cache::Cache;
use crate::error::Result;
use crate::layers::Block;
use crate::layout::Heads;
use candle_core::Tensor;

/// A sequence's part of a step: its cache and how many rows are its.
pub(crate) struct Part<'a> {
    pub(crate) cache: &'a mut Cache,
    pub(crate) len: usize,
}

/// `x (N, D)`, the rows of all parts end to end, through the blocks. The caches get the new
/// positions; after an error they are as before.
pub(crate) fn step(
    layers: &[Block],
    x: &Tensor,
    mut parts: Vec<Part<'_>>,
    heads: Heads,
    frequencies: Option<&[f32]>,
) -> Result<Tensor> {
    let rotary = match frequencies {
        Some(frequencies) => {
            let positions: Vec<usize> = parts
                .iter()
                .flat_map(|part| part.cache.len()..part.cache.len() + part.len)
                .collect();
            let positions = positions.into_iter();
            Some(Rotary::new(positions, frequencies, x.device())?)
        }
        None => None,
    };
    let mut sequences = Sequences {
        parts: &mut parts,
        heads,
        rotary,
    };
    let x = blocks(layers, x, &mut sequences)?;
    for part in parts {
        part.cache.commit(part.len);
    }
    Ok(x)
}

struct Sequences<'a, 'b> {
    parts: &'a mut [Part<'b>],
    heads: Heads,
    rotary: Option<Rotary>,
}

impl Attend for Sequences<'_, '_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let heads = &self.heads;
        let (q, k) = match &self.rotary {
            Some(rotary) => (rotary.turn(q, heads)?, rotary.turn(k, heads)?),
            None => (q.clone(), k.clone()),
        };
        let mut mixed = Vec::with_capacity(self.parts.len());
        let mut start = 0;
        for part in self.parts.iter_mut() {
            let rows = |x: &Tensor| x.narrow(0, start, part.len);
            let (keys, values) = part.cache.append(layer, &rows(&k)?, &rows(v)?)?;
            mixed.push(cached(&rows(&q)?, &keys, &values, heads)?);
            start += part.len;
        }
        Ok(Tensor::cat(&mixed, 0)?)
    }
}
