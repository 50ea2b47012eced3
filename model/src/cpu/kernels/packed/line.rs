//! Memory of packed weights.
#![expect(unsafe_code, reason = "says that a line is plain bytes")]

use pulp::bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};

/// Outputs of a tile. A row of a tile is a few numbers of each of them, in whole cache lines.
pub(crate) const TILE: usize = 32;

/// A cache line, so that no vector load crosses two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

// SAFETY: 64 bytes, for which every value is valid, all of them zero too.
unsafe impl Zeroable for Line {}
// SAFETY: as above; size equals alignment, so there is no padding, and there are no pointers.
unsafe impl Pod for Line {}

/// The lines as numbers or groups of numbers. Their size divides 64 bytes or is a multiple, and
/// the number of lines fits.
pub(crate) fn view<T: Pod>(lines: &[Line]) -> &[T] {
    cast_slice(lines)
}

/// As [`view`], to write.
pub(crate) fn view_mut<T: Pod>(lines: &mut [Line]) -> &mut [T] {
    cast_slice_mut(lines)
}

/// Memory of so many lines, zeroed.
pub(crate) fn zeroed(lines: usize) -> Vec<Line> {
    vec![Line::zeroed(); lines]
}
