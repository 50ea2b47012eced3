//! The parameters of a transformer's parts, in both families' weight layouts. What is computed
//! with them stands in [`tensor`](crate::tensor) and [`cpu`](crate::cpu).

mod attention;
mod block;
mod linear;
mod mlp;
mod norm;
mod weights;

pub(crate) use attention::{Attention, HeadNorms, Input as AttentionInput};
pub(crate) use block::Block;
pub(crate) use linear::Linear;
pub(crate) use mlp::Mlp;
pub(crate) use norm::Norm;
pub(crate) use weights::{Source, Weights};
