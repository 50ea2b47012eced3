//! Checksums of rows: of one, which ties its bytes to the f-gram and to the table, and of all.

use crc32fast::Hasher;
use scone_files::hex;
use sha2::{Digest as _, Sha256};

use crate::ngram::{MAX_N, TokenId};

/// Computes CRC-32 sums of rows: of the table's checksum seed, the f-gram with big-endian ids (as
/// in sled's keys), and the encoded row.
#[derive(Clone)]
pub(crate) struct RowSum {
    /// Has seen the seed.
    seeded: Hasher,
}

impl RowSum {
    pub(crate) fn new(checksum_seed: &str) -> Self {
        let mut seeded = Hasher::new();
        seeded.update(checksum_seed.as_bytes());
        Self { seeded }
    }

    /// The sum of the row of `ids`, at most [`MAX_N`] of them.
    pub(crate) fn of(&self, ids: &[TokenId], row: &[u8]) -> u32 {
        let mut key = [[0; 4]; MAX_N];
        for (bytes, id) in key.iter_mut().zip(ids) {
            *bytes = id.to_be_bytes();
        }
        self.of_key(key[..ids.len().min(MAX_N)].as_flattened(), row)
    }

    /// The sum of the row whose key has these bytes, as those of [`key_bytes`].
    #[inline]
    pub(crate) fn of_key(&self, key: &[u8], row: &[u8]) -> u32 {
        let mut hasher = self.seeded.clone();
        hasher.update(key);
        hasher.update(row);
        hasher.finalize()
    }
}

/// SHA-256 of all rows with their keys, in the order of keys.
pub(crate) struct RowsHash(Sha256);

impl RowsHash {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Adds one row: length of the f-gram, its ids as in the store's keys, the encoded row.
    pub(crate) fn add(&mut self, ids: &[TokenId], row: &[u8]) {
        self.0.update([ids.len() as u8]);
        self.0.update(key_bytes(ids));
        self.0.update(row);
    }

    pub(crate) fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// The key of an f-gram in sled. Big-endian, so that the order of bytes is that of ids.
pub(crate) fn key_bytes(ids: &[TokenId]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_be_bytes()).collect()
}
