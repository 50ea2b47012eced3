//! Tables built from a model directory on first use.
//!
//! They are mapped files, which any number of processes may read at once. A table is built in a
//! folder of its own and renamed when it is whole, so a reader never sees half of one; a lock file
//! keeps a second process from building the same one at once, and is not needed to read. A stopped
//! build is taken up again where it was.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use scone_fgram::{
    ErrorKind, FgramSet, StoreKind,
    table::{BuildOptions, FORMAT_VERSION, build_table},
};
use scone_model::checkpoint::{FGRAM_MODEL_FILE, load_table_model, model_dir};
use scone_service::progress::Progress;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{config::CacheOptions, error::Error, model::ServedModel};

/// How often a process that waits for another's build looks whether it is done.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Opens the table of a model, from the cache or built now. `None` for a plain model. A table that
/// is there and whole takes no writing; a damaged one is built again.
///
/// # Errors
/// [`Error::Stopped`] soon after `stop` is cancelled. When the model has f-grams but its directory
/// lacks what a table is built from, building fails, or `open` refuses the table for another reason
/// than damage: it stays as it is then.
pub(crate) fn open_or_build<T>(
    path: &Path,
    model: &ServedModel,
    options: &CacheOptions,
    stop: &CancellationToken,
    open: impl Fn(&Path) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    if model.info.max_n.is_none() {
        return Ok(None);
    }
    let cached = Cached::of(path, model, options, stop)?;
    let damage = match cached.open(&open) {
        Opened::Whole(table) => return Ok(Some(table)),
        Opened::Refused(error) => return Err(error),
        Opened::Absent => None,
        Opened::Damaged(error) => Some(error),
    };
    if let Some(error) = damage {
        let (table, error) = (cached.table.display(), &error as &dyn std::error::Error);
        warn!(%table, error, "the table in the cache cannot be used; building it again");
    }
    let _lock = cached.lock()?;
    // Another process may have built it while this one waited for the lock.
    match cached.open(&open) {
        Opened::Whole(table) => return Ok(Some(table)),
        Opened::Refused(error) => return Err(error),
        Opened::Absent => {}
        Opened::Damaged(_) => remove(&cached.table)?,
    }
    cached.build()?;
    open(&cached.table).map(Some)
}

/// What opening a table of the cache has shown.
enum Opened<T> {
    Whole(T),
    Absent,
    /// Building it again mends that.
    Damaged(Error),
    /// Building it again would not: the disk fails, or model and f-grams are no pair.
    Refused(Error),
}

/// A table of the cache, which may not be there yet.
struct Cached<'a> {
    /// Where the model is.
    path: &'a Path,
    model: &'a ServedModel,
    set: FgramSet,
    options: &'a CacheOptions,
    stop: &'a CancellationToken,
    /// Its directory.
    table: PathBuf,
}

impl<'a> Cached<'a> {
    fn of(
        path: &'a Path,
        model: &'a ServedModel,
        options: &'a CacheOptions,
        stop: &'a CancellationToken,
    ) -> Result<Self, Error> {
        let dir = model_dir(path);
        let set = dir.join("fgrams.bin");
        if !dir.join(FGRAM_MODEL_FILE).is_file() || !set.is_file() {
            return Err(Error::Config(lacks_parts(dir)));
        }
        let set = FgramSet::read(&set)?;
        let model_hash = model.info.model_hash.as_deref().unwrap_or_default();
        let model_prefix = &model_hash[..model_hash.len().min(16)];
        let set_prefix = &set.hash()[..8];
        // A table of another format version or store is left to the program that wrote it.
        let (dtype, store) = (options.dtype, StoreKind::Mapped);
        let name = format!("v{FORMAT_VERSION}-{model_prefix}-{set_prefix}-{dtype}-{store}");
        Ok(Self {
            path,
            model,
            set,
            options,
            stop,
            table: options.dir.join("tables").join(name),
        })
    }

    fn open<T>(&self, open: impl Fn(&Path) -> Result<T, Error>) -> Opened<T> {
        if !self.table.exists() {
            return Opened::Absent;
        }
        match open(&self.table) {
            Ok(table) => Opened::Whole(table),
            Err(Error::Table(error)) if is_damage(&error) => Opened::Damaged(error.into()),
            Err(error) => Opened::Refused(error),
        }
    }

    fn lock(&self) -> Result<Lock, Error> {
        let tables = self.options.dir.join("tables");
        fs::create_dir_all(&tables).map_err(scone_files::Error::at("create", &tables))?;
        Lock::take(&self.table.with_extension("lock"), self.stop)
    }

    /// Builds the table, on top of what a stopped build has left where that is sound.
    fn build(&self) -> Result<(), Error> {
        let (partial, table) = (self.table.with_extension("partial"), self.table.display());
        let resumed = partial.exists();
        info!(rows = self.set.len(), %table, resumed, "building the f-gram table, once");
        match self.build_in(&partial) {
            Err(Error::Table(error)) if resumed && is_damage(&error) => {
                let error = &error as &dyn std::error::Error;
                warn!(%table, error, "what a stopped build has left cannot be used; starting anew");
                remove(&partial)?;
                self.build_in(&partial)?;
            }
            built => built?,
        }
        Ok(scone_files::publish(&partial, &self.table)?)
    }

    fn build_in(&self, dir: &Path) -> Result<(), Error> {
        let build = BuildOptions {
            store: StoreKind::Mapped,
            dtype: self.options.dtype,
            dim: self.model.info.dim,
            model_hash: self.model.info.model_hash.clone().unwrap_or_default(),
            ..BuildOptions::default()
        };
        let device = self.model.decoder.token_embedding().device();
        let Some(from) = load_table_model(self.path, device)? else {
            return Err(Error::Config(lacks_parts(model_dir(self.path))));
        };
        let mut progress = Progress::new("building the f-gram table (once)");
        build_table(
            dir,
            &self.set,
            &build,
            |fgrams, rows| -> Result<(), Error> {
                if self.stop.is_cancelled() {
                    return Err(Error::Stopped);
                }
                *rows = from.fgram.rows(&from.token_embedding, fgrams)?;
                Ok(())
            },
            |done, total| progress.report(done, total),
        )?;
        progress.clear();
        Ok(())
    }
}

/// Why no table can be built of a model.
fn lacks_parts(dir: &Path) -> String {
    format!(
        "{} is a SCONE model without fgrams.bin or fgram_model.safetensors, so its table \
         cannot be built here; give --table DIR or --embed ADDRESSES",
        dir.display()
    )
}

/// The files themselves are at fault, or missing; not the disk they are on.
fn is_damage(error: &scone_fgram::Error) -> bool {
    match error {
        scone_fgram::Error::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        error => matches!(error.kind(), ErrorKind::DataLoss | ErrorKind::Mismatch),
    }
}

fn remove(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(scone_files::Error::at("remove", dir)(error).into())
        }
        _ => Ok(()),
    }
}

/// An exclusive lock on a file, given back by the system even when the process is killed.
struct Lock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

impl Lock {
    /// Waits until no other process has it, or `stop` is cancelled.
    fn take(path: &Path, stop: &CancellationToken) -> Result<Self, Error> {
        let opened = File::options().create(true).append(true).open(path);
        let file = opened.map_err(scone_files::Error::at("open", path))?;
        let mut waited = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => {
                    return Err(scone_files::Error::at("lock", path)(error).into());
                }
                Err(TryLockError::WouldBlock) if stop.is_cancelled() => {
                    return Err(Error::Stopped);
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if !waited {
                info!("another process builds the table; waiting for it");
                waited = true;
            }
            thread::sleep(LOCK_POLL);
        }
    }
}
