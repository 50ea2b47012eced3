//! A set from counts that another engine made.
//!
//! A directory of counts has Parquet files with the columns `ids`, a list of token ids, and `count`, in
//! any number of folders, and a folder `complete` with one line of JSON, written last: what was counted.
//! `trainer/spark/count_ngrams.py` writes such directories.

use std::cmp::Reverse;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use scone_fgram::{FgramSet, NGram, SetHeader};
use serde::Deserialize;

use super::{MinedWith, MiningOptions, keep_best};
use crate::columns::{Lists, Numbers, ParquetFile};
use crate::corpus::{Input, expand};

const IDS: &str = "ids";
const COUNT: &str = "count";
const COMPLETE: &str = "complete";

/// What was counted.
#[derive(Debug, Deserialize)]
struct Complete {
    /// SHA-256 of the tokenizer.json, hexadecimal.
    tokenizer_hash: String,
    max_n: u8,
    min_count: u64,
    max_fgrams: u64,
    /// Tokens of the corpus.
    tokens: u64,
}

/// The best S n-grams of the counts in `dir`, over a corpus of `tokens` tokens; match counts are not
/// set.
///
/// # Errors
/// When the counts are not complete, of another corpus, tokenizer or other options, or cannot be read.
pub fn from_counts(
    dir: &Path,
    tokens: u64,
    tokenizer: &MinedWith,
    options: &MiningOptions,
) -> Result<FgramSet> {
    options.validate()?;
    let complete = read_complete(dir)
        .with_context(|| format!("the counts in {} are not complete", dir.display()))?;
    complete
        .check(tokens, tokenizer, options)
        .with_context(|| format!("cannot use the counts in {}", dir.display()))?;
    let mut found = Vec::new();
    for input in expand(&[dir.to_owned()])? {
        // The line that says so is JSON, and not .jsonl.
        read_counts(&input, options, &mut found)?;
    }
    keep_best(&mut found, options.max_fgrams);
    found.sort_unstable_by_key(|&(gram, count)| (Reverse(count), gram));
    let header = SetHeader {
        vocab_size: tokenizer.vocab_size,
        max_n: options.max_n,
        tokenizer_hash: tokenizer.tokenizer_hash,
        min_count: options.min_count,
    };
    FgramSet::new(header, found)
        .with_context(|| format!("the counts in {} are not those of a corpus", dir.display()))
}

fn read_complete(dir: &Path) -> Result<Complete> {
    let dir = dir.join(COMPLETE);
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let text = fs::read_to_string(&path)?;
            return serde_json::from_str(text.trim())
                .with_context(|| format!("cannot use {}", path.display()));
        }
    }
    bail!("{} has no .json file", dir.display())
}

impl Complete {
    fn check(&self, tokens: u64, tokenizer: &MinedWith, options: &MiningOptions) -> Result<()> {
        let own = scone_files::hex(&tokenizer.tokenizer_hash);
        ensure!(
            self.tokenizer_hash == own,
            "they are of the tokenizer of hash {}, this one is {own}",
            self.tokenizer_hash
        );
        ensure!(
            self.tokens == tokens,
            "they are of {} tokens, --input has {tokens}",
            self.tokens
        );
        ensure!(
            (self.max_n, self.min_count) == (options.max_n, options.min_count),
            "they were made with --max-n {} and --min-count {}, asked for are {} and {}",
            self.max_n,
            self.min_count,
            options.max_n,
            options.min_count
        );
        ensure!(
            self.max_fgrams >= options.max_fgrams as u64,
            "they are enough for {} f-grams, --max-fgrams is {}",
            self.max_fgrams,
            options.max_fgrams
        );
        Ok(())
    }
}

/// Adds the counts of one file, leaving the best now and then.
fn read_counts(
    input: &Input,
    options: &MiningOptions,
    found: &mut Vec<(NGram, u64)>,
) -> Result<()> {
    let file = ParquetFile::open(&input.path)?;
    let path = input.path.display();
    let columns = file.lists(IDS).zip(file.numbers(COUNT));
    let (ids, counts) = columns.with_context(|| {
        let names = file.column_names();
        format!("{path}: no columns {IDS:?} of lists and {COUNT:?} of numbers; it has {names}")
    })?;
    let (mut ids, mut counts) = (Lists::new(&file, ids), Numbers::new(&file, counts));
    let mut row = 0u64;
    while let Some((ids, count)) = ids.next()?.zip(counts.next()?) {
        row += 1;
        let own: Option<Vec<u32>> = ids.iter().map(|&id| u32::try_from(id).ok()).collect();
        let gram = own
            .filter(|ids| (2..=usize::from(options.max_n)).contains(&ids.len()))
            .and_then(|ids| NGram::from_slice(&ids));
        let entry = gram.zip(u64::try_from(count).ok().filter(|count| *count > 0));
        let (gram, count) =
            entry.with_context(|| format!("{path}, row {row}: {ids:?} occurring {count} times"))?;
        if gram.as_slice().len() == 2 || count >= options.min_count {
            found.push((gram, count));
        }
        if found.len() >= 2 * options.max_fgrams.max(1 << 16) {
            keep_best(found, options.max_fgrams);
        }
    }
    Ok(())
}
