//! Rows in a sled tree (`docs/formats.md`, "rows.sled").
//!
//! Key: the ids, each as a big-endian u32. Value: the encoded row, then a little-endian CRC-32
//! of the table's checksum seed, key and row. sled finds a row by its whole key; the checksum also refuses a
//! damaged row, one that slid under another key, and one of another table.
//!
//! sled 0.34 panics on some damaged files where it should return an error, so each call into it
//! is caught. A caught panic becomes an error of this request; the tree is only read afterwards,
//! and each row read carries its own checksum, so a state left odd by the panic cannot turn into
//! a wrong row.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sled::{Db, IVec};

use super::row_store::RowStore;
use crate::error::{Error, Result};
use crate::ngram::TokenId;
use crate::table::disk::key_file::KeyFile;
use crate::table::disk::manifest::Manifest;
use crate::table::disk::names::SLED_FOLDER;
use crate::table::disk::sums::{RowSum, RowsHash, key_bytes};
use crate::table::memory::request::RowRequest;

/// Bytes of checksum behind each row.
const CHECKSUM_BYTES: usize = 4;

/// How long a tree may be locked before it counts as open elsewhere.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Time between two tries.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// The tree of a table: rows by f-gram.
pub(crate) struct SledTree {
    db: Db,
    /// The table directory, for messages.
    dir: PathBuf,
    row_bytes: usize,
    sum: RowSum,
}

/// What a key has in the tree.
pub(crate) enum Stored {
    Row(IVec),
    Missing,
    Damaged,
}

impl Stored {
    /// The encoded row, if there is a sound one.
    pub(crate) fn row(&self) -> Option<&[u8]> {
        match self {
            Stored::Row(value) => Some(&value[..value.len() - CHECKSUM_BYTES]),
            Stored::Missing | Stored::Damaged => None,
        }
    }
}

impl SledTree {
    /// Opens the rows of the table in `dir`; creates them only if `create`.
    pub(crate) fn open(
        dir: &Path,
        manifest: &Manifest,
        cache_bytes: u64,
        create: bool,
    ) -> Result<Self> {
        let path = dir.join(SLED_FOLDER);
        if !create && !path.join("db").is_file() {
            return Err(Error::data_loss(
                dir,
                format!("{SLED_FOLDER}/db is missing"),
            ));
        }
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes)
            // Writers flush when they mean to, and readers have nothing to flush.
            .flush_every_ms(None)
            .mode(sled::Mode::HighThroughput);
        Ok(Self {
            db: open_unlocked(dir, &config)?,
            dir: dir.to_owned(),
            row_bytes: manifest.row_bytes(),
            sum: RowSum::new(&manifest.checksum_seed),
        })
    }

    /// Reads the row of one f-gram and checks it.
    pub(crate) fn get(&self, ids: &[TokenId]) -> Result<Stored> {
        let key = key_bytes(ids);
        let Some(value) = guarded(&self.dir, "read", || self.db.get(&key))? else {
            return Ok(Stored::Missing);
        };
        let sound = match value.split_last_chunk::<CHECKSUM_BYTES>() {
            Some((row, stored)) => {
                row.len() == self.row_bytes && self.sum.of(ids, row).to_le_bytes() == *stored
            }
            None => false,
        };
        Ok(if sound {
            Stored::Row(value)
        } else {
            Stored::Damaged
        })
    }

    /// Writes the row of one f-gram. Fastest in the order of [`key_bytes`].
    pub(crate) fn insert(&self, ids: &[TokenId], row: &[u8]) -> Result<()> {
        let key = key_bytes(ids);
        let mut value = Vec::with_capacity(row.len() + CHECKSUM_BYTES);
        value.extend_from_slice(row);
        value.extend_from_slice(&self.sum.of(ids, row).to_le_bytes());
        guarded(&self.dir, "write", || self.db.insert(&key, value))?;
        Ok(())
    }

    /// Makes all rows so far last.
    pub(crate) fn flush(&self) -> Result<()> {
        guarded(&self.dir, "write", || self.db.flush())?;
        Ok(())
    }

    /// Number of rows; reads the whole tree.
    fn count_rows(&self) -> Result<u64> {
        let count = || {
            self.db
                .iter()
                .try_fold(0, |rows, entry| entry.map(|_| rows + 1))
        };
        guarded(&self.dir, "read", count)
    }

    /// The row of one f-gram, or why there is none.
    fn sound(&self, ids: &[TokenId]) -> Result<Stored> {
        let stored = self.get(ids)?;
        let what = match stored {
            Stored::Row(_) => return Ok(stored),
            Stored::Missing => "missing (or keys.bin is damaged)",
            Stored::Damaged => "damaged",
        };
        let problem = format!("the row of {ids:?} is {what}");
        Err(Error::data_loss(&self.dir, problem))
    }

    /// The checksum over the rows of all `keys`, in the order of their ids.
    ///
    /// # Errors
    /// When a row is missing or damaged.
    pub(crate) fn rows_sha256<'a>(
        &self,
        keys: impl Iterator<Item = &'a [TokenId]>,
    ) -> Result<String> {
        let mut hash = RowsHash::new();
        for ids in keys {
            hash.add(ids, self.sound(ids)?.row().unwrap_or_default());
        }
        Ok(hash.finish())
    }
}

/// The rows of a table in sled, by row id.
pub(crate) struct SledStore {
    tree: SledTree,
    keys: Arc<KeyFile>,
}

impl SledStore {
    /// Opens the rows of the table in `dir`, and reads the first and the last: rows are written
    /// in the order of their keys, so a tree that lost its tail lacks the last one.
    pub(crate) fn open(
        dir: &Path,
        manifest: &Manifest,
        cache_bytes: u64,
        keys: Arc<KeyFile>,
    ) -> Result<Self> {
        let tree = SledTree::open(dir, manifest, cache_bytes, false)?;
        for row in keys.ends().into_iter().flatten() {
            tree.sound(keys.get(row)?.as_slice())?;
        }
        Ok(Self { tree, keys })
    }
}

impl RowStore for SledStore {
    fn row_bytes(&self) -> usize {
        self.tree.row_bytes
    }

    fn count_rows(&self) -> Result<u64> {
        self.tree.count_rows()
    }

    /// sled does not tell what its cache holds.
    fn in_memory<'a>(&'a self, rows: &[u32], found: &mut Vec<Option<&'a [u8]>>) {
        found.extend(rows.iter().map(|_| None));
    }

    /// Nothing comes from memory.
    fn check(&self, _row: u32, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn get_many(&self, rows: &[RowRequest], out: &mut [u8]) -> Result<()> {
        let width = self.tree.row_bytes;
        for request in rows {
            let stored = self.tree.sound(self.keys.get(request.row)?.as_slice())?;
            out[request.range(width)].copy_from_slice(stored.row().unwrap_or_default());
        }
        Ok(())
    }
}

/// Opens the tree, and waits a moment for whoever is closing it.
///
/// sled writes with threads of its own, and one that is about to end may hold the file, and with
/// it the lock, shortly after the tree was dropped: by a build before its table is opened, for
/// instance, or by a service that was just stopped.
fn open_unlocked(dir: &Path, config: &sled::Config) -> Result<Db> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match guarded(dir, "open", || config.open()) {
            Err(Error::TableInUse { .. }) if Instant::now() < deadline => {
                thread::sleep(LOCK_INTERVAL);
            }
            result => return result,
        }
    }
}

/// Calls sled; turns its errors and its panics into ours.
fn guarded<T>(
    dir: &Path,
    action: &'static str,
    call: impl FnOnce() -> sled::Result<T>,
) -> Result<T> {
    // The module's documentation says why a broken invariant inside sled does no harm here.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(sled_error(dir, action, error)),
        Err(panic) => {
            let said = panic_text(panic.as_ref());
            Err(Error::data_loss(
                dir,
                format!("sled gave up when asked to {action}: {said}"),
            ))
        }
    }
}

fn sled_error(dir: &Path, action: &'static str, error: sled::Error) -> Error {
    let dir = dir.to_owned();
    match error {
        // sled has no kind of its own for a lock that another process holds.
        sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => {
            Error::TableInUse { dir }
        }
        sled::Error::Corruption { at, .. } => {
            let at = at.map_or_else(String::new, |at| format!(" at {at:?}"));
            Error::data_loss(&dir, format!("sled found its file corrupted{at}"))
        }
        sled::Error::ReportableBug(what) => Error::data_loss(&dir, format!("sled reports: {what}")),
        other => Error::Store {
            action,
            dir,
            source: Box::new(other),
        },
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason")
}
