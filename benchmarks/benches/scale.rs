//! What a look-up costs as the table grows from 10 thousand to 10 million rows.

use std::borrow::Cow;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use scone_benchmarks::args::{CommonArgs, Shape};
use scone_benchmarks::batches::{Served, Skew};
use scone_benchmarks::report::{Report, median, micros, resident_bytes};
use scone_benchmarks::stores::Subject;
use scone_benchmarks::trace::{CorpusArgs, Step, Trace};
use scone_benchmarks::{disk, fgrams, rows, tables};
use scone_fgram::table::LookupResult;
use scone_fgram::{FgramSet, StoreKind, Table, TableOptions};

/// Windows of one look-up.
const BATCH: usize = 32;

/// f-grams whose rows are read back and compared.
const CHECKED: usize = 10_000;

/// Measures look-ups in tables of growing size.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,

    /// A set with at least as many f-grams as the largest size, and its text; a synthetic set and
    /// trace when absent.
    #[command(flatten)]
    corpus: CorpusArgs,

    /// Numbers of rows, rising.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10000,100000,1000000,10000000",
        value_name = "N"
    )]
    rows: Vec<usize>,

    /// Bytes of a row, a multiple of 4.
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    row_bytes: usize,

    /// Largest number of rows for which sled is measured too: it builds slowly and takes twice the
    /// disk.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    sled_rows: usize,

    /// Largest number of rows for which memcpy, the limit, is measured too: it takes all rows into the
    /// memory of the process.
    #[arg(long, default_value_t = 10_000_000, value_name = "N")]
    memcpy_rows: usize,

    /// Positions of the text that are looked up.
    #[arg(long, default_value_t = 400_000, value_name = "N")]
    positions: usize,

    /// Remove each table once it is measured.
    #[arg(long)]
    remove: bool,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if !args.common.bench {
        args.rows = vec![1000, 4000];
        args.positions = 4096;
    }
    let report = Report::begin("scale")?;
    let real = match args.corpus.fgrams {
        Some(_) => Some(args.corpus.fgram_set()?),
        None => None,
    };
    let text = real
        .as_ref()
        .map(|set| args.corpus.trace(set))
        .transpose()?;
    for &size in &args.rows {
        report.note(format_args!("{size} f-grams"));
        let set = match &real {
            Some(set) if set.len() == size => Cow::Borrowed(set),
            Some(set) => Cow::Owned(fgrams::top(set, size)?),
            None => Cow::Owned(fgrams::synthetic(size)?),
        };
        let trace = match &text {
            Some(trace) => Cow::Borrowed(trace),
            None => Cow::Owned(Trace::synthetic(&set, args.positions)),
        };
        let max_n = usize::from(set.header().max_n);
        let steps = trace.steps(BATCH, max_n, args.positions);
        if size <= args.memcpy_rows {
            memcpy(&args, &report, &set)?;
        }
        for store in [StoreKind::Mapped, StoreKind::Sled] {
            if store == StoreKind::Mapped || size <= args.sled_rows {
                measure(&args, &report, &set, store, &steps)?;
            }
        }
    }
    Ok(())
}

/// The limit: what the memory itself costs at this size. Done before there is a table, so that both
/// need not fit into memory together.
fn memcpy(args: &Args, report: &Report, set: &FgramSet) -> Result<()> {
    let served = Served::of(set);
    let shape = Shape::new(set.len(), args.row_bytes);
    let mut flat = Subject::Memcpy.open(Path::new(""), &served, shape)?;
    let mut times = Vec::new();
    for round in 0..args.common.rounds() {
        let batches = served.draw(Skew::Uniform, BATCH, args.positions, u64::from(round));
        let asked: usize = batches.iter().map(|batch| batch.rows.len()).sum();
        let start = Instant::now();
        for batch in &batches {
            black_box(flat.read(batch)?);
        }
        times.push(micros(start.elapsed()) / asked as f64);
    }
    let subject = Subject::Memcpy.name();
    report.line(
        &case(args, set),
        subject,
        "any f-gram",
        median(&times),
        "us/position",
    )
}

/// Size and kind of a set.
fn case(args: &Args, set: &FgramSet) -> String {
    let kind = if args.corpus.fgrams.is_some() {
        "mined"
    } else {
        "synthetic"
    };
    format!("{} {kind} f-grams of {} bytes", set.len(), args.row_bytes)
}

/// One table of one store.
fn measure(
    args: &Args,
    report: &Report,
    set: &FgramSet,
    store: StoreKind,
    steps: &[Step],
) -> Result<()> {
    let folder = args.common.folder(env!("CARGO_TARGET_TMPDIR"), "scale")?;
    let case = case(args, set);
    let name = format!("{store}-{}-{}", args.row_bytes, &set.hash()[..16]);
    let subject = store.to_string();
    report.note(format_args!("{case}: building {store}"));
    let built = tables::once(&folder, &name, |dir| {
        tables::build(dir, set, store, args.row_bytes)
    })?;
    let keys = set.len() as f64;
    let disk = disk::disk_bytes(&built.dir)? as f64 / keys;
    report.line(&case, &subject, "build", built.seconds, "s")?;
    report.line(&case, &subject, "disk", disk, "bytes/row")?;
    // Of a mapped table all rows are read at start, as by a service whose memory holds them.
    let mut options = TableOptions::default();
    if store == StoreKind::Mapped {
        options.hot_bytes = u64::MAX;
    }
    let mut opens = Vec::new();
    let mut all = Timed::default();
    for round in 0..args.common.rounds() {
        report.note(format_args!("{case}: {store}, round {round}"));
        disk::read_pages(&built.dir)?;
        let start = Instant::now();
        let table = Table::open(&built.dir, &TableOptions::default())?;
        opens.push(start.elapsed().as_secs_f64() * 1e3);
        drop(table);
        disk::drop_pages(&built.dir)?;
        let before = resident_bytes();
        let table = Table::open(&built.dir, &options)?;
        if round == 0 {
            let after = resident_bytes();
            let own = after.0.saturating_sub(before.0) as f64 / keys;
            let index = table.index().index_bytes() as f64 / keys;
            report.line(&case, &subject, "index", index, "bytes/key")?;
            report.line(&case, &subject, "memory after open", own, "bytes/key")?;
        }
        time(args, &table, set, steps, u64::from(round), &mut all)?;
        if round == 0 {
            let mapped = resident_bytes().1 as f64 / f64::from(1 << 20);
            report.line(&case, &subject, "mapped pages when warm", mapped, "MiB")?;
        }
    }
    report.line(&case, &subject, "open", median(&opens), "ms")?;
    report.line(&case, &subject, "matched", median(&all.matched), "share")?;
    report.line(&case, &subject, "text", median(&all.text), "us/position")?;
    report.line(
        &case,
        &subject,
        "any f-gram",
        median(&all.any),
        "us/position",
    )?;
    if args.remove {
        remove(&folder, &name)?;
    }
    Ok(())
}

/// Figures, one for each round.
#[derive(Default)]
struct Timed {
    /// Share of the positions of the text that are matched.
    matched: Vec<f64>,
    /// Time of a position of the text.
    text: Vec<f64>,
    /// Time of an f-gram, all alike.
    any: Vec<f64>,
}

/// Reads every row once, checks some, then times both ways to ask.
fn time(
    args: &Args,
    table: &Table,
    set: &FgramSet,
    steps: &[Step],
    seed: u64,
    timed: &mut Timed,
) -> Result<()> {
    let served = Served::of(set);
    let mut result = LookupResult::default();
    for batch in served.sweep(512) {
        table.lookup(&batch.ids, &batch.spans, &mut result)?;
    }
    let batches = served.draw(Skew::Uniform, BATCH, args.positions, seed);
    let mut expected = Vec::new();
    for batch in batches.iter().take(CHECKED.div_ceil(BATCH)) {
        table.lookup(&batch.ids, &batch.spans, &mut result)?;
        expected.clear();
        batch
            .fgrams()
            .for_each(|ids| rows::encoded(ids, args.row_bytes, &mut expected));
        ensure!(result.rows == expected, "the table has a wrong row");
    }

    let (mut positions, mut matched) = (0, 0);
    let start = Instant::now();
    for step in steps {
        table.lookup(&step.ids, &step.spans, &mut result)?;
        positions += step.spans.len();
        matched += black_box(&result).row_index.len();
    }
    timed.text.push(micros(start.elapsed()) / positions as f64);
    timed.matched.push(matched as f64 / positions as f64);

    let start = Instant::now();
    for batch in &batches {
        table.lookup(&batch.ids, &batch.spans, &mut result)?;
        black_box(&result);
    }
    let asked: usize = batches.iter().map(|batch| batch.rows.len()).sum();
    timed.any.push(micros(start.elapsed()) / asked as f64);
    Ok(())
}

fn remove(folder: &Path, name: &str) -> Result<()> {
    std::fs::remove_file(folder.join(format!("{name}.seconds")))?;
    Ok(std::fs::remove_dir_all(folder.join(name))?)
}
