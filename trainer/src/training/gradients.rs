//! The gradients of one step.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::ranks::Ranks;

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

    /// Adds those of all ranks; each of them has its part of the batch.
    ///
    /// # Errors
    /// When a rank is gone, or a device has no memory left.
    pub fn add_up(&mut self, ranks: &dyn Ranks) -> Result<()> {
        if ranks.count() == 1 {
            return Ok(());
        }
        // In one piece: few large messages instead of one for each parameter.
        let flat = self.0.iter().map(Tensor::flatten_all);
        let flat = Tensor::cat(&flat.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let mut values = flat.to_vec1::<f32>()?;
        ranks.add_up(&mut values)?;
        let mut rest = &values[..];
        for own in &mut self.0 {
            let (sum, after) = rest.split_at(own.elem_count());
            *own = Tensor::from_slice(sum, own.shape(), own.device())?;
            rest = after;
        }
        Ok(())
    }

    /// In the order of the parameters' names.
    pub fn tensors(&self) -> &[Tensor] {
        &self.0
    }
}
