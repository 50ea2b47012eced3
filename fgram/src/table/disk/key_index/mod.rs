//! Longest match over the keys of a table, on disk and in memory in under 6 bytes a key.
//!
//! `index.bin` is a perfect hash with fingerprints: each f-gram has one slot of its own, which
//! holds one byte of its hash and its row id, and a look-up reads that slot alone. The hash runs
//! from the last id outwards, so a look-up for n = 2, 3, … extends one hash, and stops at the
//! first slot that is empty or has another fingerprint: the keys are closed under suffix, so no
//! longer one can match. What is not a key may still meet a slot with its fingerprint (1 in 256),
//! so the longest candidate is compared with its key in `keys.bin`, and a shorter one is taken
//! when it differs. That makes the answer exact.
//!
//! How slots are found (after Fox, Chen and Heath, "A faster algorithm for constructing minimal
//! perfect hash functions", SIGIR 1992, with the partitions that make it parallel): the upper half
//! of the hash chooses a partition of some thousand keys, the lower half a bucket of about four in
//! it; the bucket's *pilot*, 16 bits found by trial, sends each of its keys to a slot of its own.

mod build;
mod index;
mod layout;
#[cfg(test)]
mod tests;

pub(crate) use build::encode;
pub use index::KeyIndex;
pub(crate) use layout::KIND;
