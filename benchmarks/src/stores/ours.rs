//! A table of ours, sled or mapped: matching, full key comparison and copy in one look-up.

use std::path::Path;

use anyhow::{Result, ensure};
use scone_fgram::table::{HOT_ROW_OVERHEAD, LookupResult, Manifest};
use scone_fgram::{Match, Table, TableOptions, TokenId};

use super::store::Store;
use crate::batches::Batch;

/// An open table.
pub(super) struct Ours {
    table: Table,
    result: LookupResult,
    found: Vec<Option<Match>>,
}

impl Ours {
    /// Opens a table with a hot set for `hot_rows` rows, filled with those served most.
    pub(super) fn open(dir: &Path, hot_rows: usize) -> Result<Self> {
        let row_bytes = Manifest::read(dir)?.row_bytes() as u64;
        let options = TableOptions {
            hot_bytes: hot_rows as u64 * (row_bytes + HOT_ROW_OVERHEAD),
            ..TableOptions::default()
        };
        Ok(Self {
            table: Table::open(dir, &options)?,
            result: LookupResult::default(),
            found: Vec::new(),
        })
    }
}

impl Store for Ours {
    fn read(&mut self, batch: &Batch) -> Result<&[u8]> {
        let result = &mut self.result;
        self.table.lookup(&batch.ids, &batch.spans, result)?;
        ensure!(
            result.row_index.len() == batch.rows.len() && result.rows_are_in_order(),
            "a look-up missed an f-gram"
        );
        Ok(&result.rows)
    }

    fn find(&mut self, batch: &Batch) -> Option<u64> {
        let heads: Vec<&[TokenId]> = batch.fgrams().collect();
        self.found.clear();
        let found = &mut self.found;
        self.table.index().longest_each(&heads, found).ok()?;
        let rows = self.found.iter().flatten();
        Some(rows.map(|found| u64::from(found.row)).sum())
    }

    fn index_bytes(&self) -> Option<u64> {
        Some(self.table.index().index_bytes() as u64)
    }
}
