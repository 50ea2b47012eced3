//! Operations with a gradient.
//!
//! On a CPU in f32 these are fused operations of our own, parallel over rows, with a backward
//! pass whose sums do not depend on the number of threads. Elsewhere they are composed of
//! candle's differentiable operations ([`composed`]), which also serve as the reference in tests.

pub mod composed;
mod cross_entropy;
mod linear;
mod norm;
mod select;
pub(crate) mod storage;

use crate::error::{Error, Result};
use candle_core::Tensor;
use std::sync::Mutex;
pub(crate) use storage::fused;

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `(out, in)`: PyTorch's `nn.Linear`, llama.
    OutIn,
    /// `(in, out)`: `Conv1D`, gpt2.
    InOut,
}

/// How a row of queries, keys or values is cut into heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// H, query heads.
    pub num_heads: usize,
    /// Key and value heads; query head h reads key head `h / (H / Hkv)`.
    pub num_kv_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// Base of the rotary angles; `None` without rotary positions.
    pub rope_theta: Option<f64>,
}

/// `x (N, in)` times a weight: `(N, out)`.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, layout: WeightLayout) -> Result<Tensor> {
    if !fused(&[x, weight]) {
        return composed::linear(x, weight, layout);
    }
    Ok(x.contiguous()?.apply_op2(weight, linear::Linear(layout))?)
}

/// `x / sqrt(mean(x²) + eps) · weight` over the last axis.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if !fused(&[x, weight]) {
        return composed::rms_norm(x, weight, eps);
    }
    check_width(x, weight)?;
    Ok(x.contiguous()?.apply_op2(weight, norm::RmsNorm { eps })?)
}

/// `(x - mean) / sqrt(variance + eps) · weight + bias` over the last axis.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if !fused(&[x, weight, bias]) {
        return composed::layer_norm(x, weight, bias, eps);
    }
    check_width(x, weight)?;
    check_width(x, bias)?;
    Ok(x.contiguous()?
        .apply_op3(weight, bias, norm::LayerNorm { eps })?)
}

/// Row `index[i]` of `first (V, D)`, or row `index[i] - V` of `second (R, D)`: `(N, D)`.
///
/// # Errors
/// An index beyond both.
pub fn select_rows(first: &Tensor, second: Option<&Tensor>, index: &[u32]) -> Result<Tensor> {
    if !fused(&[first, second.unwrap_or(first)]) {
        return composed::select_rows(first, second, index);
    }
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

/// Mean cross-entropy of logits `(N, V)`; the targets must be in range.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    if !fused(&[logits]) {
        return composed::cross_entropy(logits, targets);
    }
    let op = cross_entropy::CrossEntropy {
        targets: targets.to_vec(),
    };
    Ok(logits.contiguous()?.apply_op1(op)?)
}

/// Mean cross-entropy of `hidden (N, D)` times `weight (V, D)` transposed.
pub(crate) fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
) -> Result<Tensor> {
    if !fused(&[hidden, weight]) {
        let logits = linear(hidden, weight, WeightLayout::OutIn)?;
        return cross_entropy(&logits, targets);
    }
    check_shape(hidden, &[targets.len(), weight.dim(1)?])?;
    let op = cross_entropy::LinearCrossEntropy {
        targets: targets.to_vec(),
        kept: Mutex::new(None),
    };
    Ok(hidden.contiguous()?.apply_op2(&weight.contiguous()?, op)?)
}

/// Cross-entropy of each row of `hidden (N, D)` times `weight (V, D)` transposed, without
/// gradients.
pub(crate) fn token_losses(hidden: &Tensor, weight: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    if fused(&[hidden, weight]) {
        check_shape(hidden, &[targets.len(), weight.dim(1)?])?;
        return Ok(cross_entropy::token_losses(hidden, weight, targets)?);
    }
    let logits = linear(&hidden.detach(), &weight.detach(), WeightLayout::OutIn)?;
    let log_softmax = candle_nn::ops::log_softmax(&logits.to_dtype(candle_core::DType::F32)?, 1)?;
    let targets = Tensor::from_slice(targets, (targets.len(), 1), hidden.device())?;
    Ok(log_softmax
        .gather(&targets, 1)?
        .neg()?
        .flatten_all()?
        .to_vec1()?)
}

/// Adds the parts of a weight's gradient, in order.
fn add_parts(parts: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut total = vec![0.0f32; width];
    for part in parts {
        for (total, part) in total.iter_mut().zip(part) {
            *total += part;
        }
    }
    total
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
