//! Counting pairs of neighbours in buckets that fit the cache.
//!
//! Pairs are put into buckets by the high bits of their left ids, and each bucket is counted in a hash
//! table: two passes over memory in place of the many that sorting all pairs would take. What the bucket
//! does not say of a pair fits 4 bytes, so that is what a pair takes.

use std::ops::Range;
use std::slice::IterMut;

use anyhow::Result;
use rayon::prelude::*;

use super::pairs::{pack, pairs};
use super::tally::Tally;

/// Bits of an id that make a bucket. A thread writes to all buckets in turn: with more of them their
/// ends no longer fit its cache, with fewer the distinct pairs of one do not.
const BUCKET_BITS: u32 = 10;

/// Where a pair goes, and what is kept of it there.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Bits of an id.
    bits: u32,
    /// Bits of a left id that the bucket does not say.
    low: u32,
}

impl Layout {
    /// For ids below `ids`.
    fn new(ids: usize) -> Self {
        let bits = usize::BITS - ids.saturating_sub(1).leading_zeros();
        // The low bits of the left id and the right id have 32 bits together.
        let low = bits.saturating_sub(BUCKET_BITS).min(32 - bits);
        Self { bits, low }
    }

    fn bucket(self, left: u32) -> usize {
        left as usize >> self.low
    }

    fn key(self, left: u32, right: u32) -> u32 {
        let low = u64::from(left) & ((1 << self.low) - 1);
        (low << self.bits) as u32 | right
    }

    /// The pair of which `key` is in `bucket`. Pairs sort as buckets do, and keys within one.
    fn pair(self, bucket: usize, key: u32) -> u64 {
        let key = u64::from(key);
        let left = (bucket << self.low) as u32 | (key >> self.bits) as u32;
        pack(left, (key & ((1 << self.bits) - 1)) as u32)
    }
}

/// All pairs of neighbours in some labels, by bucket.
pub(super) struct Buckets<'a> {
    layout: Layout,
    keys: &'a [u32],
    /// Where each bucket ends in `keys`.
    ends: Vec<usize>,
}

impl<'a> Buckets<'a> {
    /// Puts the pairs of each part of `parts`, of ids below `ids`, into `room`, which is made larger
    /// where that is needed.
    pub(super) fn fill(
        parts: &[impl AsRef<[u32]> + Sync],
        ids: usize,
        room: &'a mut Vec<u32>,
    ) -> Self {
        let layout = Layout::new(ids);
        let buckets = layout.bucket(ids.saturating_sub(1) as u32) + 1;
        let groups = parts.par_chunks(group_len(parts, buckets)).with_max_len(1);
        let sizes: Vec<Vec<usize>> = groups
            .clone()
            .map(|group| sizes(group, layout, buckets))
            .collect();
        let total = sizes.iter().flatten().sum();
        if room.len() < total {
            // Neither held twice nor copied, and the system gives zeros for nothing.
            *room = Vec::new();
            *room = vec![0; total];
        }
        let mut rest = &mut room[..total];
        let mut slots: Vec<Vec<IterMut<'_, u32>>> = Vec::new();
        slots.resize_with(sizes.len(), || Vec::with_capacity(buckets));
        let mut ends = Vec::with_capacity(buckets);
        for bucket in 0..buckets {
            for (sizes, slots) in sizes.iter().zip(&mut slots) {
                let (own, behind) = std::mem::take(&mut rest).split_at_mut(sizes[bucket]);
                slots.push(own.iter_mut());
                rest = behind;
            }
            ends.push(total - rest.len());
        }
        groups
            .zip(slots)
            .for_each(|(group, slots)| scatter(group, layout, slots));
        Self {
            layout,
            keys: &room[..total],
            ends,
        }
    }

    /// `parts` ranges of buckets, or fewer, with about as many pairs each.
    pub(super) fn shares(&self, parts: usize) -> Vec<Range<usize>> {
        let share = self.keys.len().div_ceil(parts).max(1);
        let mut ranges = Vec::with_capacity(parts);
        let (mut first, mut before) = (0, 0);
        for (bucket, &end) in self.ends.iter().enumerate() {
            if end - before >= share || bucket + 1 == self.ends.len() {
                ranges.push(first..bucket + 1);
                (first, before) = (bucket + 1, end);
            }
        }
        ranges
    }

    /// Hands every pair in the buckets `range` that occurs at least `needed` times to `take`, in order,
    /// with its count; gives back how many different pairs there are.
    ///
    /// # Errors
    /// Those of `take`.
    pub(super) fn count(
        &self,
        range: Range<usize>,
        needed: u64,
        mut take: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<u64> {
        let (mut tally, mut found) = (Tally::default(), Vec::new());
        let mut distinct = 0;
        let mut first = range.start.checked_sub(1).map_or(0, |last| self.ends[last]);
        for bucket in range {
            let end = self.ends[bucket];
            tally.add(&self.keys[first..end]);
            distinct += tally.distinct() as u64;
            tally.drain(needed, &mut found);
            found.sort_unstable();
            for (key, count) in found.drain(..) {
                take(self.layout.pair(bucket, key), count)?;
            }
            first = end;
        }
        Ok(distinct)
    }
}

/// How many parts are put into buckets by one thread after the other. With hundreds of millions of ids there
/// are millions of buckets, and what each group keeps of them must not outgrow the pairs themselves.
fn group_len(parts: &[impl AsRef<[u32]>], buckets: usize) -> usize {
    let labels: usize = parts.iter().map(|labels| labels.as_ref().len()).sum();
    let of_group = buckets * (size_of::<usize>() + size_of::<IterMut<'_, u32>>());
    let groups = (size_of::<u32>() * labels / of_group).clamp(1, parts.len().max(1));
    parts.len().div_ceil(groups).max(1)
}

/// How many pairs of the labels of `group` each bucket gets.
fn sizes(group: &[impl AsRef<[u32]>], layout: Layout, buckets: usize) -> Vec<usize> {
    let mut sizes = vec![0; buckets];
    // A loop in a loop: one over chained parts is not compiled as well.
    for labels in group {
        for (left, _) in pairs(labels.as_ref()) {
            sizes[layout.bucket(left)] += 1;
        }
    }
    sizes
}

/// Puts the pairs of the labels of `group` where their buckets have room for them.
fn scatter(group: &[impl AsRef<[u32]>], layout: Layout, mut slots: Vec<IterMut<'_, u32>>) {
    for labels in group {
        for (left, right) in pairs(labels.as_ref()) {
            if let Some(slot) = slots[layout.bucket(left)].next() {
                *slot = layout.key(left, right);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use super::*;
    use crate::mining::pairs::NONE;

    #[test]
    fn a_layout_keeps_all_of_a_pair() {
        for ids in [
            1,
            2,
            3,
            1024,
            1025,
            200_000,
            1 << 24,
            1 << 31,
            u32::MAX as usize,
        ] {
            let layout = Layout::new(ids);
            let last = (ids - 1) as u32;
            for (left, right) in [
                (0, 0),
                (0, last),
                (last, 0),
                (last, last),
                (last / 3, last / 5),
            ] {
                let (bucket, key) = (layout.bucket(left), layout.key(left, right));
                assert_eq!(layout.pair(bucket, key), pack(left, right), "{ids} ids");
            }
        }
    }

    #[test]
    fn many_buckets_take_no_more_memory_than_the_pairs() {
        let parts = vec![vec![0; 1000]; 64];
        assert_eq!(group_len(&parts, 16), 1);
        // 24 bytes a bucket and group, 4 a label.
        assert_eq!(group_len(&parts, 64_000 / 24), 16);
        assert_eq!(group_len(&parts, 1 << 30), 64);
        assert_eq!(group_len(&[[0; 0]; 0], 1), 1);
    }

    #[test]
    fn equals_a_map_whatever_the_parts_and_shares() {
        let ids = 3000;
        let label = |i: u64| match (i * i) % 11 {
            0 => NONE,
            _ => (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32 % (1 + i as u32 % ids),
        };
        let labels: Vec<u32> = (0..20_000).map(label).collect();
        let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
        for (left, right) in pairs(&labels) {
            *expected.entry(pack(left, right)).or_default() += 1;
        }
        let mut room = Vec::new();
        for (needed, at, shares, ids) in [
            (1, 1, 1, ids as usize),
            (1, 7000, 5, ids as usize),
            (2, 19_999, 5000, ids as usize),
            // More buckets than labels: all parts are one group.
            (1, 7000, 5, 1 << 24),
        ] {
            let parts = [&labels[..=at], &labels[at..]];
            let buckets = Buckets::fill(&parts, ids, &mut room);
            let mut found = Vec::new();
            let mut distinct = 0;
            for range in buckets.shares(shares) {
                let take = |pair, count| {
                    found.push((pair, count));
                    Ok(())
                };
                distinct += buckets.count(range, needed, take).unwrap();
            }
            let often = expected.iter().filter(|(_, count)| **count >= needed);
            let often: Vec<(u64, u64)> = often.map(|(pair, count)| (*pair, *count)).collect();
            assert!(!often.is_empty());
            assert_eq!((found, distinct), (often, expected.len() as u64));
        }
    }
}
