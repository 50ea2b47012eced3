//! The tokenizer: loading a `tokenizer.json`, and training one.

mod sample;

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

pub use sample::Sample;

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
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| id + 1);
        ensure!(vocab_size > 0, "the vocabulary is empty");
        let sha256 = Sha256::digest(&json).into();
        Ok(Self {
            inner,
            json,
            sha256,
            vocab_size,
        })
    }

    /// The largest token id plus one.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// sha256 of the `tokenizer.json` bytes.
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
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| anyhow!(error))?;
        Ok(encoding.get_ids().to_vec())
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
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_post_processor(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(min_frequency)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    let mut failed = None;
    let documents =
        documents.map_while(|document| document.map_err(|error| failed = Some(error)).ok());
    tokenizer
        .train(&mut trainer, documents)
        .map_err(|error| anyhow!(error))?;
    if let Some(error) = failed {
        return Err(error);
    }
    let json = tokenizer.to_string(true).map_err(|error| anyhow!(error))?;
    TextTokenizer::from_json(json.into_bytes())
}

#[cfg(test)]
mod tests;
