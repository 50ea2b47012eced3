//! An open table: its parts, as the verbs find them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::disk::key_index::KeyIndex;
use super::disk::manifest::Manifest;
use super::disk::names::UPSERT_FILE;
use super::memory::flights::Flights;
use super::memory::hot_set::{HotSet, HotSetStats};
use super::stores::Store;
use super::stores::mapped_store::MappedStore;
use super::stores::row_store::RowStore;
use crate::error::Result;

/// One shard of a table, open for look-ups from any number of threads.
pub struct Table {
    pub(super) dir: PathBuf,
    pub(super) manifest: Manifest,
    pub(super) index: KeyIndex,
    pub(super) store: Store,
    pub(super) hot_set: HotSet,
    pub(super) flights: Flights,
    pub(super) counters: Counters,
    /// Whether a look-up has met damage.
    pub(super) damaged: AtomicBool,
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

    /// Whether a look-up has found a row, a key or a file of it damaged since it was opened. Opened
    /// again it may be sound: from files that were put right, or a disk that reads again.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// # Errors
    /// When a part of a mapped file was gone when it was read.
    pub(super) fn check_not_lost(&self) -> Result<()> {
        self.index.keys().check_not_lost()?;
        self.store
            .mapped()
            .map_or(Ok(()), MappedStore::check_not_lost)
    }

    /// Whether an [`upsert`](super::upsert()) of the table was begun and has not ended.
    pub fn has_unfinished_upsert(&self) -> bool {
        self.dir.join(UPSERT_FILE).exists()
    }

    /// The rows.
    pub(super) fn store(&self) -> &dyn RowStore {
        self.store.rows()
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
