//! Rows from tables in this process.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use scone_fgram::table::{LookupResult, NamedDir, Table, TableOptions};

use super::{
    Answers, EmbedTier, Lookup, LookupBatch, LookupError, ModelFacts, TableFacts, TableName,
};
use crate::error::Error;

/// Tables opened by this process.
#[derive(Default)]
pub struct Embedded {
    tables: Vec<OpenTable>,
}

struct OpenTable {
    table: Table,
    facts: Arc<TableFacts>,
    /// Memory of the last look-up.
    result: LookupResult,
}

impl Embedded {
    /// Opens a table directory, checks it against the model and serves it as the default table.
    ///
    /// # Errors
    /// When it is no whole table, belongs to another model, or holds one shard of several.
    pub fn open(dir: &Path, options: &TableOptions, model: &ModelFacts) -> Result<Self, Error> {
        let table = OpenTable::open(&TableName::default(), dir, options, model)?;
        Ok(Self {
            tables: vec![table],
        })
    }

    /// As [`open`](Self::open), for one more table beside those that are there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn add(
        &mut self,
        named: &NamedDir,
        options: &TableOptions,
        model: &ModelFacts,
    ) -> Result<(), Error> {
        let table = OpenTable::open(&named.name, &named.dir, options, model)?;
        self.tables.push(table);
        Ok(())
    }

    /// Facts of all tables, in the order they were opened in.
    pub fn tables(&self) -> Vec<Arc<TableFacts>> {
        self.tables
            .iter()
            .map(|table| table.facts.clone())
            .collect()
    }
}

impl OpenTable {
    fn open(
        name: &TableName,
        dir: &Path,
        options: &TableOptions,
        model: &ModelFacts,
    ) -> Result<Self, Error> {
        let table = Table::open(dir, options)?;
        let facts = TableFacts::from_manifest(name, table.manifest());
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

    fn lookup(&mut self, batch: &LookupBatch, out: &mut Answers) {
        self.result.rows = out.take_memory();
        out.reset(batch.positions());
        if let Err(error) = self.read(batch, out) {
            tracing::error!(table = %self.facts.name, error, "table look-up failed");
            out.fail(0..batch.positions(), &LookupError::BadAnswer(error));
        }
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
    fn current(&self, name: &TableName) -> Option<Arc<TableFacts>> {
        let table = self.tables.iter().find(|table| table.facts.name == *name)?;
        Some(table.facts.clone())
    }

    fn lookup(&mut self, lookups: &mut [Lookup<'_>]) {
        for Lookup { table, batch, out } in lookups {
            let name = &table.name;
            match self.tables.iter_mut().find(|of| of.facts.name == *name) {
                Some(of) => of.lookup(batch, out),
                None => {
                    out.reset(batch.positions());
                    let error = LookupError::Unavailable(format!("there is no table {name} here"));
                    out.fail(0..batch.positions(), &error);
                }
            }
        }
    }
}
