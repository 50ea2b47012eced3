//! Documents of token ids in memory, end to end.

use super::ids::TokenIds;

/// A run of documents as they are collected: one shard to be, or a whole corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenRun {
    pub(super) ids: TokenIds,
    /// Where each document ends in `ids`; ascending, the last is the number of tokens.
    pub(super) ends: Vec<u64>,
    /// Bytes of UTF-8 text the tokens stand for.
    pub(super) text_bytes: u64,
    /// The same for each document.
    pub(super) document_bytes: Vec<u64>,
}

impl TokenRun {
    /// An empty run for ids below `vocab_size`.
    pub(super) fn new(vocab_size: u32) -> Self {
        Self {
            ids: TokenIds::for_vocab(vocab_size),
            ends: Vec::new(),
            text_bytes: 0,
            document_bytes: Vec::new(),
        }
    }

    /// Adds a document of `text_bytes` bytes of text; one without tokens is left out.
    pub(super) fn push(&mut self, document: &[u32], text_bytes: u64) {
        self.text_bytes += text_bytes;
        if !document.is_empty() {
            self.ids.extend(document);
            self.ends.push(self.ids.len() as u64);
            self.document_bytes.push(text_bytes);
        }
    }
}
