//! The border between a table and whatever holds its rows.

use crate::error::Result;
use crate::table::memory::request::RowRequest;

/// Holds the encoded rows of one shard.
pub trait RowStore: Send + Sync {
    /// Bytes of one row.
    fn row_bytes(&self) -> usize;

    /// Number of rows held; may take a scan of the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn count_rows(&self) -> Result<u64>;

    /// Appends each row to `found`, or `None` when reading it may wait for a disk, as far as the
    /// store can tell. [`RowStore::check`] has to be asked about a copy of it.
    fn in_memory<'a>(&'a self, rows: &[u32], found: &mut Vec<Option<&'a [u8]>>);

    /// Compares the checksum of a row with that of `bytes`, a copy of what [`RowStore::in_memory`] gave.
    ///
    /// # Errors
    /// When it is damaged.
    fn check(&self, row: u32, bytes: &[u8]) -> Result<()>;

    /// Asks the disk for rows that [`RowStore::get_many`] is to read next, all of them before it waits for
    /// the first: disks like deep queues. Not for one row alone, which costs more than it saves.
    fn read_soon(&self, _rows: &[RowRequest]) {}

    /// Copies each row to its index in `out`, which holds rows of `row_bytes`.
    /// Checks each row; may block on the disk.
    ///
    /// # Errors
    /// When a row is missing or damaged, or the store cannot be read. Never a wrong row.
    fn get_many(&self, rows: &[RowRequest], out: &mut [u8]) -> Result<()>;
}
