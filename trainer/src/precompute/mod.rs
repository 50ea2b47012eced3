//! The f-gram table of a trained model: A computed for every f-gram of the set.
//!
//! f-grams come in the order of their ids, so that those of a batch share prefixes: A computes each
//! distinct prefix once, nothing is padded, and lengths need not be sorted.

mod work;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use candle_core::Device;
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;
use scone_fgram::set::FgramSet;
use scone_fgram::table::{
    BuildOptions, LookupResult, Manifest, Span, Table, TableOptions, build_table,
};
use scone_fgram::{RowDtype, StoreKind, shard_of};
use scone_model::FgramModel;
use scone_model::checkpoint::{LoadedModel, ModelFiles, load_model};

use crate::model_dir::read_fgram_set;
use crate::progress::{Progress, Unit};
use work::Work;

/// What to build.
#[derive(Debug, Clone)]
pub struct Options {
    /// How rows are stored.
    pub store: StoreKind,
    /// Type of their elements.
    pub dtype: RowDtype,
    /// This shard and how many there are.
    pub shard: (u32, u32),
    /// f-grams given to A at once.
    pub batch_rows: usize,
    /// Rows compared with live A at the end.
    pub verify_rows: usize,
}

impl Default for Options {
    /// A whole f16 table in sled, 1,024 f-grams at once, 1,000 rows compared.
    fn default() -> Self {
        Self {
            store: StoreKind::Sled,
            dtype: RowDtype::F16,
            shard: (0, 1),
            batch_rows: 1024,
            verify_rows: 1000,
        }
    }
}

/// Computes the table of the model in `model_dir` on `device` into `out`; goes on where an earlier
/// run was stopped.
///
/// # Errors
/// A model directory without A or that does not fit its f-gram set; a directory of another table;
/// a row that the dtype cannot hold; a row that differs from live A when it is compared.
pub fn precompute(
    model_dir: &Path,
    out: &Path,
    device: &Device,
    options: &Options,
) -> Result<Manifest> {
    let cannot_load = || format!("cannot load the model in {}", model_dir.display());
    let files = ModelFiles::open(model_dir).with_context(cannot_load)?;
    let model = load_model(&files.hashing(), device).with_context(cannot_load)?;
    let set = read_fgram_set(&model.dir, &model)?;
    let live = LiveModel::new(&model, model_dir)?;
    let manifest = build(&model, &set, &live, out, options)?;
    if manifest.base_hash.is_none() {
        tracing::warn!(
            path = %out.display(),
            "the table was finished before tables named their base: decoders take it for this model \
             alone; build it in another directory to serve it over the base model"
        );
    }
    verify(&live, &set, out, options)?;
    Ok(manifest)
}

/// A and T of a loaded model.
struct LiveModel<'a> {
    model: &'a LoadedModel,
    fgram: &'a FgramModel,
}

impl<'a> LiveModel<'a> {
    fn new(model: &'a LoadedModel, dir: &Path) -> Result<Self> {
        let missing = || format!("{} has no f-gram model to make a table of", dir.display());
        Ok(Self {
            model,
            fgram: model.fgram.as_ref().with_context(missing)?,
        })
    }

    /// Whether a row is the same, bit for bit, in whatever company it is computed.
    fn is_exact(&self) -> bool {
        self.model.decoder.token_embedding().device().is_cpu()
    }

    fn rows(&self, fgrams: &[&[u32]]) -> Result<Vec<f32>> {
        Ok(self
            .fgram
            .rows(self.model.decoder.token_embedding(), fgrams)?)
    }
}

fn build(
    model: &LoadedModel,
    set: &FgramSet,
    live: &LiveModel<'_>,
    out: &Path,
    options: &Options,
) -> Result<Manifest> {
    let build = BuildOptions {
        store: options.store,
        dtype: options.dtype,
        dim: model.config.hidden_size(),
        shard: options.shard,
        model_hash: model
            .model_hash
            .clone()
            .context("scone.json names no model hash")?,
        base_hash: model.base_hash.clone(),
        batch_rows: options.batch_rows,
        threads: rayon::current_num_threads(),
        ..BuildOptions::default()
    };
    let started = Instant::now();
    let mut progress = None;
    let (mut computed, mut work) = (0, Work::of(live.fgram.shape()));
    let compute = |fgrams: &[&[u32]], rows: &mut Vec<f32>| -> Result<()> {
        rows.extend(live.rows(fgrams)?);
        computed += fgrams.len();
        work.add(fgrams);
        Ok(())
    };
    let report = |done: u64, total: u64| {
        let progress =
            progress.get_or_insert_with(|| Progress::new("precompute", total, Unit::Items));
        progress.set(done);
    };
    let manifest = build_table(out, set, &build, compute, report)
        .with_context(|| format!("cannot build the table {}", out.display()))?;
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(
        path = %out.display(),
        rows = manifest.rows,
        dim = manifest.dim,
        dtype = %manifest.dtype,
        store = %manifest.store,
        table_id = manifest.table_id,
        "built the table"
    );
    if computed > 0 {
        let seconds = seconds.max(1e-9);
        let flops = work.flops() / seconds;
        let peak = work::matmul_peak(live.model.decoder.token_embedding().device())?;
        tracing::info!(
            computed,
            rows_per_s = format_args!("{:.0}", computed as f64 / seconds),
            gflop_per_s = format_args!("{:.1}", flops / 1e9),
            peak_gflop_per_s = format_args!("{:.1}", peak / 1e9),
            share_of_peak = format_args!("{:.2}", flops / peak),
            "speed, everything from the first row to the manifest included"
        );
    }
    Ok(manifest)
}

/// Compares rows of the finished table with live A, bit for bit as stored.
fn verify(live: &LiveModel<'_>, set: &FgramSet, out: &Path, options: &Options) -> Result<()> {
    let sample = sample(set, options);
    if sample.is_empty() {
        return Ok(());
    }
    let table_options = TableOptions {
        hot_bytes: 0,
        warm: false,
        ..TableOptions::default()
    };
    let table = Table::open(out, &table_options)
        .with_context(|| format!("cannot open the finished table {}", out.display()))?;
    let spans: Vec<Span> = sample
        .iter()
        .map(|ids| Span {
            context: ids.len() as u32 - 1,
            answers: 1,
        })
        .collect();
    let mut found = LookupResult::default();
    table.lookup(&sample.concat(), &spans, &mut found)?;
    ensure!(
        found.row_index.len() == sample.len(),
        "the table answers only {} of {} f-grams of its set; build it anew",
        found.row_index.len(),
        sample.len()
    );
    let dim = table.manifest().dim as usize;
    let expected = live.rows(&sample)?;
    let row_bytes = options.dtype.row_bytes(dim);
    let exact = live.is_exact();
    for ((ids, row), &at) in sample
        .iter()
        .zip(expected.chunks(dim))
        .zip(&found.row_index)
    {
        let start = at as usize * row_bytes;
        let stored = found.rows.get(start..start + row_bytes);
        let stored = stored.context("the table answered too few rows")?;
        ensure!(
            agrees(stored, row, options.dtype, exact)?,
            "the row of f-gram {ids:?} in {} differs from the f-gram model's; delete the table \
             and build it anew on this machine",
            out.display()
        );
    }
    tracing::info!(
        rows = sample.len(),
        exact,
        "rows compared with the f-gram model: equal"
    );
    Ok(())
}

/// How far a stored row may be from one computed in other company, where that changes the sums: as
/// a share of the mean absolute value, on average. A few elements rounded the other way are far
/// below it, even in int4; another f-gram's row is far above.
const TOLERANCE: f32 = 0.01;

/// Whether a stored row is the row computed: bit for bit if `exact`.
fn agrees(stored: &[u8], row: &[f32], dtype: RowDtype, exact: bool) -> Result<bool> {
    let mut bytes = Vec::with_capacity(stored.len());
    dtype.encode(row, &mut bytes)?;
    if exact || bytes == stored {
        return Ok(bytes == stored);
    }
    let (mut a, mut b) = (vec![0.0; row.len()], vec![0.0; row.len()]);
    dtype.decode(stored, &mut a)?;
    dtype.decode(&bytes, &mut b)?;
    let apart: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum();
    let size: f32 = b.iter().map(|b| b.abs()).sum();
    Ok(apart <= TOLERANCE * size)
}

/// f-grams of this shard drawn at random, without repetition, the same ones on each run.
fn sample<'a>(set: &'a FgramSet, options: &Options) -> Vec<&'a [u32]> {
    let mut rng = ChaCha12Rng::seed_from_u64(0);
    let mut ranks: Vec<usize> = match set.len() {
        0 => Vec::new(),
        len if len <= options.verify_rows => (0..len).collect(),
        len => (0..options.verify_rows)
            .map(|_| rng.random_range(0..len))
            .collect(),
    };
    ranks.sort_unstable();
    ranks.dedup();
    let (shard, shards) = options.shard;
    let of_shard = |ids: &&[u32]| match ids {
        [.., a, b] => shard_of([*a, *b], shards) == shard,
        _ => false,
    };
    ranks
        .into_iter()
        .map(|rank| set.get(rank).ids)
        .filter(of_shard)
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn rows_of_another_order_of_sums_agree_unless_they_must_be_equal() {
        let row: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
        let near: Vec<f32> = row.iter().map(|x| x * (1.0 + 3e-7)).collect();
        let other: Vec<f32> = (0..128).map(|i| (i as f32 * 0.8).sin()).collect();
        for dtype in [RowDtype::F32, RowDtype::F16, RowDtype::Int8, RowDtype::Int4] {
            let mut stored = Vec::new();
            dtype.encode(&row, &mut stored).unwrap();
            for exact in [true, false] {
                assert!(agrees(&stored, &row, dtype, exact).unwrap());
                assert!(!agrees(&stored, &other, dtype, exact).unwrap());
            }
            assert!(agrees(&stored, &near, dtype, false).unwrap());
        }
        let mut stored = Vec::new();
        RowDtype::F32.encode(&row, &mut stored).unwrap();
        assert!(!agrees(&stored, &near, RowDtype::F32, true).unwrap());
    }
}
