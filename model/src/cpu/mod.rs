//! The CPU path: the forward pass in f32 by kernels of our own.
//!
//! One block's forward pass stands in [`block`]; serving and training differ in how products and
//! attention are computed:
//! - [`serve`]: batch invariant, the result of a row does not depend on the other rows of a call;
//! - [`train`]: each sequence on one thread, with what the backward pass needs kept.
//!
//! [`ops`] are the differentiable operations around the blocks, [`kernels`] the loops that all of
//! them call.

pub(crate) mod block;
pub(crate) mod kernels;
pub(crate) mod ops;
pub(crate) mod pool;
pub(crate) mod serve;
pub(crate) mod train;
pub(crate) mod weights;
