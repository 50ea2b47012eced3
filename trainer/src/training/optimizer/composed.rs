//! The update as tensor operations, for parameters on any device.

use anyhow::Result;
use candle_core::{Tensor, Var};

use super::coefficients::Coefficients;
use super::moments::DeviceMoments;

/// Updates `var` and its moments; all stay where they are.
pub(super) fn update(
    var: &Var,
    grad: &Tensor,
    moments: &mut DeviceMoments,
    step: Coefficients,
) -> Result<()> {
    let factor = |x: f32| f64::from(x);
    // Detached, or each step would hang on the one before.
    let grad = (grad.detach() * factor(step.clip))?;
    let first = ((&moments.first * factor(step.beta1))? + (&grad * factor(1.0 - step.beta1))?)?;
    let square = (grad.sqr()? * factor(1.0 - step.beta2))?;
    let second = ((&moments.second * factor(step.beta2))? + square)?;
    let root = ((&second * factor(step.second_scale))?.sqrt()? + factor(step.eps))?;
    let decayed = (var.as_detached_tensor() * factor(step.decay))?;
    var.set(&(decayed - ((&first * factor(step.rate))? / root)?)?)?;
    *moments = DeviceMoments { first, second };
    Ok(())
}

/// Sum of squares of all gradients; one number comes back from the device.
pub(super) fn sum_of_squares(grads: &[&Tensor]) -> Result<f64> {
    let sums = grads.iter().map(|grad| grad.detach().sqr()?.sum_all());
    let sums: Vec<Tensor> = sums.collect::<candle_core::Result<_>>()?;
    if sums.is_empty() {
        return Ok(0.0);
    }
    let sums: Vec<f32> = Tensor::stack(&sums, 0)?.to_vec1()?;
    Ok(sums.iter().map(|&sum| f64::from(sum)).sum())
}
