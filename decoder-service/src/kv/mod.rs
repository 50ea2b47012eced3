//! Which sequence has which KV blocks: a plain state machine, no threads, no model.
//!
//! A sequence gets blocks for all its known tokens when it gets a slot of the batch, and one more
//! each time it has filled its last. A block is *whole* when all its positions are computed; whole
//! blocks are found again by the ids of the text up to their end, so a text that begins as an
//! earlier one shares its blocks instead of computing them again. A block that nobody has is kept
//! until its memory is needed, those unused longest going first.

mod blocks;
mod prefix;
mod sequence;

pub use blocks::Blocks;
pub use prefix::Prefix;
pub use sequence::{Pool, SequenceBlocks};
