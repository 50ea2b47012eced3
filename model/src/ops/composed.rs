//! The operations of this module's parent composed of candle's differentiable ones: slower, but
//! right on every device and in every float type. Arguments and results are the same.

use super::{Heads, WeightLayout};
use crate::error::{Error, Result};
use crate::fgram_model::PrefixTree;
use candle_core::{D, DType, Tensor};

/// See `linear`.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, layout: WeightLayout) -> Result<Tensor> {
    Ok(match layout {
        WeightLayout::OutIn => x.matmul(&weight.t()?)?,
        WeightLayout::InOut => x.matmul(weight)?,
    })
}

/// See `add_bias`.
///
/// # Errors
/// Shapes that do not fit.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_add(bias)?)
}

/// See `rms_norm`.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let x = x.broadcast_div(&(mean_square + f64::from(eps))?.sqrt()?)?;
    Ok(x.broadcast_mul(weight)?)
}

/// See `layer_norm`.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    let x = x.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
    Ok(x.broadcast_mul(weight)?.broadcast_add(bias)?)
}

/// See `swiglu`.
///
/// # Errors
/// Shapes that do not fit.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((gate.silu()? * up)?)
}

/// See `gelu`.
///
/// # Errors
/// A type without floating point.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu()?)
}

/// See `causal_attention`.
///
/// # Errors
/// Shapes that do not fit.
pub fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: &Heads,
    batch: usize,
    len: usize,
) -> Result<Tensor> {
    // (B·T, H·Dh) to (B, H, T, Dh)
    let split = |x: &Tensor, h: usize| x.reshape((batch, len, h, heads.head_dim))?.transpose(1, 2);
    let mut q = split(q, heads.num_heads)?.contiguous()?;
    let mut k = split(k, heads.num_kv_heads)?.contiguous()?;
    let v = split(v, heads.num_kv_heads)?.contiguous()?;
    if let Some(theta) = heads.rope_theta {
        (q, k) = (rope(&q, theta, 0)?, rope(&k, theta, 0)?);
    }
    let mixed = attend(&q, &k, &v, heads)?.transpose(1, 2)?;
    Ok(mixed.reshape((batch * len, heads.num_heads * heads.head_dim))?)
}

/// The last `len` positions of one sequence attend to all of it: `q (len, H·Dh)`, keys and values
/// `(total, Hkv·Dh)`, rotated before.
pub(crate) fn cached_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: &Heads,
) -> Result<Tensor> {
    // (T, H·Dh) to (1, H, T, Dh)
    let split = |x: &Tensor, h: usize| -> Result<Tensor> {
        let x = x.reshape((1, x.dim(0)?, h, heads.head_dim))?;
        Ok(x.transpose(1, 2)?.contiguous()?)
    };
    let (k, v) = (split(k, heads.num_kv_heads)?, split(v, heads.num_kv_heads)?);
    let mixed = attend(&split(q, heads.num_heads)?, &k, &v, heads)?;
    Ok(mixed.transpose(1, 2)?.reshape(q.dims())?)
}

/// Turns the heads of rows `(T, heads · Dh)` by positions from `start` on.
pub(crate) fn rotate_rows(x: &Tensor, heads: &Heads, theta: f64, start: usize) -> Result<Tensor> {
    let split = x.reshape((1, x.dim(0)?, (), heads.head_dim))?;
    let turned = rope(&split.transpose(1, 2)?.contiguous()?, theta, start)?;
    Ok(turned.transpose(1, 2)?.reshape(x.dims())?)
}

/// `q (B, H, Tq, Dh)` are the last positions of `k`, `v (B, Hkv, Tk, Dh)`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: &Heads) -> Result<Tensor> {
    let (k, v) = (repeat_heads(k, heads)?, repeat_heads(v, heads)?);
    let scale = 1.0 / (heads.head_dim as f64).sqrt();
    let scores = (q.matmul(&k.t()?)? * scale)?;
    let (rows, columns) = (q.dim(2)?, k.dim(2)?);
    let hidden = |i: usize| i % columns > i / columns + (columns - rows);
    let mask: Vec<f32> = (0..rows * columns)
        .map(|i| if hidden(i) { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    let mask = Tensor::from_vec(mask, (rows, columns), q.device())?.to_dtype(q.dtype())?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
    Ok(weights.matmul(&v)?)
}

/// Rotary positions from `start` on for `x (B, H, T, Dh)`: element i turns with element
/// `i + Dh/2`.
fn rope(x: &Tensor, theta: f64, start: usize) -> Result<Tensor> {
    let (_, _, len, dim) = x.dims4()?;
    let half = dim / 2;
    let angles: Vec<f32> = (0..len * half)
        .map(|i| {
            let frequency = theta.powf(-((i % half) as f64) / half as f64) as f32;
            (start + i / half) as f32 * frequency
        })
        .collect();
    let angles = Tensor::from_vec(angles, (len, half), x.device())?;
    let (cos, sin) = (
        angles.cos()?.to_dtype(x.dtype())?,
        angles.sin()?.to_dtype(x.dtype())?,
    );
    let (a, b) = (
        x.narrow(D::Minus1, 0, half)?,
        x.narrow(D::Minus1, half, half)?,
    );
    let low = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let high = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Ok(Tensor::cat(&[low, high], D::Minus1)?)
}

/// `(B, Hkv, T, Dh)` to `(B, H, T, Dh)`, each key head for its group of query heads.
fn repeat_heads(x: &Tensor, heads: &Heads) -> Result<Tensor> {
    let group = heads.num_heads / heads.num_kv_heads;
    if group == 1 {
        return Ok(x.clone());
    }
    let (batch, kv_heads, len, dim) = x.dims4()?;
    Ok(x.unsqueeze(2)?
        .expand((batch, kv_heads, group, len, dim))?
        .reshape((batch, kv_heads * group, len, dim))?)
}

/// See `tree_attention`.
///
/// # Errors
/// Shapes that do not fit.
pub fn tree_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: &Heads,
    tree: &PrefixTree,
) -> Result<Tensor> {
    let (n, steps) = (tree.len(), tree.max_len());
    let mut index = Vec::with_capacity(n * steps);
    let mut mask = Vec::with_capacity(n * steps);
    for node in 0..n {
        let path = tree.path(node);
        for step in 0..steps {
            index.push(path.get(step).copied().unwrap_or(0));
            mask.push(if step < path.len() {
                0.0
            } else {
                f32::NEG_INFINITY
            });
        }
    }
    let index = Tensor::from_vec(index, n * steps, q.device())?;
    let mask = Tensor::from_vec(mask, (n, 1, 1, steps), q.device())?.to_dtype(q.dtype())?;
    // (N, Hkv·Dh) to (N, H, L, Dh)
    let gather = |x: &Tensor| -> Result<Tensor> {
        let x = x
            .index_select(&index, 0)?
            .reshape((n, steps, heads.num_kv_heads, heads.head_dim))?
            .transpose(1, 2)?
            .contiguous()?;
        repeat_heads(&x, heads)
    };
    let (k, v) = (gather(k)?, gather(v)?);
    let q = q.reshape((n, heads.num_heads, 1, heads.head_dim))?;
    let scale = 1.0 / (heads.head_dim as f64).sqrt();
    let scores = (q.matmul(&k.t()?)? * scale)?;
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
    Ok(weights
        .matmul(&v)?
        .reshape((n, heads.num_heads * heads.head_dim))?)
}

/// See `select_rows`.
///
/// # Errors
/// An index beyond both.
pub fn select_rows(first: &Tensor, second: Option<&Tensor>, index: &[u32]) -> Result<Tensor> {
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
    Ok(table.index_select(&index, 0)?)
}

/// Mean cross-entropy of logits `(N, V)`.
///
/// # Errors
/// Shapes that do not fit.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::from_slice(targets, targets.len(), logits.device())?;
    let logits = match logits.dtype() {
        DType::F16 | DType::BF16 => logits.to_dtype(DType::F32)?,
        _ => logits.clone(),
    };
    Ok(candle_nn::loss::cross_entropy(&logits, &targets)?)
}
