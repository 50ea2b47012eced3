//! Writing a table, in steps that can be interrupted anywhere.
//!
//! 1. `build.json`: what is being built. A second run goes on only when it is the same.
//! 2. The rows; those that an earlier run has left and that are sound are kept.
//! 3. `keys.bin` and `index.bin`, by rename.
//! 4. `table.json` by rename; then `build.json` is removed.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use scone_files::{Hashing, hex, sha256_hex, write_atomic, write_atomic_with};

use super::disk::key_file::{self, OfShard};
use super::disk::key_index;
use super::disk::manifest::{self, FileEntry, Manifest, StoreKind};
use super::disk::names::{BUILD_FILE, MANIFEST_FILE, MARKS_FILE};
use super::disk::table_file::FileKind;
use super::stores::row_writer::{self, RowWriter, WrittenRows};
use crate::error::{Error, Result};
use crate::keys::Keys;
use crate::ngram::TokenId;
use crate::set::FgramSet;
use scone_row::RowDtype;

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
    /// Base hash of the main model, as in [`Manifest::base_hash`].
    pub base_hash: Option<String>,
    /// Most f-grams given to `rows` at once, 1 or more.
    pub batch_rows: usize,
    /// Memory for sled's page cache, in bytes.
    pub store_cache_bytes: u64,
    /// Threads that build the index, 1 or more; the files do not depend on how many.
    pub threads: usize,
}

impl Default for BuildOptions {
    /// A whole f16 table in sled, batches of 1,024 rows, 64 MiB of cache, a thread for each
    /// processor; `dim` and `model_hash` have no default and must be set.
    fn default() -> Self {
        Self {
            store: StoreKind::Sled,
            dtype: RowDtype::F16,
            dim: 0,
            shard: (0, 1),
            model_hash: String::new(),
            base_hash: None,
            batch_rows: 1024,
            store_cache_bytes: 64 << 20,
            threads: thread::available_parallelism().map_or(1, usize::from),
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
    progress: impl FnMut(u64, u64),
) -> std::result::Result<Manifest, E> {
    let mut numbers = Vec::new();
    let encoded = |fgrams: &[&[TokenId]], encoded: &mut Vec<u8>| {
        numbers.clear();
        rows(fgrams, &mut numbers)?;
        Ok(encode(options, fgrams, &numbers, encoded)?)
    };
    build_table_encoded(dir, set, options, encoded, progress)
}

/// As [`build_table`], with rows that are stored as they come: `rows` appends `dtype.row_bytes(dim)`
/// bytes for each f-gram, such as rows of the shards of the same table.
///
/// # Errors
/// Those of [`build_table`]; when `rows` gives another number of bytes.
pub fn build_table_encoded<E: From<Error>>(
    dir: &Path,
    set: &FgramSet,
    options: &BuildOptions,
    mut rows: impl FnMut(&[&[TokenId]], &mut Vec<u8>) -> std::result::Result<(), E>,
    mut progress: impl FnMut(u64, u64),
) -> std::result::Result<Manifest, E> {
    let keys = OfShard::new(set, options.shard.0, checked_shards(options)?);
    let manifest = planned(set, options, keys.len() as u64)?;
    let total = manifest.rows;
    if let Some(finished) = finished(dir, &manifest)? {
        progress(total, total);
        return Ok(finished);
    }
    fs::create_dir_all(dir).map_err(Error::at("create", dir))?;
    begin_or_resume(dir, &manifest)?;
    let mut writer = row_writer::open(dir, &manifest, options.store_cache_bytes)?;
    let mut order: Vec<u32> = (0..keys.len() as u32).collect();
    order.sort_unstable_by_key(|&row| keys.get(row as usize));
    let mut encoded = Vec::new();
    let mut flushed = Instant::now();
    progress(0, total);
    for (batch, done) in order.chunks(options.batch_rows).zip(1..) {
        let missing = missing(&mut *writer, batch, &keys)?;
        if !missing.is_empty() {
            let fgrams: Vec<&[TokenId]> = missing.iter().map(|(_, ids)| *ids).collect();
            encoded.clear();
            rows(&fgrams, &mut encoded)?;
            add(&mut *writer, &manifest, &missing, &encoded)?;
        }
        if flushed.elapsed() >= FLUSH_EVERY {
            writer.flush()?;
            flushed = Instant::now();
        }
        progress((done * options.batch_rows as u64).min(total), total);
    }
    // The store is closed before the table exists, so that whoever sees it can open it.
    let written = writer.finish(&mut order.iter().map(|&row| keys.get(row as usize)))?;
    drop(order);
    Ok(finish(dir, manifest, written, &keys, options.threads)?)
}

/// The rows of a batch that an earlier run has not left, with their f-grams.
fn missing<'a>(
    writer: &mut dyn RowWriter,
    batch: &[u32],
    keys: &'a impl Keys,
) -> Result<Vec<(u32, &'a [TokenId])>> {
    let mut missing = Vec::with_capacity(batch.len());
    for &row in batch {
        let ids = keys.get(row as usize);
        if !writer.has(row, ids)? {
            missing.push((row, ids));
        }
    }
    Ok(missing)
}

/// Encodes the rows of `fgrams`, whose `numbers` were computed.
fn encode(
    options: &BuildOptions,
    fgrams: &[&[TokenId]],
    numbers: &[f32],
    encoded: &mut Vec<u8>,
) -> Result<()> {
    let dim = options.dim;
    if numbers.len() != fgrams.len() * dim {
        let (got, rows) = (numbers.len(), fgrams.len());
        let problem = format!("{got} numbers for {rows} rows of {dim}");
        return Err(Error::argument("rows", problem));
    }
    for (ids, numbers) in fgrams.iter().zip(numbers.chunks_exact(dim)) {
        let row = options.dtype.encode(numbers, encoded);
        row.map_err(|error| Error::fgram(ids, error.to_string()))?;
    }
    Ok(())
}

/// Writes encoded rows.
fn add(
    writer: &mut dyn RowWriter,
    manifest: &Manifest,
    rows: &[(u32, &[TokenId])],
    encoded: &[u8],
) -> Result<()> {
    let row_bytes = manifest.row_bytes();
    if encoded.len() != rows.len() * row_bytes {
        let (got, rows) = (encoded.len(), rows.len());
        let problem = format!("{got} bytes for {rows} rows of {row_bytes}");
        return Err(Error::argument("rows", problem));
    }
    for ((row, ids), encoded) in rows.iter().zip(encoded.chunks_exact(row_bytes)) {
        writer.add(*row, ids, encoded)?;
    }
    Ok(())
}

/// Writes what follows from the rows; the manifest last.
fn finish(
    dir: &Path,
    mut manifest: Manifest,
    rows: WrittenRows,
    keys: &impl Keys,
    threads: usize,
) -> Result<Manifest> {
    let path = dir.join(key_file::KIND.name);
    let (bytes, sha256) = write_atomic_with(&path, |file| {
        let mut out = Hashing::new(file);
        key_file::write(keys, &rows.sums, &manifest, &mut out)?;
        Ok(out.finish())
    })?;
    manifest.files.push(entry(&key_file::KIND, bytes, sha256));
    drop(rows.sums);
    let index = key_index::encode(keys, &manifest, threads)?;
    write_atomic(&dir.join(key_index::KIND.name), &index)?;
    let sha256 = sha256_hex(&index);
    let listed = entry(&key_index::KIND, index.len() as u64, sha256);
    manifest.files.push(listed);
    manifest.files.extend(rows.file);
    manifest.rows_sha256 = rows.rows_sha256;
    write_atomic(&dir.join(MANIFEST_FILE), &manifest.to_json())?;
    tidy(dir)?;
    Ok(manifest)
}

fn entry(kind: &FileKind, bytes: u64, sha256: String) -> FileEntry {
    FileEntry {
        path: kind.name.to_owned(),
        bytes,
        sha256,
    }
}

/// Removes what only a build needs.
fn tidy(dir: &Path) -> Result<()> {
    for name in [MARKS_FILE, BUILD_FILE] {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::at("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The number of shards, once everything that could make the build senseless is checked.
fn checked_shards(options: &BuildOptions) -> Result<u32> {
    if options.batch_rows == 0 {
        return Err(Error::argument("batch_rows", "is 0, at least 1"));
    }
    if options.threads == 0 {
        return Err(Error::argument("threads", "is 0, at least 1"));
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
    let table_id = manifest::table_id(&options.model_hash, &fgram_set_hash, options.dtype);
    let manifest = Manifest {
        format_version: manifest::FORMAT_VERSION,
        checksum_seed: table_id.clone(),
        table_id,
        model_hash: options.model_hash.clone(),
        base_hash: options.base_hash.clone(),
        tokenizer_hash: hex(&set.header().tokenizer_hash),
        fgram_set_hash,
        vocab_size: set.header().vocab_size,
        max_n: set.header().max_n,
        dim,
        dtype: options.dtype,
        rows,
        shard_index: options.shard.0,
        shard_count: options.shard.1,
        store: options.store,
        rows_sha256: None,
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
    // A run that was killed at the very end may have left its marks.
    tidy(dir)?;
    Ok(Some(found))
}

/// Marks the directory as being built, or checks that it already is, with the same table.
fn begin_or_resume(dir: &Path, planned: &Manifest) -> Result<()> {
    let mark = dir.join(BUILD_FILE);
    if mark.exists() {
        let found = Manifest::read_file(&mark)?;
        return check_same(dir, planned, &found);
    }
    if row_writer::FILES.iter().any(|name| dir.join(name).exists()) {
        let problem =
            format!("it has rows but neither {MANIFEST_FILE} nor {BUILD_FILE}; remove it");
        return Err(Error::NoTable {
            dir: dir.to_owned(),
            problem,
        });
    }
    Ok(write_atomic(&mark, &planned.to_json())?)
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
