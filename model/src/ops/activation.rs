//! SwiGLU and GELU.

use super::storage::{gradient, result, slice, with_slice};
use crate::kernels::math::{sigmoid, tanh};
use crate::kernels::rows::{self, GELU_CUBE, GELU_SCALE};
use crate::kernels::simd;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Elements one task takes.
const CHUNK: usize = 1 << 14;

/// See [`super::swiglu`].
pub(super) struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let mut out = vec![0.0f32; gate.len()];
        gate.par_chunks(CHUNK)
            .zip(up.par_chunks(CHUNK))
            .zip(out.par_chunks_mut(CHUNK))
            .for_each(|((gate, up), out)| {
                simd(
                    #[inline(always)]
                    || rows::swiglu(gate, up, out),
                );
            });
        result(out, gate_layout.shape())
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut dgate = vec![0.0f32; gate.elem_count()];
        let mut dup = vec![0.0f32; gate.elem_count()];
        with_slice(gate, |gate| {
            with_slice(up, |up| {
                with_slice(grad, |grad| {
                    gate.par_chunks(CHUNK)
                        .zip(up.par_chunks(CHUNK))
                        .zip(grad.par_chunks(CHUNK))
                        .zip(dgate.par_chunks_mut(CHUNK))
                        .zip(dup.par_chunks_mut(CHUNK))
                        .for_each(|((((gate, up), grad), dgate), dup)| {
                            simd(
                                #[inline(always)]
                                || swiglu_backward(gate, up, grad, dgate, dup),
                            );
                        });
                    Ok(())
                })
            })
        })?;
        Ok((gradient(dgate, gate)?, gradient(dup, up)?))
    }
}

#[inline(always)]
fn swiglu_backward(gate: &[f32], up: &[f32], grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let inputs = gate.iter().zip(up).zip(grad);
    for ((((gate, up), grad), dgate), dup) in inputs.zip(dgate).zip(dup) {
        let s = sigmoid(*gate);
        *dup = grad * gate * s;
        *dgate = grad * up * s * (1.0 + gate * (1.0 - s));
    }
}

/// See [`super::gelu`].
pub(super) struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-tanh"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut out = vec![0.0f32; x.len()];
        x.par_chunks(CHUNK)
            .zip(out.par_chunks_mut(CHUNK))
            .for_each(|(x, out)| {
                simd(
                    #[inline(always)]
                    || rows::gelu(x, out),
                );
            });
        result(out, layout.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0f32; x.elem_count()];
        with_slice(x, |x| {
            with_slice(grad, |grad| {
                x.par_chunks(CHUNK)
                    .zip(grad.par_chunks(CHUNK))
                    .zip(dx.par_chunks_mut(CHUNK))
                    .for_each(|((x, grad), dx)| {
                        simd(
                            #[inline(always)]
                            || gelu_backward(x, grad, dx),
                        );
                    });
                Ok(())
            })
        })?;
        gradient(dx, x)
    }
}

#[inline(always)]
fn gelu_backward(x: &[f32], grad: &[f32], dx: &mut [f32]) {
    for ((dx, &x), grad) in dx.iter_mut().zip(x).zip(grad) {
        let t = tanh(GELU_SCALE * (GELU_CUBE * x * x).mul_add(x, x));
        let inner = GELU_SCALE * (3.0 * GELU_CUBE * x).mul_add(x, 1.0);
        *dx = grad * 0.5 * (x * inner).mul_add(1.0 - t * t, 1.0 + t);
    }
}
