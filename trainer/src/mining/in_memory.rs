//! Counting pairs in memory.
//!
//! Sorting all pairs of a scan and counting runs is exact, gives the same result on any number of
//! threads, and costs 12 bytes a token (4 for the ids, 8 for the pairs) beside the corpus itself.

use anyhow::Result;

use super::count;
use super::counted::{Counted, Scanner};
use super::pair_index::PairIndex;
use crate::corpus::TokenizedCorpus;

/// Bytes of memory for each token.
pub(super) const BYTES_PER_TOKEN: u64 = 12;

/// Scans a corpus with everything in memory.
pub(super) struct MemoryScan<'a> {
    corpus: &'a TokenizedCorpus,
    /// The surviving (n-1)-gram that starts at each position; at first every id is its own 1-gram.
    starts: Vec<u32>,
}

impl<'a> MemoryScan<'a> {
    pub(super) fn new(corpus: &'a TokenizedCorpus) -> Self {
        let tokens = corpus.total_tokens() as usize;
        let mut starts = Vec::with_capacity(tokens);
        corpus.copy_ids(0..tokens, &mut starts);
        corpus.forget_pages();
        Self { corpus, starts }
    }
}

impl Scanner for MemoryScan<'_> {
    fn count(&mut self, needed: u64, limit: usize) -> Result<Counted> {
        let mut counted = count::count_pairs(self.corpus, &self.starts, needed);
        counted.keep_best(limit);
        Ok(counted)
    }

    fn advance(&mut self, survivors: Vec<u64>) -> Result<()> {
        count::relabel(self.corpus, &mut self.starts, &PairIndex::new(&survivors));
        Ok(())
    }
}
