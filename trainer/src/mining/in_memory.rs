//! Counting pairs in memory.
//!
//! Costs 8 bytes a token, 4 for the ids and 4 for the pairs, and 16 for each pair found, beside the
//! corpus itself; gives the same result on any number of threads.

use anyhow::Result;

use super::count::{self, NONE};
use super::counted::{Counted, Scanner};
use super::pair_index::PairIndex;
use crate::corpus::TokenizedCorpus;

/// Bytes of memory for each token, pairs found included.
pub(super) const BYTES_PER_TOKEN: u64 = 12;

/// Scans a corpus with everything in memory.
pub(super) struct MemoryScan {
    /// The surviving (n-1)-gram that starts at each position; at first every id is its own 1-gram.
    /// [`NONE`] follows each document.
    starts: Vec<u32>,
    /// Every id in `starts` is below it.
    ids: usize,
}

impl MemoryScan {
    pub(super) fn new(corpus: &TokenizedCorpus) -> Self {
        let documents = corpus.document_count();
        let mut starts = Vec::with_capacity(corpus.total_tokens() as usize + documents);
        for document in 0..documents {
            corpus.copy_ids(corpus.document_range(document), &mut starts);
            starts.push(NONE);
        }
        corpus.forget_pages();
        let largest = starts.iter().filter(|id| **id != NONE).max();
        let ids = largest.map_or(0, |id| *id as usize + 1);
        Self { starts, ids }
    }
}

impl Scanner for MemoryScan {
    fn count(&mut self, needed: u64, limit: usize) -> Result<Counted> {
        let mut counted = count::count_pairs(&self.starts, self.ids, needed);
        counted.keep_best(limit);
        Ok(counted)
    }

    fn advance(&mut self, survivors: Vec<u64>) -> Result<()> {
        count::relabel(&mut self.starts, &PairIndex::new(&survivors));
        // Only neighbours matter, so several in a row are one.
        self.starts.dedup_by(|a, b| *a == NONE && *b == NONE);
        self.ids = survivors.len();
        Ok(())
    }
}
