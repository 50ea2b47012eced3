//! The moments of one parameter.

use anyhow::{Result, bail, ensure};
use candle_core::{Tensor, Var};

/// The state of one parameter as it is saved and restored: one dimension, on the parameter's device.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Tensor,
    /// Running mean of its square; Muon has none.
    pub second: Option<Tensor>,
}

/// The state of one parameter as it is updated.
#[derive(Debug)]
pub(super) enum State {
    /// AdamW's, of a parameter in this process's memory.
    Host(HostMoments),
    /// AdamW's, of a parameter of N elements elsewhere; both, `(2, N)`, beside it.
    Device(Tensor),
    /// Muon's: the running mean of the gradient, of the parameter's shape and beside it.
    Momentum(Tensor),
}

/// Moments as plain numbers.
#[derive(Debug)]
pub(super) struct HostMoments {
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
}

impl State {
    /// Zeros where `var` is.
    pub(super) fn zeros(var: &Var) -> Result<Self> {
        if var.device().is_cpu() {
            let zeros = vec![0.0; var.elem_count()];
            return Ok(Self::Host(HostMoments {
                first: zeros.clone(),
                second: zeros,
            }));
        }
        Self::zeros_on_device(var)
    }

    /// Zeros as a tensor, wherever `var` is.
    pub(super) fn zeros_on_device(var: &Var) -> Result<Self> {
        let both = (2, var.elem_count());
        Ok(Self::Device(Tensor::zeros(
            both,
            var.dtype(),
            var.device(),
        )?))
    }

    /// Muon's zeros, where `var` is.
    pub(super) fn momentum(var: &Var) -> Result<Self> {
        let zeros = Tensor::zeros(var.shape(), var.dtype(), var.device())?;
        Ok(Self::Momentum(zeros))
    }

    /// The moments of `var` in the form in which they are saved.
    pub(super) fn save(&self, var: &Var) -> Result<Moments> {
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), var.device());
        Ok(match self {
            Self::Host(own) => Moments {
                first: tensor(&own.first)?,
                second: Some(tensor(&own.second)?),
            },
            // Copies: these change with the next step.
            Self::Device(own) => Moments {
                first: own.get(0)?.copy()?,
                second: Some(own.get(1)?.copy()?),
            },
            Self::Momentum(own) => Moments {
                first: own.flatten_all()?,
                second: None,
            },
        })
    }

    /// Replaces the moments of `var`.
    ///
    /// # Errors
    /// When they are of another size or optimiser.
    pub(super) fn restore(&mut self, var: &Var, saved: &Moments) -> Result<()> {
        let numbers = |saved: &Tensor| -> Result<Tensor> {
            ensure!(
                saved.elem_count() == var.elem_count(),
                "{} elements, the parameter has {}",
                saved.elem_count(),
                var.elem_count()
            );
            Ok(saved.reshape(var.shape())?.to_device(var.device())?)
        };
        let first = numbers(&saved.first)?;
        match (self, &saved.second) {
            (Self::Host(own), Some(second)) => {
                own.first = first.flatten_all()?.to_vec1()?;
                own.second = numbers(second)?.flatten_all()?.to_vec1()?;
            }
            (Self::Device(own), Some(second)) => {
                let both = [first.flatten_all()?, numbers(second)?.flatten_all()?];
                *own = Tensor::stack(&both, 0)?;
            }
            (Self::Momentum(own), None) => *own = first,
            (_, _) => bail!("it is that of another optimizer.kind"),
        }
        Ok(())
    }
}
