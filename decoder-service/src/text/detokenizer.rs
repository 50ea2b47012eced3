//! Token ids to text, a token at a time.

use std::{fmt, sync::Arc};

/// Turns token ids into text, all at once.
pub trait Decode: Send + Sync + fmt::Debug {
    /// The text of `ids`, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    fn decode(&self, ids: &[u32]) -> Result<String, DecodeError>;
}

/// The tokenizer could not decode.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer cannot decode its own ids: {0}")]
pub struct DecodeError(pub String);

impl Decode for tokenizers::Tokenizer {
    fn decode(&self, ids: &[u32]) -> Result<String, DecodeError> {
        // The inherent method of the same name, not this one.
        (**self)
            .decode(ids, true)
            .map_err(|error| DecodeError(error.to_string()))
    }
}

/// What a decoder writes for bytes that are no UTF-8, or not yet.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// A character has at most 4 bytes and a token at least one, so this many tokens settle whether the
/// token before them ended inside a character.
const SETTLED_AFTER: usize = 4;

/// Tokens without text after which the detokenizer looks where to cut. Bounds its work when a
/// model writes broken bytes for ever.
const LOOK_FOR_CUT_AFTER: usize = 8;

/// Decodes a growing list of ids so that the pieces put together are the text of the whole list,
/// and no piece ends inside a character.
///
/// The prefix-offset method: the text of a token can depend on what stands before it (decoders of
/// the sentencepiece kind drop the space of the first word), so each step decodes from a token
/// further back, whose text is known, and sends what is new. Text that ends in U+FFFD waits: the
/// next token may complete the character.
#[derive(Debug)]
pub struct Detokenizer {
    decoder: Arc<dyn Decode>,
    /// The ids still needed: `sent` that are context, then those whose text was not returned.
    ids: Vec<u32>,
    /// How many of `ids` have had their text returned.
    sent: usize,
}

/// Where the last few ids of a prompt begin, not inside a character if that can be had: a decoder
/// with byte fallback would take the whole run of bytes for broken.
fn context_start(decoder: &dyn Decode, ids: &[u32]) -> usize {
    let latest = ids.len().saturating_sub(SETTLED_AFTER);
    let earliest = latest.saturating_sub(SETTLED_AFTER - 1);
    let whole = |&start: &usize| {
        let text = decoder.decode(&ids[start..]);
        text.is_ok_and(|text| !text.starts_with(REPLACEMENT))
    };
    (earliest..=latest).rev().find(whole).unwrap_or(latest)
}

impl Detokenizer {
    /// Starts after `context`, whose last ids decide how the first token is written.
    pub fn new(decoder: Arc<dyn Decode>, context: &[u32]) -> Self {
        let context = &context[context_start(&*decoder, context)..];
        Self {
            decoder,
            ids: context.to_vec(),
            sent: context.len(),
        }
    }

    /// Adds a token and returns the text that is certain now: perhaps none.
    pub fn push(&mut self, id: u32) -> Result<String, DecodeError> {
        self.ids.push(id);
        let before = self.decoder.decode(&self.ids[..self.sent])?;
        let now = self.decoder.decode(&self.ids)?;
        if now.len() > before.len() && !now.ends_with(REPLACEMENT) {
            let text = self.new_text(&before, now)?;
            self.advance(self.ids.len());
            return Ok(text);
        }
        if self.ids.len() - self.sent > LOOK_FOR_CUT_AFTER {
            return self.cut(&before, &now);
        }
        Ok(String::new())
    }

    /// No more tokens will come: the text held back, with U+FFFD for an unfinished character.
    pub fn finish(&mut self) -> Result<String, DecodeError> {
        let before = self.decoder.decode(&self.ids[..self.sent])?;
        let now = self.decoder.decode(&self.ids)?;
        let text = self.new_text(&before, now)?;
        self.advance(self.ids.len());
        Ok(text)
    }

    /// `now` without `before`. Where a decoder writes the context otherwise once more tokens follow
    /// (byte fallback judges a run of bytes as a whole), the new tokens are decoded alone: what was
    /// sent cannot be taken back.
    fn new_text(&self, before: &str, now: String) -> Result<String, DecodeError> {
        match now.strip_prefix(before) {
            Some(text) => Ok(text.to_owned()),
            None => self.decoder.decode(&self.ids[self.sent..]),
        }
    }

    /// Settles a long run without certain text at a token where decoding the parts gives the text
    /// of the whole, if there is one.
    fn cut(&mut self, before: &str, now: &str) -> Result<String, DecodeError> {
        for at in (self.sent + 1..=self.ids.len() - SETTLED_AFTER).rev() {
            let head = self.decoder.decode(&self.ids[..at])?;
            let tail = self.decoder.decode(&self.ids[at..])?;
            if now.strip_prefix(head.as_str()) == Some(tail.as_str()) {
                let text = self.new_text(before, head)?;
                self.advance(at);
                return Ok(text);
            }
        }
        Ok(String::new())
    }

    /// The text of `ids[..at]` was returned; what was new in it becomes the context.
    fn advance(&mut self, at: usize) {
        let context = self.sent;
        self.ids.drain(..context);
        self.sent = at - context;
    }
}
