//! Which row goes where.

/// Which row to read, and where to put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRequest {
    /// Row id: position among the keys of this shard, in served order. The look-up has compared
    /// the whole key.
    pub row: u32,
    /// The row goes to the `place`-th row of the caller's buffer.
    pub place: u32,
}
