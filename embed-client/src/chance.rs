//! Random choices, which can be made again from the same seed.

use std::sync::atomic::{AtomicU64, Ordering};

/// A SplitMix64 generator (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014) that
/// look-ups share without a lock.
#[derive(Debug)]
pub(crate) struct Chance {
    state: AtomicU64,
}

impl Chance {
    /// From a seed, or from one that nobody knows.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self {
            state: seed.unwrap_or_else(rand::random).into(),
        }
    }

    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let state = self.state.fetch_add(STEP, Ordering::Relaxed);
        let mut mixed = state.wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of the numbers below `count`; 0 when there is none.
    pub(crate) fn below(&self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }

    /// From 0 to below 1.
    pub(crate) fn fraction(&self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_all_of_them_come() {
        let (one, other) = (Chance::new(Some(7)), Chance::new(Some(7)));
        let mut counts = [0; 5];
        for _ in 0..10_000 {
            let number = one.below(5);
            assert_eq!(number, other.below(5));
            counts[number] += 1;
        }
        assert!(counts.iter().all(|&count| (1_800..2_200).contains(&count)));
        let fractions: Vec<f64> = (0..1_000).map(|_| one.fraction()).collect();
        assert!(
            fractions
                .iter()
                .all(|fraction| (0.0..1.0).contains(fraction))
        );
        assert_ne!(one.below(usize::MAX), Chance::new(None).below(usize::MAX));
        assert_eq!(one.below(0), 0);
    }
}
