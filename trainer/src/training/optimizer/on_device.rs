//! The update of parameters on a device: two passes over a parameter there, one over a gradient for
//! its norm. On the CPU the same by plain loops, which tests compare with the fused pass.

use anyhow::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};

use super::coefficients::Coefficients;
#[cfg(feature = "cuda")]
use super::kernels;

/// Numbers that one partial sum of a norm covers.
const CHUNK: usize = 64 * 1024;

/// Updates `var` and its moments `(2, N)`, first and second, where they are.
pub(super) fn update(var: &Var, grad: &Tensor, moments: &Tensor, step: Coefficients) -> Result<()> {
    moments.inplace_op2(&grad.detach(), &TakeIn(step))?;
    var.as_tensor().inplace_op2(moments, &Move(step))?;
    Ok(())
}

/// Sum of squares of all gradients, which are on one device; one row of numbers comes back from it.
pub(super) fn sum_of_squares(grads: &[&Tensor]) -> Result<f64> {
    let mut sums = Vec::with_capacity(grads.len());
    for grad in grads {
        let chunks = grad.elem_count().div_ceil(CHUNK);
        let of_chunks = Tensor::zeros(chunks, DType::F64, grad.device())?;
        of_chunks.inplace_op2(&grad.detach(), &Squares)?;
        sums.push(of_chunks);
    }
    if sums.is_empty() {
        return Ok(0.0);
    }
    let sums: Vec<f64> = Tensor::cat(&sums, 0)?.to_vec1()?;
    Ok(sums.iter().sum())
}

/// Moments take in a gradient.
struct TakeIn(Coefficients);

/// A parameter moves by its moments.
struct Move(Coefficients);

/// Sums of squares of chunks.
struct Squares;

impl InplaceOp2 for TakeIn {
    fn name(&self) -> &'static str {
        "take-in-gradient"
    }

    fn cpu_fwd(
        &self,
        moments: &mut CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        of_grad: &Layout,
    ) -> candle_core::Result<()> {
        let grad = values(grad, of_grad)?;
        let (first, second) = values_mut(moments, layout)?.split_at_mut(grad.len());
        let Self(step) = self;
        for ((m, v), g) in first.iter_mut().zip(second).zip(grad) {
            let g = g * step.clip;
            *m = *m * step.beta1 + g * (1.0 - step.beta1);
            *v = *v * step.beta2 + g * g * (1.0 - step.beta2);
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        moments: &mut CudaStorage,
        layout: &Layout,
        grad: &CudaStorage,
        of_grad: &Layout,
    ) -> candle_core::Result<()> {
        kernels::take_in((moments, layout), (grad, of_grad), self.0)
    }
}

impl InplaceOp2 for Move {
    fn name(&self) -> &'static str {
        "move-parameter"
    }

    fn cpu_fwd(
        &self,
        param: &mut CpuStorage,
        layout: &Layout,
        moments: &CpuStorage,
        of_moments: &Layout,
    ) -> candle_core::Result<()> {
        let param = values_mut(param, layout)?;
        let (first, second) = values(moments, of_moments)?.split_at(param.len());
        let Self(step) = self;
        for ((p, m), v) in param.iter_mut().zip(first).zip(second) {
            let root = (v * step.second_scale).sqrt() + step.eps;
            *p = *p * step.decay - m * step.rate / root;
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        param: &mut CudaStorage,
        layout: &Layout,
        moments: &CudaStorage,
        of_moments: &Layout,
    ) -> candle_core::Result<()> {
        kernels::move_parameter((param, layout), (moments, of_moments), self.0)
    }
}

impl InplaceOp2 for Squares {
    fn name(&self) -> &'static str {
        "sums-of-squares"
    }

    fn cpu_fwd(
        &self,
        sums: &mut CpuStorage,
        _: &Layout,
        grad: &CpuStorage,
        of_grad: &Layout,
    ) -> candle_core::Result<()> {
        let CpuStorage::F64(sums) = sums else {
            candle_core::bail!("sums of squares are f64");
        };
        let square = |&x: &f32| f64::from(x) * f64::from(x);
        for (sum, chunk) in sums.iter_mut().zip(values(grad, of_grad)?.chunks(CHUNK)) {
            *sum = chunk.iter().map(square).sum();
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        sums: &mut CudaStorage,
        layout: &Layout,
        grad: &CudaStorage,
        of_grad: &Layout,
    ) -> candle_core::Result<()> {
        kernels::squares((sums, layout), (grad, of_grad), CHUNK)
    }
}

fn range(layout: &Layout) -> candle_core::Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("a parameter, moment or gradient is not contiguous"),
    }
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    Ok(&storage.as_slice::<f32>()?[range(layout)?])
}

fn values_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a mut [f32]> {
    match storage {
        CpuStorage::F32(all) => Ok(&mut all[range(layout)?]),
        _ => candle_core::bail!("a parameter or moment is not f32"),
    }
}
