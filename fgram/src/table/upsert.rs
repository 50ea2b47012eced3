//! Replacing rows of a sled table in place, in steps that can be interrupted anywhere
//! (`docs/formats.md`, "Upserts").

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scone_files::write_atomic;

use super::disk::key_file::KeyFile;
use super::disk::key_index::KeyIndex;
use super::disk::manifest::{Manifest, StoreKind};
use super::disk::names::{MANIFEST_FILE, UPSERT_FILE};
use super::memory::request::RowRequest;
use super::open::TableOptions;
use super::state::Table;
use super::stores::sled_store::SledTree;
use crate::error::{Error, Result};
use crate::keys::KeyList;
use crate::ngram::TokenId;

/// A killed upsert loses at most the rows of this long.
const FLUSH_EVERY: Duration = Duration::from_secs(2);

/// Memory for sled's page cache.
const CACHE_BYTES: u64 = 64 << 20;

/// What [`upsert`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpsertReport {
    /// Rows whose bytes were replaced.
    pub replaced: u64,
    /// Rows that were the same already, perhaps from an earlier run.
    pub unchanged: u64,
    /// The table as it is now.
    pub manifest: Manifest,
}

/// Replaces rows of the sled table in `dir` by those of the table in `from`, of either store.
///
/// Each row is either the old or the new one at any moment, also after a kill; until the upsert
/// has ended the table answers with some of each under its old id, and [`Table::verify`] says so.
/// The same call again finishes it. `progress` gets the rows done and their total.
///
/// # Errors
/// [`Error::UpsertMismatch`] when the tables differ in tokenizer, `vocab_size`, K, dim, dtype or
/// shard, or an upsert from another table is unfinished and `from` does not have every row;
/// [`Error::InvalidFgram`] for the first f-gram of `from` that the table lacks;
/// [`Error::InvalidArgument`] when the table is not in sled, or `from` has another model but not
/// every row; [`Error::TableInUse`] when the table is being served; and those of [`Table::open`].
pub fn upsert(dir: &Path, from: &Path, mut progress: impl FnMut(u64, u64)) -> Result<UpsertReport> {
    let manifest = Manifest::read(dir)?;
    if manifest.store != StoreKind::Sled {
        let problem = format!(
            "{} is mapped; only a sled table can be changed",
            dir.display()
        );
        return Err(Error::argument("table", problem));
    }
    let source = Source::open(from)?;
    let keys = Arc::new(KeyFile::open(dir, &manifest)?);
    let index = KeyIndex::open(dir, &manifest, Arc::clone(&keys))?;
    let next = next_manifest(dir, from, &manifest, source.table.manifest())?;
    source.check_keys(&index)?;
    check_unfinished(dir, from, &manifest, source.table.manifest())?;
    let tree = SledTree::open(dir, &manifest, CACHE_BYTES, false)?;
    let mark = dir.join(UPSERT_FILE);
    write_atomic(&mark, &source.table.manifest().to_json())?;
    let replaced = source.copy_rows(&tree, &mut progress)?;
    let all = keys.read_all(&manifest)?;
    let rows_sha256 = Some(tree.rows_sha256(sorted(&all).into_iter())?);
    // sled is closed before the table has its new name, so that whoever sees it can open it.
    drop(tree);
    let manifest = Manifest {
        rows_sha256,
        ..next
    };
    write_atomic(&dir.join(MANIFEST_FILE), &manifest.to_json())?;
    fs::remove_file(&mark).map_err(Error::at("remove", &mark))?;
    Ok(UpsertReport {
        replaced,
        unchanged: source.keys.len() as u64 - replaced,
        manifest,
    })
}

/// The table that the rows come from.
struct Source {
    table: Table,
    keys: KeyList,
}

impl Source {
    fn open(dir: &Path) -> Result<Self> {
        let options = TableOptions {
            hot_bytes: 0,
            warm: false,
            ..TableOptions::default()
        };
        let table = Table::open(dir, &options)?;
        let keys = table.index().keys().read_all(table.manifest())?;
        Ok(Self { table, keys })
    }

    /// Every f-gram has to be in the table that is changed.
    fn check_keys(&self, index: &KeyIndex) -> Result<()> {
        for ids in self.keys.iter() {
            if index.row(ids)?.is_none() {
                return Err(Error::fgram(ids, "is not in the table to be changed"));
            }
        }
        Ok(())
    }

    /// Writes the rows that differ; returns how many.
    fn copy_rows(&self, tree: &SledTree, progress: &mut impl FnMut(u64, u64)) -> Result<u64> {
        let total = self.keys.len() as u64;
        let mut order: Vec<u32> = (0..self.keys.len() as u32).collect();
        order.sort_unstable_by_key(|&row| self.keys.get(row as usize));
        let mut encoded = vec![0; self.table.manifest().row_bytes()];
        let mut replaced = 0;
        let mut flushed = Instant::now();
        progress(0, total);
        for (&row, done) in order.iter().zip(1..) {
            let ids = self.keys.get(row as usize);
            let request = RowRequest { row, index: 0 };
            self.table.store().get_many(&[request], &mut encoded)?;
            if tree.get(ids)?.row() != Some(&encoded[..]) {
                tree.insert(ids, &encoded)?;
                replaced += 1;
            }
            if flushed.elapsed() >= FLUSH_EVERY {
                tree.flush()?;
                flushed = Instant::now();
            }
            progress(done, total);
        }
        tree.flush()?;
        Ok(replaced)
    }
}

fn sorted(keys: &KeyList) -> Vec<&[TokenId]> {
    let mut sorted: Vec<&[TokenId]> = keys.iter().collect();
    sorted.sort_unstable();
    sorted
}

/// The manifest after the upsert, but for the checksum of the rows.
fn next_manifest(dir: &Path, from: &Path, old: &Manifest, new: &Manifest) -> Result<Manifest> {
    let shard = |manifest: &Manifest| format!("{}/{}", manifest.shard_index, manifest.shard_count);
    for (field, expected, found) in [
        (
            "tokenizer",
            old.tokenizer_hash.clone(),
            new.tokenizer_hash.clone(),
        ),
        (
            "vocab_size",
            old.vocab_size.to_string(),
            new.vocab_size.to_string(),
        ),
        ("max_n", old.max_n.to_string(), new.max_n.to_string()),
        ("dim", old.dim.to_string(), new.dim.to_string()),
        ("dtype", old.dtype.to_string(), new.dtype.to_string()),
        ("shard", shard(old), shard(new)),
    ] {
        if expected != found {
            return Err(mismatch(dir, from, field, expected, found));
        }
    }
    if new.model_hash == old.model_hash {
        return Ok(Manifest {
            base_hash: old.base_hash.clone().or_else(|| new.base_hash.clone()),
            ..old.clone()
        });
    }
    if new.rows < old.rows {
        let problem = format!(
            "{} is of another model and has only {} of the {} rows; the others would stay those \
             of the old model",
            from.display(),
            new.rows,
            old.rows
        );
        return Err(Error::argument("from", problem));
    }
    Ok(Manifest {
        table_id: new.table_id.clone(),
        model_hash: new.model_hash.clone(),
        base_hash: new.base_hash.clone(),
        fgram_set_hash: new.fgram_set_hash.clone(),
        ..old.clone()
    })
}

/// An upsert that was begun from another table may only be overruled by one of every row.
fn check_unfinished(dir: &Path, from: &Path, old: &Manifest, new: &Manifest) -> Result<()> {
    let mark = dir.join(UPSERT_FILE);
    if !mark.exists() {
        return Ok(());
    }
    let begun = Manifest::read_file(&mark)?;
    if begun.table_id == new.table_id || new.rows == old.rows {
        return Ok(());
    }
    let (expected, found) = (begun.table_id, new.table_id.clone());
    let field = "table id, and an upsert is unfinished";
    Err(mismatch(dir, from, field, expected, found))
}

fn mismatch(
    dir: &Path,
    from: &Path,
    field: &'static str,
    expected: String,
    found: String,
) -> Error {
    Error::UpsertMismatch {
        dir: dir.to_owned(),
        from: from.to_owned(),
        field,
        expected,
        found,
    }
}
