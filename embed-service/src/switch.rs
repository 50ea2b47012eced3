//! Opening tables, the first one and those it is switched to, while requests go on.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use scone_fgram::table::{MANIFEST_FILE, MAX_TABLES, Manifest, NamedDir, TableName, TableOptions};
use tokio::{
    sync::{Notify, oneshot},
    time::sleep_until,
};
use tracing::{error, info, warn};

use crate::{
    config::Config,
    error::TableError,
    metrics::{Metrics, SwitchOutcome},
    tables::{ServedTable, Tables},
};

/// Opens the tables that `--table` and `--tables` point to, at start and whenever it is told to look
/// again.
#[derive(Debug)]
pub(crate) struct Switcher {
    pub config: Arc<Config>,
    pub tables: Arc<Tables>,
    pub metrics: Metrics,
}

/// What a path turned out to point to.
enum Found {
    /// The version that is current already.
    Current,
    /// Another one; it was opened, or is retained and so still open.
    Other(Arc<ServedTable>),
}

impl Switcher {
    /// Opens the first tables and serves them. One of `--tables` that cannot be is left out.
    ///
    /// # Errors
    /// When one of `--table` cannot be served.
    pub(crate) async fn open_first(&self) -> Result<(), TableError> {
        let options = &self.config.table_options;
        let sources = self.sources().await?;
        info!(tables = sources.len(), ?options, "opening tables");
        for source in &sources {
            let given = self.config.tables.contains(source);
            match self.find(source, sources.len()).await {
                Ok(Found::Other(table)) => self.serve(&source.name, table),
                Ok(Found::Current) => {}
                Err(error) if given => return Err(error),
                Err(error) => refused(source, &error),
            }
        }
        self.tables.opened();
        Ok(())
    }

    /// Looks again when told to, one table at a time, and closes what is retained when its time is
    /// up. Notices that come meanwhile count as one.
    pub(crate) async fn run(&self, reload: &Notify) -> Infallible {
        let mut release_at: BTreeMap<TableName, tokio::time::Instant> = BTreeMap::new();
        loop {
            let next = release_at.iter().min_by_key(|(_, at)| **at);
            let next = next.map(|(name, at)| (name.clone(), *at));
            let release = async {
                match &next {
                    Some((_, at)) => sleep_until(*at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = reload.notified() => {
                    let until = self.config.retain_table;
                    for name in self.look_again().await {
                        release_at.insert(name, tokio::time::Instant::now() + until);
                    }
                }
                () = release => {
                    if let Some((name, _)) = next {
                        self.tables.release(&name).into_iter().for_each(close);
                        release_at.remove(&name);
                    }
                }
            }
        }
    }

    /// Whatever is wrong with what is there now, what is served goes on. Returns the tables of which
    /// something is retained.
    async fn look_again(&self) -> Vec<TableName> {
        let mut changed = Vec::new();
        let sources = match self.sources().await {
            Ok(sources) => sources,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                error!(
                    error,
                    "the tables cannot be listed; those that are served go on"
                );
                self.metrics.switched(SwitchOutcome::Refused);
                return changed;
            }
        };
        for source in &sources {
            if self.switch(source, sources.len()).await {
                changed.push(source.name.clone());
            }
        }
        let named = self.tables.all().unwrap_or_default();
        let gone = |name: &&TableName| sources.iter().all(|source| source.name != **name);
        for name in named.keys().filter(gone) {
            if self.tables.set_retiring(name, true) {
                info!(table = %name, "the table is gone; only requests for its version are answered");
                changed.push(name.clone());
            }
        }
        changed
    }

    /// Looks at one table again. Returns whether another version is current now.
    async fn switch(&self, source: &NamedDir, count: usize) -> bool {
        let started = Instant::now();
        let name = &source.name;
        let outcome = match self.find(source, count).await {
            Ok(Found::Current) => {
                self.tables.set_retiring(name, false);
                info!(table = %name, "the table is the one that is served; nothing to switch");
                SwitchOutcome::Unchanged
            }
            Ok(Found::Other(table)) => {
                self.serve(name, table);
                let took_ms = started.elapsed().as_millis() as u64;
                info!(table = %name, took_ms, "switched to the new table");
                SwitchOutcome::Switched
            }
            Err(error) => {
                refused(source, &error);
                SwitchOutcome::Refused
            }
        };
        self.metrics.switched(outcome);
        outcome == SwitchOutcome::Switched
    }

    /// All tables that there should be.
    async fn sources(&self) -> Result<Vec<NamedDir>, TableError> {
        let config = Arc::clone(&self.config);
        on_a_thread(move || sources(&config)).await
    }

    /// Finds and opens a table, one of `count`.
    async fn find(&self, source: &NamedDir, count: usize) -> Result<Found, TableError> {
        let (config, tables) = (Arc::clone(&self.config), Arc::clone(&self.tables));
        let source = source.clone();
        on_a_thread(move || find(&source, count, &config, &tables)).await
    }

    fn serve(&self, name: &TableName, table: Arc<ServedTable>) {
        let (info, stats) = (&table.info, table.table.stats());
        info!(
            table = %name,
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
        self.tables.serve(name, table).into_iter().for_each(close);
    }
}

fn refused(source: &NamedDir, error: &TableError) {
    let error = error as &dyn std::error::Error;
    error!(table = %source, error, "the new table is refused; the old one goes on");
}

/// On a thread of its own: it reads files and may take minutes.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TableError> + Send + 'static,
) -> Result<T, TableError> {
    let (send, receive) = oneshot::channel();
    thread::Builder::new()
        .name("open-table".to_owned())
        .spawn(move || send.send(work()))
        .map_err(TableError::Thread)?;
    // A thread that panicked has dropped its end.
    receive.await.map_err(|_| TableError::Interrupted)?
}

/// The tables of `--table`, and the complete ones in `--tables`, in the order of names. A name that
/// no table can have, or that `--table` has, is passed over, and so is what is too much.
fn sources(config: &Config) -> Result<Vec<NamedDir>, TableError> {
    let mut sources = config.tables.clone();
    let Some(folder) = &config.folder else {
        return Ok(sources);
    };
    for (name, dir) in complete_in(folder).map_err(|source| TableError::Path {
        path: folder.clone(),
        source,
    })? {
        let Ok(name) = name.parse::<TableName>() else {
            warn!(name, "no table can have this name; passed over");
            continue;
        };
        if sources.len() >= MAX_TABLES || sources.iter().any(|source| source.name == name) {
            warn!(table = %name, limit = MAX_TABLES, "one table too many, or its name is taken; passed over");
            continue;
        }
        sources.push(NamedDir { name, dir });
    }
    Ok(sources)
}

/// Entries of a folder that are, or lead to, complete tables, in the order of names.
pub(crate) fn complete_in(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut complete = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Hidden ones are on their way.
        if !name.starts_with('.') && entry.path().join(MANIFEST_FILE).is_file() {
            complete.push((name, entry.path()));
        }
    }
    complete.sort();
    Ok(complete)
}

fn find(
    source: &NamedDir,
    count: usize,
    config: &Config,
    tables: &Tables,
) -> Result<Found, TableError> {
    let dir = resolve(&source.dir)?;
    let shares = count.max(1) as u64;
    let options = TableOptions {
        hot_bytes: config.table_options.hot_bytes / shares,
        store_cache_bytes: config.table_options.store_cache_bytes / shares,
        ..config.table_options.clone()
    };
    let named = tables.all().unwrap_or_default();
    let Some(versions) = named.get(&source.name) else {
        let table = ServedTable::open(dir, &options, config)?;
        return Ok(Found::Other(Arc::new(table)));
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
    let table = ServedTable::open(dir, &options, config)?;
    versions.current.check_successor(table.table.manifest())?;
    Ok(Found::Other(Arc::new(table)))
}

/// The directory behind the symbolic links of a path, which may point elsewhere later.
fn resolve(path: &Path) -> Result<PathBuf, TableError> {
    fs::canonicalize(path).map_err(|source| TableError::Path {
        path: path.to_owned(),
        source,
    })
}

/// Closes a table once its last requests have ended. Closing writes to the disk, so it is done
/// on a thread of its own, which waits for them.
fn close(mut table: Arc<ServedTable>) {
    const LOOK_AGAIN: Duration = Duration::from_millis(50);
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
