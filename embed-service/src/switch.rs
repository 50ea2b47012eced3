//! Opening tables, the first one and those it is switched to, while requests go on.

use std::{
    convert::Infallible,
    fs,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use scone_fgram::table::Manifest;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep_until,
};
use tracing::{error, info};

use crate::{
    config::Config,
    error::TableError,
    metrics::{Metrics, SwitchOutcome},
    tables::{ServedTable, Tables},
};

/// Opens the table that `--table` points to, at start and whenever it is told to look again.
#[derive(Debug)]
pub(crate) struct Switcher {
    pub config: Arc<Config>,
    pub tables: Arc<Tables>,
    pub metrics: Metrics,
}

/// What `--table` turned out to point to.
enum Found {
    /// The table that is current already.
    Current,
    /// Another one; it was opened, or is retained and so still open.
    Other(Arc<ServedTable>),
}

impl Switcher {
    /// Opens the first table and serves it.
    ///
    /// # Errors
    /// When it cannot be served.
    pub(crate) async fn open_first(&self) -> Result<(), TableError> {
        let config = &self.config;
        info!(table = %config.table.display(), options = ?config.table_options, "opening table");
        if let Found::Other(table) = self.find().await? {
            self.serve(table);
        }
        Ok(())
    }

    /// Switches when told to, one at a time, and closes the retained table when its time is up.
    /// Notices that come during a switch count as one.
    pub(crate) async fn run(&self, reload: &Notify) -> Infallible {
        let mut release_at = None;
        loop {
            let release = async {
                match release_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = reload.notified() => {
                    if self.switch().await {
                        release_at = Some(tokio::time::Instant::now() + self.config.retain_table);
                    }
                }
                () = release => {
                    release_at = None;
                    close(self.tables.release_retained());
                }
            }
        }
    }

    /// Looks at `--table` again. Whatever is wrong with what is there, the current table goes on.
    /// Returns whether another table is current now.
    async fn switch(&self) -> bool {
        let started = Instant::now();
        let outcome = match self.find().await {
            Ok(Found::Current) => {
                info!("the table is the one that is served; nothing to switch");
                SwitchOutcome::Unchanged
            }
            Ok(Found::Other(table)) => {
                self.serve(table);
                let took_ms = started.elapsed().as_millis() as u64;
                info!(took_ms, "switched to the new table");
                SwitchOutcome::Switched
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                error!(error, "the new table is refused; the old one goes on");
                SwitchOutcome::Refused
            }
        };
        self.metrics.switched(outcome);
        outcome == SwitchOutcome::Switched
    }

    /// Finds and opens on a thread of its own: it reads files and may take minutes.
    async fn find(&self) -> Result<Found, TableError> {
        let (send, receive) = oneshot::channel();
        let (config, tables) = (Arc::clone(&self.config), Arc::clone(&self.tables));
        thread::Builder::new()
            .name("open-table".to_owned())
            .spawn(move || send.send(find(&config, &tables)))
            .map_err(TableError::Thread)?;
        // A thread that panicked has dropped its end.
        receive.await.map_err(|_| TableError::Interrupted)?
    }

    fn serve(&self, table: Arc<ServedTable>) {
        let (info, stats) = (&table.info, table.table.stats());
        info!(
            table.path = %table.table.dir().display(),
            table.id = info.table_id,
            table.rows = info.rows,
            table.store = info.store,
            table.shard = format!("{}/{}", info.shard_index, info.shard_count),
            row.dim = info.dim,
            row.bytes = info.row_bytes,
            hot_set.rows = stats.rows,
            hot_set.bytes = stats.bytes,
            "table open"
        );
        close(self.tables.serve(table));
    }
}

fn find(config: &Config, tables: &Tables) -> Result<Found, TableError> {
    let dir = resolve(config)?;
    let Ok(versions) = tables.versions() else {
        return Ok(Found::Other(Arc::new(ServedTable::open(dir, config)?)));
    };
    let manifest = Manifest::read(&dir)?;
    // One that was found damaged is opened anew: its files may have been put right.
    let same = |served: &&Arc<ServedTable>| {
        let table = &served.table;
        table.dir() == dir && *table.manifest() == manifest && !table.is_damaged()
    };
    if let Some(known) = versions.iter().find(same) {
        return Ok(if Arc::ptr_eq(known, &versions.current) {
            Found::Current
        } else {
            Found::Other(Arc::clone(known))
        });
    }
    // Before anything large is read, and again of what was opened.
    versions.current.check_successor(&manifest)?;
    let table = ServedTable::open(dir, config)?;
    versions.current.check_successor(table.table.manifest())?;
    Ok(Found::Other(Arc::new(table)))
}

/// The directory behind the symbolic links of `--table`, which may point elsewhere later.
fn resolve(config: &Config) -> Result<PathBuf, TableError> {
    fs::canonicalize(&config.table).map_err(|source| TableError::Path {
        path: config.table.clone(),
        source,
    })
}

/// Closes a table once its last requests have ended. Closing writes to the disk, so it is done
/// on a thread of its own, which waits for them.
fn close(table: Option<Arc<ServedTable>>) {
    const LOOK_AGAIN: Duration = Duration::from_millis(50);
    let Some(mut table) = table else { return };
    tokio::spawn(async move {
        let id = table.info.table_id.clone();
        let path = table.table.dir().display().to_string();
        let closed = loop {
            match Arc::try_unwrap(table) {
                Ok(last) => break tokio::task::spawn_blocking(move || drop(last)).await,
                Err(used) => table = used,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        match closed {
            Ok(()) => info!(table.id = id, table.path = path, "table closed"),
            Err(error) => error!(%error, table.path = path, "closing a table did not finish"),
        }
    });
}
