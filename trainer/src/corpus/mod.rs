//! A corpus as documents of token ids: read, tokenised once, kept in a cache file.
//!
//! Inputs are streamed ([`reader`]); what stays in memory is the token ids, two bytes each when the
//! vocabulary has at most 65,536 entries. Documents are tokenised without special tokens, and the
//! border between two of them is kept: no f-gram spans it, and the training loader puts
//! `<|endoftext|>` there.

mod cache;
mod decompress;
mod ids;
mod inputs;
pub mod reader;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result, ensure};
use clap::builder::BoolishValueParser;
use rayon::prelude::*;

pub use ids::TokenIds;
pub use inputs::{Input, expand};

use crate::progress::{Progress, Unit};
use crate::tokenizer::TextTokenizer;
use reader::Documents;

/// Text handed to the tokenising threads at a time; at most three such batches exist at once.
const BATCH_BYTES: usize = 8 << 20;

/// Where text comes from, as flags of a subcommand.
#[derive(Debug, Clone, clap::Args)]
pub struct InputArgs {
    /// Text: .txt (one document a file), .jsonl (one document a line), either as .zst or .gz; a
    /// directory stands for every such file below it, in sorted order. Several are separated by
    /// spaces, in the variable by colons as in $PATH.
    #[arg(long, env = "SCONE_INPUT", num_args = 1.., value_delimiter = ':', required = true, help_heading = "Input")]
    pub input: Vec<PathBuf>,
    /// Field of a .jsonl line that holds the text.
    #[arg(long, env = "SCONE_TEXT_FIELD", default_value = reader::DEFAULT_TEXT_FIELD, help_heading = "Input")]
    pub text_field: String,
}

/// Where tokenised corpora are kept, as a flag of a subcommand.
#[derive(Debug, Clone, clap::Args)]
pub struct CacheArgs {
    /// Where tokenised corpora are kept [default: $XDG_CACHE_HOME/scone or ~/.cache/scone].
    #[arg(long, env = "SCONE_CACHE_DIR", help_heading = "Input")]
    pub cache_dir: Option<PathBuf>,
    /// Tokenise anew and keep nothing.
    #[arg(long, env = "SCONE_NO_CACHE", value_parser = BoolishValueParser::new(), help_heading = "Input")]
    pub no_cache: bool,
}

/// How [`tokenize`] reads and keeps a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Field of a .jsonl line that holds the text.
    pub text_field: String,
    /// A longer document becomes several, split at a line end; bytes.
    pub max_document_bytes: usize,
    /// Directory of cache files; `None` keeps nothing.
    pub cache_dir: Option<PathBuf>,
}

impl Default for Options {
    /// Field `text`, documents of up to 8 MiB, the user's cache directory.
    fn default() -> Self {
        Self {
            text_field: reader::DEFAULT_TEXT_FIELD.to_owned(),
            max_document_bytes: reader::MAX_DOCUMENT_BYTES,
            cache_dir: cache::default_dir(),
        }
    }
}

impl Options {
    /// The options that the flags of a subcommand ask for.
    pub fn from_args(input: &InputArgs, cache: &CacheArgs) -> Self {
        let default = Self::default();
        let cache_dir = match (&cache.cache_dir, cache.no_cache) {
            (_, true) => None,
            (Some(dir), false) => Some(dir.clone()),
            (None, false) => default.cache_dir,
        };
        Self {
            text_field: input.text_field.clone(),
            cache_dir,
            ..default
        }
    }
}

/// A corpus as token ids, end to end, with the borders of its documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedCorpus {
    ids: TokenIds,
    /// Where each document ends in `ids`; ascending, the last is the number of tokens.
    ends: Vec<u64>,
    text_bytes: u64,
}

impl TokenizedCorpus {
    /// A corpus of these documents; for tests and for callers that have ids already.
    pub fn from_documents<'a>(
        vocab_size: u32,
        documents: impl IntoIterator<Item = &'a [u32]>,
        text_bytes: u64,
    ) -> Self {
        let mut corpus = Self {
            ids: TokenIds::for_vocab(vocab_size),
            ends: Vec::new(),
            text_bytes,
        };
        for document in documents {
            corpus.push(document);
        }
        corpus
    }

    fn push(&mut self, document: &[u32]) {
        if !document.is_empty() {
            self.ids.extend(document);
            self.ends.push(self.ids.len() as u64);
        }
    }

    /// Number of tokens; borders are not tokens.
    pub fn total_tokens(&self) -> u64 {
        self.ids.len() as u64
    }

    /// Bytes of UTF-8 text the tokens stand for.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Number of documents; empty ones were left out.
    pub fn document_count(&self) -> usize {
        self.ends.len()
    }

    /// The positions of document `index` within [`ids`](Self::ids).
    ///
    /// # Panics
    /// When there is no such document.
    pub fn document_range(&self, index: usize) -> std::ops::Range<usize> {
        let start = if index == 0 {
            0
        } else {
            self.ends[index - 1] as usize
        };
        start..self.ends[index] as usize
    }

    /// The ids of all documents, end to end.
    pub fn ids(&self) -> &TokenIds {
        &self.ids
    }

    /// Puts the ids of document `index` into `out`, which is cleared first.
    ///
    /// # Panics
    /// When there is no such document.
    pub fn document(&self, index: usize, out: &mut Vec<u32>) {
        out.clear();
        self.ids.copy_range(self.document_range(index), out);
    }

    /// The documents in order, each as its own vector of ids.
    pub fn documents(&self) -> impl Iterator<Item = Vec<u32>> + '_ {
        (0..self.document_count()).map(|index| {
            let mut ids = Vec::new();
            self.document(index, &mut ids);
            ids
        })
    }
}

/// Tokenises `inputs`, or takes the result of an earlier call from the cache.
///
/// The cache is keyed by tokenizer, options and the path, size and modification time of every file.
///
/// # Errors
/// When an input cannot be read or is not what its name says; file and line are named.
pub fn tokenize(
    inputs: &[PathBuf],
    tokenizer: &TextTokenizer,
    options: &Options,
) -> Result<TokenizedCorpus> {
    let inputs = expand(inputs)?;
    let entry = options
        .cache_dir
        .as_deref()
        .map(|dir| cache::Entry::new(dir, &inputs, tokenizer, options));
    if let Some(corpus) = entry.as_ref().and_then(cache::Entry::load) {
        return Ok(corpus);
    }
    let corpus = tokenize_inputs(inputs, tokenizer, options)?;
    if let Some(entry) = entry {
        entry.store(&corpus);
    }
    Ok(corpus)
}

fn tokenize_inputs(
    inputs: Vec<Input>,
    tokenizer: &TextTokenizer,
    options: &Options,
) -> Result<TokenizedCorpus> {
    let disk_bytes = inputs.iter().map(|input| input.bytes).sum();
    let progress = Progress::new("tokenise", disk_bytes, Unit::Bytes);
    let mut corpus = TokenizedCorpus::from_documents(tokenizer.vocab_size(), [], 0);
    let (sender, receiver) = sync_channel(1);
    std::thread::scope(|scope| {
        let documents = Documents::new(inputs, options, &progress);
        scope.spawn(move || send_batches(documents, &sender));
        add_batches(&receiver, tokenizer, &mut corpus)
    })?;
    ensure!(corpus.total_tokens() > 0, "the input holds no text");
    let seconds = progress.elapsed().as_secs_f64();
    tracing::info!(
        documents = corpus.document_count(),
        tokens = corpus.total_tokens(),
        text_bytes = corpus.text_bytes(),
        tokens_per_second = format_args!("{:.0}", corpus.total_tokens() as f64 / seconds),
        "tokenised the corpus"
    );
    Ok(corpus)
}

/// Reads and decompresses while the other threads tokenise; stops when the receiver is gone.
fn send_batches(documents: Documents<'_>, sender: &SyncSender<Result<Vec<String>>>) {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for document in documents {
        match document {
            Ok(text) => {
                bytes += text.len();
                batch.push(text);
            }
            Err(error) => {
                let _ = sender.send(Err(error));
                return;
            }
        }
        if bytes >= BATCH_BYTES {
            bytes = 0;
            if sender.send(Ok(std::mem::take(&mut batch))).is_err() {
                return;
            }
        }
    }
    let _ = sender.send(Ok(batch));
}

fn add_batches(
    receiver: &Receiver<Result<Vec<String>>>,
    tokenizer: &TextTokenizer,
    corpus: &mut TokenizedCorpus,
) -> Result<()> {
    for batch in receiver {
        let batch = batch?;
        let encoded: Vec<Vec<u32>> = batch
            .par_iter()
            .with_max_len(1)
            .map(|text| tokenizer.encode_document(text))
            .collect::<Result<_>>()
            .context("cannot tokenise the corpus")?;
        for (text, ids) in batch.iter().zip(&encoded) {
            corpus.text_bytes += text.len() as u64;
            corpus.push(ids);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
