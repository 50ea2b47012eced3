//! Operations with a gradient.
//!
//! On a CPU in f32 these are fused operations of our own, parallel over rows, with a backward
//! pass whose sums do not depend on the number of threads. Elsewhere they are composed of
//! candle's differentiable operations ([`composed`]), which also serve as the reference in tests.

pub mod composed;

use crate::error::Result;
use crate::fgram_model::PrefixTree;
use candle_core::Tensor;
use std::sync::Arc;

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
    composed::linear(x, weight, layout)
}

/// Adds `bias (D)` to every row of `x (N, D)`.
///
/// # Errors
/// Shapes that do not fit.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    composed::add_bias(x, bias)
}

/// `x / sqrt(mean(x²) + eps) · weight` over the last axis.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    composed::rms_norm(x, weight, eps)
}

/// `(x - mean) / sqrt(variance + eps) · weight + bias` over the last axis.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    composed::layer_norm(x, weight, bias, eps)
}

/// `silu(gate) · up`.
///
/// # Errors
/// Shapes that do not fit.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    composed::swiglu(gate, up)
}

/// GELU by tanh, gpt2's `gelu_new`.
///
/// # Errors
/// A type without floating point.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    composed::gelu(x)
}

/// Softmax attention in which each of `batch` sequences of `len` positions sees its own past.
/// `q (N, H·Dh)`, `k` and `v (N, Hkv·Dh)` with N = batch · len; rotary positions (half-split, as
/// `transformers`' llama) are applied to q and k in here.
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
    composed::causal_attention(q, k, v, heads, batch, len)
}

/// Softmax attention in which each node of a tree sees its ancestors and itself. Shapes as
/// [`causal_attention`], N nodes, no rotary positions.
///
/// # Errors
/// Shapes that do not fit.
pub fn tree_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: &Heads,
    tree: &Arc<PrefixTree>,
) -> Result<Tensor> {
    composed::tree_attention(q, k, v, heads, tree)
}

/// Row `index[i]` of `first (V, D)`, or row `index[i] - V` of `second (R, D)`: `(N, D)`.
///
/// # Errors
/// An index beyond both.
pub fn select_rows(first: &Tensor, second: Option<&Tensor>, index: &[u32]) -> Result<Tensor> {
    composed::select_rows(first, second, index)
}

/// Mean cross-entropy of logits `(N, V)`; the targets must be in range.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    composed::cross_entropy(logits, targets)
}

/// Mean cross-entropy of `hidden (N, D)` times `weight (V, D)` transposed.
pub(crate) fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
) -> Result<Tensor> {
    let logits = linear(hidden, weight, WeightLayout::OutIn)?;
    cross_entropy(&logits, targets)
}
