//! Softmax attention, with or without rotary positions.

use super::block::Attend;
use super::gradient::known;
use crate::error::Result;
use crate::layout::Heads;
use crate::positions::Positions;
use crate::prefix_tree::PrefixTree;
use candle_core::{D, DType, Device, Tensor};

/// Rotary angles of the rows of a call: cosines and sines, `(N, 1, Dh/2)`.
pub(crate) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// For rows at these positions; element i of a head turns with element `i + Dh/2` by
    /// `position · frequencies[i]`.
    pub(crate) fn new(
        positions: impl ExactSizeIterator<Item = usize>,
        frequencies: &[f32],
        device: &Device,
    ) -> Result<Self> {
        let dims = (positions.len(), 1, frequencies.len());
        let angles: Vec<f32> = positions
            .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
            .collect();
        let angles = Tensor::from_vec(angles, dims, device)?;
        Ok(Self {
            cos: angles.cos()?,
            sin: angles.sin()?,
        })
    }

    /// The same in another type, so that it is not converted again and again.
    pub(crate) fn in_type(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            cos: self.cos.to_dtype(dtype)?,
            sin: self.sin.to_dtype(dtype)?,
        })
    }

    /// Turns the heads of rows `(N, h·Dh)` in one operation, without gradients; in the type of the
    /// rows.
    pub(crate) fn turn_to_serve(&self, x: &Tensor, heads: &Heads) -> Result<Tensor> {
        let split = x
            .contiguous()?
            .reshape((x.dim(0)?, (), 1, heads.head_dim))?;
        let turned = candle_nn::rotary_emb::rope(&split, &self.cos, &self.sin)?;
        Ok(turned.reshape(x.dims())?)
    }

    /// Turns the heads of rows `(N, h·Dh)`.
    pub(crate) fn turn(&self, x: &Tensor, heads: &Heads) -> Result<Tensor> {
        let forth = self.in_type(x.dtype())?;
        let value = forth.turn_to_serve(&x.detach(), heads)?;
        let back = Self {
            sin: forth.sin.neg()?,
            cos: forth.cos,
        };
        let heads = *heads;
        Ok(known(x, value, move |grad| {
            let turned = back.turn_to_serve(grad, &heads);
            turned.map_err(candle_core::Error::wrap)
        })?)
    }
}

/// Whole sequences or f-gram trees: nothing came before.
pub(crate) struct Whole<'a> {
    positions: &'a Positions,
    heads: Heads,
    rotary: Option<Rotary>,
}

impl<'a> Whole<'a> {
    /// Trees have no rotary positions, whatever `frequencies` are.
    pub(crate) fn new(
        positions: &'a Positions,
        heads: Heads,
        frequencies: Option<&[f32]>,
        device: &Device,
    ) -> Result<Self> {
        let rotary = match (positions, frequencies) {
            (Positions::Sequences { batch, len }, Some(frequencies)) => {
                let rows = (0..batch * len).map(|row| row % len);
                Some(Rotary::new(rows, frequencies, device)?)
            }
            _ => None,
        };
        Ok(Self {
            positions,
            heads,
            rotary,
        })
    }
}

impl Attend for Whole<'_> {
    fn attend(&mut self, _: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let heads = &self.heads;
        let (q, k) = match &self.rotary {
            Some(rotary) => (rotary.turn(q, heads)?, rotary.turn(k, heads)?),
            None => (q.clone(), k.clone()),
        };
        match self.positions {
            Positions::Sequences { batch, len } => causal(&q, &k, v, heads, *batch, *len),
            Positions::Tree(tree) => along_paths(&q, &k, v, heads, tree),
        }
    }
}

/// Each of `batch` sequences of `len` positions sees its own past.
fn causal(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: &Heads,
    batch: usize,
    len: usize,
) -> Result<Tensor> {
    // (B·T, h·Dh) to (B, h, T, Dh)
    let split = |x: &Tensor| -> Result<Tensor> {
        let x = x.reshape((batch, len, (), heads.head_dim))?;
        Ok(x.transpose(1, 2)?.contiguous()?)
    };
    let mixed = attend(&split(q)?, &split(k)?, &split(v)?, heads)?;
    Ok(mixed.transpose(1, 2)?.reshape(q.dims())?)
}

/// `q (B, H, Tq, Dh)` are the last positions of `k`, `v (B, Hkv, Tk, Dh)`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: &Heads) -> Result<Tensor> {
    let (k, v) = (repeat_heads(k, heads)?, repeat_heads(v, heads)?);
    let scores = (q.matmul(&k.t()?)? * f64::from(heads.scale()))?;
    let (rows, columns) = (q.dim(2)?, k.dim(2)?);
    // A single position is the last one and sees everything.
    let mask = match rows > 1 {
        true => {
            let hidden = |i: usize| i % columns > i / columns + (columns - rows);
            let mask: Vec<f32> = (0..rows * columns)
                .map(|i| if hidden(i) { f32::NEG_INFINITY } else { 0.0 })
                .collect();
            Some(Tensor::from_vec(mask, (rows, columns), q.device())?.to_dtype(q.dtype())?)
        }
        false => None,
    };
    Ok(softmax(&scores, mask.as_ref())?.matmul(&v)?)
}

/// Softmax over the last axis, of scores plus a mask of their last axes.
fn softmax(scores: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let seen = match mask {
        Some(mask) => scores.detach().broadcast_add(mask)?,
        None => scores.detach(),
    };
    let value = candle_nn::ops::softmax_last_dim(&seen.contiguous()?)?;
    let weights = value.clone();
    Ok(known(scores, value, move |grad| {
        let along = (grad * &weights)?.sum_keepdim(D::Minus1)?;
        grad.broadcast_sub(&along)? * &weights
    })?)
}

/// `(B, Hkv, T, Dh)` to `(B, H, T, Dh)`, each key head for its group of query heads.
fn repeat_heads(x: &Tensor, heads: &Heads) -> Result<Tensor> {
    let group = heads.num_heads / heads.num_kv_heads;
    if group == 1 {
        return Ok(x.clone());
    }
    let (batch, kv_heads, len, dim) = x.dims4()?;
    Ok(x.unsqueeze(2)?
        .expand((batch, kv_heads, group, len, dim))?
        .reshape((batch, kv_heads * group, len, dim))?)
}

/// Each node of a tree sees its path.
fn along_paths(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: &Heads,
    tree: &PrefixTree,
) -> Result<Tensor> {
    let (n, steps) = (tree.len(), tree.max_len());
    let mut index = Vec::with_capacity(n * steps);
    let mut mask = Vec::with_capacity(n * steps);
    for node in 0..n {
        let path = tree.path(node);
        for step in 0..steps {
            index.push(path.get(step).copied().unwrap_or(0));
            mask.push(if step < path.len() {
                0.0
            } else {
                f32::NEG_INFINITY
            });
        }
    }
    let index = Tensor::from_vec(index, n * steps, q.device())?;
    let mask = Tensor::from_vec(mask, (n, 1, 1, steps), q.device())?.to_dtype(q.dtype())?;
    // (N, Hkv·Dh) to (N, H, L, Dh)
    let gather = |x: &Tensor| -> Result<Tensor> {
        let x = x
            .index_select(&index, 0)?
            .reshape((n, steps, heads.num_kv_heads, heads.head_dim))?
            .transpose(1, 2)?
            .contiguous()?;
        repeat_heads(&x, heads)
    };
    let (k, v) = (gather(k)?, gather(v)?);
    let q = q.reshape((n, heads.num_heads, 1, heads.head_dim))?;
    let scores = (q.matmul(&k.t()?)? * f64::from(heads.scale()))?;
    let weights = softmax(&scores, Some(&mask))?;
    Ok(weights.matmul(&v)?.reshape((n, heads.q_width()))?)
}
