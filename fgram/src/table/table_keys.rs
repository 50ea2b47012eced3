//! The f-grams of a table without its rows, for tools; needs no lock, so it works while the
//! table is being served.

use std::fmt;
use std::path::Path;

use super::manifest::Manifest;
use super::open::read_keys;
use crate::error::Result;
use crate::keys::KeyList;
use crate::ngram::{MAX_N, TokenId};

/// The f-grams of one shard of a table, in served order: the position is the row id.
pub struct TableKeys {
    keys: KeyList,
}

impl TableKeys {
    /// Reads and checks `keys.bin` of the table in `dir`.
    ///
    /// # Errors
    /// When it is damaged or belongs to another table than `manifest`.
    pub fn read(dir: &Path, manifest: &Manifest) -> Result<Self> {
        let keys = read_keys(dir, manifest)?;
        Ok(Self { keys })
    }

    /// The ids of each f-gram, most served first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[TokenId]> {
        self.keys.iter()
    }

    /// f-grams of each length; the index is the length.
    pub fn count_by_length(&self) -> [u64; MAX_N + 1] {
        let mut counts = [0; MAX_N + 1];
        for ids in self.iter() {
            counts[ids.len()] += 1;
        }
        counts
    }
}

impl fmt::Debug for TableKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableKeys")
            .field("len", &self.keys.len())
            .finish_non_exhaustive()
    }
}
