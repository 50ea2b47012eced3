//! The next positions of several sequences, on top of what the pool holds of them.
//!
//! What a step needs besides numbers (rotary angles, slots, masks) goes to the device once, and a
//! layer takes as many operations for many sequences as for one: sequences that decode attend
//! together, padded to the longest of them.

use super::attention::Rotary;
use super::block::{Attend, blocks};
use super::group::Group;
use super::ops::serve_norm;
use super::pool::{Pool, slot};
use crate::error::Result;
use crate::kv_blocks::Part;
use crate::layers::{Block, Norm};
use crate::layout::Heads;
use candle_core::Tensor;

/// `x (N, D)`, the rows of all parts end to end, through the blocks. The pool gets the keys and
/// values of the new positions.
pub(crate) fn step(
    layers: &[Block],
    x: &Tensor,
    pool: &Pool,
    parts: &[Part<'_>],
    heads: Heads,
    frequencies: Option<&[f32]>,
) -> Result<Tensor> {
    let positions = || {
        let of = |part: &Part<'_>| part.held..part.held + part.len;
        parts.iter().flat_map(of).collect::<Vec<_>>().into_iter()
    };
    let rotary = match frequencies {
        Some(frequencies) => {
            let rotary = Rotary::new(positions(), frequencies, x.device())?;
            Some(rotary.in_type(x.dtype())?)
        }
        None => None,
    };
    let new: Vec<u32> = parts
        .iter()
        .flat_map(|part| (part.held..part.held + part.len).map(|at| slot(part, at)))
        .collect();
    let mut sequences = Sequences {
        pool,
        new: pool.rows(new, x.device())?,
        groups: groups(parts, x)?,
        order: order(parts, x)?,
        heads,
        rotary,
    };
    blocks(layers, x, &mut sequences)
}

struct Sequences<'a> {
    pool: &'a Pool,
    /// Where the new positions go, as [`Pool::write`] wants it.
    new: Tensor,
    groups: Vec<Group>,
    /// From the rows of the groups, one after the other, to those of the step; none when they are
    /// the same.
    order: Option<Tensor>,
    heads: Heads,
    rotary: Option<Rotary>,
}

impl Attend for Sequences<'_> {
    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        serve_norm(norm, x)
    }

    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let heads = &self.heads;
        let (q, k) = match &self.rotary {
            Some(rotary) => (
                rotary.turn_to_serve(q, heads)?,
                rotary.turn_to_serve(k, heads)?,
            ),
            None => (q.clone(), k.clone()),
        };
        self.pool.write(layer, &self.new, &k, v)?;
        let mixed = self
            .groups
            .iter()
            .map(|group| group.attend(&q, self.pool, layer, heads))
            .collect::<Result<Vec<_>>>()?;
        let mixed = match mixed.as_slice() {
            [one] => one.clone(),
            several => Tensor::cat(several, 0)?,
        };
        Ok(match &self.order {
            Some(order) => mixed.index_select(order, 0)?,
            None => mixed,
        })
    }
}

/// The parts of one position together, every other part for itself.
fn groups(parts: &[Part<'_>], x: &Tensor) -> Result<Vec<Group>> {
    let single: Vec<Part<'_>> = parts.iter().filter(|part| part.len == 1).copied().collect();
    let mut groups = Vec::new();
    if !single.is_empty() {
        let starts = starts(parts).filter(|(_, part)| part.len == 1);
        let rows: Vec<u32> = starts.map(|(start, _)| start).collect();
        groups.push(Group::new(&single, &rows, x)?);
    }
    for (start, part) in starts(parts).filter(|(_, part)| part.len > 1) {
        let rows: Vec<u32> = (start..start + part.len as u32).collect();
        groups.push(Group::new(&[*part], &rows, x)?);
    }
    Ok(groups)
}

/// Where each row of the step lies among the rows of the groups.
fn order(parts: &[Part<'_>], x: &Tensor) -> Result<Option<Tensor>> {
    let singles = parts.iter().filter(|part| part.len == 1).count() as u32;
    let (mut single, mut other) = (0, singles);
    let mut order = Vec::new();
    for part in parts {
        let next = if part.len == 1 {
            &mut single
        } else {
            &mut other
        };
        order.extend(*next..*next + part.len as u32);
        *next += part.len as u32;
    }
    if order.is_sorted() {
        return Ok(None);
    }
    let rows = order.len();
    Ok(Some(Tensor::from_vec(order, rows, x.device())?))
}

/// Each part with its first row.
fn starts<'a>(parts: &'a [Part<'a>]) -> impl Iterator<Item = (u32, &'a Part<'a>)> {
    let mut next = 0;
    parts.iter().map(move |part| {
        let start = next;
        next += part.len as u32;
        (start, part)
    })
}
