//! Which row goes where.

use std::ops::Range;

/// Which row to read, and where to put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRequest {
    /// Row id: position among the keys of this shard, in served order. The look-up has compared
    /// the whole key.
    pub row: u32,
    /// Which row of the caller's buffer it becomes.
    pub index: u32,
}

impl RowRequest {
    /// The bytes of the caller's buffer, rows of `row_bytes`, that the row fills.
    #[inline]
    pub fn range(&self, row_bytes: usize) -> Range<usize> {
        let start = self.index as usize * row_bytes;
        start..start + row_bytes
    }
}
