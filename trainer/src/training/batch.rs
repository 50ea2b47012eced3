//! What one training step reads.

use super::stream::TokenStream;
use crate::embedding::{Inputs, Source};

/// Inputs and targets of one training step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<'a> {
    /// Embeddings of the positions, window by window.
    pub inputs: Inputs<'a>,
    /// The token after each position.
    pub targets: Vec<u32>,
    /// Windows.
    pub sequences: usize,
    /// Positions of a window.
    pub length: usize,
}

impl<'a> Batch<'a> {
    /// The windows of `length` inputs that begin at `starts`; the stream must hold the token after
    /// each.
    pub fn new(stream: &'a TokenStream, starts: &[usize], length: usize, vocab_size: u32) -> Self {
        let positions = || starts.iter().flat_map(|&start| start..start + length);
        let source = |at: usize| match stream.fgram(at) {
            Some(fgram) => Source::Fgram(fgram),
            None => Source::Token(stream.ids()[at]),
        };
        Self {
            inputs: Inputs::new(positions().map(source), vocab_size),
            targets: positions().map(|at| stream.ids()[at + 1]).collect(),
            sequences: starts.len(),
            length,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use scone_fgram::matcher::Matcher;

    use super::*;

    #[test]
    fn a_window_keeps_fgrams_that_start_before_it() {
        let matcher = Matcher::build([&[1u32, 2][..], &[2, 3], &[1, 2, 3]].into_iter(), 3).unwrap();
        let stream = TokenStream::from_documents(&[&[1, 2, 3, 4, 4]], 0, Some(&matcher), 0);
        // Stream: 0 1 2 3 4 4; the window begins at the 3.
        let batch = Batch::new(&stream, &[3], 2, 5);
        assert_eq!(batch.inputs.fgrams, [&[1, 2, 3][..]]);
        assert_eq!(batch.inputs.index, [5, 4]);
        assert_eq!(batch.targets, [4, 4]);
    }
}
