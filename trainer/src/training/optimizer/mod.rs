//! AdamW with its own moments: they can be saved and restored, and the update is one pass.
//!
//! Decoupled weight decay (Loshchilov & Hutter, "Decoupled Weight Decay Regularization"), applied
//! to matrices only. Every parameter is updated in place, so tensors that share the storage of a
//! variable see the new values.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor, Var};
use rayon::prelude::*;

use crate::training::config::OptimizerConfig;

/// Elements that one task works on, and one partial sum of a norm covers. Fixed, so that sums do
/// not depend on the number of threads; parameters of one chunk are not worth waking a thread for.
const CHUNK: usize = 128 * 1024;

/// The moments of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// AdamW over named parameters.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    vars: BTreeMap<String, Var>,
    moments: BTreeMap<String, Moments>,
    /// Updates done.
    step: u64,
}

/// What one update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateReport {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
}

impl AdamW {
    /// Fresh state for `vars`: f32, contiguous, on the CPU.
    ///
    /// # Errors
    /// When a parameter is of another kind.
    pub fn new(vars: BTreeMap<String, Var>, config: OptimizerConfig) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, var) in &vars {
            ensure!(
                var.dtype() == candle_core::DType::F32 && var.is_contiguous(),
                "parameter {name} is not a contiguous f32 tensor"
            );
            let zeros = vec![0.0; var.elem_count()];
            moments.insert(
                name.clone(),
                Moments {
                    first: zeros.clone(),
                    second: zeros,
                },
            );
        }
        Ok(Self {
            config,
            vars,
            moments,
            step: 0,
        })
    }

    /// Updates done so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The parameters by name.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// The moments by parameter name.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Puts back the state of a checkpoint.
    ///
    /// # Errors
    /// When names or sizes differ from those of the parameters.
    pub fn restore(&mut self, step: u64, mut moments: BTreeMap<String, Moments>) -> Result<()> {
        for (name, own) in &mut self.moments {
            let saved = moments
                .remove(name)
                .with_context(|| format!("optimiser state lacks the moments of {name}"))?;
            ensure!(
                saved.first.len() == own.first.len() && saved.second.len() == own.second.len(),
                "optimiser state of {name} has {} elements, the parameter has {}",
                saved.first.len(),
                own.first.len()
            );
            *own = saved;
        }
        if let Some(name) = moments.keys().next() {
            anyhow::bail!("optimiser state has moments of an unknown parameter {name}");
        }
        self.step = step;
        Ok(())
    }

    /// One update with learning rate `lr`, after clipping to the configured global norm.
    ///
    /// # Errors
    /// When a gradient is missing or not finite; nothing is changed then.
    pub fn update(&mut self, grads: &GradStore, lr: f64) -> Result<UpdateReport> {
        let grads = self.collect(grads)?;
        let sum: f64 = grads
            .iter()
            .map(|grad| grad.with(sum_of_squares))
            .sum::<Result<f64>>()?;
        let grad_norm = sum.sqrt();
        ensure!(
            grad_norm.is_finite(),
            "the gradient is not finite (norm {grad_norm})"
        );
        self.step += 1;
        let update = self.coefficients(grad_norm, lr);
        for ((name, var), grad) in self.vars.iter().zip(&grads) {
            let Some(moments) = self.moments.get_mut(name) else {
                continue;
            };
            // Norms and biases are vectors; they are not pulled towards zero.
            let decay = if var.rank() >= 2 { update.decay } else { 1.0 };
            let step = Update { decay, ..update };
            grad.with(|grad| {
                let op = UpdateOp {
                    step,
                    grad,
                    moments: Mutex::new(moments),
                };
                Ok(var.as_tensor().inplace_op1(&op)?)
            })?;
        }
        Ok(UpdateReport { grad_norm })
    }

    /// The gradients in the order of the parameters.
    fn collect(&self, grads: &GradStore) -> Result<Vec<Gradient>> {
        let one = |(name, var): (&String, &Var)| {
            let grad = grads
                .get(var.as_tensor())
                .with_context(|| format!("no gradient reaches the parameter {name}"))?;
            Ok(Gradient(grad.contiguous()?))
        };
        self.vars.iter().map(one).collect()
    }

    fn coefficients(&self, grad_norm: f64, lr: f64) -> Update {
        let config = &self.config;
        let clip = if config.clip > 0.0 && grad_norm > config.clip {
            config.clip / grad_norm
        } else {
            1.0
        };
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        Update {
            clip: clip as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.eps as f32,
            decay: (1.0 - lr * config.weight_decay) as f32,
            rate: (lr / (1.0 - config.beta1.powi(power))) as f32,
            second_scale: (1.0 / (1.0 - config.beta2.powi(power))) as f32,
        }
    }
}

/// A contiguous gradient.
struct Gradient(Tensor);

impl Gradient {
    /// Runs `f` on the elements.
    fn with<R>(&self, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
        let (storage, layout) = self.0.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            anyhow::bail!("training runs on the CPU only");
        };
        let all = storage.as_slice::<f32>()?;
        let (start, end) = layout
            .contiguous_offsets()
            .context("gradient is not contiguous")?;
        f(&all[start..end])
    }
}

/// Sum of squares in f64, by fixed chunks: the same for any number of threads.
#[expect(clippy::unnecessary_wraps, reason = "shape of the callback")]
fn sum_of_squares(values: &[f32]) -> Result<f64> {
    if values.len() <= CHUNK {
        return Ok(chunk_sum_of_squares(values));
    }
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(chunk_sum_of_squares).collect();
    Ok(sums.iter().sum())
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

/// The scalars of one update.
#[derive(Clone, Copy)]
struct Update {
    /// Factor on the gradient.
    clip: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    /// Factor on the parameter, before the step.
    decay: f32,
    /// Learning rate with the first moment's bias correction.
    rate: f32,
    /// Bias correction of the second moment.
    second_scale: f32,
}

impl Update {
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

/// [`Update`] on the storage of a variable.
struct UpdateOp<'a> {
    step: Update,
    grad: &'a [f32],
    moments: Mutex<&'a mut Moments>,
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
        let Moments { first, second } = &mut **moments;
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

#[cfg(test)]
mod tests;
