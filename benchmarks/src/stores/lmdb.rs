//! LMDB through heed: one B+ tree, read by mmap.

use std::path::Path;

use anyhow::{Context as _, Result};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, WithoutTls};
use scone_fgram::FgramSet;

use super::store::{COMMIT_ROWS, Store, in_key_order};
use crate::batches::{Batch, key};
use crate::rows;

/// Address space kept for the file, far above any size used here; costs no memory.
const MAP_BYTES: usize = 1 << 40;

/// An open environment with a read transaction.
pub(super) struct Lmdb {
    rows: Database<Bytes, Bytes>,
    transaction: RoTxn<'static, WithoutTls>,
    out: Vec<u8>,
}

#[expect(unsafe_code, reason = "heed's only way to open a file that it maps")]
fn environment(dir: &Path, flags: EnvFlags) -> Result<Env<WithoutTls>> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(MAP_BYTES);
    // SAFETY: the flags given below leave LMDB's locks on and its map read-only, and only this
    // benchmark, which opens a folder once at a time, touches the files in it. The test of all
    // stores writes and reads one.
    unsafe {
        options.flags(flags);
        Ok(options.open(dir)?)
    }
}

/// Loads the rows in key order, the fastest way that LMDB has, and syncs once at the end.
pub(super) fn build(dir: &Path, set: &FgramSet, row_bytes: usize) -> Result<()> {
    let env = environment(dir, EnvFlags::NO_SYNC)?;
    let mut transaction = env.write_txn()?;
    let rows: Database<Bytes, Bytes> = env.create_database(&mut transaction, None)?;
    transaction.commit()?;
    let (mut key_bytes, mut row) = (Vec::new(), Vec::new());
    for batch in in_key_order(set).chunks(COMMIT_ROWS) {
        let mut transaction = env.write_txn()?;
        for ids in batch {
            key_bytes.clear();
            key_bytes.extend(key(ids));
            row.clear();
            rows::encoded(ids, row_bytes, &mut row);
            rows.put_with_flags(&mut transaction, PutFlags::APPEND, &key_bytes, &row)?;
        }
        transaction.commit()?;
    }
    Ok(env.force_sync()?)
}

impl Lmdb {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        // Reads are random, so what the system would read ahead is never wanted.
        let env = environment(dir, EnvFlags::NO_READ_AHEAD)?;
        let transaction = env.clone().static_read_txn()?;
        let rows = env.open_database(&transaction, None)?;
        Ok(Self {
            rows: rows.context("the environment holds no rows")?,
            transaction,
            out: Vec::new(),
        })
    }
}

impl Store for Lmdb {
    fn read(&mut self, batch: &Batch) -> Result<&[u8]> {
        self.out.clear();
        for key in batch.keys() {
            let row = self.rows.get(&self.transaction, key)?;
            self.out.extend_from_slice(row.context("no such key")?);
        }
        Ok(&self.out)
    }

    /// Rows of 2 KiB and more have pages of their own, so branches and leaves hold keys alone.
    fn index_bytes(&self) -> Option<u64> {
        let stat = self.rows.stat(&self.transaction).ok()?;
        let pages = stat.branch_pages + stat.leaf_pages;
        (stat.overflow_pages > 0).then_some(pages as u64 * u64::from(stat.page_size))
    }
}
