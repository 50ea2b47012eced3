//! The operations around attention.

use super::gradient::{known, known_of_two};
use super::select::select;
use crate::error::{Error, Result};
use crate::layers::{Linear, Norm};
use crate::layout::WeightLayout;
use candle_core::{D, DType, Tensor};

/// `x (N, in)` through a linear layer: `(N, out)`.
pub(crate) fn linear(linear: &Linear, x: &Tensor) -> Result<Tensor> {
    let y = match linear.layout {
        WeightLayout::OutIn => x.matmul(&linear.weight.t()?)?,
        WeightLayout::InOut => x.matmul(&linear.weight)?,
    };
    Ok(match &linear.bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    })
}

/// The norm over the last axis.
pub(crate) fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    match norm {
        Norm::Rms { weight, eps } => rms_norm(x, weight, *eps),
        Norm::Layer { weight, bias, eps } => layer_norm(x, weight, bias, *eps),
    }
}

/// The norm over the last axis in one operation, without gradients.
pub(crate) fn serve_norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    Ok(match norm {
        Norm::Rms { weight, eps } => candle_nn::ops::rms_norm(&x, weight, *eps)?,
        Norm::Layer { weight, bias, eps } => candle_nn::ops::layer_norm(&x, weight, bias, *eps)?,
    })
}

/// `x / sqrt(mean(x²) + eps) · weight` over the last axis.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (input, scale) = (x.detach().contiguous()?, weight.detach());
    // candle's fused norm knows no f64, which gradients are checked in.
    let value = match x.dtype() {
        DType::F64 => input
            .broadcast_mul(&inverse_root(&input, eps)?)?
            .broadcast_mul(&scale)?,
        _ => candle_nn::ops::rms_norm(&input, &scale, eps)?,
    };
    let width = scale.elem_count();
    let backward = move |grad: &Tensor| {
        let inverse = inverse_root(&input, eps)?;
        let normed = input.broadcast_mul(&inverse)?;
        let of_weight = (grad * &normed)?.reshape(((), width))?.sum(0)?;
        let grad = grad.broadcast_mul(&scale)?;
        let along = (&grad * &normed)?.mean_keepdim(D::Minus1)?;
        let of_x = (grad - normed.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?;
        Ok((of_x, of_weight))
    };
    Ok(known_of_two(x, weight, value, backward)?)
}

fn inverse_root(x: &Tensor, eps: f32) -> candle_core::Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    (mean_square + f64::from(eps))?.sqrt()?.recip()
}

/// `(x - mean) / sqrt(variance + eps) · weight + bias` over the last axis.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    let x = x.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
    Ok(x.broadcast_mul(weight)?.broadcast_add(bias)?)
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
    let table = match second {
        Some(second) => Tensor::cat(&[first, second], 0)?,
        None => first.clone(),
    };
    let rows = table.dim(0)?;
    if let Some(i) = index.iter().find(|&&i| i as usize >= rows) {
        return Err(Error::Argument(format!(
            "row {i} of a table of {rows} rows"
        )));
    }
    let index = Tensor::from_slice(index, index.len(), first.device())?;
    Ok(select(&table, &index)?)
}

/// Mean cross-entropy of `hidden (N, D)` times `weight (V, D)` transposed.
pub(crate) fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
) -> Result<Tensor> {
    let count = targets.len();
    let targets = Tensor::from_slice(targets, (count, 1), hidden.device())?;
    let logits = at_least_f32(hidden.matmul(&weight.t()?)?)?;
    let plain = logits.detach();
    let chances = candle_nn::ops::softmax_last_dim(&plain)?;
    // The largest chance is 1 over the sum of all exponentials of differences to the largest logit:
    // so no logarithm is taken of a chance that is too small for its type.
    let largest = plain.max_keepdim(1)?.sub(&chances.max_keepdim(1)?.log()?)?;
    let value = (largest - plain.gather(&targets, 1)?)?.mean_all()?;
    let backward = move |grad: &Tensor| {
        let ids = Tensor::arange(0, chances.dim(1)? as u32, chances.device())?;
        let right = targets.broadcast_eq(&ids.unsqueeze(0)?)?;
        let of_logits = ((&chances - right.to_dtype(chances.dtype())?)? * (1.0 / count as f64))?;
        of_logits.broadcast_mul(grad)
    };
    Ok(known(&logits, value, backward)?)
}

/// Cross-entropy of each row of `hidden (N, D)` times `weight (V, D)` transposed, without
/// gradients.
pub(crate) fn token_losses(hidden: &Tensor, weight: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let logits = hidden.detach().matmul(&weight.detach().t()?)?;
    let log_softmax = candle_nn::ops::log_softmax(&logits.to_dtype(DType::F32)?, 1)?;
    let targets = Tensor::from_slice(targets, (targets.len(), 1), hidden.device())?;
    Ok(log_softmax
        .gather(&targets, 1)?
        .neg()?
        .flatten_all()?
        .to_vec1()?)
}

fn at_least_f32(x: Tensor) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32)?,
        _ => x,
    })
}
