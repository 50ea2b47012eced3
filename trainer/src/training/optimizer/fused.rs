//! The update of parameters in this process's memory: one pass over all numbers.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor, Var};
use rayon::prelude::*;

use super::coefficients::Coefficients;
use super::moments::HostMoments;

/// Elements that one task works on, and one partial sum of a norm covers. Fixed, so that sums do
/// not depend on the number of threads; parameters of one chunk are not worth waking a thread for.
pub(super) const CHUNK: usize = 128 * 1024;

/// Updates `var` and its moments in place, for a contiguous gradient.
pub(super) fn update(
    var: &Var,
    grad: &Tensor,
    moments: &mut HostMoments,
    step: Coefficients,
) -> Result<()> {
    with_values(grad, |grad| {
        let op = UpdateOp {
            step,
            grad,
            moments: Mutex::new(moments),
        };
        Ok(var.as_tensor().inplace_op1(&op)?)
    })
}

/// Sum of squares of a contiguous gradient, in f64 and by fixed chunks: the same for any number of
/// threads.
pub(super) fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    with_values(grad, |values| {
        if values.len() <= CHUNK {
            return Ok(chunk_sum_of_squares(values));
        }
        let sums: Vec<f64> = values.par_chunks(CHUNK).map(chunk_sum_of_squares).collect();
        Ok(sums.iter().sum())
    })
}

/// Runs `f` on the elements of a contiguous tensor.
fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        anyhow::bail!("a gradient is on another device than its parameter");
    };
    let all = storage.as_slice::<f32>()?;
    let (start, end) = layout
        .contiguous_offsets()
        .context("gradient is not contiguous")?;
    f(&all[start..end])
}

/// In eight sums side by side, which the compiler turns into vector instructions.
fn chunk_sum_of_squares(values: &[f32]) -> f64 {
    let (eights, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0f64; 8];
    for eight in eights {
        for (lane, &x) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    let rest = rest
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>();
    lanes.iter().sum::<f64>() + rest
}

impl Coefficients {
    fn apply(&self, param: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32]) {
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(first).zip(second) {
            let g = g * self.clip;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            let root = (*v * self.second_scale).sqrt() + self.eps;
            *p = *p * self.decay - self.rate * *m / root;
        }
    }
}

/// One update on the storage of a variable.
struct UpdateOp<'a> {
    step: Coefficients,
    grad: &'a [f32],
    moments: Mutex<&'a mut HostMoments>,
}

impl InplaceOp1 for UpdateOp<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("adamw needs a contiguous f32 parameter");
        };
        if end - start != self.grad.len() {
            candle_core::bail!(
                "gradient has {} elements, not {}",
                self.grad.len(),
                end - start
            );
        }
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let HostMoments { first, second } = &mut **moments;
        let params = &mut values[start..end];
        if params.len() <= CHUNK {
            self.step.apply(params, self.grad, first, second);
            return Ok(());
        }
        params
            .par_chunks_mut(CHUNK)
            .zip(self.grad.par_chunks(CHUNK))
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .for_each(|(((p, g), m), v)| self.step.apply(p, g, m, v));
        Ok(())
    }
}
