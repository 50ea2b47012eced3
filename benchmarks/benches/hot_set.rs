//! Where the hot set pays: sled and mapped tables with and without it on the look-ups of held-out
//! text, at several budgets; and whether another policy would keep better rows than theirs.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use scone_benchmarks::args::CommonArgs;
use scone_benchmarks::batches::Served;
use scone_benchmarks::policies::{
    Clock, Lru, Policy, S3Fifo, Static, best_hit_rate, hit_rate, trained_tiny_lfu, warm_tiny_lfu,
};
use scone_benchmarks::report::{Report, median};
use scone_benchmarks::trace::{CorpusArgs, Step};
use scone_benchmarks::{disk, fgrams, tables};
use scone_fgram::table::{HOT_ROW_OVERHEAD, LookupResult};
use scone_fgram::{FgramSet, StoreKind, Table, TableOptions};

/// Measures the hot set on real look-ups, and simulates other policies on the same.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,

    #[command(flatten)]
    corpus: CorpusArgs,

    /// Bytes of a row, a multiple of 4.
    #[arg(long, default_value_t = 2048, value_name = "BYTES")]
    row_bytes: usize,

    /// Rows held, in percent of the table; 0 is no hot set.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0,1,5,10,20,40",
        value_name = "PERCENT"
    )]
    budget: Vec<u32>,

    /// Sequences of a decode step.
    #[arg(long, default_value_t = 32, value_name = "N")]
    lanes: usize,

    /// Positions of the text that are looked up; the first half prepares, the second counts.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    positions: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let report = Report::begin("hot_set")?;
    let mut set = args.corpus.fgram_set()?;
    let trace = args.corpus.trace(&set)?;
    if !args.common.bench {
        set = fgrams::top(&set, 2000)?;
    }
    let limit = args.common.size(args.positions, 20_000);
    let steps = trace.steps(args.lanes, usize::from(set.header().max_n), limit);
    report.note(format_args!(
        "{}: {} f-grams, {} steps of {} of {} positions",
        args.corpus.name(),
        set.len(),
        steps.len(),
        args.lanes,
        trace.positions()
    ));
    simulate(&args, &report, &set, &steps)?;
    measure(&args, &report, &set, &steps)
}

/// The rows that a store is asked for, step by step, each once in a step, in served order.
fn accesses(set: &FgramSet, steps: &[Step]) -> Vec<u32> {
    let mut row_of_rank = vec![0; set.len()];
    for (row, rank) in set.served_order().into_iter().enumerate() {
        row_of_rank[rank as usize] = row as u32;
    }
    let matcher = set.matcher();
    let mut accesses = Vec::new();
    for step in steps {
        let first = accesses.len();
        let mut rest = &step.ids[..];
        for span in &step.spans {
            let (window, after) = rest.split_at(span.context as usize + 1);
            rest = after;
            let row = matcher.longest(window).map(|m| row_of_rank[m.row as usize]);
            accesses.extend(row.filter(|row| !accesses[first..].contains(row)));
        }
    }
    accesses
}

fn simulate(args: &Args, report: &Report, set: &FgramSet, steps: &[Step]) -> Result<()> {
    let accesses = accesses(set, steps);
    let half = accesses.len() / 2;
    let matched = accesses.len() as f64 / steps.iter().map(|s| s.spans.len()).sum::<usize>() as f64;
    let name = format!("{} f-grams", set.len());
    report.line(&name, "trace", "distinct rows a position", matched, "share")?;
    let total = set
        .iter()
        .map(|fgram| fgram.match_count)
        .sum::<u64>()
        .max(1);
    let share = |rank: u32| set.get(rank as usize).match_count as f64 / total as f64;
    let shares: Vec<f64> = set.served_order().into_iter().map(share).collect();
    for &percent in args.budget.iter().filter(|&&percent| percent > 0) {
        let rows = (set.len() * percent as usize / 100).max(2);
        let kept = NonZeroUsize::new(rows).context("a budget of no rows")?;
        let case = format!("{name}, {percent} % held");
        let print = |subject, rate| report.line(&case, subject, "hit rate", rate, "share");
        // A table warms its hot set so that the rows served most are the ones used last.
        let warmed: Vec<u32> = (0..rows as u32)
            .rev()
            .chain(accesses.iter().copied())
            .collect();
        let rate = |mut policy: Box<dyn Policy>| hit_rate(&mut *policy, &warmed, rows + half);
        print(
            "lru, empty at first",
            hit_rate(&mut Lru::new(kept), &accesses, 0),
        )?;
        print("static", rate(Box::new(Static::new(kept))))?;
        print("lru", rate(Box::new(Lru::new(kept))))?;
        print("clock", rate(Box::new(Clock::new(kept, set.len()))))?;
        print("s3-fifo", rate(Box::new(S3Fifo::new(kept, set.len()))))?;
        // The policy of the hot set itself, warmed as a table does it.
        let mut shipped = warm_tiny_lfu(kept, set.len());
        print("w-tinylfu", hit_rate(&mut shipped, &accesses, half))?;
        let mut trained = trained_tiny_lfu(kept, &shares);
        let counted = hit_rate(&mut trained, &accesses, half);
        print("w-tinylfu, counts of training", counted)?;
        let best = best_hit_rate(kept, set.len(), &warmed, rows + half);
        print("best possible", best)?;
    }
    Ok(())
}

fn measure(args: &Args, report: &Report, set: &FgramSet, steps: &[Step]) -> Result<()> {
    let folder = args.common.folder(env!("CARGO_TARGET_TMPDIR"), "tables")?;
    let served = Served::of(set);
    let mut cases = Vec::new();
    for store in [StoreKind::Sled, StoreKind::Mapped] {
        // Tables of another set must not be taken for this one's.
        let name = format!("{store}-{}-{}", args.row_bytes, &set.hash()[..16]);
        report.note(format_args!("building {name}"));
        let built = tables::once(&folder, &name, |dir| {
            tables::build(dir, set, store, args.row_bytes)
        })?;
        disk::read_pages(&built.dir)?;
        cases.extend(
            args.budget
                .iter()
                .map(|&percent| (store, built.dir.clone(), percent)),
        );
    }
    let mut figures = vec![(Vec::new(), Vec::new()); cases.len()];
    for round in 0..args.common.rounds() {
        for ((store, dir, percent), (times, rates)) in cases.iter().zip(&mut figures) {
            report.note(format_args!("round {round}: {store}, {percent} % held"));
            let (us, rate) = time_one(args, dir, *percent, &served, steps)?;
            times.push(us);
            rates.push(rate);
        }
    }
    for ((store, _, percent), (times, rates)) in cases.iter().zip(&figures) {
        let case = format!(
            "{} f-grams of {} bytes, steps of {}, {percent} % held",
            set.len(),
            args.row_bytes,
            args.lanes
        );
        let subject = store.to_string();
        report.line(&case, &subject, "time", median(times), "us/row")?;
        // A mapped table also counts rows in the page cache as hits.
        if *percent > 0 && *store == StoreKind::Sled {
            report.line(&case, &subject, "hit rate", median(rates), "share")?;
        }
    }
    Ok(())
}

/// Microseconds a row and hit rate of one table with one budget, in the second half of the steps.
fn time_one(
    args: &Args,
    dir: &Path,
    percent: u32,
    served: &Served<'_>,
    steps: &[Step],
) -> Result<(f64, f64)> {
    let rows = served.len() as u64 * u64::from(percent) / 100;
    let options = TableOptions {
        hot_bytes: rows * (args.row_bytes as u64 + HOT_ROW_OVERHEAD),
        // A mapped table has none unless it is asked for.
        hot_set_on_mapped: percent > 0,
        ..TableOptions::default()
    };
    let table = Table::open(dir, &options)?;
    let mut result = LookupResult::default();
    // All pages are touched once, as in a service that has run for a while.
    for batch in served.sweep(512) {
        table.lookup(&batch.ids, &batch.spans, &mut result)?;
    }
    let (before, counted) = steps.split_at(steps.len() / 2);
    for step in before {
        table.lookup(&step.ids, &step.spans, &mut result)?;
    }
    let stats = table.stats();
    let mut rows = 0;
    let start = Instant::now();
    for step in counted {
        table.lookup(&step.ids, &step.spans, &mut result)?;
        rows += black_box(&result).rows.len() / args.row_bytes;
    }
    let us = start.elapsed().as_secs_f64() * 1e6 / rows.max(1) as f64;
    let (hits, misses) = (
        table.stats().hits - stats.hits,
        table.stats().misses - stats.misses,
    );
    Ok((us, hits as f64 / (hits + misses).max(1) as f64))
}
