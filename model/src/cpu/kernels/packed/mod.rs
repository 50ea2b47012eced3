//! Weights of a product, packed for serving in one of four types.
//!
//! The outputs lie in *tiles* of 32 abreast, the inputs one after the other inside a tile; outputs
//! beyond the last are zero. The same memory serves one row and many: a tile is read from front to
//! back and multiplied with a block of rows, then with the next block while it is in the cache.
//! Every output of every row is summed in an order of its own type's along the inputs, so it does
//! not depend on the number of rows, of threads, or on who takes which tile.

mod brain;
mod grouped;
#[cfg(target_arch = "x86_64")]
mod int_avx2;
#[cfg(target_arch = "x86_64")]
mod int_avx512;
mod int_block;
mod level;
mod line;
mod matrix;
mod prepared;
mod single;
#[cfg(test)]
mod tests;
mod threads;

pub(crate) use matrix::Packed;
pub(crate) use prepared::Prepared;
