//! How a piece of a document is cut into windows.

use std::ops::Range;

use super::held_out::Piece;

/// One sequence through the model. Input position `i` is eos for 0 and token `i - 1` of the
/// document else; its target is token `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// Index of the document.
    pub(super) document: usize,
    /// Input positions.
    pub(super) inputs: Range<usize>,
    /// How many of the last targets are scored; those before are context.
    pub(super) scored: usize,
}

/// Windows that score each token of `piece` once.
pub(super) fn windows(piece: &Piece, context: usize, stride: usize) -> Vec<Window> {
    let mut found = Vec::new();
    let mut at = piece.range.start;
    while at < piece.range.end {
        let step = if at == 0 { context } else { stride };
        let end = (at + step).min(piece.range.end);
        let inputs = end.saturating_sub(context)..end;
        found.push(Window {
            document: piece.document,
            inputs,
            scored: end - at,
        });
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(range: Range<usize>, context: usize, stride: usize) -> Vec<(Range<usize>, usize)> {
        let piece = Piece { document: 0, range };
        windows(&piece, context, stride)
            .into_iter()
            .map(|w| (w.inputs, w.scored))
            .collect()
    }

    #[test]
    fn the_first_window_scores_all_and_later_ones_their_stride() {
        assert_eq!(
            cut(0..10, 4, 2),
            [(0..4, 4), (2..6, 2), (4..8, 2), (6..10, 2)]
        );
        assert_eq!(cut(0..9, 4, 4), [(0..4, 4), (4..8, 4), (5..9, 1)]);
        assert_eq!(cut(0..3, 4, 2), [(0..3, 3)]);
        assert_eq!(cut(0..0, 4, 2), []);
    }

    #[test]
    fn a_piece_from_the_middle_has_context_before_it() {
        assert_eq!(cut(5..9, 4, 2), [(3..7, 2), (5..9, 2)]);
        assert_eq!(cut(1..3, 4, 2), [(0..3, 2)]);
    }
}
