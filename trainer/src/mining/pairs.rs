//! Pairs of neighbouring labels.

use rayon::prelude::*;

/// Stands between documents and where no surviving n-gram starts. Not an id: a set has fewer than
/// 2^31 f-grams, a tokenizer fewer than 2^32 - 1 tokens.
pub(super) const NONE: u32 = u32::MAX;

/// Where a label is no id. No pair has the id [`NONE`] in it.
pub(super) const NO_PAIR: u64 = u64::MAX;

/// Two ids as one number that sorts as they do.
pub(super) fn pack(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The ids of a packed pair.
pub(super) fn split(pair: u64) -> (u32, u32) {
    ((pair >> 32) as u32, pair as u32)
}

/// The neighbours in `labels` that are both ids.
pub(super) fn pairs(labels: &[u32]) -> impl Iterator<Item = (u32, u32)> + '_ {
    labels
        .windows(2)
        .map(|pair| (pair[0], pair[1]))
        .filter(|&(left, right)| left != NONE && right != NONE)
}

/// One more than the largest id.
pub(super) fn id_limit(parts: &[impl AsRef<[u32]> + Sync]) -> usize {
    // Adding one makes NONE 0, so that nothing has to be left out.
    let largest = |labels: &[u32]| labels.iter().map(|id| id.wrapping_add(1)).max();
    let parts = parts.par_iter().with_max_len(1);
    parts
        .filter_map(|labels| largest(labels.as_ref()))
        .max()
        .unwrap_or(0) as usize
}
