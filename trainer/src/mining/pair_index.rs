//! From a packed pair to its index in a sorted list, in one or two memory accesses.

use std::cmp::Reverse;

use super::pairs::{NO_PAIR, NONE, pack};

/// Open addressing over at most half-full slots.
pub(super) struct PairIndex {
    /// [`NO_PAIR`] in free slots.
    pairs: Vec<u64>,
    /// [`NONE`] in free slots.
    indices: Vec<u32>,
    shift: u32,
}

impl PairIndex {
    /// Indexes distinct pairs, which come with their counts, by their order in `counted`.
    pub(super) fn new(counted: &[(u64, u64)]) -> Self {
        let slots = (counted.len() * 2).next_power_of_two().max(2);
        let mut index = Self {
            pairs: vec![NO_PAIR; slots],
            indices: vec![NONE; slots],
            shift: 64 - slots.trailing_zeros(),
        };
        // The most frequent first, so that they are where they are looked for first.
        let mut order: Vec<u32> = (0..).take(counted.len()).collect();
        order.sort_unstable_by_key(|&number| Reverse(counted[number as usize].1));
        for number in order {
            let (pair, _) = counted[number as usize];
            let slot = index.slot(pair);
            index.pairs[slot] = pair;
            index.indices[slot] = number;
        }
        index
    }

    /// Replaces the id at each position but the last by the number of the pair that starts there, or
    /// [`NONE`], and drops the last. Several [`NONE`] in a row become one: only neighbours matter. The first
    /// label stays that of the first position.
    pub(super) fn relabel(&self, labels: &mut Vec<u32>) {
        // Not NONE, so that the first label is kept whatever it is.
        let (mut kept, mut before) = (0, 0);
        for i in 1..labels.len() {
            let pair = match (labels[i - 1], labels[i]) {
                (NONE, _) | (_, NONE) => NO_PAIR,
                (left, right) => pack(left, right),
            };
            let label = self.get(pair);
            labels[kept] = label;
            kept += usize::from((label != NONE) | (before != NONE));
            before = label;
        }
        labels.truncate(kept);
    }

    /// The index of `pair`, or [`NONE`].
    #[inline]
    pub(super) fn get(&self, pair: u64) -> u32 {
        self.indices[self.slot(pair)]
    }

    /// Where `pair` is, or the free slot where it would go.
    #[inline]
    fn slot(&self, pair: u64) -> usize {
        // Multiplicative hashing (Knuth, TAOCP vol. 3, 6.4): the high bits are the good ones.
        let mut slot = (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        while self.pairs[slot] != NO_PAIR && self.pairs[slot] != pair {
            slot = (slot + 1) & (self.pairs.len() - 1);
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_it_holds_and_nothing_else() {
        for count in [0, 1, 2, 3, 1000] {
            let pairs: Vec<(u64, u64)> = (0..count).map(|i| (i * 3, i % 7)).collect();
            let index = PairIndex::new(&pairs);
            for i in 0..count * 3 {
                let expected = if i % 3 == 0 { (i / 3) as u32 } else { NONE };
                assert_eq!(index.get(i), expected, "{i} of {count}");
            }
            assert_eq!(index.get(NO_PAIR), NONE, "{count}");
        }
    }
}
