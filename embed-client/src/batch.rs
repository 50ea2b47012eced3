//! What is asked and what is answered, free of messages and networks.

use std::ops::Range;

use bytes::Bytes;
use scone_fgram::{EncodedRow, RowDtype, table::Span};
use scone_proto::TraceContext;

use crate::error::LookupError;

/// What to look up: runs of token ids, each with some ids of context before the positions to
/// answer. Positions are numbered over all spans in order, context left out.
#[derive(Debug, Default)]
pub struct LookupBatch {
    /// Ids of all spans, end to end.
    pub ids: Vec<u32>,
    /// The spans; together they cover `ids`.
    pub spans: Vec<Span>,
    /// The span that this look-up is, if it is traced; the server's are parts of it.
    pub trace: Option<LookupTrace>,
}

/// A look-up in somebody's trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupTrace {
    /// The look-up's own span, for whoever asks to record.
    pub span: TraceContext,
    /// The span that it is a part of.
    pub parent: u64,
}

impl LookupBatch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.spans.clear();
        self.trace = None;
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

/// The answers to a [`LookupBatch`]: for each position the length of its f-gram and its row, still
/// encoded and in the memory that it came in. Reuse one to reuse its memory.
#[derive(Debug, Default)]
pub struct Answers {
    match_lengths: Vec<u8>,
    failed: Vec<bool>,
    /// Where the row of each matched position is.
    rows: Vec<RowAt>,
    messages: Vec<Message>,
    error: Option<LookupError>,
}

/// A row of a message.
#[derive(Clone, Copy, Debug, Default)]
struct RowAt {
    message: u32,
    row: u32,
}

/// Rows that came together, end to end.
#[derive(Debug)]
struct Message {
    rows: Bytes,
    dtype: RowDtype,
    row_bytes: usize,
}

impl Answers {
    /// Forgets what was answered and makes room for `positions` without a match.
    pub fn reset(&mut self, positions: usize) {
        self.match_lengths.clear();
        self.match_lengths.resize(positions, 0);
        self.failed.clear();
        self.failed.resize(positions, false);
        self.rows.clear();
        self.rows.resize(positions, RowAt::default());
        self.messages.clear();
        self.error = None;
    }

    /// Takes rows that came together, of `dim` elements each. The number that [`matched`] names
    /// them by.
    ///
    /// [`matched`]: Self::matched
    pub fn add_rows(&mut self, rows: Bytes, dtype: RowDtype, dim: usize) -> u32 {
        self.messages.push(Message {
            rows,
            dtype,
            row_bytes: dtype.row_bytes(dim),
        });
        self.messages.len() as u32 - 1
    }

    /// A position is matched by an f-gram of `length` tokens, whose row is number `row` of those
    /// that [`add_rows`](Self::add_rows) took as `message`. Without such a row the position fails.
    ///
    /// # Panics
    /// When there is no such position.
    pub fn matched(&mut self, position: usize, length: u8, message: u32, row: u32) {
        self.match_lengths[position] = length;
        self.rows[position] = RowAt { message, row };
        if self.row(position).is_none() {
            let text = format!("row {row} of a message that has fewer");
            self.fail(position..position + 1, &LookupError::BadAnswer(text));
        }
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

    /// The row of a position; `None` when no f-gram ends there.
    ///
    /// # Panics
    /// When there is no such position.
    pub fn row(&self, position: usize) -> Option<EncodedRow<'_>> {
        if self.match_lengths[position] == 0 {
            return None;
        }
        let RowAt { message, row } = self.rows[position];
        let message = self.messages.get(message as usize)?;
        let start = row as usize * message.row_bytes;
        Some(EncodedRow {
            dtype: message.dtype,
            bytes: message.rows.get(start..start + message.row_bytes)?,
        })
    }

    /// Memory of rows that are not needed any more, to be filled and given to
    /// [`add_rows`](Self::add_rows) again.
    pub fn take_memory(&mut self) -> Vec<u8> {
        let last = self.messages.pop();
        let whole = last.and_then(|message| message.rows.try_into_mut().ok());
        whole.map(Vec::from).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_match_without_its_row_is_a_failed_position() {
        let mut answers = Answers::default();
        answers.reset(2);
        let message = answers.add_rows(vec![1; 8].into(), RowDtype::F16, 2);
        answers.matched(0, 2, message, 1);
        answers.matched(1, 3, message, 2);
        assert_eq!(answers.row(0).unwrap().bytes, [1; 4]);
        assert_eq!(answers.row(1), None);
        assert_eq!(answers.failed(), [false, true]);
        assert_eq!(answers.match_lengths(), [2, 0]);
        assert!(answers.error().is_some());
        // The memory comes back whole.
        assert_eq!(answers.take_memory(), [1; 8]);
    }
}
