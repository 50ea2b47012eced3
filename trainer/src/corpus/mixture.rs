//! Several sources in stated proportions.

use std::path::PathBuf;

use anyhow::Result;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;

use super::options::Options;
use super::tokenize::tokenize;
use super::tokenized::TokenizedCorpus;
use crate::tokenizer::TextTokenizer;

/// A corpus and how often each of its documents is seen in an epoch.
#[derive(Debug)]
pub struct Mixture {
    /// All sources end to end, each document once.
    pub corpus: TokenizedCorpus,
    /// The documents of an epoch, by their index in `corpus`; in order, equal ones in a row.
    pub documents: Vec<usize>,
}

/// Tokenises sources, each with its weight: how often an epoch has each of its documents. A weight of
/// 2.5 means two or three times, of 0.1 that one document in ten is taken; which ones depends on `seed`.
///
/// # Errors
/// Those of [`tokenize`].
pub fn mix(
    sources: &[(PathBuf, f64)],
    seed: u64,
    tokenizer: &TextTokenizer,
    options: &Options,
) -> Result<Mixture> {
    let mut mixture = Mixture {
        corpus: TokenizedCorpus::default(),
        documents: Vec::new(),
    };
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    // Neighbours of the same weight are one corpus, and one entry of the cache.
    for same in sources.chunk_by(|a, b| a.1 == b.1) {
        let paths: Vec<PathBuf> = same.iter().map(|(path, _)| path.clone()).collect();
        let weight = same[0].1;
        let before = mixture.corpus.document_count();
        mixture
            .corpus
            .append(&tokenize(&paths, tokenizer, options)?);
        for document in before..mixture.corpus.document_count() {
            let more = rng.random::<f64>() < weight.fract();
            let times = weight.trunc() as usize + usize::from(more);
            mixture
                .documents
                .extend(std::iter::repeat_n(document, times));
        }
    }
    Ok(mixture)
}
