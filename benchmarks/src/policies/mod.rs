//! Which rows to keep in memory: simulated hit rates of the policy that tables ship with, and of
//! others one might choose.
//!
//! Rows are numbered in served order, so row 0 is the one that was the longest match most often in
//! training. Each policy keeps a number of rows; nothing is measured here but hits.

mod bound;
mod clock;
mod policy;
mod s3_fifo;
mod simple;
#[cfg(test)]
mod tests;
mod tiny_lfu;

pub use bound::best_hit_rate;
pub use clock::Clock;
pub use policy::{Policy, hit_rate};
pub use s3_fifo::S3Fifo;
pub use simple::{Lru, Static};
pub use tiny_lfu::{trained_tiny_lfu, warm_tiny_lfu};
