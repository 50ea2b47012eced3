//! The training loop.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor};
use scone_model::Parameters;
use serde_json::{Map, json};

use super::batch::Batch;
use super::checkpoint::{Checkpoint, Checkpoints, State};
use super::config::{TrainConfig, check_resumable};
use super::log::Log;
use super::optimizer::AdamW;
use super::output;
use super::prepare::{Prepared, prepare};
use super::schedule::Schedule;
use super::times::Times;
use crate::corpus;
use crate::evaluation::{Evaluator, LiveRows, NoRows, Options, RowSource, Totals};
use crate::progress::{Progress, Unit};

/// What is not part of the config.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// How text is read and where tokens are kept.
    pub corpus: corpus::Options,
    /// Stop, as if killed, once this many steps are done; for tests and for measuring speed.
    pub stop_after: Option<u64>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Training loss of every step, in nats a token.
    pub losses: Vec<f32>,
    /// Held-out text at the end, by file; empty for a run that was stopped.
    pub valid: Vec<(String, Totals)>,
}

/// Trains as `config` says and leaves a model directory in `out`. Goes on from the newest
/// checkpoint in `out` when there is one.
///
/// # Errors
/// A device that this program cannot open; inputs that cannot be read or do not fit each other; a
/// config or input that differs from the run in `out`; a loss or gradient that is not finite; files
/// that cannot be written.
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
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let _lock = lock(out)?;
    let mut run = Run::start(config, out, options, &device)?;
    let total = config.training.total_steps();
    let last = options.stop_after.map_or(total, |stop| stop.min(total));
    run.steps(last)?;
    if last < total {
        return Ok(Outcome {
            losses: run.state.losses,
            valid: Vec::new(),
        });
    }
    run.finish()
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
    out: &'a Path,
    prepared: Prepared,
    optimizer: AdamW,
    schedule: Schedule,
    checkpoints: Checkpoints,
    state: State,
    log: Log,
}

/// Where the run begins: at the first step, or where `newest` was written.
fn start_state(
    config: &TrainConfig,
    newest: Option<Checkpoint>,
    prepared: &Prepared,
    optimizer: &mut AdamW,
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
        device: &Device,
    ) -> Result<Self> {
        let checkpoints = Checkpoints::new(out, device);
        let newest = checkpoints.newest()?;
        if let Some(checkpoint) = &newest {
            check_resumable(&checkpoint.state.config, config)?;
        }
        let prepared = prepare(config, &options.corpus, device)?;
        let mut optimizer = AdamW::new(prepared.network.vars(), config.optimizer.clone())?;
        let state = start_state(config, newest, &prepared, &mut optimizer)?;
        scone_files::write_atomic(&out.join("train.yaml"), config.to_yaml()?.as_bytes())?;
        log_start(config, &prepared);
        Ok(Self {
            config,
            out,
            schedule: Schedule::new(&config.optimizer, config.training.total_steps()),
            log: Log::open(&out.join("log.jsonl"), state.step)?,
            prepared,
            optimizer,
            checkpoints,
            state,
        })
    }

    /// Trains until `last` steps are done.
    fn steps(&mut self, last: u64) -> Result<()> {
        let training = &self.config.training;
        let total = training.total_steps();
        let progress = Progress::new("train", last.saturating_sub(self.state.step), Unit::Items);
        let (mut times, mut since) = (Times::default(), self.state.step);
        if self.state.step == 0 && self.prepared.base_dir.is_some() {
            // What the base model scores: training starts there.
            self.evaluate()?;
        }
        while self.state.step < last {
            let grad_norm = self.step(&mut times)?;
            let step = self.state.step;
            progress.message(self.message(&times, since));
            progress.add(1);
            if step.is_multiple_of(training.log_every) || step == total {
                self.write_log(&times, since, grad_norm)?;
                (times, since) = (Times::default(), step);
            }
            if due(step, training.eval_every) && step < total {
                self.evaluate()?;
            }
            // Of the last step too: a rerun then only writes the model files again.
            if due(step, training.checkpoint_every) || step == total {
                self.checkpoints.write(&self.state, &self.optimizer)?;
            }
        }
        Ok(())
    }

    /// One step; returns the gradient norm.
    fn step(&mut self, times: &mut Times) -> Result<f64> {
        let started = Instant::now();
        let step = self.state.step;
        let starts = self.prepared.order.starts(step);
        let length = self.config.training.sequence_length;
        let vocab_size = self.prepared.tokenizer.vocab_size();
        let batch = Batch::new(&self.prepared.stream, &starts, length, vocab_size);
        let batched = Instant::now();
        let loss = self.prepared.network.loss(&batch)?;
        let value = loss.to_scalar::<f32>()?;
        let forwarded = Instant::now();
        ensure!(
            value.is_finite(),
            "the loss of step {step} is {value}: {}",
            self.advice()
        );
        let grads = loss.backward()?;
        let backwarded = Instant::now();
        let lr = self.schedule.lr(step);
        let report = self
            .optimizer
            .update(&grads, lr)
            .with_context(|| format!("step {step}: {}", self.advice()))?;
        times.batch += batched - started;
        times.forward += forwarded - batched;
        times.backward += backwarded - forwarded;
        times.update += backwarded.elapsed();
        self.state.step += 1;
        self.state.losses.push(value);
        self.state.seconds += started.elapsed().as_secs_f64();
        Ok(report.grad_norm)
    }

    /// What to do when training diverged.
    fn advice(&self) -> String {
        format!(
            "training diverged; start again in another --out directory with a lower optimizer.lr \
             ({}), a longer optimizer.warmup_steps ({}) or a smaller optimizer.clip ({}); the \
             checkpoints in {} are kept",
            self.config.optimizer.lr,
            self.config.optimizer.warmup_steps,
            self.config.optimizer.clip,
            self.out.display()
        )
    }

    /// Mean training loss since step `since`.
    fn recent_loss(&self, since: u64) -> f64 {
        let recent = &self.state.losses[since as usize..];
        recent.iter().map(|&l| f64::from(l)).sum::<f64>() / recent.len().max(1) as f64
    }

    fn tokens_per_second(&self, times: &Times, since: u64) -> f64 {
        let tokens = (self.state.step - since) * self.config.training.batch_tokens as u64;
        tokens as f64 / times.total().as_secs_f64().max(1e-9)
    }

    fn message(&self, times: &Times, since: u64) -> String {
        format!(
            "step {}/{} loss {:.3} {:.0} tokens/s",
            self.state.step,
            self.config.training.total_steps(),
            self.recent_loss(since),
            self.tokens_per_second(times, since)
        )
    }

    fn write_log(&mut self, times: &Times, since: u64, grad_norm: f64) -> Result<()> {
        let step = self.state.step;
        let entry = json!({
            "step": step,
            "tokens": step * self.config.training.batch_tokens as u64,
            "loss": self.recent_loss(since),
            "lr": self.schedule.lr(step - 1),
            "grad_norm": grad_norm,
            "tokens_per_s": self.tokens_per_second(times, since).round(),
            "seconds": self.state.seconds,
            "ms": times.json(step - since),
        });
        self.log.write(&entry)
    }

    /// Scores held-out text and writes a log line of it.
    fn evaluate(&mut self) -> Result<Vec<(String, Totals)>> {
        let results = self.scores()?;
        if results.is_empty() {
            return Ok(results);
        }
        let mut all = Totals::default();
        let mut by_name = Map::new();
        for (name, totals) in &results {
            all.add(totals);
            by_name.insert(name.clone(), json!(totals.nats_per_token()));
        }
        let step = self.state.step;
        let entry = json!({
            "step": step,
            "tokens": step * self.config.training.batch_tokens as u64,
            "seconds": self.state.seconds,
            "valid": by_name,
            "valid_nats_per_token": all.nats_per_token(),
            "valid_bits_per_byte": all.bits_per_byte(),
            "valid_matched": all.matched_share(),
        });
        tracing::info!(
            step,
            nats_per_token = format_args!("{:.4}", all.nats_per_token()),
            perplexity = format_args!("{:.2}", all.perplexity()),
            bits_per_byte = format_args!("{:.4}", all.bits_per_byte()),
            "held-out text"
        );
        self.log.write(&entry)?;
        Ok(results)
    }

    fn scores(&self) -> Result<Vec<(String, Totals)>> {
        let network = &self.prepared.network;
        let dim = self.prepared.model_config.hidden_size();
        let compute = |fgrams: &[&[u32]]| -> Result<Vec<f32>> {
            let rows = network
                .fgram_rows(fgrams)?
                .context("no f-grams to compute")?;
            Ok(rows.flatten_all()?.to_vec1()?)
        };
        let source: Box<dyn RowSource> = match &self.prepared.fgrams {
            None => Box::new(NoRows),
            Some(fgrams) => Box::new(LiveRows::new(fgrams.set.matcher(), dim, None, compute)),
        };
        let context = self.config.training.sequence_length;
        let options = Options {
            context,
            stride: context,
            batch_tokens: self.config.training.batch_tokens.max(context),
            eos: self.prepared.eos,
        };
        let mut evaluator = Evaluator::new(network.decoder(), source, options)?;
        let texts = self.prepared.held_out.iter();
        texts
            .map(|text| Ok((text.name.clone(), evaluator.run(text, |_| {})?)))
            .collect()
    }

    /// Writes the model directory and evaluates the weights as they are in its files.
    fn finish(mut self) -> Result<Outcome> {
        output::round_weights(&self.prepared)?;
        output::write_model(&self.prepared, self.out)?;
        let valid = self.evaluate()?;
        tracing::info!(
            path = %self.out.display(),
            seconds = format_args!("{:.0}", self.state.seconds),
            "wrote the model"
        );
        Ok(Outcome {
            losses: self.state.losses,
            valid,
        })
    }
}

/// One line of what is trained.
fn log_start(config: &TrainConfig, prepared: &Prepared) {
    let (main, own) = prepared.network.parameters();
    let count =
        |parameters: &Parameters| -> usize { parameters.values().map(Tensor::elem_count).sum() };
    let vars = prepared.network.vars();
    tracing::info!(
        steps = config.training.total_steps(),
        device = %config.device,
        main_parameters = count(&main),
        fgram_parameters = count(&own),
        trained_parameters = vars.values().map(|var| var.elem_count()).sum::<usize>(),
        fgrams = prepared.fgrams.as_ref().map_or(0, |f| f.set.len()),
        "training"
    );
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
