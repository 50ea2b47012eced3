//! Rows from a table in this process.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use scone_fgram::table::{LookupResult, Table, TableOptions};

use super::{Answers, EmbedTier, LookupBatch, LookupError, ModelFacts, TableFacts};
use crate::error::Error;

/// A table opened by this process.
pub struct Embedded {
    table: Table,
    facts: Arc<TableFacts>,
    result: LookupResult,
}

impl Embedded {
    /// Opens a table directory and checks it against the model.
    ///
    /// # Errors
    /// When it is no whole table, belongs to another model, or holds one shard of several.
    pub fn open(dir: &Path, options: &TableOptions, model: &ModelFacts) -> Result<Self, Error> {
        let table = Table::open(dir, options)?;
        let facts = TableFacts::from_manifest(table.manifest());
        facts.check(&dir.display().to_string(), model)?;
        if facts.shard_count != 1 {
            return Err(Error::Config(format!(
                "--table {}: holds shard {} of {}; serve shards by embed-services and name them by --embed",
                dir.display(),
                table.manifest().shard_index,
                facts.shard_count
            )));
        }
        Ok(Self {
            table,
            facts: Arc::new(facts),
            result: LookupResult::default(),
        })
    }

    fn read(&mut self, batch: &LookupBatch, out: &mut Answers) -> Result<(), String> {
        let Self {
            table,
            facts,
            result,
        } = self;
        let found = table.lookup(&batch.ids, &batch.spans, result);
        found.map_err(|error| error.to_string())?;
        let dim = facts.dim as usize;
        let mut each = result.rows.chunks_exact(facts.dtype.row_bytes(dim));
        if !each.all(|row| facts.dtype.is_finite(row, dim)) {
            return Err("the table has a row with an element that is not finite".to_owned());
        }
        let rows = Bytes::from(std::mem::take(&mut result.rows));
        let message = out.add_rows(rows, facts.dtype, dim);
        let mut rows = result.row_index.iter();
        for (position, &length) in result.match_lengths.iter().enumerate() {
            if length > 0
                && let Some(&row) = rows.next()
            {
                out.matched(position, length, message, row);
            }
        }
        Ok(())
    }
}

impl EmbedTier for Embedded {
    fn current(&self) -> Arc<TableFacts> {
        self.facts.clone()
    }

    fn lookup(&mut self, _only: &TableFacts, batch: &LookupBatch, out: &mut Answers) {
        self.result.rows = out.take_memory();
        out.reset(batch.positions());
        if let Err(error) = self.read(batch, out) {
            tracing::error!(error, "table look-up failed");
            out.fail(0..batch.positions(), &LookupError::BadAnswer(error));
        }
    }
}
