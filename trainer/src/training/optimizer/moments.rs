//! The moments of one parameter.

use anyhow::Result;
use candle_core::{Tensor, Var};

/// Both moments as they are saved and restored: one dimension, on the parameter's device.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Tensor,
    /// Running mean of its square.
    pub second: Tensor,
}

/// Both moments as they are updated.
#[derive(Debug)]
pub(super) enum State {
    /// Of a parameter in this process's memory.
    Host(HostMoments),
    /// Of a parameter elsewhere; tensors of its shape, beside it.
    Device(Moments),
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
        Ok(Self::Device(Moments {
            first: zeros()?,
            second: zeros()?,
        }))
    }

    /// The moments of `var` in the form in which they are saved.
    pub(super) fn save(&self, var: &Var) -> Result<Moments> {
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), var.device());
        Ok(match self {
            Self::Host(own) => Moments {
                first: tensor(&own.first)?,
                second: tensor(&own.second)?,
            },
            Self::Device(own) => Moments {
                first: own.first.flatten_all()?,
                second: own.second.flatten_all()?,
            },
        })
    }

    /// Replaces the moments of `var`; `saved` must have as many elements.
    pub(super) fn restore(&mut self, var: &Var, saved: &Moments) -> Result<()> {
        match self {
            Self::Host(own) => {
                own.first = saved.first.flatten_all()?.to_vec1()?;
                own.second = saved.second.flatten_all()?.to_vec1()?;
            }
            Self::Device(own) => {
                let here = |saved: &Tensor| saved.reshape(var.shape())?.to_device(var.device());
                own.first = here(&saved.first)?;
                own.second = here(&saved.second)?;
            }
        }
        Ok(())
    }
}
