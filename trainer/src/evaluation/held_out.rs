//! Held-out text, and which part of it is scored when not all of it is.

use std::ops::Range;
use std::path::PathBuf;

use anyhow::Result;

use crate::corpus::{self, TokenizedCorpus};
use crate::tokenizer::TextTokenizer;

/// A held-out document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its token ids, without eos.
    pub ids: Vec<u32>,
}

/// Text to score.
#[derive(Debug, Clone)]
pub struct HeldOut {
    /// For reports.
    pub name: String,
    /// All documents.
    pub documents: Vec<Document>,
    /// What is scored of them.
    pub pieces: Vec<Piece>,
    /// UTF-8 bytes of the scored text.
    pub bytes: u64,
    /// Words of it, separated by white space.
    pub words: u64,
}

impl HeldOut {
    /// Reads and tokenises `inputs`, and picks what to score: see [`HeldOut::new`].
    ///
    /// # Errors
    /// When an input cannot be read or holds no text.
    pub fn load(
        name: &str,
        inputs: &[PathBuf],
        tokenizer: &TextTokenizer,
        options: &corpus::Options,
        max_tokens: Option<u64>,
    ) -> Result<Self> {
        let corpus = corpus::tokenize(inputs, tokenizer, options)?;
        Self::new(name, &corpus, tokenizer, max_tokens)
    }

    /// All of `corpus`, or pieces of at most `max_tokens` in all, always the same for the same
    /// text: documents at even distances over the list, as many as leave each one at least
    /// `MIN_PIECE` tokens, and longer ones cut to their middle.
    ///
    /// # Errors
    /// When the tokenizer cannot decode its own ids.
    pub fn new(
        name: &str,
        corpus: &TokenizedCorpus,
        tokenizer: &TextTokenizer,
        max_tokens: Option<u64>,
    ) -> Result<Self> {
        let documents: Vec<Document> = corpus.documents().map(|ids| Document { ids }).collect();
        let pieces = sample(&documents, max_tokens);
        let scored: u64 = pieces.iter().map(|p| p.range.len() as u64).sum();
        let (mut bytes, mut words) = (0, 0);
        for piece in &pieces {
            let ids = &documents[piece.document].ids[piece.range.clone()];
            let text = tokenizer.decode(ids)?;
            bytes += text.len() as u64;
            words += text.split_whitespace().count() as u64;
        }
        if scored == corpus.total_tokens() {
            // Also where decoding does not give all of them back.
            bytes = corpus.text_bytes();
        }
        Ok(Self {
            name: name.to_owned(),
            documents,
            pieces,
            bytes,
            words,
        })
    }

    /// Tokens scored.
    pub fn scored_tokens(&self) -> u64 {
        self.pieces.iter().map(|p| p.range.len() as u64).sum()
    }
}

/// Tokens `range` of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Index of the document.
    pub document: usize,
    /// Tokens scored.
    pub range: Range<usize>,
}

/// Pieces shorter than this tell little: the start of a text is the hardest part of it.
const MIN_PIECE: u64 = 1024;

/// The pieces of [`HeldOut::new`].
fn sample(documents: &[Document], max_tokens: Option<u64>) -> Vec<Piece> {
    let total: u64 = documents.iter().map(|d| d.ids.len() as u64).sum();
    let whole = |(at, d): (usize, &Document)| Piece {
        document: at,
        range: 0..d.ids.len(),
    };
    let limit = match max_tokens {
        Some(limit) if limit < total => limit,
        _ => return documents.iter().enumerate().map(whole).collect(),
    };
    let chosen = (limit / MIN_PIECE).clamp(1, documents.len() as u64) as usize;
    let mut pieces = Vec::with_capacity(chosen);
    let mut left = limit;
    for i in 0..chosen {
        let document = i * documents.len() / chosen;
        let length = documents[document].ids.len() as u64;
        // What short documents leave over goes to the ones after them.
        let take = length.min(left / (chosen - i) as u64);
        left -= take;
        let start = ((length - take) / 2) as usize;
        pieces.push(Piece {
            document,
            range: start..start + take as usize,
        });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(lengths: &[usize]) -> Vec<Document> {
        lengths
            .iter()
            .map(|&n| Document { ids: vec![1; n] })
            .collect()
    }

    #[test]
    fn all_is_taken_without_a_limit_or_below_it() {
        let documents = documents(&[3, 0, 5]);
        let all = sample(&documents, None);
        assert_eq!(
            all.iter().map(|p| p.range.len()).collect::<Vec<_>>(),
            [3, 0, 5]
        );
        assert_eq!(sample(&documents, Some(8)), all);
    }

    #[test]
    fn documents_are_spread_and_long_ones_cut_to_their_middle() {
        let documents = documents(&[10_000; 8]);
        let pieces = sample(&documents, Some(4096));
        assert_eq!(
            pieces.iter().map(|p| p.document).collect::<Vec<_>>(),
            [0, 2, 4, 6]
        );
        assert_eq!(pieces[0].range, 4488..5512);
    }

    #[test]
    fn short_documents_leave_their_share_to_others() {
        let pieces = sample(&documents(&[10, 9000]), Some(2048));
        assert_eq!(pieces.iter().map(|p| p.range.len()).sum::<usize>(), 2048);
        let pieces = sample(&documents(&[10, 9000]), Some(7));
        assert_eq!(pieces.iter().map(|p| p.range.len()).sum::<usize>(), 7);
    }
}
