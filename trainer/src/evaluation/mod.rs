//! How well a model predicts held-out text.
//!
//! **What is scored.** Every token of a document, given what comes before it in the document; the
//! first token is predicted from eos. The eos after a document is not scored. A document longer
//! than the context is read in windows: the first scores `context` tokens, each later one slides on
//! by `stride` and scores the `stride` last ones, so every later token sees at least
//! `context - stride` tokens before it. f-grams are matched on whole documents and may start before
//! the window.
//!
//! Each distinct f-gram's row is computed or looked up once and kept for the whole evaluation.

mod evaluator;
mod held_out;
mod row_cache;
mod rows;
mod totals;
mod windows;

pub use evaluator::{Evaluator, Options};
pub use held_out::{Document, HeldOut, Piece};
pub use rows::{LiveRows, NoRows, RowSource, TableRows, round_rows};
pub use totals::Totals;
