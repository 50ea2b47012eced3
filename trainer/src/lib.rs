//! The batch jobs of SCONE: tokenizer, mining, joint training, grafting, precomputation,
//! evaluation.
//!
//! Text goes in, a model directory and a table directory come out. Everything here runs offline;
//! nothing in this crate serves requests. The f-gram rule itself lives in `scone_fgram` and the
//! transformer in `scone_model`, so that training and serving cannot drift apart.

mod benchmark;
mod columns;
pub mod commands;
pub mod corpus;
pub mod embedding;
pub mod evaluation;
pub mod fgram_set;
pub mod graft;
pub mod join;
pub mod mining;
pub mod model_dir;
pub mod plot;
pub mod precompute;
pub mod progress;
mod sealed;
pub mod stop;
pub mod sweep;
pub mod tokenizer;
pub mod training;
