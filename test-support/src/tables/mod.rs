//! What a server can serve.

mod pairs;
mod real;
mod rows;

pub use pairs::PairTable;
pub use real::open;
pub use rows::Rows;
