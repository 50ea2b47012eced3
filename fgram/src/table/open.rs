//! Opening a table directory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::disk::key_file::KeyFile;
use super::disk::key_index::KeyIndex;
use super::disk::manifest::Manifest;
use super::memory::flights::Flights;
use super::memory::hot_set::HotSet;
use super::memory::request::RowRequest;
use super::state::{Counters, Table};
use super::stores::Store;
use crate::error::Result;
use crate::ngram::NGram;

/// Rows read at once while the hot set is warmed.
const WARM_ROWS: usize = 1024;

/// How to open a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOptions {
    /// Memory for the rows asked for most, in bytes. Default 64 MiB. With sled the hot set has
    /// them, with [`HOT_ROW_OVERHEAD`](super::HOT_ROW_OVERHEAD) for each row, and 0 keeps none. The
    /// page cache is the hot set of a mapped table: so many bytes of rows are read into it at start.
    pub hot_bytes: u64,
    /// Give a mapped table a hot set of `hot_bytes` instead. Default false: a second copy of rows
    /// that lie ready in the page cache makes look-ups no faster.
    pub hot_set_on_mapped: bool,
    /// Begin with the rows most often served in training in memory, as many as fit. Default true.
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
            hot_set_on_mapped: false,
            warm: true,
            verify: false,
            store_cache_bytes: 64 << 20,
        }
    }
}

impl Table {
    /// Opens the table in `dir`: reads the manifest, the index, which is checked, and the keys, opens
    /// the store, and brings the rows served most into memory. Rows are left alone beyond what
    /// `options` say.
    ///
    /// # Errors
    /// [`NoTable`](crate::Error::NoTable) when there is no complete table,
    /// [`TableInUse`](crate::Error::TableInUse) when another process has a sled table open,
    /// [`Format`](crate::Error::Format) or [`DataLoss`](crate::Error::DataLoss) when it is damaged.
    pub fn open(dir: &Path, options: &TableOptions) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        let keys = Arc::new(KeyFile::open(dir, &manifest)?);
        let index = KeyIndex::open(dir, &manifest, Arc::clone(&keys))?;
        let store = Store::open(dir, &manifest, options.store_cache_bytes, keys)?;
        let hot_bytes = match store {
            Store::Mapped(_) if !options.hot_set_on_mapped => 0,
            _ => options.hot_bytes,
        };
        let hot_set = HotSet::new(hot_bytes, manifest.row_bytes(), index.len());
        let table = Self {
            dir: dir.to_owned(),
            manifest,
            index,
            store,
            hot_set,
            flights: Flights::default(),
            counters: Counters::default(),
            damaged: AtomicBool::new(false),
        };
        // Every look-up compares keys; only rows are allowed to be cold.
        table.index.keys().bring_in()?;
        if options.verify {
            table.verify(|_, _| {})?;
        }
        match table.store.mapped() {
            _ if !options.warm => {}
            Some(mapped) if !options.hot_set_on_mapped => mapped.warm(options.hot_bytes)?,
            _ => table.warm_hot_set()?,
        }
        Ok(table)
    }

    /// Reads in the order of the store, which touches each of its pages once.
    fn warm_hot_set(&self) -> Result<()> {
        let row_bytes = self.store().row_bytes();
        let fit = self.hot_set.capacity().min(self.index.len()) as u32;
        let keys = self.index.keys();
        let key = |row: u32| Ok((keys.get(row)?, row));
        let mut order = (0..fit).map(key).collect::<Result<Vec<(NGram, u32)>>>()?;
        order.sort_unstable_by(|(a, _), (b, _)| a.as_slice().cmp(b.as_slice()));
        let mut rows = Vec::new();
        for batch in order.chunks(WARM_ROWS) {
            let indexed = batch.iter().zip(0..);
            let batch: Vec<RowRequest> = indexed
                .map(|(&(_, row), index)| RowRequest { row, index })
                .collect();
            rows.resize(batch.len() * row_bytes, 0);
            self.store().read_soon(&batch);
            self.store().get_many(&batch, &mut rows)?;
            for (request, row) in batch.iter().zip(rows.chunks_exact(row_bytes)) {
                self.hot_set.insert(request.row, row);
            }
        }
        // The most served ones become the most recently used.
        (0..fit).rev().for_each(|row| self.hot_set.promote(row));
        Ok(())
    }
}
