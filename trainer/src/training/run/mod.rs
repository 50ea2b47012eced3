//! The training loop.

mod recover;

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use candle_core::Device;

use super::checkpoint::{Best, Checkpoint, Checkpoints, State};
use super::config::{TrainConfig, check_resumable};
use super::log::Log;
use super::optimizer::Optimizer;
use super::output;
use super::prepare::{Prepared, prepare};
use super::ranks::{Alone, Ranks, agree, is_first, meet, of_first};
use super::report::{Interval, Reporter};
use super::schedule::Schedule;
use super::scores::{evaluation_entry, scores};
use super::step::{Stepped, step};
use crate::corpus;
use crate::evaluation::Totals;
use crate::plot;
use crate::stop::{Stop, Stopped};

/// What is not part of the config.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// How text is read and where tokens are kept.
    pub corpus: corpus::Options,
    /// Stop, as if killed, once this many steps are done; for tests and for measuring speed.
    pub stop_after: Option<u64>,
    /// The processes that train together; `None`: this one alone.
    pub ranks: Option<Arc<dyn Ranks>>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Training loss of every step, in nats a token.
    pub losses: Vec<f32>,
    /// Held-out text at the end, by file; empty for a run that was stopped.
    pub valid: Vec<(String, Totals)>,
    /// Seconds of training, over all runs into the directory.
    pub seconds: f64,
}

/// Trains as `config` says and leaves a model directory in `out`. Goes on from the newest
/// checkpoint in `out` when there is one.
///
/// # Errors
/// A device that this program cannot open; inputs that cannot be read or do not fit each other; a
/// config or input that differs from the run in `out`; losses or gradients that are not finite more
/// often than the config allows; files that cannot be written.
pub fn train(config: &TrainConfig, out: &Path, options: &RunOptions) -> Result<Outcome> {
    match config.training.threads {
        // On a worker of the pool: from any other thread every parallel operation of a step would
        // cost a switch to a worker and back.
        None => rayon::scope(|_| train_here(config, out, options)),
        Some(threads) => {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()?;
            pool.install(|| train_here(config, out, options))
        }
    }
}

fn train_here(config: &TrainConfig, out: &Path, options: &RunOptions) -> Result<Outcome> {
    let device = config.device.open().context("key `device`")?;
    if config.tf32 {
        scone_model::allow_tf32();
    }
    let ranks: &dyn Ranks = options.ranks.as_deref().unwrap_or(&Alone);
    check_ranks(config, ranks)?;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let _lock = is_first(ranks).then(|| lock(out)).transpose()?;
    let mut run = Run::start(config, out, options, (ranks, &device))?;
    let total = run.total;
    let last = options.stop_after.map_or(total, |stop| stop.min(total));
    run.steps(last)?;
    if last < total && !run.has_stopped() {
        return Ok(run.outcome(Vec::new()));
    }
    run.finish()
}

/// Every rank has the same number of windows in every part of a step.
fn check_ranks(config: &TrainConfig, ranks: &dyn Ranks) -> Result<()> {
    let training = &config.training;
    let windows = training.batch_tokens / training.sequence_length;
    ensure!(
        windows.is_multiple_of(ranks.count() * training.accumulate),
        "training.batch_tokens = {} makes {windows} windows a step, which is not a multiple of {} ranks \
         x training.accumulate = {}",
        training.batch_tokens,
        ranks.count(),
        training.accumulate
    );
    Ok(())
}

/// Two runs in one directory would overwrite each other's checkpoints.
fn lock(out: &Path) -> Result<File> {
    let path = out.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.try_lock()
        .with_context(|| format!("another run is training into {}", out.display()))?;
    Ok(file)
}

struct Run<'a> {
    config: &'a TrainConfig,
    ranks: &'a dyn Ranks,
    out: &'a Path,
    prepared: Prepared,
    /// Steps of the whole run.
    total: u64,
    optimizer: Optimizer,
    schedule: Schedule,
    checkpoints: Checkpoints,
    state: State,
    /// On rank 0.
    log: Option<Log>,
    reporter: Reporter,
}

/// Where the run begins: at the first step, or where `newest` was written.
fn start_state(
    config: &TrainConfig,
    newest: Option<Checkpoint>,
    prepared: &Prepared,
    optimizer: &mut Optimizer,
) -> Result<State> {
    let Some(checkpoint) = newest else {
        return Ok(State::new(config.clone(), prepared.hashes.clone()));
    };
    let path = checkpoint.path.clone();
    ensure!(
        checkpoint.state.inputs == prepared.hashes,
        "tokenizer, f-gram set, base model or training text changed since {} was written ({:?}, \
         now {:?}); use another --out directory",
        path.display(),
        checkpoint.state.inputs,
        prepared.hashes
    );
    let mut state = checkpoint.restore(optimizer)?;
    state.config = config.clone();
    tracing::info!(step = state.step, path = %path.display(), "goes on from a checkpoint");
    Ok(state)
}

impl<'a> Run<'a> {
    fn start(
        config: &'a TrainConfig,
        out: &'a Path,
        options: &RunOptions,
        (ranks, device): (&'a dyn Ranks, &Device),
    ) -> Result<Self> {
        let checkpoints = Checkpoints::new(out, device);
        let newest = checkpoints.newest()?;
        if let Some(checkpoint) = &newest {
            check_resumable(&checkpoint.state.config, config)?;
        }
        // What rank 0 has tokenised the others find.
        if !is_first(ranks) {
            meet(ranks)?;
        }
        let prepared = prepare(config, &options.corpus, device)?;
        if is_first(ranks) {
            meet(ranks)?;
        }
        let total = prepared.total_steps(config);
        let mut optimizer = Optimizer::new(prepared.network.vars(), config.optimizer.clone())?;
        let state = start_state(config, newest, &prepared, &mut optimizer)?;
        let yaml = config.to_yaml()?;
        agree(ranks, "first step", state.step)?;
        agree(ranks, "config or input", prepared.hashes.short(&yaml))?;
        let log = match is_first(ranks) {
            false => None,
            true => {
                scone_files::write_atomic(&out.join("train.yaml"), yaml.as_bytes())?;
                Some(Log::open(out, state.step)?)
            }
        };
        Ok(Self {
            config,
            ranks,
            out,
            total,
            schedule: Schedule::new(&config.optimizer, total),
            log,
            reporter: Reporter::new(config, &prepared, device)?,
            prepared,
            optimizer,
            checkpoints,
            state,
        })
    }

    /// Trains until `last` steps are done, or held-out text says that it is enough.
    fn steps(&mut self, last: u64) -> Result<()> {
        let (training, total) = (&self.config.training, self.total);
        if self.state.step == 0 && self.prepared.base.is_some() {
            // What the base model scores: training starts there.
            self.evaluate(false)?;
        }
        if is_first(self.ranks) {
            self.reporter.begin(self.state.step, last);
        }
        let mut interval = Interval::since(self.state.step);
        // All of several ranks would have to stop at the same step: they end at once.
        let stop = (self.ranks.count() == 1).then(Stop::watch);
        while self.state.step < last && !self.has_stopped() {
            if let Some(reason) = self.step(&mut interval)? {
                self.go_back(&reason)?;
                interval = Interval::since(self.state.step);
                continue;
            }
            let step = self.state.step;
            if step.is_multiple_of(training.log_every) || step == total {
                let lr = self.schedule.lr(step - 1);
                if let Some(log) = &mut self.log {
                    let entry = self.reporter.entry(&interval, &self.state, lr);
                    self.reporter.show(&entry);
                    log.write(&entry)?;
                }
                interval = Interval::since(step);
            }
            // At the end the weights are scored as they are in the files, unless earlier ones may be.
            let compares = training.keeps_best();
            if due(step, training.eval_every) && (step < total || compares)
                || step == total && compares
            {
                self.evaluate_on_the_way()?;
            }
            // Of the last step too: a rerun then only writes the model files again.
            let asked = step < total && stop.as_ref().is_some_and(Stop::asked);
            let due = due(step, training.checkpoint_every) || step == total || self.has_stopped();
            if (due || asked) && is_first(self.ranks) {
                self.checkpoints.write(&self.state, &self.optimizer)?;
                self.checkpoints
                    .keep_best(self.state.best.map(|b| b.step))?;
            }
            if asked {
                self.reporter.end();
                return Err(Stopped { step }.into());
            }
        }
        self.reporter.end();
        Ok(())
    }

    /// One step; why it must not count, if so. Nothing but the interval has changed then.
    fn step(&mut self, interval: &mut Interval) -> Result<Option<String>> {
        let lr = self.schedule.lr(self.state.step);
        let spike = self.state.spike_limit(self.config.training.spike);
        let batch = self.state.batch();
        let training = &self.config.training;
        let stepped = step(
            (training, self.ranks),
            &mut self.prepared,
            &mut self.optimizer,
            (batch, lr, spike),
            interval,
        )?;
        match stepped {
            Stepped::Bad(reason) => Ok(Some(reason)),
            Stepped::Done { loss, seconds } => {
                self.state.step += 1;
                self.state.losses.push(loss);
                self.state.seconds += seconds;
                Ok(None)
            }
        }
    }

    /// Whether held-out text has not become better for long enough.
    fn has_stopped(&self) -> bool {
        let patience = self.config.training.patience;
        patience.is_some_and(|patience| self.state.since_best >= patience)
    }

    /// Scores held-out text and writes a log line of it; on rank 0.
    fn evaluate(&mut self, at_the_end: bool) -> Result<Vec<(String, Totals)>> {
        let Some(log) = &mut self.log else {
            return Ok(Vec::new());
        };
        let results = scores(self.config, &self.prepared)?;
        if !results.is_empty() {
            let entry = evaluation_entry(self.config, &self.state, &results, at_the_end);
            log.write(&entry)?;
        }
        Ok(results)
    }

    /// Scores held-out text; keeps the parameters if no evaluation was better and the best is kept.
    fn evaluate_on_the_way(&mut self) -> Result<()> {
        let results = self.evaluate(false)?;
        if !self.config.training.keeps_best() {
            return Ok(());
        }
        let mut all = Totals::default();
        results.iter().for_each(|(_, totals)| all.add(totals));
        // All ranks have to stop at the same step.
        let nats_per_token = of_first(self.ranks, all.nats_per_token().to_bits())?;
        let (step, nats_per_token) = (self.state.step, f64::from_bits(nats_per_token));
        let best = self.state.best;
        if best.is_none_or(|best| nats_per_token < best.nats_per_token) {
            if is_first(self.ranks) {
                self.checkpoints.write_best(step, &self.optimizer)?;
            }
            self.state.best = Some(Best {
                step,
                nats_per_token,
            });
            self.state.since_best = 0;
        } else {
            self.state.since_best += 1;
        }
        Ok(())
    }

    /// Writes the model directory and evaluates the weights as they are in its files.
    fn finish(mut self) -> Result<Outcome> {
        if !is_first(self.ranks) {
            // Until the model is written: a job ends when its ranks have ended.
            meet(self.ranks)?;
            return Ok(self.outcome(Vec::new()));
        }
        if let Some(best) = self
            .state
            .best
            .filter(|_| self.config.training.keeps_best())
        {
            if self.has_stopped() {
                tracing::info!(
                    step = self.state.step,
                    best = best.step,
                    "stopped early: held-out text became no better"
                );
            }
            self.checkpoints.restore_best(best.step, &self.optimizer)?;
        }
        output::round_weights(&self.prepared)?;
        output::write_model(self.config, &self.prepared, self.out)?;
        let valid = self.evaluate(true)?;
        plot::of_run(self.out)?;
        tracing::info!(
            path = %self.out.display(),
            seconds = format_args!("{:.0}", self.state.seconds),
            "wrote the model"
        );
        meet(self.ranks)?;
        Ok(self.outcome(valid))
    }

    fn outcome(self, valid: Vec<(String, Totals)>) -> Outcome {
        Outcome {
            losses: self.state.losses,
            valid,
            seconds: self.state.seconds,
        }
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
