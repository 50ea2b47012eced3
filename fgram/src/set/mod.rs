//! The f-gram set: which n-grams own a row, in rank order, with their counts.

mod encoding;
mod fgram_set;
mod ranked;
mod reader;
mod sealed;
mod set_file;
mod varint;

pub use fgram_set::FgramSet;
pub use ranked::{Fgram, SetHeader};
pub use set_file::{Rank, SetFile};
