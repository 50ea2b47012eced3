//! Finding the f-grams of a corpus: exact counts of every n-gram, one ranking, the best S.
//!
//! SCONE paper section 3.1 (arXiv 2502.01637): one scan a length. The scan for length n knows for
//! every position the surviving (n-1)-gram that starts there, by a u32 id; an n-gram is then the pair
//! of ids at i and i+1, one u64. Sorting the pairs and counting runs is exact, gives the same result
//! on any number of threads, and costs 12 bytes a token (4 for the ids, 8 for the pairs) beside the
//! corpus itself.
//!
//! Only the best S n-grams of all lengths together are wanted, so once S are known, an n-gram that is
//! not more frequent than the S-th of them is out, and so is every longer one that contains it
//! (ties go to the shorter one). Later scans drop such positions, which changes no result and makes
//! them fast.

mod count;
mod pair_index;
mod recount;
mod tag;

use std::cmp::Reverse;

use anyhow::{Context, Result, ensure};
use scone_fgram::{FgramSet, MAX_N, NGram, SetHeader};

pub use recount::{Mismatch, Recount, recount};
pub use tag::{MatchCounts, count_matches};

use crate::corpus::TokenizedCorpus;
use crate::progress::{Progress, Unit};
use pair_index::PairIndex;

/// The most f-grams a set can have; a matcher keeps one bit of a row id for itself.
pub const MAX_FGRAMS: usize = (1 << 31) - 1;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MiningOptions {
    /// K: the longest n-gram, 2 to [`MAX_N`].
    pub max_n: u8,
    /// n-grams of three and more ids that are rarer are dropped.
    pub min_count: u64,
    /// S: how many f-grams to keep, 1 to [`MAX_FGRAMS`].
    pub max_fgrams: usize,
}

impl MiningOptions {
    /// # Errors
    /// When a field is out of its limits.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            (2..=MAX_N).contains(&usize::from(self.max_n)),
            "max_n is {}, must be 2 to {MAX_N}",
            self.max_n
        );
        ensure!(self.min_count >= 1, "min_count is 0, must be at least 1");
        ensure!(
            (1..=MAX_FGRAMS).contains(&self.max_fgrams),
            "max_fgrams is {}, must be 1 to {MAX_FGRAMS}",
            self.max_fgrams
        );
        Ok(())
    }
}

/// The f-grams of `corpus`: at most S of them, with their counts; match counts are not set.
///
/// # Errors
/// When an option is out of its limits, or the corpus is too large for 32-bit ids.
pub fn mine(
    corpus: &TokenizedCorpus,
    vocab_size: u32,
    tokenizer_hash: [u8; 32],
    options: &MiningOptions,
) -> Result<FgramSet> {
    options.validate()?;
    let fgrams = most_frequent(corpus, options)?;
    let header = SetHeader {
        vocab_size,
        max_n: options.max_n,
        tokenizer_hash,
        min_count: options.min_count,
    };
    FgramSet::new(header, fgrams).context("the n-grams found are not an f-gram set")
}

/// The best S n-grams in rank order.
fn most_frequent(corpus: &TokenizedCorpus, options: &MiningOptions) -> Result<Vec<(NGram, u64)>> {
    let progress = Progress::new("mine", u64::from(options.max_n) - 1, Unit::Items);
    let mut scan = Scan::new(corpus);
    let mut found: Vec<(NGram, u64)> = Vec::new();
    let mut best = BestCounts::new(options.max_fgrams);
    // 2-grams are kept however rare they are.
    let mut needed = 1;
    for n in 2..=options.max_n {
        let grams = scan.count(needed, options.max_fgrams)?;
        best.add(grams.iter().map(|&(_, count)| count));
        tracing::info!(
            n,
            at_least = needed,
            candidates = grams.len(),
            "counted n-grams"
        );
        needed = options.min_count.max(best.cut() + 1);
        if n < options.max_n {
            scan.advance(&grams, needed);
        }
        found.extend(grams);
        progress.add(1);
    }
    found.sort_unstable_by_key(|&(gram, count)| (Reverse(count), gram));
    found.truncate(options.max_fgrams);
    Ok(found)
}

/// One pass after another over the corpus, each for n-grams one id longer.
struct Scan<'a> {
    corpus: &'a TokenizedCorpus,
    /// The surviving (n-1)-gram that starts at each position; at first every id is its own 1-gram.
    starts: Vec<u32>,
    /// What an id in `starts` stands for; `None` while they are token ids.
    survivors: Option<Vec<NGram>>,
    /// The pairs that were counted last, sorted, one for each n-gram that `count` returned.
    pairs: Vec<u64>,
}

impl<'a> Scan<'a> {
    fn new(corpus: &'a TokenizedCorpus) -> Self {
        let mut starts = Vec::with_capacity(corpus.ids().len());
        corpus.ids().copy_range(0..corpus.ids().len(), &mut starts);
        Self {
            corpus,
            starts,
            survivors: None,
            pairs: Vec::new(),
        }
    }

    /// The n-grams that occur at least `needed` times, the best `limit` of them, sorted by ids.
    fn count(&mut self, needed: u64, limit: usize) -> Result<Vec<(NGram, u64)>> {
        let mut counted = count::count_pairs(self.corpus, &self.starts, needed);
        if counted.len() > limit {
            // Pairs sort as the n-grams they stand for, so this is rank order within one length.
            counted.select_nth_unstable_by_key(limit, |&(pair, count)| (Reverse(count), pair));
            counted.truncate(limit);
            counted.sort_unstable();
        }
        self.pairs = counted.iter().map(|&(pair, _)| pair).collect();
        counted
            .into_iter()
            .map(|(pair, count)| Ok((self.join(pair)?, count)))
            .collect()
    }

    fn join(&self, pair: u64) -> Result<NGram> {
        let (left, right) = count::split(pair);
        let joined = match &self.survivors {
            None => NGram::from_slice(&[left, right]),
            Some(grams) => {
                let mut ids = grams[left as usize].as_slice().to_vec();
                ids.extend(grams[right as usize].as_slice().last());
                NGram::from_slice(&ids)
            }
        };
        joined.context("an n-gram is longer than max_n")
    }

    /// Makes those of `grams`, just counted, that occur `needed` times the survivors.
    fn advance(&mut self, grams: &[(NGram, u64)], needed: u64) {
        let survives = |&(_, &(_, count)): &(&u64, &(NGram, u64))| count >= needed;
        let (pairs, survivors): (Vec<u64>, Vec<NGram>) = self
            .pairs
            .iter()
            .zip(grams)
            .filter(survives)
            .map(|(&pair, &(gram, _))| (pair, gram))
            .unzip();
        count::relabel(self.corpus, &mut self.starts, &PairIndex::new(&pairs));
        self.survivors = Some(survivors);
    }
}

/// The S highest counts so far.
struct BestCounts {
    counts: Vec<u64>,
    limit: usize,
}

impl BestCounts {
    fn new(limit: usize) -> Self {
        Self {
            counts: Vec::new(),
            limit,
        }
    }

    fn add(&mut self, counts: impl Iterator<Item = u64>) {
        self.counts.extend(counts);
        if self.counts.len() > self.limit {
            self.counts
                .select_nth_unstable_by_key(self.limit, |&count| Reverse(count));
            self.counts.truncate(self.limit);
        }
    }

    /// The S-th highest count, 0 while there are fewer: a longer n-gram has to be above it.
    fn cut(&self) -> u64 {
        if self.counts.len() < self.limit {
            0
        } else {
            self.counts.iter().copied().min().unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests;
