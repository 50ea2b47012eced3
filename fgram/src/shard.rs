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
