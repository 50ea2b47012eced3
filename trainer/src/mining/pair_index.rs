//! From a packed pair to its index in a sorted list, in one or two memory accesses.

/// Marks a free slot; no pair has the id `u32::MAX` in it, which stands for no n-gram.
const FREE: u64 = u64::MAX;

/// Open addressing over at most half-full slots.
pub(super) struct PairIndex {
    pairs: Vec<u64>,
    indices: Vec<u32>,
    shift: u32,
}

impl PairIndex {
    /// Indexes distinct pairs by their order in `pairs`.
    pub(super) fn new(pairs: &[u64]) -> Self {
        let slots = (pairs.len() * 2).next_power_of_two().max(2);
        let shift = 64 - slots.trailing_zeros();
        let mut index = Self {
            pairs: vec![FREE; slots],
            indices: vec![0; slots],
            shift,
        };
        for (&pair, number) in pairs.iter().zip(0..) {
            let slot = index.slot(pair);
            index.pairs[slot] = pair;
            index.indices[slot] = number;
        }
        index
    }

    /// The index of `pair`.
    pub(super) fn get(&self, pair: u64) -> Option<u32> {
        let slot = self.slot(pair);
        (self.pairs[slot] == pair).then(|| self.indices[slot])
    }

    /// Where `pair` is, or the free slot where it would go.
    fn slot(&self, pair: u64) -> usize {
        // Multiplicative hashing (Knuth, TAOCP vol. 3, 6.4): the high bits are the good ones.
        let mut slot = (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        while self.pairs[slot] != FREE && self.pairs[slot] != pair {
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
            let pairs: Vec<u64> = (0..count).map(|i| i * 3).collect();
            let index = PairIndex::new(&pairs);
            for i in 0..count * 3 {
                let expected = (i % 3 == 0).then_some((i / 3) as u32);
                assert_eq!(index.get(i), expected, "{i} of {count}");
            }
        }
    }
}
