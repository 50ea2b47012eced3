//! The checksum of a row: it ties the bytes to the f-gram and to the table.

use crc32fast::Hasher;

use crate::ngram::{MAX_N, TokenId};

/// Computes CRC-32 sums of rows: of the table's checksum seed, the f-gram with big-endian ids (as
/// in sled's keys), and the encoded row.
#[derive(Clone)]
pub(super) struct RowSum {
    /// Has seen the seed.
    seeded: Hasher,
}

impl RowSum {
    pub(super) fn new(checksum_seed: &str) -> Self {
        let mut seeded = Hasher::new();
        seeded.update(checksum_seed.as_bytes());
        Self { seeded }
    }

    /// The sum of the row of `ids`, at most [`MAX_N`] of them.
    pub(super) fn of(&self, ids: &[TokenId], row: &[u8]) -> u32 {
        let mut key = [0; 4 * MAX_N];
        for (bytes, id) in key.as_chunks_mut::<4>().0.iter_mut().zip(ids) {
            *bytes = id.to_be_bytes();
        }
        let mut hasher = self.seeded.clone();
        hasher.update(&key[..4 * ids.len().min(MAX_N)]);
        hasher.update(row);
        hasher.finalize()
    }
}
