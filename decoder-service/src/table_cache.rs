//! Tables built from a model directory on first use.
//!
//! A table is built in a folder of its own and moved into place when it is whole, so a reader never
//! sees half of one; a lock file keeps a second process from building the same one at once. A
//! killed build is taken up again where it stopped.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use scone_fgram::{
    FgramSet,
    table::{BuildOptions, FORMAT_VERSION, MANIFEST_FILE, build_table},
};
use scone_model::FgramModel;
use scone_service::progress::Progress;
use tracing::info;

use crate::{config::CacheOptions, error::Error, model::ServedModel};

/// The table of a model, from the cache or built now. `None` for a plain model.
///
/// # Errors
/// When the model has f-grams but its directory lacks what a table is built from, or building
/// fails.
pub(crate) fn table_of(
    model_dir: &Path,
    model: &ServedModel,
    options: &CacheOptions,
) -> Result<Option<PathBuf>, Error> {
    if model.info.max_n.is_none() {
        return Ok(None);
    }
    let set_path = model_dir.join("fgrams.bin");
    let fgram = match &model.fgram {
        Some(fgram) if set_path.is_file() => fgram,
        _ => {
            return Err(Error::Config(format!(
                "{} is a SCONE model without fgrams.bin or fgram_model.safetensors, so its table \
                 cannot be built here; give --table DIR or --embed ADDRESSES",
                model_dir.display()
            )));
        }
    };
    let prefix = &model.info.model_hash[..model.info.model_hash.len().min(16)];
    let set = FgramSet::read(&set_path)?;
    let set_prefix = &set.hash()[..8];
    let tables = options.dir.join("tables");
    // A table of another format version is left to the program that wrote it.
    let dtype = options.dtype;
    let name = format!("v{FORMAT_VERSION}-{prefix}-{set_prefix}-{dtype}");
    let table = tables.join(name);
    if table.join(MANIFEST_FILE).is_file() {
        return Ok(Some(table));
    }
    fs::create_dir_all(&tables).map_err(|e| file_error("create", &tables, e))?;
    let _lock = Lock::take(&table.with_extension("lock"))?;
    // Another process may have built it while this one waited for the lock.
    if !table.join(MANIFEST_FILE).is_file() {
        build(model, fgram, &set, options, &table)?;
    }
    Ok(Some(table))
}

fn build(
    model: &ServedModel,
    fgram: &FgramModel,
    set: &FgramSet,
    options: &CacheOptions,
    table: &Path,
) -> Result<(), Error> {
    let partial = table.with_extension("partial");
    info!(rows = set.len(), table = %table.display(), "building the f-gram table, once");
    let build = BuildOptions {
        dtype: options.dtype,
        dim: model.info.dim,
        model_hash: model.info.model_hash.clone(),
        ..BuildOptions::default()
    };
    let embedding = model.decoder.token_embedding();
    let mut progress = Progress::new("building the f-gram table (once)");
    build_table(
        &partial,
        set,
        &build,
        |fgrams, rows| -> Result<(), Error> {
            *rows = fgram.rows(embedding, fgrams)?;
            Ok(())
        },
        |done, total| progress.report(done, total),
    )?;
    progress.clear();
    fs::rename(&partial, table).map_err(|e| file_error("move the finished table to", table, e))
}

/// An exclusive lock on a file, given back by the system even when the process is killed.
struct Lock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

impl Lock {
    fn take(path: &Path) -> Result<Self, Error> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|e| file_error("open", path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                info!("another process builds the table; waiting for it");
                file.lock().map_err(|e| file_error("lock", path, e))?;
            }
            Err(TryLockError::Error(error)) => return Err(file_error("lock", path, error)),
        }
        Ok(Self(file))
    }
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File {
        action,
        path: path.display().to_string(),
        source: source.into(),
    }
}
