//! The bytes that a single token writes.

use std::{collections::HashMap, sync::Arc};

use tokenizers::{DecoderWrapper, Tokenizer};

/// Says what each token of a text writes, special tokens as they are spelled. A token may write
/// part of a character, so these are bytes.
#[derive(Clone, Debug)]
pub struct Pieces {
    tokenizer: Arc<Tokenizer>,
    /// Of the characters that byte-level tokenizers write for bytes; `None` for other tokenizers.
    bytes: Option<HashMap<char, u8>>,
}

impl Pieces {
    /// Of a tokenizer's tokens.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let byte_level = tokenizer.get_decoder().is_some_and(is_byte_level);
        Self {
            bytes: byte_level.then(byte_chars),
            tokenizer,
        }
    }

    /// What token `id` writes after token `before`: some decoders leave the space of a first word
    /// away.
    pub fn piece(&self, before: Option<u32>, id: u32) -> Vec<u8> {
        let Some(token) = self.tokenizer.id_to_token(id) else {
            return Vec::new();
        };
        let added = self.tokenizer.get_added_vocabulary();
        if added.is_special_token(&token) {
            return token.into_bytes();
        }
        if let Some(table) = &self.bytes {
            let bytes: Option<Vec<u8>> = token.chars().map(|c| table.get(&c).copied()).collect();
            return bytes.unwrap_or_else(|| token.into_bytes());
        }
        if let Some(byte) = byte_token(&token) {
            return vec![byte];
        }
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, false).unwrap_or_default();
        let before: Vec<u32> = before.into_iter().collect();
        let whole = decode(&[before.as_slice(), &[id]].concat());
        match whole.strip_prefix(&decode(&before)) {
            Some(piece) => piece.as_bytes().to_vec(),
            None => decode(&[id]).into_bytes(),
        }
    }
}

/// `<0x0A>` and the like: tokens of single bytes.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(parts) => parts.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// GPT-2's table: bytes that print stand for themselves, the others for characters from U+0100 on.
fn byte_chars() -> HashMap<char, u8> {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    (0..=u8::MAX)
        .filter_map(|byte| {
            if prints(byte) {
                return Some((char::from(byte), byte));
            }
            let c = char::from_u32(next)?;
            next += 1;
            Some((c, byte))
        })
        .collect()
}
