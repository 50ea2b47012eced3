//! Opening a table directory.

use std::fmt;
use std::path::{Path, PathBuf};

use super::hot_set::{HotSet, HotSetStats};
use super::key_file;
use super::manifest::{Manifest, StoreKind};
use super::sled_store::SledStore;
use super::store::{RowKey, RowStore};
use crate::error::{Error, Result};
use crate::keys::KeyList;
use crate::matcher::Matcher;

/// Rows read at once while the hot set is warmed.
const WARM_ROWS: usize = 1024;

/// How to open a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOptions {
    /// Memory for the rows kept decoded from the store, in bytes, with
    /// [`HOT_ROW_OVERHEAD`](super::HOT_ROW_OVERHEAD) for each. 0 keeps none. Default 64 MiB.
    pub hot_bytes: u64,
    /// Fill the hot set at start with the rows most often served in training, as many as fit.
    /// Default true.
    pub warm: bool,
    /// Read and check every row before the first look-up. Default false.
    pub verify: bool,
    /// Memory for sled's own page cache, in bytes; it counts pages as they are on disk, so the
    /// process takes up to about twice as much. Default 64 MiB.
    pub store_cache_bytes: u64,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            hot_bytes: 64 << 20,
            warm: true,
            verify: false,
            store_cache_bytes: 64 << 20,
        }
    }
}

/// One shard of a table, open for look-ups from any number of threads.
pub struct Table {
    dir: PathBuf,
    manifest: Manifest,
    matcher: Matcher,
    store: Box<dyn RowStore>,
    hot_set: HotSet,
}

impl Table {
    /// Opens the table in `dir`: checks manifest and keys, builds the matcher, opens the store,
    /// reads its first and last row, and warms the hot set.
    ///
    /// # Errors
    /// [`Error::NoTable`] when there is no complete table, [`Error::TableInUse`] when another
    /// process has it, [`Error::Format`] or [`Error::DataLoss`] when it is damaged.
    pub fn open(dir: &Path, options: &TableOptions) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        let keys = key_file::read(dir, &manifest)?;
        let file = dir.join(key_file::FILE).display().to_string();
        let matcher = key_file::matcher(&file, &keys, manifest.max_n)?;
        let store = open_store(dir, &manifest, options)?;
        let hot_set = HotSet::new(options.hot_bytes, manifest.row_bytes(), keys.len());
        let table = Self {
            dir: dir.to_owned(),
            manifest,
            matcher,
            store,
            hot_set,
        };
        table.check_ends(&keys)?;
        if options.warm {
            table.warm(&keys)?;
        }
        drop(keys);
        if options.verify {
            table.verify(|_, _| {})?;
        }
        Ok(table)
    }

    /// Facts of the table.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Finds the f-grams of this shard.
    pub fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// The directory it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Counters of the hot set.
    pub fn stats(&self) -> HotSetStats {
        self.hot_set.stats()
    }

    pub(super) fn store(&self) -> &dyn RowStore {
        &*self.store
    }

    pub(super) fn hot_set(&self) -> &HotSet {
        &self.hot_set
    }

    /// Rows are written in the order of keys, so a store that lost its tail lacks the last one.
    fn check_ends(&self, keys: &KeyList) -> Result<()> {
        let mut row = vec![0; self.store.row_bytes()];
        let ends = [keys.iter().zip(0..).min(), keys.iter().zip(0..).max()];
        for (ids, id) in ends.into_iter().flatten() {
            self.store.get_many(
                &[RowKey {
                    row: id,
                    ids,
                    place: 0,
                }],
                &mut row,
            )?;
        }
        Ok(())
    }

    /// Reads in the order of the store, which touches each of its pages once.
    fn warm(&self, keys: &KeyList) -> Result<()> {
        let row_bytes = self.store.row_bytes();
        let fit = self.hot_set.capacity().min(keys.len()) as u32;
        let mut order: Vec<u32> = (0..fit).collect();
        order.sort_unstable_by_key(|&row| keys.get(row as usize));
        let mut rows = Vec::new();
        for batch in order.chunks(WARM_ROWS) {
            let batch: Vec<RowKey<'_>> = batch
                .iter()
                .zip(0..)
                .map(|(&row, place)| RowKey {
                    row,
                    ids: keys.get(row as usize),
                    place,
                })
                .collect();
            rows.resize(batch.len() * row_bytes, 0);
            self.store.get_many(&batch, &mut rows)?;
            for (key, row) in batch.iter().zip(rows.chunks_exact(row_bytes)) {
                self.hot_set.insert(key.row, row);
            }
        }
        // The most served ones become the most recently used.
        (0..fit).rev().for_each(|row| self.hot_set.promote(row));
        Ok(())
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Table");
        shown
            .field("dir", &self.dir)
            .field("manifest", &self.manifest);
        shown
            .field("hot_set", &self.hot_set)
            .finish_non_exhaustive()
    }
}

fn open_store(
    dir: &Path,
    manifest: &Manifest,
    options: &TableOptions,
) -> Result<Box<dyn RowStore>> {
    let row_bytes = manifest.row_bytes();
    let cache = options.store_cache_bytes;
    match manifest.store {
        StoreKind::Sled => {
            let store = SledStore::open(dir, &manifest.table_id, row_bytes, cache, false)?;
            Ok(Box::new(store))
        }
        StoreKind::Mapped => Err(unsupported_store()),
    }
}

pub(super) fn unsupported_store() -> Error {
    Error::argument("store", "mapped is not in this version; use sled")
}
