//! Which tables answer. Requests take one once each, so one answer never mixes two.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use scone_fgram::{
    RowDtype,
    table::{Manifest, Table},
};
use scone_proto::embed::v1::{GetTableInfoResponse, RowDtype as WireDtype};

use crate::{
    config::Config,
    error::{Error, TableError},
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
    /// Facts and limits, the same for every call but for `served_table_ids`, which is empty.
    pub info: GetTableInfoResponse,
}

impl ServedTable {
    /// Opens a table directory. Slow for large tables, so not for an async worker.
    ///
    /// # Errors
    /// When it is no complete table, is damaged or in use, or its rows are too large for the
    /// limits.
    pub(crate) fn open(dir: PathBuf, config: &Config) -> Result<Self, TableError> {
        let table = Table::open(&dir, &config.table_options)?;
        let info = table_info(table.manifest(), &config.limits);
        let largest = u64::from(info.max_positions).min(info.rows) * u64::from(info.row_bytes);
        let limit = config.capacity.max_inflight_bytes.min(MAX_ANSWER_BYTES);
        if largest > limit {
            return Err(TableError::AnswerTooLarge {
                positions: info.max_positions,
                row_bytes: info.row_bytes,
                limit,
            });
        }
        Ok(Self { table, info })
    }

    /// The most bytes of rows that so many positions can get.
    pub(crate) fn largest_answer(&self, positions: usize) -> u64 {
        (positions as u64).min(self.info.rows) * u64::from(self.info.row_bytes)
    }

    /// Checks that clients of this table may go on with `next`: it holds the same positions of
    /// the same vocabulary. The model may be another; clients check that.
    ///
    /// # Errors
    /// [`TableError::NotASuccessor`] names the first difference.
    pub(crate) fn check_successor(&self, next: &Manifest) -> Result<(), TableError> {
        let facts = |table: &Manifest| {
            [
                (
                    "shard",
                    format!("{}/{}", table.shard_index, table.shard_count),
                ),
                ("vocab_size", table.vocab_size.to_string()),
                ("tokenizer_hash", table.tokenizer_hash.clone()),
            ]
        };
        let served = facts(self.table.manifest());
        for ((field, served), (_, found)) in served.into_iter().zip(facts(next)) {
            if served != found {
                return Err(TableError::NotASuccessor {
                    field,
                    served,
                    found,
                });
            }
        }
        Ok(())
    }
}

fn table_info(manifest: &Manifest, limits: &Limits) -> GetTableInfoResponse {
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
        served_table_ids: Vec::new(),
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

/// The tables that answer: the current one, and for a while the one before it.
#[derive(Debug)]
pub(crate) struct Tables {
    versions: RwLock<Option<Versions>>,
    /// What clients are told while there is none.
    retry_delay: Duration,
}

/// The versions served at one time.
#[derive(Clone, Debug)]
pub(crate) struct Versions {
    /// Answers requests that name no table.
    pub current: Arc<ServedTable>,
    /// The one before, for requests that name it.
    pub retained: Option<Arc<ServedTable>>,
    /// When `current` began to answer.
    pub since: Instant,
}

impl Versions {
    /// The tables, the current one first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<ServedTable>> {
        std::iter::once(&self.current).chain(&self.retained)
    }

    /// The current table, or the one of this version.
    fn wanted(&self, table_id: Option<&str>) -> Result<&Arc<ServedTable>, Error> {
        let Some(wanted) = table_id else {
            return Ok(&self.current);
        };
        let found = self.iter().find(|table| table.info.table_id == wanted);
        found.ok_or_else(|| Error::OtherTable {
            // It goes into a header of the reply, so no more of it than an id has.
            wanted: wanted.chars().take(64).collect(),
            served: self.ids().join(", "),
        })
    }

    /// Their ids, the current one first; each once.
    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.iter().map(|t| t.info.table_id.clone()).collect();
        ids.dedup();
        ids
    }
}

impl Tables {
    /// No table yet.
    #[must_use]
    pub(crate) fn loading(retry_delay: Duration) -> Self {
        Self {
            versions: RwLock::new(None),
            retry_delay,
        }
    }

    /// Makes `table` the current one and retains the one before. Returns the table that answers
    /// no more, to be closed off the async workers.
    pub(crate) fn serve(&self, table: Arc<ServedTable>) -> Option<Arc<ServedTable>> {
        let mut versions = self.write();
        let before = versions.take();
        let (retained, closed) = match before {
            Some(before) => (Some(before.current), before.retained),
            None => (None, None),
        };
        // Switching back to the retained one closes none.
        let closed = closed.filter(|closed| !Arc::ptr_eq(closed, &table));
        *versions = Some(Versions {
            current: table,
            retained,
            since: Instant::now(),
        });
        closed
    }

    /// Stops to answer for the retained table and returns it, to be closed off the async workers.
    pub(crate) fn release_retained(&self) -> Option<Arc<ServedTable>> {
        self.write().as_mut()?.retained.take()
    }

    /// The versions served now.
    ///
    /// # Errors
    /// [`Error::Loading`] before the first table is open.
    pub(crate) fn versions(&self) -> Result<Versions, Error> {
        self.read().clone().ok_or_else(|| self.still_loading())
    }

    /// The table for one request: the current one, or the version it names. Hold it until the
    /// answer is made.
    ///
    /// # Errors
    /// [`Error::Loading`] before the first table is open, [`Error::OtherTable`] when the version
    /// is not served.
    pub(crate) fn wanted(&self, table_id: Option<&str>) -> Result<Arc<ServedTable>, Error> {
        let versions = self.read();
        let versions = versions.as_ref().ok_or_else(|| self.still_loading())?;
        versions.wanted(table_id).cloned()
    }

    /// The answer to GetTableInfo.
    ///
    /// # Errors
    /// As [`Tables::wanted`].
    pub(crate) fn info(&self, table_id: Option<&str>) -> Result<GetTableInfoResponse, Error> {
        let versions = self.versions()?;
        let table = versions.wanted(table_id)?;
        Ok(GetTableInfoResponse {
            served_table_ids: versions.ids(),
            ..table.info.clone()
        })
    }

    fn still_loading(&self) -> Error {
        Error::Loading {
            retry_delay: self.retry_delay,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Versions>> {
        // Nothing that can panic runs while the lock is held for writing.
        self.versions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<Versions>> {
        self.versions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
