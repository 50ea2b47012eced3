//! The gradients of one step.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// Gradients of all trained parameters, contiguous, in the order of their names.
#[derive(Debug)]
pub struct Gradients(Vec<Tensor>);

impl Gradients {
    /// Those of `vars` that a backward pass found.
    ///
    /// # Errors
    /// Names a parameter that no gradient reached.
    pub fn of(vars: &BTreeMap<String, Var>, store: &GradStore) -> Result<Self> {
        let one = |(name, var): (&String, &Var)| {
            let grad = store
                .get(var.as_tensor())
                .with_context(|| format!("no gradient reaches the parameter {name}"))?;
            Ok(grad.contiguous()?.detach())
        };
        Ok(Self(vars.iter().map(one).collect::<Result<_>>()?))
    }

    /// Adds those of another part of the batch.
    ///
    /// # Errors
    /// When they are of other parameters.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own = (&*own + other)?;
        }
        Ok(())
    }

    /// In the order of the parameters' names.
    pub fn tensors(&self) -> &[Tensor] {
        &self.0
    }
}
