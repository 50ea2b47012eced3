//! Stores: ours beside memcpy, LMDB and redb. Microseconds a row, warm and cold; disk, index, build
//! and open.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use scone_benchmarks::args::{CommonArgs, Shape};
use scone_benchmarks::batches::{Batch, Served, Skew};
use scone_benchmarks::report::{Report, median, micros};
use scone_benchmarks::stores::{Store, Subject, check};
use scone_benchmarks::{disk, fgrams, tables};
use scone_fgram::FgramSet;

/// Rows of a batch: a lone sequence, a decode step, a piece of a prompt.
const BATCHES: [u32; 3] = [1, 32, 512];

/// Rows that the sweep before a warm measurement asks for at a time.
const SWEEP_ROWS: usize = 512;

/// Threads that read at one time, at most, where the disk itself is measured: more gain nothing.
const MAX_DEPTH: usize = 64;

/// Reads for each figure of the disk.
const DISK_READS: usize = 8192;

/// Measures stores: microseconds a row, disk, index, build and open.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,

    /// Rows and bytes of a row, as ROWSxBYTES; again for more [default: 1000000x2048 100000x4096].
    #[arg(long, value_name = "SHAPE")]
    shape: Vec<Shape>,

    /// What to compare; again for more [default: all].
    #[arg(long, value_enum)]
    subject: Vec<Subject>,

    /// Rows of a batch; again for more [default: 1 32 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Vec<u32>,

    /// How rows are drawn; again for more [default: all].
    #[arg(long, value_enum)]
    skew: Vec<Skew>,

    /// Rows read, one batch after another, for each figure when warm.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    reads: usize,

    /// The same when cold.
    #[arg(long, default_value_t = 2048, value_name = "N")]
    cold_reads: usize,
}

/// One way to ask.
#[derive(Clone, Copy)]
struct Case {
    skew: Skew,
    batch: usize,
}

/// Figures of one subject, one for each round.
struct Figures {
    subject: Subject,
    open_ms: Vec<f64>,
    /// For each case, and so on.
    warm_us: Vec<Vec<f64>>,
    find_us: Vec<Vec<f64>>,
    cold_us: Vec<Vec<f64>>,
    /// What the disk itself takes for a page at the depth of the case, measured just before it.
    disk_us: Vec<Vec<f64>>,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    let report = Report::begin("stores")?;
    if args.shape.is_empty() {
        let full = vec![Shape::new(1_000_000, 2048), Shape::new(100_000, 4096)];
        args.shape = args.common.size(full, vec![Shape::new(2000, 512)]);
    }
    if args.subject.is_empty() {
        args.subject = Subject::ALL.to_vec();
    }
    if args.batch.is_empty() {
        args.batch = BATCHES.to_vec();
    }
    if args.skew.is_empty() {
        args.skew = vec![Skew::Uniform, Skew::Zipf];
    }
    args.reads = args.common.size(args.reads, 1024);
    args.cold_reads = args.common.size(args.cold_reads, 512);
    for shape in &args.shape {
        measure(&args, &report, *shape)?;
    }
    Ok(())
}

/// All subjects on one shape.
fn measure(args: &Args, report: &Report, shape: Shape) -> Result<()> {
    let folder = args.common.folder(env!("CARGO_TARGET_TMPDIR"), "stores")?;
    let folder = folder.join(shape.to_string());
    std::fs::create_dir_all(&folder)?;
    report.note(format_args!("{shape}: synthetic f-grams"));
    let set = fgrams::synthetic(shape.rows)?;
    let served = Served::of(&set);
    let with = |&skew| args.batch.iter().map(move |&batch| (skew, batch as usize));
    let cases = args.skew.iter().flat_map(with);
    let cases: Vec<Case> = cases.map(|(skew, batch)| Case { skew, batch }).collect();

    build(args, report, &folder, &set, shape)?;
    let mut all: Vec<Figures> = args
        .subject
        .iter()
        .map(|&s| Figures::of(s, &cases))
        .collect();
    for round in 0..args.common.rounds() {
        let draw = |case: &Case, reads| {
            // Other rows for every case: a hot set must not hold what the case before has asked for.
            let seed = u64::from(round) << 32 | (case.batch as u64) << 1 | case.skew as u64;
            served.draw(case.skew, case.batch, reads, seed)
        };
        let warm: Vec<Vec<Batch>> = cases.iter().map(|case| draw(case, args.reads)).collect();
        let cold: Vec<Vec<Batch>> = cases.iter().map(|c| draw(c, args.cold_reads)).collect();
        for figures in &mut all {
            let name = figures.subject.name();
            report.note(format_args!("{shape}: round {round}, {name}"));
            figures.warm_round(report, &folder, &served, shape, &warm)?;
            figures.cold_round(&folder, &served, shape, (&cold, &cases))?;
        }
    }
    all.iter()
        .try_for_each(|figures| figures.print(report, shape, &cases))
}

/// Builds what is not there yet, and says what it took.
fn build(args: &Args, report: &Report, folder: &Path, set: &FgramSet, shape: Shape) -> Result<()> {
    for subject in &args.subject {
        let Some(name) = subject.folder() else {
            continue;
        };
        report.note(format_args!("{shape}: building {}", subject.name()));
        let built = tables::once(folder, name, |dir| subject.build(dir, set, shape.row_bytes))?;
        let name = subject.name();
        let disk = disk::disk_bytes(&built.dir)? as f64 / shape.rows as f64;
        report.line(&shape.to_string(), name, "build", built.seconds, "s")?;
        report.line(&shape.to_string(), name, "disk", disk, "bytes/row")?;
    }
    Ok(())
}

impl Figures {
    fn of(subject: Subject, cases: &[Case]) -> Self {
        Self {
            subject,
            open_ms: Vec::new(),
            warm_us: vec![Vec::new(); cases.len()],
            find_us: vec![Vec::new(); cases.len()],
            cold_us: vec![Vec::new(); cases.len()],
            disk_us: vec![Vec::new(); cases.len()],
        }
    }

    /// Opens, reads every row once, then times each case.
    fn warm_round(
        &mut self,
        report: &Report,
        folder: &Path,
        served: &Served<'_>,
        shape: Shape,
        batches: &[Vec<Batch>],
    ) -> Result<()> {
        let mut store = self.open(folder, served, shape)?;
        for batch in served.sweep(SWEEP_ROWS) {
            black_box(store.read(&batch)?);
        }
        let times = self.warm_us.iter_mut().zip(&mut self.find_us);
        for (batches, (read, find)) in batches.iter().zip(times) {
            check(&mut *store, &batches[0], shape.row_bytes)?;
            read.push(us_a_row(batches, |batch| {
                black_box(store.read(batch)?);
                Ok(())
            })?);
            if store.find(&batches[0]).is_some() {
                find.push(us_a_row(batches, |batch| {
                    black_box(store.find(batch));
                    Ok(())
                })?);
            }
        }
        if self.open_ms.len() == 1
            && let Some(bytes) = store.index_bytes()
        {
            let (case, name) = (shape.to_string(), self.subject.name());
            let bytes = bytes as f64 / shape.rows as f64;
            report.line(&case, name, "index", bytes, "bytes/key")?;
        }
        Ok(())
    }

    /// Times each case on a store just opened whose pages are not in memory, and leaves them so.
    fn cold_round(
        &mut self,
        folder: &Path,
        served: &Served<'_>,
        shape: Shape,
        (batches, cases): (&[Vec<Batch>], &[Case]),
    ) -> Result<()> {
        let Some(name) = self.subject.folder() else {
            return Ok(());
        };
        let dir = folder.join(name);
        if !self.subject.is_measured_cold() {
            // So that the next subject with these files does not find them in its pages.
            return disk::drop_pages(&dir);
        }
        let times = self.cold_us.iter_mut().zip(&mut self.disk_us);
        for ((batches, case), (times, of_disk)) in batches.iter().zip(cases).zip(times) {
            disk::drop_pages(&dir)?;
            let depth = case.batch.min(MAX_DEPTH);
            let read = disk::random_reads(&dir, depth, DISK_READS.min(512 * depth))?;
            of_disk.extend(read.map(micros));
            let mut store = self.subject.open(&dir, served, shape)?;
            times.push(us_a_row(batches, |batch| {
                black_box(store.read(batch)?);
                Ok(())
            })?);
        }
        disk::drop_pages(&dir)
    }

    fn open(&mut self, folder: &Path, served: &Served<'_>, shape: Shape) -> Result<Box<dyn Store>> {
        let dir = folder.join(self.subject.folder().unwrap_or_default());
        if self.subject.folder().is_none() {
            return self.subject.open(&dir, served, shape);
        }
        disk::read_pages(&dir)?;
        let start = Instant::now();
        let store = self.subject.open(&dir, served, shape)?;
        self.open_ms.push(start.elapsed().as_secs_f64() * 1e3);
        drop(store);
        self.subject.read_pages(&dir)?;
        self.subject.open_warm(&dir, served, shape)
    }

    fn print(&self, report: &Report, shape: Shape, cases: &[Case]) -> Result<()> {
        let name = self.subject.name();
        if self.subject.folder().is_some() {
            let open = median(&self.open_ms);
            report.line(&shape.to_string(), name, "open", open, "ms")?;
        }
        for (index, case) in cases.iter().enumerate() {
            let text = format!("{shape} {} batch {}", case.skew.name(), case.batch);
            for (state, metric, times) in [
                ("warm", "time", &self.warm_us[index]),
                ("warm", "time to find", &self.find_us[index]),
                ("cold", "time", &self.cold_us[index]),
                ("cold", "a page from the disk", &self.disk_us[index]),
            ] {
                if !times.is_empty() {
                    report.line(
                        &format!("{text} {state}"),
                        name,
                        metric,
                        median(times),
                        "us/row",
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// Does something with each batch; the time of one row.
fn us_a_row(batches: &[Batch], mut each: impl FnMut(&Batch) -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    batches
        .iter()
        .try_for_each(|batch| each(black_box(batch)))?;
    let took = start.elapsed();
    let rows: usize = batches.iter().map(|batch| batch.rows.len()).sum();
    Ok(micros(took) / rows as f64)
}
