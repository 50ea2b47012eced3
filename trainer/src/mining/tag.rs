//! How often each f-gram is the longest match in a corpus.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use scone_fgram::matcher::Matcher;
use scone_fgram::{FgramSet, MAX_N};

use crate::corpus::TokenizedCorpus;

/// Tokens tagged before their pages are given back.
const GROUP_TOKENS: usize = 1 << 22;

/// What tagging a corpus with a set found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchCounts {
    /// By rank, how often the f-gram is the longest match.
    pub by_rank: Vec<u64>,
    /// By length, how many positions have such a match; at 0 those without.
    pub by_length: [u64; MAX_N + 1],
}

impl MatchCounts {
    /// Positions of the corpus.
    pub fn positions(&self) -> u64 {
        self.by_length.iter().sum()
    }

    /// Share of positions with a match, 0 to 1.
    pub fn matched_share(&self) -> f64 {
        self.share(self.positions() - self.by_length[0])
    }

    /// Share of positions whose longest match has length `n`.
    pub fn share_of_length(&self, n: usize) -> f64 {
        self.share(self.by_length[n])
    }

    /// Mean length of the longest match over matched positions; 0 when there are none.
    pub fn mean_length(&self) -> f64 {
        let matched = self.positions() - self.by_length[0];
        let ids: u64 = self
            .by_length
            .iter()
            .zip(0u64..)
            .map(|(count, n)| count * n)
            .sum();
        if matched == 0 {
            0.0
        } else {
            ids as f64 / matched as f64
        }
    }

    fn share(&self, positions: u64) -> f64 {
        if self.positions() == 0 {
            0.0
        } else {
            positions as f64 / self.positions() as f64
        }
    }
}

/// Tags every position of `corpus`, document by document.
pub fn count_matches(corpus: &TokenizedCorpus, set: &FgramSet) -> MatchCounts {
    let matcher = set.matcher();
    let by_rank: Vec<AtomicU64> = (0..set.len()).map(|_| AtomicU64::new(0)).collect();
    let mut by_length = [0; MAX_N + 1];
    for group in corpus.groups(GROUP_TOKENS) {
        for (sum, own) in by_length
            .iter_mut()
            .zip(tag(corpus, &matcher, group, &by_rank))
        {
            *sum += own;
        }
        corpus.forget_pages();
    }
    MatchCounts {
        by_rank: by_rank.into_iter().map(AtomicU64::into_inner).collect(),
        by_length,
    }
}

/// Tags the documents of `group`; gives back how many positions have which length.
fn tag(
    corpus: &TokenizedCorpus,
    matcher: &Matcher,
    group: Range<usize>,
    by_rank: &[AtomicU64],
) -> [u64; MAX_N + 1] {
    group
        .into_par_iter()
        .map_init(
            || (Vec::new(), Vec::new()),
            |(ids, tags), document| {
                corpus.document(document, ids);
                tags.clear();
                matcher.tag(ids, 0, tags);
                let mut lengths = [0; MAX_N + 1];
                for tag in tags.iter() {
                    match tag {
                        Some(found) => {
                            by_rank[found.row as usize].fetch_add(1, Ordering::Relaxed);
                            lengths[usize::from(found.len)] += 1;
                        }
                        None => lengths[0] += 1,
                    }
                }
                lengths
            },
        )
        .reduce(
            || [0; MAX_N + 1],
            |a, b| std::array::from_fn(|n| a[n] + b[n]),
        )
}
