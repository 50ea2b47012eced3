//! What holds the rows of a table: sled or a mapped file, behind one trait.

pub(crate) mod mapped_store;
pub(crate) mod residency;
pub(crate) mod row_store;
pub(crate) mod row_writer;
pub(crate) mod sled_store;

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::table::disk::key_file::KeyFile;
use crate::table::disk::manifest::{Manifest, StoreKind};
use mapped_store::MappedStore;
use row_store::RowStore;
use sled_store::SledStore;

/// Either kind of store.
pub(crate) enum Store {
    Sled(SledStore),
    Mapped(MappedStore),
}

impl Store {
    /// Opens the rows of the table in `dir`. sled's page cache gets `store_cache_bytes`.
    pub(crate) fn open(
        dir: &Path,
        manifest: &Manifest,
        store_cache_bytes: u64,
        keys: Arc<KeyFile>,
    ) -> Result<Self> {
        Ok(match manifest.store {
            StoreKind::Sled => {
                Store::Sled(SledStore::open(dir, manifest, store_cache_bytes, keys)?)
            }
            StoreKind::Mapped => Store::Mapped(MappedStore::open(dir, manifest, keys)?),
        })
    }

    /// The store, whatever its kind.
    pub(crate) fn rows(&self) -> &dyn RowStore {
        match self {
            Store::Sled(store) => store,
            Store::Mapped(store) => store,
        }
    }

    /// The mapped store, when it is one.
    pub(crate) fn mapped(&self) -> Option<&MappedStore> {
        match self {
            Store::Sled(_) => None,
            Store::Mapped(store) => Some(store),
        }
    }
}
