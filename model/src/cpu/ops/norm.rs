//! RMSNorm and LayerNorm.

use super::sums::add_parts;
use crate::cpu::kernels::{gradients, rows, simd};
use crate::storage::{gradient, result, slice, with_slice};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Rows one task takes; the parts of a weight's gradient are sums over such groups.
const GROUP: usize = 64;

/// `x / sqrt(mean(x²) + eps) · weight` over the last axis.
pub(super) struct RmsNorm {
    pub(super) eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let width = weight.len();
        let mut out = vec![0.0f32; x.len()];
        let group = |(x, out): (&[f32], &mut [f32])| {
            simd(
                #[inline(always)]
                || {
                    for (x, out) in x.chunks(width).zip(out.chunks_mut(width)) {
                        rows::rms_norm(x, weight, self.eps, out);
                    }
                },
            );
        };
        x.par_chunks(width * GROUP)
            .zip(out.par_chunks_mut(width * GROUP))
            .for_each(group);
        result(out, x_layout.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = weight.elem_count();
        let mut dx = vec![0.0f32; x.elem_count()];
        let dw = with_slice(x, |xs| {
            with_slice(weight, |w| {
                with_slice(grad, |grad| {
                    let group = |((x, g), dx): ((&[f32], &[f32]), &mut [f32])| {
                        let mut dw = vec![0.0f32; width];
                        let mut scaled = vec![0.0f32; width];
                        simd(
                            #[inline(always)]
                            || {
                                let rows = x.chunks(width).zip(g.chunks(width));
                                for ((x, g), dx) in rows.zip(dx.chunks_mut(width)) {
                                    gradients::rms_norm(
                                        x,
                                        w,
                                        g,
                                        self.eps,
                                        dx,
                                        &mut dw,
                                        &mut scaled,
                                    );
                                }
                            },
                        );
                        dw
                    };
                    let parts = xs
                        .par_chunks(width * GROUP)
                        .zip(grad.par_chunks(width * GROUP))
                        .zip(dx.par_chunks_mut(width * GROUP))
                        .map(group)
                        .collect();
                    Ok(add_parts(parts, width))
                })
            })
        })?;
        Ok((gradient(dx, x)?, gradient(dw, weight)?))
    }
}

/// `(x - mean) / sqrt(variance + eps) · weight + bias` over the last axis.
pub(super) struct LayerNorm {
    pub(super) eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let bias = slice(bias, bias_layout)?;
        let width = weight.len();
        let mut out = vec![0.0f32; x.len()];
        let group = |(x, out): (&[f32], &mut [f32])| {
            simd(
                #[inline(always)]
                || {
                    for (x, out) in x.chunks(width).zip(out.chunks_mut(width)) {
                        rows::layer_norm(x, weight, bias, self.eps, out);
                    }
                },
            );
        };
        x.par_chunks(width * GROUP)
            .zip(out.par_chunks_mut(width * GROUP))
            .for_each(group);
        result(out, x_layout.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = weight.elem_count();
        let mut dx = vec![0.0f32; x.elem_count()];
        let mut both = with_slice(x, |xs| {
            with_slice(weight, |w| {
                with_slice(grad, |grad| {
                    let group = |((x, g), dx): ((&[f32], &[f32]), &mut [f32])| {
                        let mut both = vec![0.0f32; 2 * width];
                        let mut scratch = vec![0.0f32; 2 * width];
                        simd(
                            #[inline(always)]
                            || {
                                let rows = x.chunks(width).zip(g.chunks(width));
                                for ((x, g), dx) in rows.zip(dx.chunks_mut(width)) {
                                    gradients::layer_norm(
                                        x,
                                        w,
                                        g,
                                        self.eps,
                                        dx,
                                        &mut both,
                                        &mut scratch,
                                    );
                                }
                            },
                        );
                        both
                    };
                    let parts = xs
                        .par_chunks(width * GROUP)
                        .zip(grad.par_chunks(width * GROUP))
                        .zip(dx.par_chunks_mut(width * GROUP))
                        .map(group)
                        .collect();
                    Ok(add_parts(parts, 2 * width))
                })
            })
        })?;
        let db = both.split_off(width);
        Ok((
            gradient(dx, x)?,
            gradient(both, weight)?,
            gradient(db, bias)?,
        ))
    }
}
