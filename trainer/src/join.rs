//! One table of the tables of its shards.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use scone_fgram::set::FgramSet;
use scone_fgram::table::{
    BuildOptions, LookupResult, Manifest, Span, Table, TableOptions, build_table_encoded,
};
use scone_fgram::{StoreKind, shard_of};

use crate::progress::{Progress, Unit};

/// f-grams looked up at a time.
const BATCH_ROWS: usize = 4096;

/// Puts the rows of all shards of a table, made by `precompute --shard 0/N` to `N-1/N`, into one table
/// in `out`; goes on where an earlier run was stopped. The rows are taken as they are stored, so the
/// table is the one that `precompute` without shards makes.
///
/// # Errors
/// When a shard is missing, comes twice or is of another table or set, or a table cannot be read or
/// written.
pub fn join(set: &FgramSet, shards: &[PathBuf], out: &Path, store: StoreKind) -> Result<Manifest> {
    let tables = open(set, shards)?;
    let Some(first) = tables.first().map(|table| table.manifest()) else {
        bail!("no shards to join");
    };
    let options = BuildOptions {
        store,
        dtype: first.dtype,
        dim: first.dim as usize,
        model_hash: first.model_hash.clone(),
        base_hash: base_hash(&tables)?,
        batch_rows: BATCH_ROWS,
        threads: rayon::current_num_threads(),
        ..BuildOptions::default()
    };
    let row_bytes = options.dtype.row_bytes(options.dim);
    let rows = |fgrams: &[&[u32]], encoded: &mut Vec<u8>| -> Result<()> {
        take_rows(&tables, row_bytes, fgrams, encoded)
    };
    let mut progress = None;
    let report = |done: u64, total: u64| {
        let progress = progress.get_or_insert_with(|| Progress::new("join", total, Unit::Items));
        progress.set(done);
    };
    build_table_encoded(out, set, &options, rows, report)
        .with_context(|| format!("cannot build the table {}", out.display()))
}

/// The base that the shards were made for, as far as one of them says.
fn base_hash(tables: &[Table]) -> Result<Option<String>> {
    let mut named = tables
        .iter()
        .filter_map(|table| table.manifest().base_hash.as_ref());
    let Some(first) = named.next() else {
        return Ok(None);
    };
    match named.find(|&other| other != first) {
        None => Ok(Some(first.clone())),
        Some(other) => bail!("some shards were made for the base {first}, others for {other}"),
    }
}

/// The tables of all shards, in their order.
fn open(set: &FgramSet, shards: &[PathBuf]) -> Result<Vec<Table>> {
    let options = TableOptions {
        hot_bytes: 0,
        warm: false,
        ..TableOptions::default()
    };
    let mut tables: Vec<Option<Table>> = shards.iter().map(|_| None).collect();
    let mut table_id = None;
    let set_hash = set.hash();
    for dir in shards {
        let name = dir.display();
        let table = Table::open(dir, &options).with_context(|| format!("cannot open {name}"))?;
        let manifest = table.manifest();
        ensure!(
            manifest.fgram_set_hash == set_hash,
            "{name} is a table of another f-gram set ({}, the model's is {set_hash})",
            manifest.fgram_set_hash
        );
        let id = table_id.get_or_insert_with(|| manifest.table_id.clone());
        ensure!(
            *id == manifest.table_id,
            "{name} is a shard of the table {}, the first one of {id}",
            manifest.table_id
        );
        ensure!(
            manifest.shard_count as usize == shards.len(),
            "{name} is one of {} shards, {} are given",
            manifest.shard_count,
            shards.len()
        );
        let place = tables.get_mut(manifest.shard_index as usize);
        let place = place.with_context(|| format!("{name} is a shard that cannot be"))?;
        ensure!(place.is_none(), "{name} is given twice");
        *place = Some(table);
    }
    // As many as there are shards and none twice: all.
    Ok(tables.into_iter().flatten().collect())
}

/// Appends the stored rows of `fgrams`.
fn take_rows(
    tables: &[Table],
    row_bytes: usize,
    fgrams: &[&[u32]],
    encoded: &mut Vec<u8>,
) -> Result<()> {
    let mut of_shard: Vec<Vec<usize>> = tables.iter().map(|_| Vec::new()).collect();
    for (at, ids) in fgrams.iter().enumerate() {
        let [.., a, b] = ids else {
            bail!("an f-gram of one token");
        };
        of_shard[shard_of([*a, *b], tables.len() as u32) as usize].push(at);
    }
    let start = encoded.len();
    encoded.resize(start + fgrams.len() * row_bytes, 0);
    let mut found = LookupResult::default();
    for (table, own) in tables.iter().zip(&of_shard) {
        let ids: Vec<u32> = own.iter().flat_map(|&at| fgrams[at]).copied().collect();
        let spans: Vec<Span> = own
            .iter()
            .map(|&at| Span {
                context: fgrams[at].len() as u32 - 1,
                answers: 1,
            })
            .collect();
        table.lookup(&ids, &spans, &mut found)?;
        let whole = |(&len, &at): (&u8, &usize)| usize::from(len) == fgrams[at].len();
        ensure!(
            found.row_index.len() == own.len() && found.match_lengths.iter().zip(own).all(whole),
            "shard {} has not the rows of all its f-grams",
            table.manifest().shard_index
        );
        for (&at, &row) in own.iter().zip(&found.row_index) {
            let row = row as usize * row_bytes;
            let row = found.rows.get(row..row + row_bytes);
            let row = row.context("a table answered with too few rows")?;
            let place = start + at * row_bytes;
            encoded[place..place + row_bytes].copy_from_slice(row);
        }
    }
    Ok(())
}
