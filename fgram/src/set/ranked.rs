//! f-grams in rank order with their counts, as a file holds them.

use crate::keys::KeyList;
use crate::ngram::TokenId;

/// What a set was mined from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetHeader {
    /// Number of token ids; every id is below it.
    pub vocab_size: u32,
    /// K: the longest f-gram allowed, 2 to [`MAX_N`](crate::MAX_N).
    pub max_n: u8,
    /// SHA-256 of the bytes of tokenizer.json.
    pub tokenizer_hash: [u8; 32],
    /// Counts under this were dropped while mining.
    pub min_count: u64,
}

/// One f-gram of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fgram<'a> {
    /// Its token ids, 2 to K.
    pub ids: &'a [TokenId],
    /// How often it occurs in the training corpus, overlaps included.
    pub count: u64,
    /// How often it is the longest match in the training corpus; 0 while unknown.
    pub match_count: u64,
}

/// What a set file holds. Nothing about it is checked.
#[derive(Clone)]
pub(super) struct Ranked {
    pub(super) header: SetHeader,
    /// In rank order.
    pub(super) keys: KeyList,
    /// One for each key.
    pub(super) counts: Vec<u64>,
    /// One for each key.
    pub(super) match_counts: Vec<u64>,
}

impl Ranked {
    /// The f-gram of a rank, 0-based.
    ///
    /// # Panics
    /// When `rank` is not below the number of keys.
    pub(super) fn get(&self, rank: usize) -> Fgram<'_> {
        Fgram {
            ids: self.keys.get(rank),
            count: self.counts[rank],
            match_count: self.match_counts[rank],
        }
    }
}
