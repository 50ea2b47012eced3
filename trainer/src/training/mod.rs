//! Joint training of the main model and the f-gram model A by next-token loss alone, from step 0
//! (SCONE, section 3; settings that the paper leaves open are in the config).
//!
//! ```text
//! corpus ─ tag whole documents ─> TokenStream ─ windows of (seed, step) ─> Batch
//!   Batch: one index a position into [T ; A(distinct f-grams)], targets
//!   Network: A over distinct prefixes ─> input embeddings ─> decoder ─> loss ─> AdamW
//! ```
//!
//! Without an f-gram set the same code trains the plain model.

pub mod batch;
pub mod checkpoint;
pub mod config;
mod control;
pub(crate) mod flops;
pub mod gradients;
mod log;
mod main_model;
mod memory;
pub mod network;
pub mod optimizer;
mod output;
mod prepare;
pub mod ranks;
mod report;
mod run;
pub mod schedule;
mod scores;
pub mod shape;
mod step;
pub mod stream;
mod times;

pub use run::{Outcome, RunOptions, train};
