//! What kernels are told of the rows they read.

use crate::layout::Heads;
use candle_core::Layout;

/// What the kernels are told beside the words of a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) rows: usize,
    /// Rotary frequencies; none of them without rotary positions.
    pub(super) frequencies: usize,
    pub(super) heads: Heads,
}

/// Numbers of a row to the next one; the numbers of a row are neighbours.
pub(super) fn row_stride(layout: &Layout) -> candle_core::Result<usize> {
    match layout.stride() {
        [stride, 1] => Ok(*stride),
        _ => candle_core::bail!("rows of neighbours are wanted, not {layout:?}"),
    }
}
