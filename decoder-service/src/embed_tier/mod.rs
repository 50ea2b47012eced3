//! Where the rows come from: a table in this process or embed-services elsewhere, behind one
//! trait. The tokens generated are the same either way.

mod embedded;
mod facts;
pub mod remote;

use std::ops::Range;

use scone_fgram::table::Span;

pub use embedded::Embedded;
pub use facts::{Incompatible, ModelFacts, TableFacts};
pub use remote::Remote;

/// What a step asks for: runs of token ids, each with some ids of context before the positions to
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

    /// Adds a span; the first `context` of `ids` are context only.
    pub fn push(&mut self, ids: &[u32], context: usize) {
        self.ids.extend_from_slice(ids);
        self.spans.push(Span {
            context: context as u32,
            answers: (ids.len() - context) as u32,
        });
    }

    /// How many positions are to be answered.
    pub fn positions(&self) -> usize {
        self.spans.iter().map(|span| span.answers as usize).sum()
    }
}

/// The answers to a [`LookupBatch`].
#[derive(Debug, Default)]
pub struct Answers {
    dim: usize,
    match_lengths: Vec<u8>,
    failed: Vec<bool>,
    values: Vec<f32>,
    error: Option<TierError>,
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
    pub fn matched(&mut self, position: usize, length: u8) -> &mut [f32] {
        self.match_lengths[position] = length;
        self.embedding(position)
    }

    /// Nobody answered for these positions.
    pub fn fail(&mut self, positions: Range<usize>, error: &TierError) {
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
    pub fn error(&self) -> Option<&TierError> {
        self.error.as_ref()
    }

    /// The input embedding of a position. Holds nothing of use until it was written.
    pub fn embedding(&mut self, position: usize) -> &mut [f32] {
        &mut self.values[position * self.dim..][..self.dim]
    }

    /// All input embeddings, `positions * dim` elements.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// Why look-ups got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// No embed-service answered in time. Another try may succeed.
    #[error("the embed tier did not answer: {0}")]
    Unavailable(String),
    /// An answer was damaged or contradicts the table's facts. Another try may not help.
    #[error("the embed tier gave a bad answer: {0}")]
    BadAnswer(String),
}

/// Gives the rows for a step.
pub trait EmbedTier: Send {
    /// Facts of the table in use.
    fn facts(&self) -> &TableFacts;

    /// "embedded" or "remote".
    fn mode(&self) -> &'static str;

    /// Answers all positions of a batch into `out`, which was reset for it: writes the rows of
    /// matched positions, and marks the positions that nobody answered for. Blocks; a wrong row is
    /// never written.
    fn lookup(&mut self, batch: &LookupBatch, out: &mut Answers);
}
