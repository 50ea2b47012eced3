//! Cross-entropy over the vocabulary.

use crate::error::{Error, Result};
use crate::ops;
use candle_core::Tensor;

/// Mean over rows of the cross-entropy in nats of logits `(N, V)` against token ids `(N)` of type
/// u32.
///
/// # Errors
/// Shapes that do not fit, or a target out of vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let targets = targets.to_vec1::<u32>()?;
    check(&targets, logits.dims2()?)?;
    ops::cross_entropy(logits, &targets)
}

/// Mean cross-entropy of `hidden (N, D)` times `weight (V, D)` transposed.
///
/// # Errors
/// As [`cross_entropy`].
pub fn linear_cross_entropy(hidden: &Tensor, weight: &Tensor, targets: &[u32]) -> Result<Tensor> {
    check(targets, (hidden.dim(0)?, weight.dim(0)?))?;
    ops::linear_cross_entropy(hidden, weight, targets)
}

/// Cross-entropy of each row of `hidden (N, D)` times `weight (V, D)` transposed, without
/// gradients.
///
/// # Errors
/// As [`cross_entropy`].
pub fn token_losses(hidden: &Tensor, weight: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    check(targets, (hidden.dim(0)?, weight.dim(0)?))?;
    ops::token_losses(hidden, weight, targets)
}

fn check(targets: &[u32], (rows, vocab): (usize, usize)) -> Result<()> {
    if targets.len() != rows || rows == 0 {
        return Err(Error::Argument(format!(
            "{} targets for {rows} rows of logits",
            targets.len()
        )));
    }
    match targets.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(Error::Argument(format!(
            "target {id} is not below the vocabulary size, {vocab}"
        ))),
        None => Ok(()),
    }
}
