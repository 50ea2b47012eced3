//! Counting pairs of neighbours in a long run of ids.

use rayon::prelude::*;

use super::counted::Counted;
use super::pair_index::PairIndex;
use crate::corpus::TokenizedCorpus;

/// Stands where no surviving n-gram starts. Not an id: a set has fewer than 2^31 f-grams, a
/// tokenizer fewer than 2^32 - 1 tokens.
pub(super) const NONE: u32 = u32::MAX;

/// Positions relabelled by one thread at a time.
const CHUNK: usize = 1 << 16;

/// Two ids as one number that sorts as they do.
pub(super) fn pack(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The ids of a packed pair.
pub(super) fn split(pair: u64) -> (u32, u32) {
    ((pair >> 32) as u32, pair as u32)
}

/// How often each pair of neighbours occurs within a document; only pairs that occur at least `needed`
/// times.
pub(super) fn count_pairs(corpus: &TokenizedCorpus, starts: &[u32], needed: u64) -> Counted {
    let pairs = || {
        (0..corpus.document_count())
            .flat_map(|document| starts[corpus.document_range(document)].windows(2))
            .filter(|pair| pair[0] != NONE && pair[1] != NONE)
            .map(|pair| pack(pair[0], pair[1]))
    };
    // Counted first: a vector that grows would for a while need three times the memory.
    let mut sorted = Vec::with_capacity(pairs().count());
    sorted.extend(pairs());
    sorted.par_sort_unstable();
    runs(&sorted, needed)
}

fn runs(sorted: &[u64], needed: u64) -> Counted {
    let mut distinct = 0;
    let pairs: Vec<(u64, u64)> = sorted
        .chunk_by(|a, b| a == b)
        .inspect(|_| distinct += 1)
        .filter(|run| run.len() as u64 >= needed)
        .map(|run| (run[0], run.len() as u64))
        .collect();
    Counted {
        distinct,
        frequent: pairs.len() as u64,
        pairs,
    }
}

/// Replaces the id at each position by the number of the pair that starts there, or [`NONE`].
pub(super) fn relabel(corpus: &TokenizedCorpus, starts: &mut [u32], index: &PairIndex) {
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
    for document in 0..corpus.document_count() {
        starts[corpus.document_range(document).end - 1] = NONE;
    }
}
