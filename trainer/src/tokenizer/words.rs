//! The split into words of GPT-2, without the machinery that keeps offsets.
//!
//! The `tokenizers` crate spends nine tenths of its time there on alignments nobody asks for here.
//! What this module does must be what `ByteLevel` does, and is tested to be.

use std::collections::HashMap;
use std::sync::LazyLock;

use anyhow::{Result, anyhow};
use regex::Regex;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

/// The pattern of GPT-2 (openai/gpt-2, src/encoder.py) but for its look-ahead, `\s+(?!\S)`: see
/// [`split`].
static WORD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
        .expect("the pattern is a constant")
});

/// Cuts `text` into words, end to end.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut end = WORD.find_at(text, start)?.end();
        // White space before a word leaves its last character to the word: the look-ahead. It is
        // the only kind of match that ends in white space.
        let mut last = text[start..end].char_indices();
        if let Some((at, _)) = last
            .next_back()
            .filter(|(_, c)| c.is_whitespace() && end < text.len())
            && at > 0
        {
            end = start + at;
        }
        let word = &text[start..end];
        start = end;
        Some(word)
    })
}

/// Whether the tokenizer in `json` cuts text into words as [`split`] does, and each word by itself.
pub(super) fn apply_to(json: &[u8]) -> bool {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(json) else {
        return false;
    };
    let byte_level = &json["pre_tokenizer"];
    let added = json["added_tokens"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    json["normalizer"].is_null()
        && byte_level["type"] == "ByteLevel"
        && byte_level["add_prefix_space"] == false
        && byte_level["use_regex"].as_bool().unwrap_or(true)
        && json["model"]["type"] == "BPE"
        // Tokens that are not special are looked for in the text before it is cut.
        && added.iter().all(|token| token["special"] == true)
}

/// A word as the model sees it: one character for each byte.
pub(super) fn as_byte_level(word: &str) -> Result<String> {
    let mut text = PreTokenizedString::from(word);
    let no_split = ByteLevel::new(false, false, false);
    no_split
        .pre_tokenize(&mut text)
        .map_err(|error| anyhow!(error))?;
    let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(splits.into_iter().map(|(text, ..)| text).collect())
}

/// Words kept by one [`WordCache`], about 100 bytes each.
const MAX_CACHED_WORDS: usize = 200_000;

/// The ids of words seen before. One thread uses it at a time.
#[derive(Debug, Default)]
pub(super) struct WordCache {
    /// From where to where the ids of a word are in `ids`.
    spans: HashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
}

impl WordCache {
    /// Appends the ids of `text` to `out`.
    pub(super) fn encode(
        &mut self,
        text: &str,
        tokenizer: &Tokenizer,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        for word in split(text) {
            if let Some(&(start, end)) = self.spans.get(word) {
                out.extend_from_slice(&self.ids[start as usize..end as usize]);
                continue;
            }
            let encoding = tokenizer
                .encode_fast(word, false)
                .map_err(|error| anyhow!(error))?;
            out.extend_from_slice(encoding.get_ids());
            self.keep(word, encoding.get_ids());
        }
        Ok(())
    }

    fn keep(&mut self, word: &str, ids: &[u32]) {
        // Long "words" are lines of dashes and the like, and seldom come twice.
        if self.spans.len() < MAX_CACHED_WORDS && word.len() <= 64 {
            let start = self.ids.len() as u32;
            self.ids.extend_from_slice(ids);
            self.spans
                .insert(word.into(), (start, self.ids.len() as u32));
        }
    }
}
