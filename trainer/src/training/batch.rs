//! What one forward pass reads: for each position the token or the f-gram that embeds it, each
//! distinct f-gram once.

use std::collections::HashMap;

use super::stream::TokenStream;

/// How one position is embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// By the token embedding T.
    Token(u32),
    /// By the row of an f-gram.
    Fgram(&'a [u32]),
}

/// The embeddings of some positions, as indices into T followed by one row for each distinct
/// f-gram.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs<'a> {
    /// One entry a position: a token id, or `vocab_size + i` for `fgrams[i]`.
    pub index: Vec<u32>,
    /// The distinct f-grams, shorter first, then by ids.
    pub fgrams: Vec<&'a [u32]>,
}

impl<'a> Inputs<'a> {
    /// Collects `sources` of a model with `vocab_size` tokens.
    pub fn new(sources: impl Iterator<Item = Source<'a>>, vocab_size: u32) -> Self {
        let mut slots: HashMap<&[u32], u32> = HashMap::new();
        let mut fgrams: Vec<&[u32]> = Vec::new();
        let mut index: Vec<u32> = sources
            .map(|source| match source {
                Source::Token(id) => id,
                Source::Fgram(ids) => {
                    let slot = *slots.entry(ids).or_insert_with(|| {
                        fgrams.push(ids);
                        fgrams.len() as u32 - 1
                    });
                    vocab_size + slot
                }
            })
            .collect();
        let mut order: Vec<u32> = (0..fgrams.len() as u32).collect();
        order.sort_unstable_by_key(|&i| (fgrams[i as usize].len(), fgrams[i as usize]));
        let mut rank = vec![0; order.len()];
        for (at, &slot) in order.iter().enumerate() {
            rank[slot as usize] = at as u32;
        }
        for entry in &mut index {
            if *entry >= vocab_size {
                *entry = vocab_size + rank[(*entry - vocab_size) as usize];
            }
        }
        let fgrams = order.iter().map(|&slot| fgrams[slot as usize]).collect();
        Self { index, fgrams }
    }
}

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
    fn distinct_fgrams_are_listed_once_in_order() {
        let sources = [
            Source::Fgram(&[7, 8, 9]),
            Source::Token(3),
            Source::Fgram(&[5, 6]),
            Source::Fgram(&[7, 8, 9]),
            Source::Fgram(&[4, 6]),
        ];
        let inputs = Inputs::new(sources.into_iter(), 10);
        assert_eq!(inputs.fgrams, [&[4, 6][..], &[5, 6], &[7, 8, 9]]);
        assert_eq!(inputs.index, [12, 3, 11, 12, 10]);
    }

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
