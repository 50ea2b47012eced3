//! From text to ids: one thread reads, the others tokenise.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::cache::Entry;
use super::inputs::{Input, expand};
use super::options::Options;
use super::reader::Documents;
use super::tokenized::TokenizedCorpus;
use crate::progress::{Progress, Unit};
use crate::tokenizer::TextTokenizer;

/// Text handed to the tokenising threads at a time; at most three such batches exist at once.
const BATCH_BYTES: usize = 8 << 20;

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
        .map(|dir| Entry::new(dir, &inputs, tokenizer, options));
    if let Some(corpus) = entry.as_ref().and_then(Entry::load) {
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
