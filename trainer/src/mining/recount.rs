//! A second opinion on the counts of a set, by a method too simple to be wrong.

use rand::seq::index::sample;
use rand::{SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use scone_fgram::FgramSet;

use crate::corpus::TokenizedCorpus;

/// An f-gram whose stored count is not what a recount found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Its rank.
    pub rank: usize,
    /// Its ids.
    pub ids: Vec<u32>,
    /// The count in the set.
    pub stored: u64,
    /// The count found.
    pub found: u64,
}

/// Result of [`recount`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recount {
    /// How many f-grams were recounted.
    pub checked: usize,
    /// Those that were wrong.
    pub mismatches: Vec<Mismatch>,
}

/// Counts `samples` f-grams of `set`, drawn with a fixed seed, by comparing ids at every position.
pub fn recount(corpus: &TokenizedCorpus, set: &FgramSet, samples: usize) -> Recount {
    let samples = samples.min(set.len());
    let mut rng = StdRng::seed_from_u64(1);
    let mut ranks = sample(&mut rng, set.len(), samples).into_vec();
    ranks.sort_unstable();
    let mut by_first_id: Vec<Vec<usize>> = vec![Vec::new(); set.header().vocab_size as usize];
    for (drawn, &rank) in ranks.iter().enumerate() {
        by_first_id[set.get(rank).ids[0] as usize].push(drawn);
    }
    let found = (0..corpus.document_count())
        .into_par_iter()
        .fold(
            || (vec![0u64; samples], Vec::new()),
            |(mut found, mut ids), document| {
                corpus.document(document, &mut ids);
                for (i, &id) in ids.iter().enumerate() {
                    for &drawn in &by_first_id[id as usize] {
                        found[drawn] += u64::from(ids[i..].starts_with(set.get(ranks[drawn]).ids));
                    }
                }
                (found, ids)
            },
        )
        .map(|(found, _)| found)
        .reduce(
            || vec![0; samples],
            |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect(),
        );
    let mismatches = ranks
        .iter()
        .zip(found)
        .map(|(&rank, found)| (rank, set.get(rank), found))
        .filter(|(_, fgram, found)| fgram.count != *found)
        .map(|(rank, fgram, found)| Mismatch {
            rank,
            ids: fgram.ids.to_vec(),
            stored: fgram.count,
            found,
        })
        .collect();
    Recount {
        checked: samples,
        mismatches,
    }
}
