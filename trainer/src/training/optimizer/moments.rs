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
    /// AdamW's, of a parameter elsewhere; tensors of its shape, beside it.
    Device(DeviceMoments),
    /// Muon's: the running mean of the gradient, of the parameter's shape and beside it.
    Momentum(Tensor),
}

/// Moments as tensors.
#[derive(Debug)]
pub(super) struct DeviceMoments {
    pub(super) first: Tensor,
    pub(super) second: Tensor,
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

    /// Zeros as tensors, wherever `var` is.
    pub(super) fn zeros_on_device(var: &Var) -> Result<Self> {
        let zeros = || Tensor::zeros(var.shape(), var.dtype(), var.device());
        Ok(Self::Device(DeviceMoments {
            first: zeros()?,
            second: zeros()?,
        }))
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
            Self::Device(own) => Moments {
                first: own.first.flatten_all()?,
                second: Some(own.second.flatten_all()?),
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
                own.first = first;
                own.second = numbers(second)?;
            }
            (Self::Momentum(own), None) => *own = first,
            (_, _) => bail!("it is that of another optimizer.kind"),
        }
        Ok(())
    }
}
