//! What is left of a corpus once it is tokenised: ids and borders.

use super::ids::TokenIds;

/// A corpus as token ids, end to end, with the borders of its documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedCorpus {
    pub(super) ids: TokenIds,
    /// Where each document ends in `ids`; ascending, the last is the number of tokens.
    pub(super) ends: Vec<u64>,
    pub(super) text_bytes: u64,
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

    /// Adds a document; an empty one is left out.
    pub(super) fn push(&mut self, document: &[u32]) {
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
