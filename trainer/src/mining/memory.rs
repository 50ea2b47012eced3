//! How much memory mining takes, and how to take less.

use std::path::Path;

use anyhow::{Result, ensure};
use scone_fgram::SetHeader;
use sha2::{Digest as _, Sha256};

use super::external::Limits;
use super::in_memory::BYTES_PER_TOKEN;
use super::{Bounded, MiningOptions};
use crate::corpus::TokenizedCorpus;

/// The program, its threads, and buffers of a fixed size.
const BASE: u64 = 48 << 20;
/// For each f-gram of the set: n-grams with counts, their pairs and the index of survivors while
/// scans run; then the set, its matcher and its file.
const BYTES_PER_FGRAM: u64 = 200;
/// The least for labels and their pairs; with less, runs are so short that merging them takes over.
const LEAST_SORT: u64 = 2 << 20;
/// Bytes of a label that waits to be counted and of its pair.
const PAIR: u64 = 8;

/// How to mine within `bounded.memory_bytes`; `None`: in memory, it is enough.
///
/// # Errors
/// When it is less than the set itself needs, or the corpus is in memory and takes more.
pub(super) fn plan<'a>(
    corpus: &TokenizedCorpus,
    options: &MiningOptions,
    bounded: &Bounded<'a>,
) -> Result<Option<(&'a Path, Limits)>> {
    let memory = bounded.memory_bytes;
    let tokens = corpus.total_tokens();
    let lengths = u64::from(options.max_n) - 1;
    let fgrams = (options.max_fgrams as u64).min(tokens.saturating_mul(lengths));
    let fixed = BASE + BYTES_PER_FGRAM * fgrams;
    if fixed + BYTES_PER_TOKEN * tokens <= memory {
        return Ok(None);
    }
    let least = fixed + LEAST_SORT;
    ensure!(
        memory >= least,
        "--memory is {memory} bytes, a set of {fgrams} f-grams needs at least {least}"
    );
    ensure!(
        corpus.is_mapped(),
        "--memory needs tokens in files: leave out --no-cache, or give the directory that \
         `trainer tokenize` wrote"
    );
    let limits = Limits {
        pairs: ((memory - fixed) / PAIR) as usize,
        max_n: options.max_n,
    };
    tracing::info!(
        memory_bytes = memory,
        sort_bytes = memory - fixed,
        "mining in bounded memory"
    );
    Ok(Some((bounded.work_dir, limits)))
}

/// Names the work: whoever has the same key finds the same in every scan.
pub(super) fn key(
    corpus: &TokenizedCorpus,
    header: &SetHeader,
    options: &MiningOptions,
) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"mining 1");
    hash.update(corpus.fingerprint());
    hash.update(header.tokenizer_hash);
    hash.update(header.vocab_size.to_le_bytes());
    hash.update([options.max_n]);
    hash.update(options.min_count.to_le_bytes());
    hash.update((options.max_fgrams as u64).to_le_bytes());
    hash.finalize().into()
}
