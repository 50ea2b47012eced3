//! The tensor path: the forward pass in candle's operations. Right on every device and in every
//! float type, with gradients; whole sequences, f-gram trees, or on top of a KV cache.
//!
//! candle's fused norms, softmax and rotary operations drop gradients silently: outside of serving
//! they are used with gradients of our own (`gradient`).

mod attention;
mod block;
mod gradient;
#[cfg(feature = "cuda")]
mod kernels;
mod ops;
mod pool;
mod ragged;
mod rows;
mod select;
mod step;

pub(crate) use attention::Whole;
pub(crate) use block::blocks;
#[cfg(feature = "cuda")]
pub(crate) use kernels::best as best_on_cuda;
pub(crate) use ops::{linear, linear_cross_entropy, norm, select_rows, serve_norm, token_losses};
pub(crate) use pool::Pool;
pub(crate) use step::step;
