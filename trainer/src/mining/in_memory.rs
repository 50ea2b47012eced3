//! Counting pairs in memory.
//!
//! Costs 8 bytes a token, 4 for the label and 4 for the pair, and 16 for each pair found, beside the
//! corpus itself; gives the same result on any number of threads.

use std::ops::Range;

use anyhow::Result;
use rayon::prelude::*;

use super::buckets::Buckets;
use super::counted::{Counted, Scanner};
use super::pair_index::PairIndex;
use super::pairs::{NONE, id_limit};
use crate::corpus::TokenizedCorpus;

/// Bytes of memory for each token, pairs found included.
pub(super) const BYTES_PER_TOKEN: u64 = 12;

/// Parts for each thread, so that uneven ones even out.
const PARTS_PER_THREAD: usize = 4;

/// Scans a corpus with everything in memory.
pub(super) struct MemoryScan {
    /// The surviving (n-1)-gram that starts at each position, in parts; at first every id is its own
    /// 1-gram. [`NONE`] follows each document. A part ends with the first label of the next.
    parts: Vec<Vec<u32>>,
    /// Every id is below it.
    ids: usize,
    /// For the pairs of a scan, kept for the next.
    room: Vec<u32>,
}

impl MemoryScan {
    pub(super) fn new(corpus: &TokenizedCorpus) -> Self {
        let tokens = corpus.total_tokens() as usize;
        let share = tokens.div_ceil(part_count()).max(1);
        let firsts: Vec<usize> = (0..tokens).step_by(share).collect();
        let mut parts: Vec<Vec<u32>> = firsts
            .into_par_iter()
            .with_max_len(1)
            .map(|first| read(corpus, first..tokens.min(first + share)))
            .collect();
        corpus.forget_pages();
        join(&mut parts);
        Self {
            ids: id_limit(&parts),
            parts,
            room: Vec::new(),
        }
    }
}

fn part_count() -> usize {
    PARTS_PER_THREAD * rayon::current_num_threads()
}

/// The ids at `range`, with [`NONE`] behind each document that ends there.
fn read(corpus: &TokenizedCorpus, range: Range<usize>) -> Vec<u32> {
    let mut document = corpus.document_at(range.start);
    let borders = corpus.document_at(range.end - 1) + 1 - document;
    // One more is that of the next part.
    let mut labels = Vec::with_capacity(range.len() + borders + 1);
    let mut at = range.start;
    while at < range.end {
        let end = corpus.document_range(document).end;
        let own_end = end.min(range.end);
        corpus.copy_ids(at..own_end, &mut labels);
        if own_end == end {
            labels.push(NONE);
            document += 1;
        }
        at = own_end;
    }
    labels
}

/// Appends the first label of each part to the part before, [`NONE`] to the last.
fn join(parts: &mut [Vec<u32>]) {
    let mut next = NONE;
    for part in parts.iter_mut().rev() {
        let first = part.first().copied().unwrap_or(NONE);
        part.push(next);
        next = first;
    }
}

impl Scanner for MemoryScan {
    fn count(&mut self, needed: u64, limit: usize) -> Result<Counted> {
        let buckets = Buckets::fill(&self.parts, self.ids, &mut self.room);
        let count = |range: Range<usize>| -> Result<Counted> {
            let mut found = Counted::default();
            found.distinct = buckets.count(range, needed, |pair, count| {
                found.pairs.push((pair, count));
                Ok(())
            })?;
            found.frequent = found.pairs.len() as u64;
            Ok(found)
        };
        let shares = buckets.shares(part_count()).into_par_iter();
        let counted: Vec<Counted> = shares.with_max_len(1).map(count).collect::<Result<_>>()?;
        let mut all = Counted {
            pairs: Vec::with_capacity(counted.iter().map(|part| part.pairs.len()).sum()),
            ..Counted::default()
        };
        for part in counted {
            all.distinct += part.distinct;
            all.frequent += part.frequent;
            all.pairs.extend(part.pairs);
        }
        all.keep_best(limit);
        Ok(all)
    }

    fn advance(&mut self, survivors: Vec<(u64, u64)>) -> Result<()> {
        let index = PairIndex::new(&survivors);
        let parts = self.parts.par_iter_mut().with_max_len(1);
        parts.for_each(|labels| index.relabel(labels));
        join(&mut self.parts);
        self.ids = survivors.len();
        Ok(())
    }
}
