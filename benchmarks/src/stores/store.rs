//! What every store is asked, and how peers are loaded.

use anyhow::Result;
use scone_fgram::FgramSet;

use crate::batches::Batch;

/// Rows written between two commits of a peer.
pub(super) const COMMIT_ROWS: usize = 10_000;

/// A store that is open for reads.
pub trait Store {
    /// The rows of a batch, end to end.
    ///
    /// # Errors
    /// When one is missing or cannot be read.
    fn read(&mut self, batch: &Batch) -> Result<&[u8]>;

    /// Finds the rows and leaves them where they are, where the store can: the part of a read that is
    /// not copying. The sum of their ids, so that nothing can be left out.
    fn find(&mut self, _batch: &Batch) -> Option<u64> {
        None
    }

    /// Memory or pages that serve to find rows, in bytes, where the store tells.
    fn index_bytes(&self) -> Option<u64> {
        None
    }
}

/// The f-grams of a set in the order of their keys, in which peers are loaded.
pub(super) fn in_key_order(set: &FgramSet) -> Vec<&[u32]> {
    let mut keys: Vec<&[u32]> = set.iter().map(|fgram| fgram.ids).collect();
    keys.sort_unstable();
    keys
}
