//! redb: a B+ tree in Rust, with a page cache of its own (1 GiB unless told otherwise).

use std::path::Path;

use anyhow::{Context as _, Result};
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase as _, TableDefinition};
use scone_fgram::FgramSet;

use super::store::{COMMIT_ROWS, Store, in_key_order};
use crate::batches::{Batch, key};
use crate::rows;

const FILE: &str = "rows.redb";
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");

/// An open database with a table to read.
pub(super) struct Redb {
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    out: Vec<u8>,
    _database: Database,
}

/// Loads the rows in key order; only the last commit waits for the disk.
pub(super) fn build(dir: &Path, set: &FgramSet, row_bytes: usize) -> Result<()> {
    let database = Database::create(dir.join(FILE))?;
    let (mut key_bytes, mut row) = (Vec::new(), Vec::new());
    for batch in in_key_order(set).chunks(COMMIT_ROWS) {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::None)?;
        let mut rows = transaction.open_table(ROWS)?;
        for ids in batch {
            key_bytes.clear();
            key_bytes.extend(key(ids));
            row.clear();
            rows::encoded(ids, row_bytes, &mut row);
            rows.insert(key_bytes.as_slice(), row.as_slice())?;
        }
        drop(rows);
        transaction.commit()?;
    }
    Ok(database.begin_write()?.commit()?)
}

impl Redb {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let database = Database::open(dir.join(FILE))?;
        let rows = database.begin_read()?.open_table(ROWS)?;
        Ok(Self {
            rows,
            out: Vec::new(),
            _database: database,
        })
    }
}

impl Store for Redb {
    fn read(&mut self, batch: &Batch) -> Result<&[u8]> {
        self.out.clear();
        for key in batch.keys() {
            let row = self.rows.get(key)?.context("no such key")?;
            self.out.extend_from_slice(row.value());
        }
        Ok(&self.out)
    }
}
