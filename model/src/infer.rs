//! Inference on a CPU: the forward pass by [`kernels`](crate::kernels), in which a row's result
//! does not depend on the other rows of the call.

use crate::error::{Error, Result};
use crate::kernels::attention::{View, attend};
use crate::kernels::matmul::{Weight, matmul};
use crate::kernels::{rows, simd};
use crate::layers::{Attention, AttentionInput, Block, Linear, Mlp, Norm};
use crate::ops::{Heads, WeightLayout};
use candle_core::{Storage, Tensor};
use rayon::prelude::*;

/// Lends the numbers of a contiguous f32 tensor in host memory.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Argument("this tensor is not in host memory".into()));
    };
    let values = storage.as_slice::<f32>()?;
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::Argument("this tensor is not contiguous".into()));
    };
    Ok(f(&values[start..end]))
}

/// Where the rows of a call find their keys and values.
pub(crate) trait Context: Sync {
    /// Takes the keys and values of this call's rows, in order, before any row attends; `q` and
    /// `k` may be turned by their positions here.
    fn extend(&mut self, layer: usize, q: &mut [f32], k: &mut [f32], v: &[f32], heads: &Heads);

    /// Attention of one query head of one row.
    fn attend(&self, head: &Head<'_>, row: usize, scores: &mut Vec<f32>, out: &mut [f32]);
}

/// A query head and the layer and offset of its key-value head.
pub(crate) struct Head<'a> {
    pub(crate) layer: usize,
    pub(crate) q: &'a [f32],
    pub(crate) offset: usize,
    pub(crate) stride: usize,
    pub(crate) scale: f32,
}

impl Head<'_> {
    /// Attends to `keys`, row numbers of the two slices.
    #[inline(always)]
    pub(crate) fn over(
        &self,
        keys: &[f32],
        values: &[f32],
        rows: impl Iterator<Item = usize> + Clone,
        scores: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let view = View {
            keys,
            values,
            stride: self.stride,
            offset: self.offset,
            scale: self.scale,
        };
        simd(
            #[inline(always)]
            || attend(self.q, rows, &view, scores, out),
        );
    }
}

/// `(N, D)` through one block, in place.
pub(crate) fn block(
    block: &Block,
    layer: usize,
    x: &mut [f32],
    context: &mut impl Context,
) -> Result<()> {
    let mixed = attention(
        &block.attention,
        layer,
        &norm(&block.attention_norm, x)?,
        context,
    )?;
    add(x, &mixed);
    let mixed = mlp(&block.mlp, &norm(&block.mlp_norm, x)?)?;
    add(x, &mixed);
    Ok(())
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// The norm of every row.
pub(crate) fn norm(norm: &Norm, x: &[f32]) -> Result<Vec<f32>> {
    let mut out = vec![0.0f32; x.len()];
    match norm {
        Norm::Rms { weight, eps } => with_values(weight, |w| {
            simd(
                #[inline(always)]
                || {
                    for (x, out) in x.chunks(w.len()).zip(out.chunks_mut(w.len())) {
                        rows::rms_norm(x, w, *eps, out);
                    }
                },
            );
        })?,
        Norm::Layer { weight, bias, eps } => with_values(weight, |w| {
            with_values(bias, |b| {
                simd(
                    #[inline(always)]
                    || {
                        for (x, out) in x.chunks(w.len()).zip(out.chunks_mut(w.len())) {
                            rows::layer_norm(x, w, b, *eps, out);
                        }
                    },
                );
            })
        })??,
    }
    Ok(out)
}

/// A linear layer over every row.
pub(crate) fn linear(linear: &Linear, x: &[f32]) -> Result<Vec<f32>> {
    let (a, b) = linear.weight.dims2()?;
    let (inputs, outputs) = match linear.layout {
        WeightLayout::OutIn => (b, a),
        WeightLayout::InOut => (a, b),
    };
    let product = |values: &[f32], bias: Option<&[f32]>| {
        let weight = Weight {
            values,
            layout: linear.layout,
            inputs,
            outputs,
        };
        matmul(x, weight, bias)
    };
    match &linear.bias {
        None => with_values(&linear.weight, |w| product(w, None)),
        Some(bias) => with_values(&linear.weight, |w| {
            with_values(bias, |b| product(w, Some(b)))
        })?,
    }
}

fn attention(
    attention: &Attention,
    layer: usize,
    x: &[f32],
    context: &mut impl Context,
) -> Result<Vec<f32>> {
    let heads = &attention.heads;
    let (mut q, mut k, v) = match &attention.input {
        AttentionInput::Split { q, k, v } => (linear(q, x)?, linear(k, x)?, linear(v, x)?),
        AttentionInput::Joint(joint) => split(&linear(joint, x)?, heads),
    };
    context.extend(layer, &mut q, &mut k, &v, heads);
    let width = heads.num_heads * heads.head_dim;
    let group = heads.num_heads / heads.num_kv_heads;
    let mut mixed = vec![0.0f32; q.len()];
    let context = &*context;
    let row = |scores: &mut Vec<f32>, (row, (q, out)): (usize, (&[f32], &mut [f32]))| {
        let heads_of_row = q.chunks(heads.head_dim).zip(out.chunks_mut(heads.head_dim));
        for (h, (q, out)) in heads_of_row.enumerate() {
            let head = Head {
                layer,
                q,
                offset: h / group * heads.head_dim,
                stride: heads.num_kv_heads * heads.head_dim,
                scale: 1.0 / (heads.head_dim as f32).sqrt(),
            };
            context.attend(&head, row, scores, out);
        }
    };
    q.par_chunks(width)
        .zip(mixed.par_chunks_mut(width))
        .enumerate()
        .with_min_len(8)
        .for_each_init(Vec::new, row);
    linear(&attention.output, &mixed)
}

/// gpt2's joint rows to queries, keys and values.
fn split(joint: &[f32], heads: &Heads) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let q_width = heads.num_heads * heads.head_dim;
    let kv_width = heads.num_kv_heads * heads.head_dim;
    let part = |start: usize, len: usize| {
        joint
            .chunks(q_width + 2 * kv_width)
            .flat_map(|row| &row[start..start + len])
            .copied()
            .collect()
    };
    (
        part(0, q_width),
        part(q_width, kv_width),
        part(q_width + kv_width, kv_width),
    )
}

fn mlp(mlp: &Mlp, x: &[f32]) -> Result<Vec<f32>> {
    match mlp {
        Mlp::Swiglu { gate, up, down } => {
            let (gate, up) = (linear(gate, x)?, linear(up, x)?);
            let mut out = vec![0.0f32; gate.len()];
            simd(
                #[inline(always)]
                || rows::swiglu(&gate, &up, &mut out),
            );
            linear(down, &out)
        }
        Mlp::Gelu { fc, proj } => {
            let x = linear(fc, x)?;
            let mut out = vec![0.0f32; x.len()];
            simd(
                #[inline(always)]
                || rows::gelu(&x, &mut out),
            );
            linear(proj, &out)
        }
    }
}
