//! What a scan finds.

use std::cmp::Reverse;

use anyhow::Result;

/// The pairs of one scan that matter, and how many there were.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Counted {
    /// Pairs and their counts, sorted by pair: those that occur often enough, the best of them.
    pub(super) pairs: Vec<(u64, u64)>,
    /// Different pairs there were.
    pub(super) distinct: u64,
    /// Different pairs that occur often enough.
    pub(super) frequent: u64,
}

impl Counted {
    /// Leaves the best `limit`. Pairs sort as the n-grams they stand for, so this is rank order within
    /// one length.
    pub(super) fn keep_best(&mut self, limit: usize) {
        if self.pairs.len() > limit {
            let rank = |&(pair, count): &(u64, u64)| (Reverse(count), pair);
            self.pairs.select_nth_unstable_by_key(limit, rank);
            self.pairs.truncate(limit);
            self.pairs.sort_unstable();
        }
    }
}

/// Counts pairs of neighbours, one length of n-grams after another.
pub(super) trait Scanner {
    /// The pairs of ids that occur at least `needed` times, the best `limit` of them.
    ///
    /// # Errors
    /// When something cannot be read or written.
    fn count(&mut self, needed: u64, limit: usize) -> Result<Counted>;

    /// Makes the pairs just counted that are in `survivors` the ids of the next scan: the one at each
    /// position, by its place in the list. They are sorted and come with their counts.
    ///
    /// # Errors
    /// When something cannot be read or written.
    fn advance(&mut self, survivors: Vec<(u64, u64)>) -> Result<()>;
}
