//! The pieces of a transformer block, in both families' weight layouts.
//!
//! Activations are `(N, D)`: all positions of all sequences of a call, end to end. Only attention
//! needs to know which positions belong together; [`Positions`] tells it.

mod attention;
mod block;
mod blocks;
mod linear;
mod mlp;
mod norm;
mod weights;

pub(crate) use attention::{Attention, Input as AttentionInput, Positions};
pub(crate) use block::Block;
pub(crate) use blocks::Blocks;
pub(crate) use linear::Linear;
pub(crate) use mlp::Mlp;
pub(crate) use norm::Norm;
pub(crate) use weights::Weights;
