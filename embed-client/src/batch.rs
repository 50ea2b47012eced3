//! What is asked and what is answered, free of messages and networks.

use std::ops::Range;

use scone_fgram::table::Span;

use crate::error::LookupError;

/// What to look up: runs of token ids, each with some ids of context before the positions to
/// answer. Positions are numbered over all spans in order, context left out.
#[derive(Debug, Default)]
pub struct LookupBatch {
    /// Ids of all spans, end to end.
    pub ids: Vec<u32>,
    /// The spans; together they cover `ids`.
    pub spans: Vec<Span>,
}

impl LookupBatch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.spans.clear();
    }

    /// Adds a span; the first `context` of `ids` are context only. A span without a position to
    /// answer is left out.
    pub fn push(&mut self, ids: &[u32], context: usize) {
        let answers = ids.len().saturating_sub(context);
        if answers == 0 {
            return;
        }
        self.ids.extend_from_slice(ids);
        self.spans.push(Span {
            context: context as u32,
            answers: answers as u32,
        });
    }

    /// How many positions are to be answered.
    pub fn positions(&self) -> usize {
        self.spans.iter().map(|span| span.answers as usize).sum()
    }
}

/// The answers to a [`LookupBatch`]. Reuse one to reuse its memory.
#[derive(Debug, Default)]
pub struct Answers {
    dim: usize,
    match_lengths: Vec<u8>,
    failed: Vec<bool>,
    values: Vec<f32>,
    error: Option<LookupError>,
}

impl Answers {
    /// Forgets what was answered and makes room for `positions` without a match.
    pub fn reset(&mut self, positions: usize, dim: usize) {
        self.dim = dim;
        self.match_lengths.clear();
        self.match_lengths.resize(positions, 0);
        self.failed.clear();
        self.failed.resize(positions, false);
        self.values.resize(positions * dim, 0.0);
        self.error = None;
    }

    /// A position is matched; returns where its decoded row goes, `dim` elements.
    ///
    /// # Panics
    /// When there is no such position.
    pub fn matched(&mut self, position: usize, length: u8) -> &mut [f32] {
        self.match_lengths[position] = length;
        self.embedding(position)
    }

    /// Nobody answered for these positions.
    ///
    /// # Panics
    /// When there are no such positions.
    pub fn fail(&mut self, positions: Range<usize>, error: &LookupError) {
        self.failed[positions.clone()].fill(true);
        self.match_lengths[positions].fill(0);
        self.error.get_or_insert_with(|| error.clone());
    }

    /// Length of the longest f-gram that ends at each position; 0: none.
    pub fn match_lengths(&self) -> &[u8] {
        &self.match_lengths
    }

    /// Which positions got no answer.
    pub fn failed(&self) -> &[bool] {
        &self.failed
    }

    /// Why, when some did not: the first reason met.
    pub fn error(&self) -> Option<&LookupError> {
        self.error.as_ref()
    }

    /// The embedding of a position, `dim` elements: its row when it is matched, else nothing of
    /// use until something is written there.
    ///
    /// # Panics
    /// When there is no such position.
    pub fn embedding(&mut self, position: usize) -> &mut [f32] {
        &mut self.values[position * self.dim..][..self.dim]
    }

    /// All embeddings, `positions * dim` elements.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}
