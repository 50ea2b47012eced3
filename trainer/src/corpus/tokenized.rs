//! A corpus once it is tokenised: ids and borders, in memory or in mapped shards.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::run::TokenRun;
use super::shard::Shard;

/// A corpus as token ids, end to end, with the borders of its documents.
#[derive(Clone, Default)]
pub struct TokenizedCorpus {
    parts: Vec<Part>,
    documents: usize,
    tokens: usize,
    text_bytes: u64,
}

/// A run of documents and where it is in the corpus.
#[derive(Clone)]
struct Part {
    tokens: Arc<Tokens>,
    first_document: usize,
    first_token: usize,
}

/// Where token ids are.
pub(super) enum Tokens {
    /// In memory.
    Memory(TokenRun),
    /// In a mapped file.
    Mapped(Shard),
}

impl Tokens {
    fn documents(&self) -> usize {
        match self {
            Self::Memory(run) => run.ends.len(),
            Self::Mapped(shard) => shard.documents(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Memory(run) => run.ids.len(),
            Self::Mapped(shard) => shard.tokens(),
        }
    }

    fn text_bytes(&self) -> u64 {
        match self {
            Self::Memory(run) => run.text_bytes,
            Self::Mapped(shard) => shard.text_bytes(),
        }
    }

    fn end(&self, document: usize) -> usize {
        match self {
            Self::Memory(run) => run.ends[document] as usize,
            Self::Mapped(shard) => shard.end(document),
        }
    }

    fn copy_range(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Self::Memory(run) => run.ids.copy_range(range, out),
            Self::Mapped(shard) => shard.copy_range(range, out),
        }
    }
}

impl TokenizedCorpus {
    /// A corpus of these documents in memory; for tests and for callers that have ids already.
    pub fn from_documents<'a>(
        vocab_size: u32,
        documents: impl IntoIterator<Item = &'a [u32]>,
        text_bytes: u64,
    ) -> Self {
        let mut run = TokenRun::new(vocab_size);
        for document in documents {
            run.push(document, 0);
        }
        run.text_bytes = text_bytes;
        let mut corpus = Self::default();
        corpus.push(Tokens::Memory(run));
        corpus
    }

    /// Adds documents at the end.
    pub(super) fn push(&mut self, tokens: Tokens) {
        let part = Part {
            first_document: self.documents,
            first_token: self.tokens,
            tokens: Arc::new(tokens),
        };
        self.documents += part.tokens.documents();
        self.tokens += part.tokens.len();
        self.text_bytes += part.tokens.text_bytes();
        self.parts.push(part);
    }

    /// Adds all documents of `other` at the end; nothing is copied.
    pub fn append(&mut self, other: &Self) {
        for part in &other.parts {
            self.parts.push(Part {
                tokens: Arc::clone(&part.tokens),
                first_document: self.documents + part.first_document,
                first_token: self.tokens + part.first_token,
            });
        }
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.text_bytes += other.text_bytes;
    }

    /// Number of tokens; borders are not tokens.
    pub fn total_tokens(&self) -> u64 {
        self.tokens as u64
    }

    /// Bytes of UTF-8 text the tokens stand for.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Number of documents; empty ones were left out.
    pub fn document_count(&self) -> usize {
        self.documents
    }

    /// Whether no ids are in this process's own memory, so that a corpus may be larger than it.
    pub fn is_mapped(&self) -> bool {
        let mapped = |part: &Part| matches!(*part.tokens, Tokens::Mapped(_));
        self.parts.iter().all(mapped)
    }

    /// The positions of document `index` among all tokens.
    ///
    /// # Panics
    /// When there is no such document.
    pub fn document_range(&self, index: usize) -> Range<usize> {
        let part = self.part_of_document(index);
        let own = index - part.first_document;
        let start = match own {
            0 => 0,
            own => part.tokens.end(own - 1),
        };
        part.first_token + start..part.first_token + part.tokens.end(own)
    }

    /// The document that the token at `position` belongs to; the number of documents behind the last.
    pub fn document_at(&self, position: usize) -> usize {
        let (mut low, mut high) = (0, self.documents);
        while low < high {
            let middle = low.midpoint(high);
            match self.document_range(middle).end <= position {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }

    fn part_of_document(&self, index: usize) -> &Part {
        let behind = |part: &Part| part.first_document <= index;
        &self.parts[self.parts.partition_point(behind) - 1]
    }

    /// Appends the ids at `range`, positions among all tokens, to `out`.
    ///
    /// # Panics
    /// When `range` is not within the corpus.
    pub fn copy_ids(&self, range: Range<usize>, out: &mut Vec<u32>) {
        assert!(range.end <= self.tokens, "{range:?} of {}", self.tokens);
        let mut at = range.start;
        let first = self.parts.partition_point(|part| part.first_token <= at);
        for part in &self.parts[first.saturating_sub(1)..] {
            if at >= range.end {
                break;
            }
            let own_end = (range.end - part.first_token).min(part.tokens.len());
            let own_start = at - part.first_token;
            if own_start < own_end {
                part.tokens.copy_range(own_start..own_end, out);
                at = part.first_token + own_end;
            }
        }
    }

    /// Puts the ids of document `index` into `out`, which is cleared first.
    ///
    /// # Panics
    /// When there is no such document.
    pub fn document(&self, index: usize, out: &mut Vec<u32>) {
        out.clear();
        self.copy_ids(self.document_range(index), out);
    }

    /// The documents in order, each as its own vector of ids.
    pub fn documents(&self) -> impl Iterator<Item = Vec<u32>> + '_ {
        (0..self.document_count()).map(|index| {
            let mut ids = Vec::new();
            self.document(index, &mut ids);
            ids
        })
    }

    /// A hash of all documents: equal ones mean equal corpora. Shards stand in by their checksums, so
    /// the same documents in other shards have another.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in &self.parts {
            match &*part.tokens {
                Tokens::Mapped(shard) => hash.update(shard.sha256),
                Tokens::Memory(run) => {
                    for end in &run.ends {
                        hash.update(end.to_le_bytes());
                    }
                    let mut ids = Vec::new();
                    run.ids.copy_range(0..run.ids.len(), &mut ids);
                    for id in ids {
                        hash.update(id.to_le_bytes());
                    }
                }
            }
        }
        hash.finalize().into()
    }

    /// Documents in order, in groups of at least `tokens` tokens but for the last.
    pub fn groups(&self, tokens: usize) -> Vec<Range<usize>> {
        let mut groups = Vec::new();
        let (mut first, mut held) = (0, 0);
        for document in 0..self.documents {
            held += self.document_range(document).len();
            if held >= tokens || document + 1 == self.documents {
                groups.push(first..document + 1);
                (first, held) = (document + 1, 0);
            }
        }
        groups
    }

    /// Takes what was read of mapped shards out of this process's memory; they are read again when
    /// they are needed again, from the page cache while there is room.
    pub fn forget_pages(&self) {
        for part in &self.parts {
            if let Tokens::Mapped(shard) = &*part.tokens {
                shard.forget_pages();
            }
        }
    }
}

impl PartialEq for TokenizedCorpus {
    /// Equal documents and text lengths, wherever they are kept.
    fn eq(&self, other: &Self) -> bool {
        self.documents == other.documents
            && self.tokens == other.tokens
            && self.text_bytes == other.text_bytes
            && self.documents().eq(other.documents())
    }
}

impl fmt::Debug for TokenizedCorpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenizedCorpus")
            .field("documents", &self.documents)
            .field("tokens", &self.tokens)
            .field("text_bytes", &self.text_bytes)
            .field("parts", &self.parts.len())
            .finish()
    }
}
