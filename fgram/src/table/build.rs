//! Writing a table, in steps that can be interrupted anywhere.
//!
//! 1. `build.json`: what is being built. A second run goes on only when it is the same.
//! 2. `keys.bin`, by rename.
//! 3. The rows, in the order of their keys; those already there are kept.
//! 4. Flush, then `table.json` by rename, then `build.json` is removed.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::key_file;
use super::manifest::{self, FileEntry, MANIFEST_FILE, Manifest, StoreKind};
use super::open::unsupported_store;
use super::sled_store::{SledStore, Stored};
use super::verify::RowsHash;
use crate::error::{Error, Result};
use crate::files;
use crate::keys::KeyList;
use crate::ngram::TokenId;
use crate::row::RowDtype;
use crate::set::FgramSet;

/// There while a table is being built.
pub(super) const BUILD_FILE: &str = "build.json";

/// A killed run loses at most the rows of this long.
const FLUSH_EVERY: Duration = Duration::from_secs(2);

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOptions {
    /// How to store the rows.
    pub store: StoreKind,
    /// Stored type of the elements.
    pub dtype: RowDtype,
    /// Row width in elements.
    pub dim: usize,
    /// This shard, 0-based, and how many there are; `(0, 1)` is the whole table.
    pub shard: (u32, u32),
    /// SHA-256, lower-case hexadecimal, of the f-gram model and token embedding.
    pub model_hash: String,
    /// Most f-grams given to `rows` at once, 1 or more.
    pub batch_rows: usize,
    /// Memory for sled's page cache, in bytes.
    pub store_cache_bytes: u64,
}

impl Default for BuildOptions {
    /// A whole f16 table in sled, batches of 1,024 rows, 64 MiB of cache; `dim` and `model_hash`
    /// have no default and must be set.
    fn default() -> Self {
        Self {
            store: StoreKind::Sled,
            dtype: RowDtype::F16,
            dim: 0,
            shard: (0, 1),
            model_hash: String::new(),
            batch_rows: 1024,
            store_cache_bytes: 64 << 20,
        }
    }
}

/// Builds the table of `set` in `dir`, or finishes one that was interrupted.
///
/// `rows` appends the f32 rows of a batch of f-grams to its second argument, which comes empty:
/// `dim` numbers each, in order. It is not called for rows that an earlier run has written, so
/// the same f-gram must always give the same row. Batches come in the order of ids, lengths
/// mixed. `progress` gets the rows done and their total. A finished table of the same kind is
/// left alone and its manifest returned.
///
/// # Errors
/// When an option is outside its limits, the directory belongs to another table
/// ([`Error::TableMismatch`]) or is open elsewhere, a row has not `dim` numbers or one that the
/// dtype cannot hold, or writing fails: there is then no `table.json`. Errors of `rows` are
/// passed on.
pub fn build_table<E: From<Error>>(
    dir: &Path,
    set: &FgramSet,
    options: &BuildOptions,
    mut rows: impl FnMut(&[&[TokenId]], &mut Vec<f32>) -> std::result::Result<(), E>,
    mut progress: impl FnMut(u64, u64),
) -> std::result::Result<Manifest, E> {
    let keys = key_file::of_shard(set, options.shard.0, checked_shards(options)?)?;
    let manifest = planned(set, options, keys.len() as u64)?;
    let total = manifest.rows;
    if let Some(finished) = finished(dir, &manifest)? {
        progress(total, total);
        return Ok(finished);
    }
    let mut builder = Builder::begin(dir, manifest, options, &keys)?;
    let mut sorted: Vec<&[TokenId]> = keys.iter().collect();
    sorted.sort_unstable();
    let mut numbers = Vec::new();
    progress(0, total);
    for (batch, done) in sorted.chunks(options.batch_rows).zip(1..) {
        let stored = builder.stored(batch)?;
        let missing: Vec<&[TokenId]> = missing(batch, &stored).collect();
        if !missing.is_empty() {
            numbers.clear();
            rows(&missing, &mut numbers)?;
        }
        builder.add(batch, &stored, missing.len(), &numbers)?;
        progress((done * options.batch_rows as u64).min(total), total);
    }
    Ok(builder.finish()?)
}

/// The f-grams of a batch that have no sound row yet.
fn missing<'a>(batch: &[&'a [TokenId]], stored: &[Stored]) -> impl Iterator<Item = &'a [TokenId]> {
    batch
        .iter()
        .zip(stored)
        .filter(|(_, stored)| stored.row().is_none())
        .map(|(ids, _)| *ids)
}

/// A table that is being written.
struct Builder<'a> {
    dir: &'a Path,
    manifest: Manifest,
    store: SledStore,
    hash: RowsHash,
    flushed: Instant,
}

impl<'a> Builder<'a> {
    fn begin(
        dir: &'a Path,
        mut manifest: Manifest,
        options: &BuildOptions,
        keys: &KeyList,
    ) -> Result<Self> {
        fs::create_dir_all(dir).map_err(files::io_error("create", dir))?;
        begin_or_resume(dir, &manifest)?;
        let bytes = key_file::encode(keys, &manifest);
        manifest.files = vec![FileEntry {
            path: key_file::FILE.to_owned(),
            bytes: bytes.len() as u64,
            sha256: files::sha256_hex(&bytes),
        }];
        let (id, width) = (&manifest.table_id, manifest.row_bytes());
        let store = SledStore::open(dir, id, width, options.store_cache_bytes, true)?;
        files::write_atomic(&dir.join(key_file::FILE), &bytes)?;
        Ok(Self {
            dir,
            manifest,
            store,
            hash: RowsHash::new(),
            flushed: Instant::now(),
        })
    }

    /// What an earlier run has left of these rows.
    fn stored(&self, batch: &[&[TokenId]]) -> Result<Vec<Stored>> {
        batch.iter().map(|ids| self.store.get(ids)).collect()
    }

    /// Writes the rows of a batch that are not stored; `numbers` holds them, `missing` many.
    fn add(
        &mut self,
        batch: &[&[TokenId]],
        stored: &[Stored],
        missing: usize,
        numbers: &[f32],
    ) -> Result<()> {
        let dim = self.manifest.dim as usize;
        if missing > 0 && numbers.len() != missing * dim {
            let got = numbers.len();
            let problem = format!("{got} numbers for {missing} rows of {dim}");
            return Err(Error::argument("rows", problem));
        }
        let mut fresh = numbers.chunks_exact(dim);
        let mut encoded = Vec::with_capacity(self.manifest.row_bytes());
        for (ids, stored) in batch.iter().zip(stored) {
            if let Some(row) = stored.row() {
                self.hash.add(ids, row);
                continue;
            }
            encoded.clear();
            let row = fresh.next().unwrap_or_default();
            let dtype = self.manifest.dtype;
            dtype
                .encode(row, &mut encoded)
                .map_err(|error| Error::fgram(ids, error.to_string()))?;
            self.store.insert(ids, &encoded)?;
            self.hash.add(ids, &encoded);
        }
        if missing > 0 && self.flushed.elapsed() >= FLUSH_EVERY {
            self.store.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Manifest> {
        self.store.flush()?;
        // sled is closed before the table exists, so that whoever sees it can open it.
        drop(self.store);
        self.manifest.rows_sha256 = self.hash.finish();
        files::write_atomic(&self.dir.join(MANIFEST_FILE), &self.manifest.to_json())?;
        let mark = self.dir.join(BUILD_FILE);
        fs::remove_file(&mark).map_err(files::io_error("remove", &mark))?;
        Ok(self.manifest)
    }
}

/// The number of shards, once everything that could make the build senseless is checked.
fn checked_shards(options: &BuildOptions) -> Result<u32> {
    if options.store == StoreKind::Mapped {
        return Err(unsupported_store());
    }
    if options.batch_rows == 0 {
        return Err(Error::argument("batch_rows", "is 0, at least 1"));
    }
    let (index, count) = options.shard;
    if index >= count {
        let problem = format!("{index}/{count}: the index runs from 0 to the count less 1");
        return Err(Error::argument("shard", problem));
    }
    Ok(count)
}

/// The manifest of the table to be, but for files and the checksum of rows.
fn planned(set: &FgramSet, options: &BuildOptions, rows: u64) -> Result<Manifest> {
    manifest::check_hash("model_hash", &options.model_hash)?;
    let dim = u32::try_from(options.dim)
        .ok()
        .filter(|dim| (1..=manifest::MAX_DIM).contains(dim));
    let dim = dim.ok_or_else(|| {
        Error::argument(
            "dim",
            format!("{} is not 1 to {}", options.dim, manifest::MAX_DIM),
        )
    })?;
    let fgram_set_hash = set.hash();
    let manifest = Manifest {
        format_version: manifest::VERSION,
        table_id: manifest::table_id(&options.model_hash, &fgram_set_hash, options.dtype),
        model_hash: options.model_hash.clone(),
        tokenizer_hash: files::hex(&set.header().tokenizer_hash),
        fgram_set_hash,
        vocab_size: set.header().vocab_size,
        max_n: set.header().max_n,
        dim,
        dtype: options.dtype,
        rows,
        shard_index: options.shard.0,
        shard_count: options.shard.1,
        store: options.store,
        rows_sha256: String::new(),
        files: Vec::new(),
    };
    manifest.check()?;
    Ok(manifest)
}

/// The manifest of a finished table of the same kind.
fn finished(dir: &Path, planned: &Manifest) -> Result<Option<Manifest>> {
    if !dir.join(MANIFEST_FILE).exists() {
        return Ok(None);
    }
    let found = Manifest::read(dir)?;
    check_same(dir, planned, &found)?;
    Ok(Some(found))
}

/// Marks the directory as being built, or checks that it already is, with the same table.
fn begin_or_resume(dir: &Path, planned: &Manifest) -> Result<()> {
    let mark = dir.join(BUILD_FILE);
    if mark.exists() {
        let found = Manifest::from_json(&mark.display().to_string(), &files::read(&mark)?)?;
        return check_same(dir, planned, &found);
    }
    if dir.join(super::sled_store::DIRECTORY).exists() {
        let problem =
            format!("it has rows but neither {MANIFEST_FILE} nor {BUILD_FILE}; remove it");
        return Err(Error::NoTable {
            dir: dir.to_owned(),
            problem,
        });
    }
    files::write_atomic(&mark, &planned.to_json())
}

fn check_same(dir: &Path, planned: &Manifest, found: &Manifest) -> Result<()> {
    match planned.difference(found) {
        Some((field, expected, found)) => Err(Error::TableMismatch {
            dir: dir.to_owned(),
            field,
            expected,
            found,
        }),
        None => Ok(()),
    }
}
