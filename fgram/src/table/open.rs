//! Opening a table directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::flights::Flights;
use super::hot_set::{HotSet, HotSetStats};
use super::key_file::KeyFile;
use super::key_index::KeyIndex;
use super::manifest::{Manifest, StoreKind};
use super::mapped_store::MappedStore;
use super::sled_store::SledStore;
use super::store::{RowRequest, RowStore};
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

/// One shard of a table, open for look-ups from any number of threads.
pub struct Table {
    dir: PathBuf,
    manifest: Manifest,
    index: KeyIndex,
    store: Store,
    hot_set: HotSet,
    flights: Flights,
    counters: Counters,
}

/// Either kind of store.
pub(super) enum Store {
    Sled(SledStore),
    Mapped(MappedStore),
}

/// What look-ups have met since the table was opened.
#[derive(Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    coalesced: AtomicU64,
}

impl Counters {
    /// Counts the distinct rows of a look-up, of which some were not in memory.
    pub(super) fn answered(&self, rows: u64, cold: u64) {
        self.hits.fetch_add(rows - cold, Ordering::Relaxed);
        self.misses.fetch_add(cold, Ordering::Relaxed);
    }

    /// Counts misses that another look-up's fetch has answered.
    pub(super) fn coalesced(&self, rows: u64) {
        self.coalesced.fetch_add(rows, Ordering::Relaxed);
    }
}

impl Table {
    /// Opens the table in `dir`: reads the manifest, index and keys, opens the store, and brings the
    /// rows served most into memory. Rows are left alone beyond what `options` say.
    ///
    /// # Errors
    /// [`NoTable`](crate::Error::NoTable) when there is no complete table,
    /// [`TableInUse`](crate::Error::TableInUse) when another process has a sled table open,
    /// [`Format`](crate::Error::Format) or [`DataLoss`](crate::Error::DataLoss) when it is damaged.
    pub fn open(dir: &Path, options: &TableOptions) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        let keys = Arc::new(KeyFile::open(dir, &manifest)?);
        let index = KeyIndex::open(dir, &manifest, Arc::clone(&keys))?;
        let store = Store::open(dir, &manifest, options, keys)?;
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
        };
        table.index.bring_in()?;
        if options.verify {
            table.verify(|_, _| {})?;
        }
        match table.mapped() {
            _ if !options.warm => {}
            Some(mapped) if !options.hot_set_on_mapped => mapped.warm(options.hot_bytes)?,
            _ => table.warm_hot_set()?,
        }
        Ok(table)
    }

    /// Facts of the table.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Finds the f-grams of this shard.
    pub fn index(&self) -> &KeyIndex {
        &self.index
    }

    /// The directory it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Counters of look-ups and of the hot set.
    pub fn stats(&self) -> HotSetStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HotSetStats {
            hits: count(&self.counters.hits),
            misses: count(&self.counters.misses),
            coalesced: count(&self.counters.coalesced),
            evictions: self.hot_set.evictions(),
            bytes: self.hot_set.bytes(),
            rows: self.hot_set.rows(),
        }
    }

    pub(super) fn store(&self) -> &dyn RowStore {
        match &self.store {
            Store::Sled(store) => store,
            Store::Mapped(store) => store,
        }
    }

    /// The mapped store, when it is one.
    pub(super) fn mapped(&self) -> Option<&MappedStore> {
        match &self.store {
            Store::Sled(_) => None,
            Store::Mapped(store) => Some(store),
        }
    }

    pub(super) fn hot_set(&self) -> &HotSet {
        &self.hot_set
    }

    pub(super) fn flights(&self) -> &Flights {
        &self.flights
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
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
            let places = batch.iter().zip(0..);
            let batch: Vec<RowRequest> = places
                .map(|(&(_, row), place)| RowRequest { row, place })
                .collect();
            rows.resize(batch.len() * row_bytes, 0);
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

impl Store {
    fn open(
        dir: &Path,
        manifest: &Manifest,
        options: &TableOptions,
        keys: Arc<KeyFile>,
    ) -> Result<Self> {
        Ok(match manifest.store {
            StoreKind::Sled => {
                let cache = options.store_cache_bytes;
                Store::Sled(SledStore::open(dir, manifest, cache, keys)?)
            }
            StoreKind::Mapped => Store::Mapped(MappedStore::open(dir, manifest, keys)?),
        })
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Table");
        shown
            .field("dir", &self.dir)
            .field("manifest", &self.manifest);
        shown.field("stats", &self.stats()).finish_non_exhaustive()
    }
}
