//! Counting pairs of neighbours in a long run of ids.

use std::ops::Range;

use rayon::prelude::*;

use super::counted::Counted;
use super::pair_index::PairIndex;

/// Stands between documents and where no surviving n-gram starts. Not an id: a set has fewer than
/// 2^31 f-grams, a tokenizer fewer than 2^32 - 1 tokens.
pub(super) const NONE: u32 = u32::MAX;

/// Positions relabelled by one thread at a time.
const CHUNK: usize = 1 << 16;

/// Right ids of one left id are counted in an array over all ids when there are at least this share
/// of as many, and sorted when there are fewer.
const ARRAY_SHARE: usize = 8;

/// Two ids as one number that sorts as they do.
pub(super) fn pack(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The ids of a packed pair.
pub(super) fn split(pair: u64) -> (u32, u32) {
    ((pair >> 32) as u32, pair as u32)
}

/// How often each pair of neighbours occurs; ids are below `ids` or [`NONE`]. Only pairs that occur at
/// least `needed` times.
///
/// Pairs are put into buckets by their left ids, and the right ids of each bucket are counted: one
/// pass over memory in place of the many that sorting all pairs would take. Each thread has a range of
/// left ids with about as many pairs as the others; memory is 4 bytes a pair.
pub(super) fn count_pairs(starts: &[u32], ids: usize, needed: u64) -> Counted {
    let lefts = histogram(starts, ids);
    let counted: Vec<Counted> = shares(&lefts, rayon::current_num_threads())
        .into_par_iter()
        .with_max_len(1)
        .map(|range| count_range(starts, &lefts[range.clone()], range, ids, needed))
        .collect();
    let mut all = Counted {
        pairs: Vec::with_capacity(counted.iter().map(|part| part.pairs.len()).sum()),
        ..Counted::default()
    };
    for part in counted {
        all.distinct += part.distinct;
        all.frequent += part.frequent;
        all.pairs.extend(part.pairs);
    }
    all
}

/// How many pairs have each left id.
fn histogram(starts: &[u32], ids: usize) -> Vec<usize> {
    let share = starts.len().div_ceil(rayon::current_num_threads());
    // A part's counts fit 32 bits, and half the memory is twice as much of it in the cache.
    let share = share.clamp(1, u32::MAX as usize / 2);
    let parts: Vec<Vec<u32>> = (0..starts.len())
        .step_by(share)
        .collect::<Vec<_>>()
        .into_par_iter()
        .with_max_len(1)
        .map(|first| {
            let mut counts = vec![0u32; ids];
            // The last pair of a part ends with the first id of the next.
            let part = &starts[first..(first + share + 1).min(starts.len())];
            for pair in part.windows(2) {
                if let Some(count) = counts.get_mut(pair[0] as usize)
                    && pair[1] != NONE
                {
                    *count += 1;
                }
            }
            counts
        })
        .collect();
    let mut lefts = vec![0; ids];
    for part in parts {
        for (sum, count) in lefts.iter_mut().zip(part) {
            *sum += count as usize;
        }
    }
    lefts
}

/// `parts` ranges of left ids, or fewer, with about as many pairs each.
fn shares(lefts: &[usize], parts: usize) -> Vec<Range<usize>> {
    let share = lefts.iter().sum::<usize>().div_ceil(parts).max(1);
    let mut ranges = Vec::with_capacity(parts);
    let (mut first, mut pairs) = (0, 0);
    for (id, count) in lefts.iter().enumerate() {
        pairs += count;
        if pairs >= share || id + 1 == lefts.len() {
            ranges.push(first..id + 1);
            (first, pairs) = (id + 1, 0);
        }
    }
    ranges
}

/// Counts the pairs whose left ids are in `range`; `lefts` says how many each has.
fn count_range(
    starts: &[u32],
    lefts: &[usize],
    range: Range<usize>,
    ids: usize,
    needed: u64,
) -> Counted {
    let mut rights = vec![0; lefts.iter().sum()];
    // Where the next right id of each left id goes; in the end, where its bucket ends.
    let mut ends: Vec<usize> = lefts
        .iter()
        .scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count)))
        .collect();
    for pair in starts.windows(2) {
        // NONE is in no range.
        let left = (pair[0] as usize).wrapping_sub(range.start);
        if pair[1] != NONE
            && let Some(end) = ends.get_mut(left)
        {
            rights[*end] = pair[1];
            *end += 1;
        }
    }
    let mut found = Counted::default();
    let mut counts = Vec::new();
    let mut first = 0;
    for (left, end) in range.zip(ends) {
        let mut add = |right: u32, count: u64| {
            found.distinct += 1;
            if count >= needed {
                found.frequent += 1;
                found.pairs.push((pack(left as u32, right), count));
            }
        };
        let bucket = &mut rights[first..end];
        if bucket.len() >= ids / ARRAY_SHARE {
            count_in_array(bucket, ids, &mut counts, &mut add);
        } else {
            bucket.sort_unstable();
            for same in bucket.chunk_by(|a, b| a == b) {
                add(same[0], same.len() as u64);
            }
        }
        first = end;
    }
    found
}

/// Counts ids in `counts`, which is all zeros before and after, and hands them on in order.
fn count_in_array(
    bucket: &[u32],
    ids: usize,
    counts: &mut Vec<u64>,
    add: &mut impl FnMut(u32, u64),
) {
    counts.resize(ids, 0);
    for &right in bucket {
        counts[right as usize] += 1;
    }
    for (right, count) in (0..).zip(counts) {
        if *count > 0 {
            add(right, std::mem::take(count));
        }
    }
}

/// Replaces the id at each position by the number of the pair that starts there, or [`NONE`].
pub(super) fn relabel(starts: &mut [u32], index: &PairIndex) {
    // A chunk's last pair needs the next chunk's first id as it was.
    let heads: Vec<u32> = starts.iter().copied().step_by(CHUNK).collect();
    starts
        .par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(chunk, ids)| {
            let behind = heads.get(chunk + 1).copied().unwrap_or(NONE);
            for i in 0..ids.len() {
                let right = ids.get(i + 1).copied().unwrap_or(behind);
                ids[i] = match (ids[i], right) {
                    (NONE, _) | (_, NONE) => NONE,
                    (left, right) => index.get(pack(left, right)).unwrap_or(NONE),
                };
            }
        });
}
