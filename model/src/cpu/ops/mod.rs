//! Differentiable operations around the blocks, fused: parallel over rows, with a backward pass
//! whose sums do not depend on the number of threads.

mod cross_entropy;
mod norm;
mod select;
mod sums;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::layers::Norm;
use crate::precision::Precision;
use candle_core::Tensor;
use cross_entropy::Wanted;
use std::sync::Mutex;

/// The norm over the last axis.
pub(crate) fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    match norm {
        Norm::Rms { weight, eps } => {
            check_width(&x, weight)?;
            Ok(x.apply_op2(weight, norm::RmsNorm { eps: *eps })?)
        }
        Norm::Layer { weight, bias, eps } => {
            check_width(&x, weight)?;
            check_width(&x, bias)?;
            Ok(x.apply_op3(weight, bias, norm::LayerNorm { eps: *eps })?)
        }
    }
}

/// Row `index[i]` of `first (V, D)`, or row `index[i] - V` of `second (R, D)`: `(N, D)`.
///
/// # Errors
/// An index beyond both.
pub(crate) fn select_rows(
    first: &Tensor,
    second: Option<&Tensor>,
    index: &[u32],
) -> Result<Tensor> {
    let (rows, width) = first.dims2()?;
    let total = match second {
        Some(second) => {
            check_shape(second, &[second.dim(0)?, width])?;
            rows + second.dim(0)?
        }
        None => rows,
    };
    if let Some(i) = index.iter().find(|&&i| i as usize >= total) {
        return Err(Error::Argument(format!(
            "row {i} of a table of {total} rows"
        )));
    }
    let op = select::SelectRows {
        index: index.to_vec(),
    };
    let first = first.contiguous()?;
    Ok(match second {
        Some(second) => first.apply_op2(&second.contiguous()?, op)?,
        None => first.apply_op1(op)?,
    })
}

/// Mean cross-entropy of `hidden (N, D)` times `weight (V, D)` transposed.
pub(crate) fn linear_cross_entropy(
    (hidden, weight): (&Tensor, &Tensor),
    targets: &[u32],
    precision: Precision,
) -> Result<Tensor> {
    check_shape(hidden, &[targets.len(), weight.dim(1)?])?;
    let op = cross_entropy::LinearCrossEntropy {
        targets: targets.to_vec(),
        precision,
        wanted: Wanted {
            hidden: hidden.track_op(),
            weight: weight.track_op(),
        },
        kept: Mutex::new(None),
    };
    Ok(hidden.contiguous()?.apply_op2(&weight.contiguous()?, op)?)
}

/// Cross-entropy of each row of `hidden (N, D)` times `weight (V, D)` transposed, without
/// gradients.
pub(crate) fn token_losses(hidden: &Tensor, weight: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    check_shape(hidden, &[targets.len(), weight.dim(1)?])?;
    Ok(cross_entropy::token_losses(hidden, weight, targets)?)
}

fn check_shape(x: &Tensor, dims: &[usize]) -> Result<()> {
    if x.dims() == dims {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "a tensor of shape {:?}, expected {dims:?}",
        x.dims()
    )))
}

/// Whether a vector is as wide as the rows of `x`.
fn check_width(x: &Tensor, vector: &Tensor) -> Result<()> {
    check_shape(vector, &x.dims()[x.rank().saturating_sub(1)..])
}
