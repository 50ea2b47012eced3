//! AdamW, or Muon for the matrices of blocks, with state of our own: it can be saved and restored,
//! and AdamW's update is one pass.
//!
//! Decoupled weight decay (Loshchilov & Hutter, "Decoupled Weight Decay Regularization"), applied
//! to matrices only. Parameters in this process's memory are updated by one fused pass, others by
//! kernels on their device. Every parameter keeps its storage, so tensors that share it
//! see the new values.

mod coefficients;
mod fused;
mod groups;
#[cfg(feature = "cuda")]
mod kernels;
mod moments;
mod muon;
mod on_device;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

pub use moments::Moments;

use crate::training::config::{OptimizerConfig, OptimizerKind};
use crate::training::gradients::Gradients;
use coefficients::Coefficients;
use moments::State;

/// The optimiser over named parameters.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    vars: BTreeMap<String, Var>,
    moments: BTreeMap<String, State>,
    /// Updates done.
    step: u64,
}

/// What one update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateReport {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
}

impl Optimizer {
    /// Fresh state for `vars`: f32 and contiguous, on any device.
    ///
    /// # Errors
    /// When a parameter is of another kind.
    pub fn new(vars: BTreeMap<String, Var>, config: OptimizerConfig) -> Result<Self> {
        let muon = config.kind == OptimizerKind::Muon;
        Self::with_state(vars, config, |name, var| {
            match muon && groups::is_block_matrix(name, var.rank()) {
                true => State::momentum(var),
                false => State::zeros(var),
            }
        })
    }

    fn with_state(
        vars: BTreeMap<String, Var>,
        config: OptimizerConfig,
        state: impl Fn(&str, &Var) -> Result<State>,
    ) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, var) in &vars {
            ensure!(
                var.dtype() == candle_core::DType::F32 && var.is_contiguous(),
                "parameter {name} is not a contiguous f32 tensor"
            );
            moments.insert(name.clone(), state(name, var)?);
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

    /// The moments by parameter name, to be saved.
    ///
    /// # Errors
    /// When a device has no memory left.
    pub fn moments(&self) -> Result<BTreeMap<String, Moments>> {
        let both = self.vars.iter().zip(self.moments.values());
        both.map(|((name, var), state)| Ok((name.clone(), state.save(var)?)))
            .collect()
    }

    /// Puts back the state of a checkpoint.
    ///
    /// # Errors
    /// When names or sizes differ from those of the parameters.
    pub fn restore(&mut self, step: u64, mut moments: BTreeMap<String, Moments>) -> Result<()> {
        for ((name, var), state) in self.vars.iter().zip(self.moments.values_mut()) {
            let saved = moments
                .remove(name)
                .with_context(|| format!("optimiser state lacks the moments of {name}"))?;
            state
                .restore(var, &saved)
                .with_context(|| format!("optimiser state of {name}"))?;
        }
        if let Some(name) = moments.keys().next() {
            anyhow::bail!("optimiser state has moments of an unknown parameter {name}");
        }
        self.step = step;
        Ok(())
    }

    /// One update with the gradients of a backward pass, see [`apply`](Self::apply).
    ///
    /// # Errors
    /// When a gradient is missing or not finite; nothing is changed then.
    pub fn update(&mut self, grads: &GradStore, lr: f64) -> Result<UpdateReport> {
        let report = self.apply(&Gradients::of(&self.vars, grads)?, lr)?;
        ensure!(
            report.grad_norm.is_finite(),
            "the gradient is not finite (norm {})",
            report.grad_norm
        );
        Ok(report)
    }

    /// One update with learning rate `lr`, after clipping to the configured global norm. With a
    /// norm that is not finite nothing is changed.
    ///
    /// # Errors
    /// When gradients and parameters do not fit, or a device has no memory left.
    pub fn apply(&mut self, grads: &Gradients, lr: f64) -> Result<UpdateReport> {
        let grads = grads.tensors();
        let grad_norm = self.sum_of_squares(grads)?.sqrt();
        if !grad_norm.is_finite() {
            return Ok(UpdateReport { grad_norm });
        }
        self.step += 1;
        let mut matrices = Vec::new();
        let states = self.moments.values_mut();
        for (((name, var), state), grad) in self.vars.iter().zip(states).zip(grads) {
            let lr = lr * self.config.groups.of(groups::group(name, var.rank()));
            let step = Coefficients::new(&self.config, self.step, grad_norm, lr);
            let step = step.for_rank(var.rank());
            match state {
                State::Host(moments) => fused::update(var, grad, moments, step)?,
                State::Device(moments) => on_device::update(var, grad, moments, step)?,
                State::Momentum(momentum) => matrices.push((var, grad, momentum, step)),
            }
        }
        muon::update_all(matrices)?;
        Ok(UpdateReport { grad_norm })
    }

    /// The square of the global norm, summed where the parameters are.
    fn sum_of_squares(&self, grads: &[Tensor]) -> Result<f64> {
        let (mut sum, mut elsewhere) = (0.0, Vec::new());
        for (state, grad) in self.moments.values().zip(grads) {
            match state {
                State::Device(_) => elsewhere.push(grad),
                State::Momentum(_) if !grad.device().is_cpu() => elsewhere.push(grad),
                State::Host(_) | State::Momentum(_) => sum += fused::sum_of_squares(grad)?,
            }
        }
        Ok(sum + on_device::sum_of_squares(&elsewhere)?)
    }
}

#[cfg(test)]
mod tests;
