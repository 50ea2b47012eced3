//! Which table answers. Requests take it once each, so one answer never mixes two tables.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use scone_fgram::{
    RowDtype,
    table::{Table, TableOptions},
};
use scone_proto::embed::v1::{GetTableInfoResponse, RowDtype as WireDtype};

use crate::{
    error::{Error, RunError},
    request::Limits,
};

/// The largest answer, in bytes: well below the 4 GiB of a gRPC message and what protobuf
/// runtimes of other languages accept.
pub(crate) const MAX_ANSWER_BYTES: u64 = 1 << 30;

/// An open table and what GetTableInfo says about it.
#[derive(Debug)]
pub(crate) struct ServedTable {
    /// The rows and their matcher.
    pub table: Table,
    /// Facts and limits, the same for every call.
    pub info: GetTableInfoResponse,
}

impl ServedTable {
    /// Opens a table directory. Slow for large tables, so not for an async worker.
    ///
    /// # Errors
    /// When it is no complete table, is damaged or in use, or its rows are too large for the
    /// limits.
    pub(crate) fn open(
        dir: &Path,
        options: &TableOptions,
        limits: &Limits,
    ) -> Result<Self, RunError> {
        let table = Table::open(dir, options)?;
        let info = table_info(&table, limits);
        let largest = u64::from(limits.max_positions) * u64::from(info.row_bytes);
        if largest > MAX_ANSWER_BYTES {
            return Err(RunError::AnswerTooLarge {
                positions: limits.max_positions,
                row_bytes: info.row_bytes as usize,
                limit: MAX_ANSWER_BYTES,
            });
        }
        Ok(Self { table, info })
    }

    /// Checks that this is the table the caller wants; `None` wants any.
    ///
    /// # Errors
    /// [`Error::OtherTable`] when it is another.
    pub(crate) fn check_wanted(&self, wanted: Option<&str>) -> Result<(), Error> {
        match wanted {
            Some(wanted) if wanted != self.info.table_id => Err(Error::OtherTable {
                // It goes into a header of the reply, so no more of it than an id has.
                wanted: wanted.chars().take(64).collect(),
                served: self.info.table_id.clone(),
            }),
            _ => Ok(()),
        }
    }
}

fn table_info(table: &Table, limits: &Limits) -> GetTableInfoResponse {
    let manifest = table.manifest();
    GetTableInfoResponse {
        table_id: manifest.table_id.clone(),
        model_hash: manifest.model_hash.clone(),
        tokenizer_hash: manifest.tokenizer_hash.clone(),
        fgram_set_hash: manifest.fgram_set_hash.clone(),
        vocab_size: manifest.vocab_size,
        max_n: u32::from(manifest.max_n),
        dim: manifest.dim,
        dtype: wire_dtype(manifest.dtype).into(),
        row_bytes: u32::try_from(manifest.row_bytes()).unwrap_or(u32::MAX),
        rows: manifest.rows,
        shard_index: manifest.shard_index,
        shard_count: manifest.shard_count,
        store: manifest.store.to_string(),
        max_request_bytes: u32::try_from(limits.max_request_bytes).unwrap_or(u32::MAX),
        max_spans: limits.max_spans,
        max_positions: limits.max_positions,
        served_table_ids: vec![manifest.table_id.clone()],
    }
}

fn wire_dtype(dtype: RowDtype) -> WireDtype {
    match dtype {
        RowDtype::F32 => WireDtype::F32,
        RowDtype::F16 => WireDtype::F16,
        RowDtype::Bf16 => WireDtype::Bf16,
        RowDtype::Int8 => WireDtype::Int8,
        RowDtype::Int4 => WireDtype::Int4,
    }
}

/// The table that is served now, or none while the first one is being opened.
#[derive(Debug)]
pub(crate) struct Tables {
    current: OnceLock<Arc<ServedTable>>,
    /// What clients are told while there is none.
    retry_delay: Duration,
}

impl Tables {
    /// No table yet.
    #[must_use]
    pub(crate) fn loading(retry_delay: Duration) -> Self {
        Self {
            current: OnceLock::new(),
            retry_delay,
        }
    }

    /// Serves `table` from now on; the first call wins.
    pub(crate) fn serve(&self, table: Arc<ServedTable>) {
        let _ = self.current.set(table);
    }

    /// The table for one request. Hold it until the answer is made.
    ///
    /// # Errors
    /// [`Error::Loading`] before the first table is open.
    pub(crate) fn current(&self) -> Result<Arc<ServedTable>, Error> {
        let retry_delay = self.retry_delay;
        let current = self.current.get().cloned();
        current.ok_or(Error::Loading { retry_delay })
    }
}
