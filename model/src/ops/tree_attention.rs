//! Attention along the paths of a [`PrefixTree`].

use super::Heads;
use super::storage::{gradient, result, slice, with_slice};
use crate::fgram_model::PrefixTree;
use crate::kernels::attention::{View, attend};
use crate::kernels::math::{axpy, dot, exp, max, sum};
use crate::kernels::simd;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Nodes one task takes, about.
const GROUP: usize = 128;

/// See [`super::tree_attention`]. Parallel over whole trees, so that no two tasks share a node.
pub(super) struct TreeAttention {
    pub(super) heads: Heads,
    pub(super) tree: Arc<PrefixTree>,
}

impl TreeAttention {
    fn widths(&self) -> (usize, usize) {
        let dim = self.heads.head_dim;
        (self.heads.num_heads * dim, self.heads.num_kv_heads * dim)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// First number of query head h's keys in a row.
    #[inline(always)]
    fn kv_offset(&self, h: usize) -> usize {
        h / (self.heads.num_heads / self.heads.num_kv_heads) * self.heads.head_dim
    }

    #[inline(always)]
    fn forward(
        &self,
        nodes: Range<usize>,
        (q, k, v): (&[f32], &[f32], &[f32]),
        scores: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let (width, stride) = self.widths();
        let dim = self.heads.head_dim;
        for (node, out) in nodes.zip(out.chunks_mut(width)) {
            let path = self.tree.path(node).iter().map(|&n| n as usize);
            let q = &q[node * width..(node + 1) * width];
            for (h, (q, out)) in q.chunks(dim).zip(out.chunks_mut(dim)).enumerate() {
                let view = View {
                    keys: k,
                    values: v,
                    stride,
                    offset: self.kv_offset(h),
                    scale: self.scale(),
                };
                attend(q, path.clone(), &view, scores, out);
            }
        }
    }

    #[inline(always)]
    fn backward(
        &self,
        nodes: Range<usize>,
        (q, k, v, dout): (&[f32], &[f32], &[f32], &[f32]),
        scratch: &mut (Vec<f32>, Vec<f32>),
        (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let (width, stride) = self.widths();
        let (dim, scale) = (self.heads.head_dim, self.scale());
        let (p, dp) = scratch;
        for node in nodes.clone() {
            let path = self.tree.path(node);
            for h in 0..self.heads.num_heads {
                let at = node * width + h * dim;
                let (q, dout) = (&q[at..at + dim], &dout[at..at + dim]);
                let offset = self.kv_offset(h);
                let kv = |n: u32| n as usize * stride + offset..n as usize * stride + offset + dim;
                p.clear();
                p.extend(path.iter().map(|&n| dot(q, &k[kv(n)]) * scale));
                let largest = max(p);
                p.iter_mut().for_each(|s| *s = exp(*s - largest));
                let inverse = 1.0 / sum(p);
                p.iter_mut().for_each(|s| *s *= inverse);
                dp.clear();
                dp.extend(path.iter().map(|&n| dot(dout, &v[kv(n)])));
                let mean = dot(p, dp);
                let local = (node - nodes.start) * width + h * dim;
                let dq = &mut dq[local..local + dim];
                for ((&n, p), dp) in path.iter().zip(&*p).zip(&*dp) {
                    let ds = p * (dp - mean) * scale;
                    let to = kv(n - nodes.start as u32);
                    axpy(ds, &k[kv(n)], dq);
                    axpy(ds, q, &mut dk[to.clone()]);
                    axpy(*p, dout, &mut dv[to]);
                }
            }
        }
    }
}

/// Cuts rows of `width` numbers at the borders of the ranges, which follow each other.
fn cut<'a>(mut values: &'a mut [f32], ranges: &[Range<usize>], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (part, rest) = values.split_at_mut(range.len() * width);
        parts.push(part);
        values = rest;
    }
    parts
}

impl CustomOp3 for TreeAttention {
    fn name(&self) -> &'static str {
        "tree-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (
            slice(q, q_layout)?,
            slice(k, k_layout)?,
            slice(v, v_layout)?,
        );
        let ranges = self.tree.ranges(GROUP);
        let mut out = vec![0.0f32; q.len()];
        let parts = cut(&mut out, &ranges, self.widths().0);
        ranges
            .into_par_iter()
            .zip(parts)
            .for_each_init(Vec::new, |scores, (nodes, out)| {
                simd(
                    #[inline(always)]
                    || self.forward(nodes, (q, k, v), scores, out),
                );
            });
        result(out, q_layout.shape())
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (width, kv_width) = self.widths();
        let ranges = self.tree.ranges(GROUP);
        let mut dq = vec![0.0f32; q.elem_count()];
        let mut dk = vec![0.0f32; k.elem_count()];
        let mut dv = vec![0.0f32; v.elem_count()];
        let outputs: Vec<_> = cut(&mut dq, &ranges, width)
            .into_iter()
            .zip(cut(&mut dk, &ranges, kv_width))
            .zip(cut(&mut dv, &ranges, kv_width))
            .collect();
        with_slice(q, |q| {
            with_slice(k, |k| {
                with_slice(v, |v| {
                    with_slice(grad, |grad| {
                        ranges.into_par_iter().zip(outputs).for_each_init(
                            Default::default,
                            |scratch, (nodes, ((dq, dk), dv))| {
                                let inputs = (q, k, v, grad);
                                simd(
                                    #[inline(always)]
                                    || self.backward(nodes, inputs, scratch, (dq, dk, dv)),
                                );
                            },
                        );
                        Ok(())
                    })
                })
            })
        })?;
        Ok((gradient(dq, q)?, gradient(dk, k)?, gradient(dv, v)?))
    }
}
