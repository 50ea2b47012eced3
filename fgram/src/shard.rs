//! Which shard of a table owns an f-gram.
//!
//! Every f-gram that may match at a position ends in the same two ids, so hashing these two
//! gives all candidates of a position to one shard, whatever length matches in the end.

use crate::ngram::TokenId;

/// The shard, `0..shards`, of f-grams (and positions) whose last two ids are `last_two`,
/// the very last one second.
///
/// It is `splitmix64(last_two[0] << 32 | last_two[1]) % shards` with 64-bit wrapping arithmetic;
/// `docs/formats.md` has the function in Python and test vectors.
///
/// # Panics
/// When `shards` is 0.
pub fn shard_of(last_two: [TokenId; 2], shards: u32) -> u32 {
    let pair = u64::from(last_two[0]) << 32 | u64::from(last_two[1]);
    (splitmix64(pair) % u64::from(shards)) as u32
}

/// The output for state `x` of Steele, Lea and Flood's SplitMix64 (OOPSLA 2014).
pub(crate) fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the Python function in docs/formats.md.
    #[test]
    fn vectors_for_other_languages() {
        let shards = [1, 2, 3, 8, 1000, u32::MAX];
        let vectors: [([u32; 2], [u32; 6]); 7] = [
            ([0, 0], [0, 1, 1, 7, 535, 1_564_374_505]),
            ([0, 1], [0, 1, 2, 1, 465, 437_029_550]),
            ([1, 0], [0, 0, 1, 0, 56, 1_739_479_891]),
            ([17, 4095], [0, 1, 1, 7, 999, 4_108_515_409]),
            ([50256, 262], [0, 1, 2, 7, 103, 3_681_349_613]),
            ([0x7fff_ffff, 0x7fff_ffff], [0, 1, 0, 1, 209, 4_090_662_294]),
            ([u32::MAX, u32::MAX], [0, 0, 2, 0, 936, 4_103_576]),
        ];
        for (last_two, expected) in vectors {
            assert_eq!(
                shards.map(|n| shard_of(last_two, n)),
                expected,
                "{last_two:?}"
            );
        }
    }

    /// The first outputs of the reference SplitMix64 seeded with 0.
    #[test]
    fn is_splitmix64() {
        let gamma = 0x9e37_79b9_7f4a_7c15u64;
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(gamma), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn spreads_frequent_pairs_evenly() {
        let mut counts = [0u32; 4];
        (0..100).for_each(|a| (0..100).for_each(|b| counts[shard_of([a, b], 4) as usize] += 1));
        assert!(
            counts.iter().all(|&count| (2300..2700).contains(&count)),
            "{counts:?}"
        );
    }
}
