//! Tables made by `scone_fgram`.

use std::{path::Path, sync::Arc};

use scone_fgram::{
    Table, TableOptions,
    table::{LookupResult, Span},
};
use scone_proto::embed::v1::{GetTableInfoResponse, LookupRows};

use super::rows::{Rows, wire_dtype};

/// Opens a table directory.
///
/// # Panics
/// When it is no table, or is in use.
pub fn open(dir: &Path) -> Arc<Table> {
    Arc::new(Table::open(dir, &TableOptions::default()).unwrap())
}

impl Rows for Arc<Table> {
    fn info(&self) -> GetTableInfoResponse {
        let facts = self.manifest();
        GetTableInfoResponse {
            table_id: facts.table_id.clone(),
            model_hash: facts.model_hash.clone(),
            tokenizer_hash: facts.tokenizer_hash.clone(),
            fgram_set_hash: facts.fgram_set_hash.clone(),
            vocab_size: facts.vocab_size,
            max_n: facts.max_n.into(),
            dim: facts.dim,
            dtype: wire_dtype(facts.dtype),
            row_bytes: facts.row_bytes() as u32,
            rows: facts.rows,
            shard_index: facts.shard_index,
            shard_count: facts.shard_count,
            store: facts.store.name().to_owned(),
            ..GetTableInfoResponse::default()
        }
    }

    fn look_up(&self, ids: &[u32], spans: &[Span]) -> LookupRows {
        let mut found = LookupResult::default();
        self.lookup(ids, spans, &mut found).unwrap();
        LookupRows {
            table_id: self.manifest().table_id.clone(),
            match_lengths: found.match_lengths.into(),
            row_index: found.row_index,
            rows: found.rows.into(),
        }
    }
}
