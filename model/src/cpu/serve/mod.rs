//! Serving: a row's result does not depend on the other rows of the call, bit for bit.

mod pass;
mod rows;
mod step;

pub(crate) use pass::{Layers, PackedBlock, apply_linear, apply_norm};
pub(crate) use rows::rows;
pub(crate) use step::step;
