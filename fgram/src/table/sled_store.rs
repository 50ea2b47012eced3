//! Rows in a sled tree (`docs/formats.md`, "rows.sled").
//!
//! Key: the ids, each as a big-endian u32. Value: the encoded row, then a little-endian CRC-32
//! of table id, key and row. sled finds a row by its whole key; the checksum also refuses a
//! damaged row, one that slid under another key, and one of another table.
//!
//! sled 0.34 panics on some damaged files where it should return an error, so each call into it
//! is caught. A caught panic becomes an error of this request; the tree is only read afterwards,
//! and each row read carries its own checksum, so a state left odd by the panic cannot turn into
//! a wrong row.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crc32fast::Hasher;
use sled::{Db, IVec};

use super::store::{RowKey, RowStore};
use crate::error::{Error, Result};
use crate::ngram::TokenId;

/// Directory of the rows inside the table directory.
pub(super) const DIRECTORY: &str = "rows.sled";

/// Bytes of checksum behind each row.
const CHECKSUM_BYTES: usize = 4;

/// How long a tree may be locked before it counts as open elsewhere.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Time between two tries.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// The rows of a table in sled.
pub(super) struct SledStore {
    db: Db,
    /// The table directory, for messages.
    dir: PathBuf,
    row_bytes: usize,
    /// A CRC-32 that has seen the table id.
    seed: Hasher,
}

/// What a key has in the tree.
pub(super) enum Stored {
    Row(IVec),
    Missing,
    Damaged,
}

impl Stored {
    /// The encoded row, if there is a sound one.
    pub(super) fn row(&self) -> Option<&[u8]> {
        match self {
            Stored::Row(value) => Some(&value[..value.len() - CHECKSUM_BYTES]),
            Stored::Missing | Stored::Damaged => None,
        }
    }
}

impl SledStore {
    /// Opens the rows of the table in `dir`; creates them only if `create`.
    pub(super) fn open(
        dir: &Path,
        table_id: &str,
        row_bytes: usize,
        cache_bytes: u64,
        create: bool,
    ) -> Result<Self> {
        let path = dir.join(DIRECTORY);
        if !create && !path.join("db").is_file() {
            return Err(data_loss(dir, format!("{DIRECTORY}/db is missing")));
        }
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes)
            // Writers flush when they mean to, and readers have nothing to flush.
            .flush_every_ms(None)
            .mode(sled::Mode::HighThroughput);
        let db = open_unlocked(dir, &config)?;
        let mut seed = Hasher::new();
        seed.update(table_id.as_bytes());
        Ok(Self {
            db,
            dir: dir.to_owned(),
            row_bytes,
            seed,
        })
    }

    /// Reads the row of one f-gram and checks it.
    pub(super) fn get(&self, ids: &[TokenId]) -> Result<Stored> {
        let key = key_bytes(ids);
        let Some(value) = guarded(&self.dir, "read", || self.db.get(&key))? else {
            return Ok(Stored::Missing);
        };
        let sound = match value.split_last_chunk::<CHECKSUM_BYTES>() {
            Some((row, stored)) => {
                row.len() == self.row_bytes && self.checksum(&key, row) == *stored
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
    pub(super) fn insert(&self, ids: &[TokenId], row: &[u8]) -> Result<()> {
        let key = key_bytes(ids);
        let mut value = Vec::with_capacity(row.len() + CHECKSUM_BYTES);
        value.extend_from_slice(row);
        value.extend_from_slice(&self.checksum(&key, row));
        guarded(&self.dir, "write", || self.db.insert(&key, value))?;
        Ok(())
    }

    /// Makes all rows so far last.
    pub(super) fn flush(&self) -> Result<()> {
        guarded(&self.dir, "write", || self.db.flush())?;
        Ok(())
    }

    fn checksum(&self, key: &[u8], row: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let mut hasher = self.seed.clone();
        hasher.update(key);
        hasher.update(row);
        hasher.finalize().to_le_bytes()
    }
}

impl RowStore for SledStore {
    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn count_rows(&self) -> Result<u64> {
        let count = || {
            self.db
                .iter()
                .try_fold(0, |rows, entry| entry.map(|_| rows + 1))
        };
        guarded(&self.dir, "read", count)
    }

    fn get_many(&self, keys: &[RowKey<'_>], out: &mut [u8]) -> Result<()> {
        for key in keys {
            let stored = self.get(key.ids)?;
            let Some(row) = stored.row() else {
                let what = if matches!(stored, Stored::Missing) {
                    "missing"
                } else {
                    "damaged"
                };
                return Err(data_loss(
                    &self.dir,
                    format!("the row of {:?} is {what}", key.ids),
                ));
            };
            let start = key.place as usize * self.row_bytes;
            out[start..start + self.row_bytes].copy_from_slice(row);
        }
        Ok(())
    }
}

/// The key of an f-gram. Big-endian, so that the order of bytes is that of ids.
pub(super) fn key_bytes(ids: &[TokenId]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_be_bytes()).collect()
}

fn data_loss(dir: &Path, problem: String) -> Error {
    Error::DataLoss {
        dir: dir.to_owned(),
        problem,
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
            Err(data_loss(
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
            let place = at.map_or_else(String::new, |at| format!(" at {at:?}"));
            data_loss(&dir, format!("sled found its file corrupted{place}"))
        }
        sled::Error::ReportableBug(what) => data_loss(&dir, format!("sled reports: {what}")),
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
