//! The border between a table and whatever holds its rows.

use crate::error::Result;
use crate::ngram::TokenId;

/// Which row to read, and where to put it.
#[derive(Debug, Clone, Copy)]
pub struct RowKey<'a> {
    /// Row id: position among the keys of this shard, in served order.
    pub row: u32,
    /// The f-gram. A store compares all of it before it hands out the row.
    pub ids: &'a [TokenId],
    /// The row goes to the `place`-th row of the caller's buffer.
    pub place: u32,
}

/// Holds the encoded rows of one shard. Reads may block on the disk.
pub trait RowStore: Send + Sync {
    /// Bytes of one row.
    fn row_bytes(&self) -> usize;

    /// Number of rows held; may take a scan of the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn count_rows(&self) -> Result<u64>;

    /// Copies each row to its place in `out`, which is `row_bytes` times the number of places.
    ///
    /// # Errors
    /// When a row is missing or damaged, or the store cannot be read. Never a wrong row.
    fn get_many(&self, keys: &[RowKey<'_>], out: &mut [u8]) -> Result<()>;
}
