//! f-gram sets to measure with: synthetic ones of any size, and the top of real ones.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scone_fgram::{FgramSet, NGram, SetHeader, TokenId};

/// Vocabulary of synthetic sets: that of the GPT-2 tokenizer.
pub const VOCAB_SIZE: u32 = 50_257;

/// K of synthetic sets.
pub const MAX_N: u8 = 5;

/// A closed set of exactly `size` f-grams of 2 to 5 ids. Only size and shape are like those of a
/// mined set: its ids are drawn with frequencies that fall as 1/rank, phrase by phrase, every part of
/// a phrase is an f-gram too, and how often each is served is drawn apart.
///
/// # Errors
/// Never for a `size` of 1 to 2^31 - 1.
pub fn synthetic(size: usize) -> Result<FgramSet> {
    let mut rng = ChaCha8Rng::seed_from_u64(size as u64);
    let mut counts: HashMap<NGram, u64> = HashMap::with_capacity(size + 10);
    while counts.len() < size {
        add_phrase(&skewed_ids(&mut rng, usize::from(MAX_N)), size, &mut counts);
    }
    let header = SetHeader {
        vocab_size: VOCAB_SIZE,
        max_n: MAX_N,
        tokenizer_hash: [0; 32],
        min_count: 1,
    };
    let mut set = FgramSet::new(header, counts.into_iter().collect())?;
    // In a real table the order of rows has nothing to do with that of keys.
    let served = (0..size).map(|_| (1e12 / (1.0 + rng.random::<f64>() * size as f64)) as u64);
    set.set_match_counts(served.collect())?;
    Ok(set)
}

/// Counts all n-grams of a phrase, short ones first, while there is room.
fn add_phrase(ids: &[TokenId], size: usize, counts: &mut HashMap<NGram, u64>) {
    let grams = (2..=ids.len()).flat_map(|n| ids.windows(n));
    for gram in grams.filter_map(NGram::from_slice) {
        let full = counts.len() >= size;
        match counts.get_mut(&gram) {
            Some(count) => *count += 1,
            // What is longer would lack this part.
            None if full => return,
            None => drop(counts.insert(gram, 1)),
        }
    }
}

/// `n` ids whose frequencies fall about as 1/rank.
pub fn skewed_ids(rng: &mut ChaCha8Rng, n: usize) -> Vec<TokenId> {
    let vocab_size = f64::from(VOCAB_SIZE);
    (0..n)
        .map(|_| (vocab_size.powf(rng.random::<f64>()) - 1.0) as TokenId)
        .collect()
}

/// The first `size` f-grams of `set` by rank: what mining with that limit gives, but for match
/// counts, which are not known.
///
/// # Errors
/// When `set` has fewer.
pub fn top(set: &FgramSet, size: usize) -> Result<FgramSet> {
    ensure!(
        size <= set.len(),
        "the set has {} f-grams, not {size}",
        set.len()
    );
    let fgrams = set.iter().take(size);
    let fgrams = fgrams.filter_map(|fgram| Some((NGram::from_slice(fgram.ids)?, fgram.count)));
    Ok(FgramSet::new(set.header().clone(), fgrams.collect())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synthetic_sets_have_the_size_asked_for_and_all_lengths() {
        for size in [1, 17, 3000] {
            // `FgramSet::new` refuses a set that is not closed.
            assert_eq!(synthetic(size).expect("a closed set").len(), size);
        }
        let lengths = synthetic(3000).expect("a closed set").count_by_length();
        assert!(
            lengths[2..=5].iter().all(|&count| count > 100),
            "{lengths:?}"
        );
    }

    #[test]
    fn the_top_of_a_set_is_a_set() {
        let set = synthetic(500).expect("a closed set");
        let half = top(&set, 250).expect("a closed set");
        assert_eq!(half.len(), 250);
        assert_eq!(half.get(249).ids, set.get(249).ids);
        assert!(top(&set, 501).is_err());
    }
}
