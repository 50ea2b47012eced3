//! Which tables answer. Requests take one once each, so one answer never mixes two.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use scone_fgram::{
    RowDtype,
    table::{Manifest, Table, TableName, TableOptions},
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
    /// Facts and limits, the same for every call but for what names versions and tables, which is empty.
    pub info: GetTableInfoResponse,
}

impl ServedTable {
    /// Opens a table directory. Slow for large tables, so not for an async worker.
    ///
    /// # Errors
    /// When it is no complete table, is damaged or in use, or its rows are too large for the
    /// limits.
    pub(crate) fn open(
        dir: PathBuf,
        options: &TableOptions,
        config: &Config,
    ) -> Result<Self, TableError> {
        let table = Table::open(&dir, options)?;
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
        base_hash: manifest.base_hash.clone().unwrap_or_default(),
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
        ..limits_info(limits)
    }
}

/// What is the same for all tables.
fn limits_info(limits: &Limits) -> GetTableInfoResponse {
    GetTableInfoResponse {
        max_request_bytes: u32::try_from(limits.max_request_bytes).unwrap_or(u32::MAX),
        max_spans: limits.max_spans,
        max_positions: limits.max_positions,
        ..GetTableInfoResponse::default()
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

/// The tables that answer, by name: of each the current version, and for a while the one before it.
#[derive(Debug)]
pub(crate) struct Tables {
    named: RwLock<Option<Named>>,
    /// What clients are told before the first are open.
    retry_delay: Duration,
}

/// All tables, the default one first.
pub(crate) type Named = BTreeMap<TableName, Versions>;

/// The versions of a table that are served at one time.
#[derive(Clone, Debug)]
pub(crate) struct Versions {
    /// Answers requests that name no version.
    pub current: Arc<ServedTable>,
    /// The one before, for requests that name it.
    pub retained: Option<Arc<ServedTable>>,
    /// When `current` began to answer.
    pub since: Instant,
    /// The table was taken away: only requests that name a version are answered still.
    pub retiring: bool,
}

impl Versions {
    /// The versions, the current one first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<ServedTable>> {
        std::iter::once(&self.current).chain(&self.retained)
    }

    /// The current version, or the one of this id.
    fn wanted(&self, table_id: Option<&str>) -> Result<&Arc<ServedTable>, Error> {
        let Some(wanted) = table_id else {
            return Ok(&self.current);
        };
        let found = self.iter().find(|table| table.info.table_id == wanted);
        found.ok_or_else(|| Error::OtherTable {
            // It goes into a header of the reply, so no more of it than an id has.
            wanted: shown(wanted),
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

/// So much of a client's text as is said again.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

fn find<'a>(named: &'a Named, table: &str) -> Result<&'a Versions, Error> {
    let found = table
        .parse()
        .ok()
        .and_then(|name: TableName| named.get(&name));
    found.ok_or_else(|| unknown(named, table))
}

fn unknown(named: &Named, table: &str) -> Error {
    let live = named.iter().filter(|(_, versions)| !versions.retiring);
    let names: Vec<String> = live.map(|(name, _)| name.to_string()).collect();
    Error::UnknownTable {
        wanted: shown(table),
        served: match names.is_empty() {
            true => "there is none".to_owned(),
            false => format!("there is {}", names.join(", ")),
        },
    }
}

impl Tables {
    /// No table yet.
    #[must_use]
    pub(crate) fn loading(retry_delay: Duration) -> Self {
        Self {
            named: RwLock::new(None),
            retry_delay,
        }
    }

    /// The first tables are open, though there may be none.
    pub(crate) fn opened(&self) {
        self.write().get_or_insert_default();
    }

    /// Makes `table` the current version of its name and retains the one before. Returns the version
    /// that answers no more, to be closed off the async workers.
    pub(crate) fn serve(
        &self,
        name: &TableName,
        table: Arc<ServedTable>,
    ) -> Option<Arc<ServedTable>> {
        let mut named = self.write();
        let named = named.get_or_insert_default();
        let (retained, closed) = match named.remove(name) {
            Some(before) => (Some(before.current), before.retained),
            None => (None, None),
        };
        // Switching back to the retained one closes none.
        let closed = closed.filter(|closed| !Arc::ptr_eq(closed, &table));
        let versions = Versions {
            current: table,
            retained,
            since: Instant::now(),
            retiring: false,
        };
        named.insert(name.clone(), versions);
        closed
    }

    /// Says whether a table was taken away. Returns whether that is news.
    pub(crate) fn set_retiring(&self, name: &TableName, retiring: bool) -> bool {
        let mut named = self.write();
        let versions = named.as_mut().and_then(|named| named.get_mut(name));
        versions.is_some_and(|of| std::mem::replace(&mut of.retiring, retiring) != retiring)
    }

    /// Stops to answer for what is retained of a table: its version before, and all of one that was
    /// taken away. Returns them, to be closed off the async workers.
    pub(crate) fn release(&self, name: &TableName) -> Vec<Arc<ServedTable>> {
        let mut named = self.write();
        let Some(named) = named.as_mut() else {
            return Vec::new();
        };
        if named.get(name).is_some_and(|versions| versions.retiring) {
            let all = named.remove(name);
            return all.iter().flat_map(|of| of.iter().cloned()).collect();
        }
        let versions = named.get_mut(name);
        versions
            .and_then(|of| of.retained.take())
            .into_iter()
            .collect()
    }

    /// All that is served now.
    ///
    /// # Errors
    /// [`Error::Loading`] before the first tables are open.
    pub(crate) fn all(&self) -> Result<Named, Error> {
        self.read().clone().ok_or_else(|| self.still_loading())
    }

    /// The version for one request: the current one of its table, or the one it names. Hold it until
    /// the answer is made.
    ///
    /// # Errors
    /// [`Error::Loading`] before the first tables are open, [`Error::UnknownTable`] or
    /// [`Error::OtherTable`] when the table or the version is not served.
    pub(crate) fn wanted(
        &self,
        table: &str,
        table_id: Option<&str>,
    ) -> Result<Arc<ServedTable>, Error> {
        let named = self.read();
        let named = named.as_ref().ok_or_else(|| self.still_loading())?;
        let versions = find(named, table)?;
        if versions.retiring && table_id.is_none() {
            return Err(unknown(named, table));
        }
        versions.wanted(table_id).cloned()
    }

    /// The answer to GetTableInfo.
    ///
    /// # Errors
    /// As [`Tables::wanted`]; but a table that was taken away still has facts, and where there is no
    /// default table the names of the others are the answer.
    pub(crate) fn info(
        &self,
        table: &str,
        table_id: Option<&str>,
        limits: &Limits,
    ) -> Result<GetTableInfoResponse, Error> {
        let named = self.all()?;
        let names = named.keys().map(|name| name.as_str().to_owned());
        let served_tables = names.collect();
        let versions = match find(&named, table) {
            Ok(versions) => versions,
            Err(_) if table.is_empty() && table_id.is_none() => {
                return Ok(GetTableInfoResponse {
                    served_tables,
                    ..limits_info(limits)
                });
            }
            Err(error) => return Err(error),
        };
        Ok(GetTableInfoResponse {
            served_table_ids: versions.ids(),
            served_tables,
            table: table.parse().map_or_else(
                |_| String::new(),
                |name: TableName| name.as_str().to_owned(),
            ),
            retiring: versions.retiring,
            ..versions.wanted(table_id)?.info.clone()
        })
    }

    fn still_loading(&self) -> Error {
        Error::Loading {
            retry_delay: self.retry_delay,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Named>> {
        // Nothing that can panic runs while the lock is held for writing.
        self.named.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<Named>> {
        self.named.write().unwrap_or_else(PoisonError::into_inner)
    }
}
