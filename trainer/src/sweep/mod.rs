//! Several training runs of one config: every combination of some values, each run resumable, one
//! line of results each.
//!
//! `OUT/runs/NAME/` is the directory of a run, `OUT/results.jsonl` has a line for each one that has
//! ended, `OUT/summary.md` is a table of them. The same command goes on where an earlier one stopped.

mod results;
mod spec;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};

use crate::corpus;
use crate::training::{RunOptions, train};
use results::{Ended, Results};
use spec::{Planned, Spec};

/// How runs are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Overrides that go before all others, as `device=cuda:0`.
    pub overrides: Vec<String>,
    /// How text is read.
    pub corpus: corpus::Options,
    /// Runs side by side; they share the processors.
    pub jobs: usize,
}

/// Makes the runs of the sweep `file` that have not ended yet, in `out`, and returns the table of
/// all.
///
/// # Errors
/// Mistakes in the file or in a config, before the first run; runs that failed, after the last.
pub fn sweep(file: &Path, out: &Path, options: &Options) -> Result<String> {
    ensure!(options.jobs > 0, "--jobs must be at least 1");
    let spec = Spec::read(file)?;
    let planned = spec
        .plan(&options.overrides)
        .with_context(|| format!("in {}", file.display()))?;
    let results = Mutex::new(Results::open(out, &planned)?);
    let with_results = |f: &mut dyn FnMut(&mut Results) -> Result<()>| {
        f(&mut results.lock().unwrap_or_else(PoisonError::into_inner))
    };
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        while let Some(run) = planned.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut is_done = false;
            with_results(&mut |results| {
                is_done = results.has(run);
                Ok(())
            })?;
            if !is_done {
                let ended = make(run, out, options);
                with_results(&mut |results| results.add(run, &ended))?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.min(planned.len()))
            .map(|_| scope.spawn(worker))
            .collect();
        for worker in workers {
            let ended = worker.join();
            ended.unwrap_or_else(|_| anyhow::bail!("a run panicked"))?;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed = results.failures();
    ensure!(
        failed.is_empty(),
        "{} of {} runs failed; the others are in {}. {}",
        failed.len(),
        planned.len(),
        out.join(results::SUMMARY).display(),
        failed.join("; ")
    );
    Ok(results.summary())
}

/// Makes or finishes one run.
fn make(run: &Planned, out: &Path, options: &Options) -> Result<Ended> {
    let mut config = run.config.clone();
    if options.jobs > 1 && config.training.threads.is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        config.training.threads = Some((cores / options.jobs).max(1));
    }
    tracing::info!(run = run.name, "sweep");
    let dir = out.join("runs").join(&run.name);
    let run_options = RunOptions {
        corpus: corpus::Options {
            text_field: config.data.text_field.clone(),
            ..options.corpus.clone()
        },
        ..RunOptions::default()
    };
    let outcome = train(&config, &dir, &run_options)?;
    Ok(Ended::new(&config, &outcome))
}
