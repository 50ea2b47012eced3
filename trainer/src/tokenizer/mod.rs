//! The tokenizer: loading a `tokenizer.json`, and training one.

mod words;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use words::WordCache;

/// Separates documents; begins and ends a text for models trained here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Bytes and [`END_OF_TEXT`]: no byte-level vocabulary is smaller.
pub const MIN_VOCAB_SIZE: usize = 257;

/// The most text [`train`] can take, bytes: the trainer counts pairs in 31 bits.
pub const MAX_TRAINING_BYTES: u64 = (1 << 31) - 1;

/// A tokenizer as the trainer uses it: documents without special tokens.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    json: Vec<u8>,
    sha256: [u8; 32],
    vocab_size: u32,
    /// Caches that no thread uses right now; `None` when the tokenizer does not cut text into words
    /// as GPT-2 does.
    caches: Option<Arc<Mutex<Vec<WordCache>>>>,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer.
    pub fn load(path: &Path) -> Result<Self> {
        let json =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::from_json(json).with_context(|| format!("{} is not a tokenizer.json", path.display()))
    }

    /// Takes the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// When they are not a tokenizer.
    pub fn from_json(json: Vec<u8>) -> Result<Self> {
        let mut inner = Tokenizer::from_bytes(&json).map_err(|error| anyhow!(error))?;
        // Text that happens to spell `<|endoftext|>` is text, not a border.
        inner.set_encode_special_tokens(true);
        switch_off_training_settings(&mut inner)?;
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| id + 1);
        ensure!(vocab_size > 0, "the vocabulary is empty");
        let sha256 = Sha256::digest(&json).into();
        let caches = words::apply_to(&json).then(Arc::default);
        Ok(Self {
            inner,
            json,
            sha256,
            vocab_size,
            caches,
        })
    }

    /// The largest token id plus one.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// sha256 of the `tokenizer.json` bytes, settings that are switched off included.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The `tokenizer.json` bytes.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The id of a token given as it is written in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The ids of a document, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        let Some(caches) = &self.caches else {
            let encoding = self
                .inner
                .encode_fast(text, false)
                .map_err(|error| anyhow!(error))?;
            return Ok(encoding.get_ids().to_vec());
        };
        let mut cache = lock(caches).pop().unwrap_or_default();
        let mut ids = Vec::new();
        cache.encode(text, &self.inner, &mut ids)?;
        lock(caches).push(cache);
        Ok(ids)
    }

    /// The text of some ids, special tokens included. Half a character becomes U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer cannot decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, false)
            .map_err(|error| anyhow!(error))
    }
}

/// Files keep settings of how their model was trained: documents cut or filled to a length, words
/// cut by chance. Documents are encoded whole and the same every time, as transformers does.
fn switch_off_training_settings(tokenizer: &mut Tokenizer) -> Result<()> {
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| anyhow!(error))?;
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(())
}

/// A panic elsewhere leaves the list of caches whole.
fn lock(caches: &Mutex<Vec<WordCache>>) -> MutexGuard<'_, Vec<WordCache>> {
    caches.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Trains a byte-level BPE as GPT-2 has it (same split into words, 256 bytes as alphabet, spaces
/// inside tokens as `Ġ`), with [`END_OF_TEXT`] as token 0.
///
/// # Errors
/// When `vocab_size` is below [`MIN_VOCAB_SIZE`], or `documents` yields an error.
pub fn train(
    documents: impl Iterator<Item = Result<String>> + Send,
    vocab_size: usize,
    min_frequency: u64,
) -> Result<TextTokenizer> {
    ensure!(
        vocab_size >= MIN_VOCAB_SIZE,
        "vocabulary size is {vocab_size}, the least is {MIN_VOCAB_SIZE}"
    );
    let words = count_words(documents)?
        .into_iter()
        .map(|(word, count)| Ok((words::as_byte_level(&word)?.into(), count)))
        .collect::<Result<_>>()?;
    let mut model = BPE::default();
    let special = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(min_frequency)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .do_train(&words, &mut model)
        .map_err(|error| anyhow!(error))?;
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_post_processor(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    tokenizer
        .add_special_tokens(special)
        .map_err(|error| anyhow!(error))?;
    let json = tokenizer.to_string(true).map_err(|error| anyhow!(error))?;
    TextTokenizer::from_json(json.into_bytes())
}

type WordCounts = HashMap<Box<str>, u64>;

fn count_words(documents: impl Iterator<Item = Result<String>> + Send) -> Result<WordCounts> {
    documents
        .par_bridge()
        .try_fold(WordCounts::new, |mut counts, document| {
            for word in words::split(&document?) {
                match counts.get_mut(word) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(word.into(), 1)),
                }
            }
            Ok::<_, anyhow::Error>(counts)
        })
        .try_reduce(WordCounts::new, |a, b| {
            let (mut all, few) = if a.len() < b.len() { (b, a) } else { (a, b) };
            for (word, count) in few {
                *all.entry(word).or_default() += count;
            }
            Ok(all)
        })
}

#[cfg(test)]
mod tests;
