//! RMSNorm and LayerNorm.

use super::storage::{gradient, result, slice, with_slice};
use crate::kernels::math::{dot, sum};
use crate::kernels::{rows, simd};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Rows one task takes; the parts of a weight's gradient are sums over such groups.
const GROUP: usize = 64;

/// See [`super::rms_norm`].
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
                                    rms_row(x, w, g, self.eps, dx, &mut dw, &mut scaled);
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
                    Ok(super::add_parts(parts, width))
                })
            })
        })?;
        Ok((gradient(dx, x)?, gradient(dw, weight)?))
    }
}

/// Gradient of a row: with `n = x · s` and `h = g · w`, `dx = s (h - n mean(h · n))`.
#[inline(always)]
fn rms_row(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    eps: f32,
    dx: &mut [f32],
    dw: &mut [f32],
    h: &mut [f32],
) {
    let scale = rows::inverse_rms(x, eps);
    for ((h, g), w) in h.iter_mut().zip(g).zip(w) {
        *h = g * w;
    }
    let mean = dot(h, x) * scale / x.len() as f32;
    for ((dx, h), x) in dx.iter_mut().zip(&*h).zip(x) {
        *dx = scale * (h - x * scale * mean);
    }
    for ((dw, g), x) in dw.iter_mut().zip(g).zip(x) {
        *dw += g * x * scale;
    }
}

/// See [`super::layer_norm`].
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
                                    layer_row(x, w, g, self.eps, dx, &mut both, &mut scratch);
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
                    Ok(super::add_parts(parts, 2 * width))
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

/// Gradient of a row: with `n` the normalised row and `h = g · w`,
/// `dx = s (h - mean(h) - n mean(h · n))`. `both` gathers the gradients of weight and bias.
#[inline(always)]
fn layer_row(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    eps: f32,
    dx: &mut [f32],
    both: &mut [f32],
    scratch: &mut [f32],
) {
    let width = x.len();
    let (n, h) = scratch.split_at_mut(width);
    let (_, scale) = rows::moments(x, eps, n);
    for n in n.iter_mut() {
        *n *= scale;
    }
    for ((h, g), w) in h.iter_mut().zip(g).zip(w) {
        *h = g * w;
    }
    let mean = sum(h) / width as f32;
    let slope = dot(h, n) / width as f32;
    for ((dx, h), n) in dx.iter_mut().zip(&*h).zip(&*n) {
        *dx = scale * (h - mean - n * slope);
    }
    let (dw, db) = both.split_at_mut(width);
    for (((dw, db), g), n) in dw.iter_mut().zip(db).zip(g).zip(&*n) {
        *dw += g * n;
        *db += g;
    }
}
