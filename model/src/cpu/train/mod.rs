//! All blocks of a model as one differentiable operation, for training on a CPU.
//!
//! candle's own backward pass allocates, zeroes and adds a whole activation for every argument of
//! every operation. Here a stack of blocks is a single operation of two arguments: the activations
//! `(N, D)` and the weights of all blocks end to end. Sequences (or groups of whole f-gram trees)
//! are independent of each other, so each runs through all blocks on one thread with its data in
//! that thread's cache; only the gradients of the weights bring them together, summed over the
//! sequences in order. Results do not depend on the number of threads.

mod backward;
mod buffers;
mod flat;
mod pass;
mod stack;
mod weights;

pub(crate) use stack::{Stack, Workspace};
