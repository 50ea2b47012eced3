//! The f-grams of a table without its rows, for tools; needs no lock, so it works while the
//! table is being served.

use std::fmt;
use std::path::Path;

use super::disk::key_file::KeyFile;
use super::disk::manifest::Manifest;
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
        let file = KeyFile::open(dir, manifest)?;
        file.verify_sha256(manifest)?;
        Ok(Self {
            keys: file.read_all(manifest)?,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of each f-gram, most served first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[TokenId]> + Clone {
        self.keys.iter()
    }

    /// f-grams of each length; the index is the length.
    pub fn count_by_length(&self) -> [u64; MAX_N + 1] {
        self.keys.count_by_length()
    }
}

impl fmt::Debug for TableKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableKeys")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
