//! An f-gram set together with the tokenizer it was mined with.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use scone_fgram::NGram;
use scone_fgram::set::FgramSet;
use scone_files::hex;

use crate::tokenizer::TextTokenizer;

/// Reads an f-gram set and checks that it was mined with this tokenizer.
///
/// # Errors
/// When it cannot be read, or is of another tokenizer.
pub fn load_set(path: &Path, tokenizer: &TextTokenizer) -> Result<FgramSet> {
    let set = FgramSet::read(path)
        .with_context(|| format!("cannot read the f-gram set {}", path.display()))?;
    let header = set.header();
    ensure!(
        header.tokenizer_hash == tokenizer.sha256(),
        "the f-gram set {} was mined with the tokenizer of hash {}, this one is {}; mine it again \
         or use its tokenizer",
        path.display(),
        hex(&header.tokenizer_hash),
        hex(&tokenizer.sha256())
    );
    ensure!(
        header.vocab_size == tokenizer.vocab_size(),
        "the f-gram set {} is for {} token ids, the tokenizer has {}",
        path.display(),
        header.vocab_size,
        tokenizer.vocab_size()
    );
    Ok(set)
}

/// The first `max` f-grams of a set in the order of its ranking: what mining would have kept with
/// that limit. Match counts are unknown.
///
/// # Errors
/// When there are fewer.
pub fn first_fgrams(set: &FgramSet, max: usize) -> Result<FgramSet> {
    ensure!(
        set.len() >= max,
        "max_fgrams = {max}, but the f-gram set holds only {}: mine more",
        set.len()
    );
    let first = set.iter().take(max);
    let first = first.filter_map(|f| Some((NGram::from_slice(f.ids)?, f.count)));
    Ok(FgramSet::new(set.header().clone(), first.collect())?)
}
