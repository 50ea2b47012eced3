//! Causal attention of sequences, rotary positions included.

use super::Heads;
use super::storage::{gradient, result, slice, with_slice};
use crate::kernels::causal::{HeadView, Scratch};
use crate::kernels::rows::{rotary_angles, rotary_frequencies};
use crate::kernels::simd;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// See [`super::causal_attention`]. Parallel over sequences.
pub(super) struct CausalAttention {
    pub(super) heads: Heads,
    pub(super) len: usize,
}

impl CausalAttention {
    fn view(&self, heads: usize, head: usize) -> HeadView {
        HeadView {
            len: self.len,
            dim: self.heads.head_dim,
            stride: heads * self.heads.head_dim,
            offset: head * self.heads.head_dim,
        }
    }

    /// Numbers of one sequence in queries, and in keys or values.
    fn sizes(&self) -> (usize, usize) {
        let per_head = self.len * self.heads.head_dim;
        (
            self.heads.num_heads * per_head,
            self.heads.num_kv_heads * per_head,
        )
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// Angles of every position, Dh numbers each.
    fn angles(&self) -> Option<Vec<f32>> {
        let frequencies = rotary_frequencies(self.heads.rope_theta?, self.heads.head_dim);
        let mut angles = vec![0.0f32; self.len * self.heads.head_dim];
        for (t, out) in angles.chunks_mut(self.heads.head_dim).enumerate() {
            rotary_angles(&frequencies, t, out);
        }
        Some(angles)
    }

    #[inline(always)]
    fn forward(
        &self,
        (q, k, v): (&[f32], &[f32], &[f32]),
        angles: Option<&[f32]>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let group = self.heads.num_heads / self.heads.num_kv_heads;
        for kv in 0..self.heads.num_kv_heads {
            let view = self.view(self.heads.num_kv_heads, kv);
            scratch.k.pack(k, &view, angles);
            scratch.k.transpose(&view);
            scratch.v.pack(v, &view, None);
            for h in kv * group..(kv + 1) * group {
                let view = self.view(self.heads.num_heads, h);
                scratch.q.pack(q, &view, angles);
                scratch.forward(&view, self.scale());
                scratch.out.unpack(out, &view, None);
            }
        }
    }

    #[inline(always)]
    fn backward(
        &self,
        (q, k, v, dout): (&[f32], &[f32], &[f32], &[f32]),
        angles: Option<&[f32]>,
        scratch: &mut Scratch,
        (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let group = self.heads.num_heads / self.heads.num_kv_heads;
        for kv in 0..self.heads.num_kv_heads {
            let kv_view = self.view(self.heads.num_kv_heads, kv);
            scratch.k.pack(k, &kv_view, angles);
            scratch.k.transpose(&kv_view);
            scratch.v.pack(v, &kv_view, None);
            scratch.v.transpose(&kv_view);
            scratch.dk.clear(&kv_view);
            scratch.dv.clear(&kv_view);
            for h in kv * group..(kv + 1) * group {
                let view = self.view(self.heads.num_heads, h);
                scratch.q.pack(q, &view, angles);
                scratch.dout.pack(dout, &view, None);
                scratch.backward(&view, self.scale());
                scratch.dq.unpack(dq, &view, angles);
            }
            scratch.dk.unpack(dk, &kv_view, angles);
            scratch.dv.unpack(dv, &kv_view, None);
        }
    }
}

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal-attention"
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
        let (q_size, kv_size) = self.sizes();
        let angles = self.angles();
        let mut out = vec![0.0f32; q.len()];
        q.par_chunks(q_size)
            .zip(k.par_chunks(kv_size))
            .zip(v.par_chunks(kv_size))
            .zip(out.par_chunks_mut(q_size))
            .for_each_init(Scratch::default, |scratch, (((q, k), v), out)| {
                simd(
                    #[inline(always)]
                    || self.forward((q, k, v), angles.as_deref(), scratch, out),
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
        let (q_size, kv_size) = self.sizes();
        let angles = self.angles();
        let mut dq = vec![0.0f32; q.elem_count()];
        let mut dk = vec![0.0f32; k.elem_count()];
        let mut dv = vec![0.0f32; v.elem_count()];
        with_slice(q, |q| {
            with_slice(k, |k| {
                with_slice(v, |v| {
                    with_slice(grad, |grad| {
                        let inputs = q
                            .par_chunks(q_size)
                            .zip(k.par_chunks(kv_size))
                            .zip(v.par_chunks(kv_size))
                            .zip(grad.par_chunks(q_size));
                        let outputs = dq
                            .par_chunks_mut(q_size)
                            .zip(dk.par_chunks_mut(kv_size))
                            .zip(dv.par_chunks_mut(kv_size));
                        inputs.zip(outputs).for_each_init(
                            Scratch::default,
                            |scratch, ((((q, k), v), g), ((dq, dk), dv))| {
                                let inputs = (q, k, v, g);
                                let outputs = (dq, dk, dv);
                                simd(
                                    #[inline(always)]
                                    || self.backward(inputs, angles.as_deref(), scratch, outputs),
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
