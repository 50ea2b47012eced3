//! From text to ids: one thread reads, the others tokenise.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::check;
use super::inputs::{Group, Input, expand, groups};
use super::manifest::{TokenFormat, TokensManifest};
use super::options::Options;
use super::reader::{Content, Document, Documents};
use super::run::TokenRun;
use super::shard::Place;
use super::store::{Store, Writer, open_shards};
use super::tokenized::{TokenizedCorpus, Tokens};
use crate::progress::{Progress, Unit};
use crate::tokenizer::TextTokenizer;

/// Text handed to the tokenising threads at a time; at most three such batches exist at once.
const BATCH_BYTES: usize = 8 << 20;

/// The tokens of `inputs`: of directories that [`tokenize_to`] wrote as they are, of everything else
/// tokenised, or taken from the cache.
///
/// The cache is keyed by tokenizer, options and the path, size and modification time of every file.
///
/// # Errors
/// When an input cannot be read, is not what its name says or holds no text (file and line are
/// named, before tokenising begins), or tokens are of another tokenizer.
pub fn tokenize(
    inputs: &[PathBuf],
    tokenizer: &TextTokenizer,
    options: &Options,
) -> Result<TokenizedCorpus> {
    let mut corpus = TokenizedCorpus::default();
    for group in groups(inputs)? {
        match group {
            Group::Tokens(dir) => corpus.append(&open_tokens(&dir, tokenizer)?),
            Group::Files(inputs) => corpus.append(&tokenize_files(&inputs, tokenizer, options)?),
        }
    }
    Ok(corpus)
}

/// Writes the tokens of `inputs` into `dir`, or finishes what an earlier run began there.
///
/// # Errors
/// Those of [`tokenize`]; when `dir` holds tokens of other inputs, another tokenizer or other options.
pub fn tokenize_to(
    dir: &Path,
    format: TokenFormat,
    inputs: &[PathBuf],
    tokenizer: &TextTokenizer,
    options: &Options,
) -> Result<TokensManifest> {
    let inputs = expand(inputs)?;
    let store = Store::new(|_| dir.to_owned(), format, &inputs, tokenizer, options);
    fill(&store, &inputs, tokenizer, options)
}

/// The tokens of a finished directory.
fn open_tokens(dir: &Path, tokenizer: &TextTokenizer) -> Result<TokenizedCorpus> {
    let manifest = TokensManifest::read(dir)?;
    let (expected, found) = (
        scone_files::hex(&tokenizer.sha256()),
        &manifest.tokenizer_hash,
    );
    ensure!(
        *found == expected,
        "the tokens in {} were made by the tokenizer of hash {found}, this one is {expected}",
        dir.display()
    );
    corpus_of(dir, &manifest)
}

fn corpus_of(dir: &Path, manifest: &TokensManifest) -> Result<TokenizedCorpus> {
    let mut corpus = TokenizedCorpus::default();
    for shard in open_shards(dir, manifest)? {
        corpus.push(Tokens::Mapped(shard));
    }
    Ok(corpus)
}

fn tokenize_files(
    inputs: &[Input],
    tokenizer: &TextTokenizer,
    options: &Options,
) -> Result<TokenizedCorpus> {
    let Some(cache) = &options.cache_dir else {
        return tokenize_in_memory(inputs, tokenizer, options);
    };
    let dir = |key: &str| cache.join(format!("tokens-{}", &key[..32]));
    let store = Store::new(dir, TokenFormat::Shards, inputs, tokenizer, options);
    match cached(&store) {
        Ok(Some(corpus)) => return Ok(corpus),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(path = %store.dir().display(), "cached tokens not usable, tokenising anew: {error:#}");
            store.reopen()?;
        }
    }
    // Not being able to keep them costs time later, so it is a warning only.
    if let Err(error) = store.claim() {
        tracing::warn!("cannot keep the tokens: {error:#}");
        return tokenize_in_memory(inputs, tokenizer, options);
    }
    let manifest = fill(&store, inputs, tokenizer, options)?;
    corpus_of(store.dir(), &manifest)
}

fn cached(store: &Store<'_>) -> Result<Option<TokenizedCorpus>> {
    let Some(manifest) = store.finished()? else {
        return Ok(None);
    };
    let corpus = corpus_of(store.dir(), &manifest)?;
    tracing::info!(
        path = %store.dir().display(),
        tokens = corpus.total_tokens(),
        "took the tokens from the cache"
    );
    Ok(Some(corpus))
}

/// Brings a directory of tokens to its end, wherever it stands.
fn fill(
    store: &Store<'_>,
    inputs: &[Input],
    tokenizer: &TextTokenizer,
    options: &Options,
) -> Result<TokensManifest> {
    if let Some(manifest) = store.finished()? {
        return Ok(manifest);
    }
    let mut claim = store.claim()?;
    // Another process may have finished it meanwhile.
    if let Some(manifest) = store.finished()? {
        claim.finish()?;
        return Ok(manifest);
    }
    let mut writer = store.begin(&mut claim)?;
    let place = writer.place();
    let mut sink = |ids: &[u32], bytes, next| Writer::push(&mut writer, ids, bytes, next);
    encode_all(inputs, place, tokenizer, options, &mut sink)?;
    let manifest = writer.finish()?;
    claim.finish()?;
    Ok(manifest)
}

fn tokenize_in_memory(
    inputs: &[Input],
    tokenizer: &TextTokenizer,
    options: &Options,
) -> Result<TokenizedCorpus> {
    check::inputs(inputs, tokenizer, options)?;
    let mut run = TokenRun::new(tokenizer.vocab_size());
    let mut sink = |ids: &[u32], bytes, _| {
        run.push(ids, bytes);
        Ok(())
    };
    encode_all(inputs, Place::default(), tokenizer, options, &mut sink)?;
    ensure!(!run.ends.is_empty(), "the input holds no text");
    let mut corpus = TokenizedCorpus::default();
    corpus.push(Tokens::Memory(run));
    Ok(corpus)
}

/// Takes the ids of a document, its bytes of text, and where the document behind it is.
type Sink<'a> = dyn FnMut(&[u32], u64, Place) -> Result<()> + 'a;

/// Hands the ids of every document from `place` on to `sink`, in order.
fn encode_all(
    inputs: &[Input],
    place: Place,
    tokenizer: &TextTokenizer,
    options: &Options,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let disk_bytes = inputs.iter().map(|input| input.bytes).sum();
    let progress = Progress::new("tokenise", disk_bytes, Unit::Bytes);
    let (mut documents, mut tokens) = (0u64, 0u64);
    let mut counting = |ids: &[u32], bytes, next| {
        documents += u64::from(!ids.is_empty());
        tokens += ids.len() as u64;
        sink(ids, bytes, next)
    };
    let (sender, receiver) = sync_channel(1);
    std::thread::scope(|scope| {
        let documents = Documents::from_place(inputs.to_vec(), place, options, &progress)?;
        scope.spawn(move || send_batches(documents, &sender));
        encode_batches(receiver, tokenizer, &mut counting)
    })?;
    let seconds = progress.elapsed().as_secs_f64();
    tracing::info!(
        documents,
        tokens,
        tokens_per_second = format_args!("{:.0}", tokens as f64 / seconds),
        "tokenised the corpus"
    );
    Ok(())
}

/// Reads and decompresses while the other threads tokenise; stops when the receiver is gone.
fn send_batches(documents: Documents<'_>, sender: &SyncSender<Result<Vec<Document>>>) {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for document in documents {
        match document {
            Ok(document) => {
                bytes += document.content.bytes();
                batch.push(document);
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

/// Takes the receiver, so that the sender stops at the first error here.
fn encode_batches(
    receiver: Receiver<Result<Vec<Document>>>,
    tokenizer: &TextTokenizer,
    sink: &mut Sink<'_>,
) -> Result<()> {
    for batch in receiver {
        let encoded: Vec<(Vec<u32>, u64, Place)> = batch?
            .into_par_iter()
            .with_max_len(1)
            .map(|document| {
                let (ids, bytes) = encode(document.content, tokenizer)?;
                Ok((ids, bytes, document.next))
            })
            .collect::<Result<_>>()
            .context("cannot tokenise the corpus")?;
        for (ids, bytes, next) in encoded {
            sink(&ids, bytes, next)?;
        }
    }
    Ok(())
}

/// The ids of a document and how many bytes of text they stand for.
fn encode(content: Content, tokenizer: &TextTokenizer) -> Result<(Vec<u32>, u64)> {
    match content {
        Content::Text(text) => Ok((tokenizer.encode_document(&text)?, text.len() as u64)),
        Content::Ids { ids, bytes, .. } => {
            let vocab_size = tokenizer.vocab_size();
            ensure!(
                ids.iter().all(|&id| id < vocab_size),
                "a file was changed while it was read: ids beyond the vocabulary of {vocab_size}"
            );
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => tokenizer.decode(&ids)?.len() as u64,
            };
            Ok((ids, bytes))
        }
    }
}
