//! The next positions of several sequences, on top of what the pool holds of them.
//!
//! What a step needs besides numbers (slots, blocks, rotary frequencies) goes to the device once, and a
//! layer takes as many operations for many sequences as for one.

use super::block::{Attend, blocks};
use super::ops::serve_norm;
use super::pool::Pool;
use super::ragged::{self, Plan};
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
    let plan = Plan::new(parts, heads, frequencies, x.device())?;
    blocks(layers, x, &mut Sequences { pool, plan })
}

struct Sequences<'a> {
    pool: &'a Pool,
    plan: Plan,
}

impl Attend for Sequences<'_> {
    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        serve_norm(norm, x)
    }

    fn gate(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        ragged::gate(gate, up)
    }

    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let held = self.pool.layer(layer);
        self.plan.write(held, k, v)?;
        self.plan.attend(q, held)
    }
}
