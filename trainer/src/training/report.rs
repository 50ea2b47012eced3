//! What is told of the steps: an entry for the logs, and the same on one line for people.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Result;
use candle_core::{Device, Tensor};
use scone_model::Parameters;
use serde_json::{Value, json};

use super::checkpoint::State;
use super::config::TrainConfig;
use super::flops::{Flops, peak};
use super::memory::resident_bytes;
use super::prepare::Prepared;
use super::times::Times;
use crate::progress::{Progress, Unit};

/// The steps since the last entry.
#[derive(Debug, Default)]
pub(super) struct Interval {
    first: u64,
    pub(super) times: Times,
    /// Positions and f-gram prefixes that were computed.
    pub(super) positions: usize,
    pub(super) nodes: usize,
    /// Of the last step.
    pub(super) grad_norm: f64,
}

impl Interval {
    /// An empty one, after `step`.
    pub(super) fn since(step: u64) -> Self {
        Self {
            first: step,
            ..Self::default()
        }
    }
}

/// Makes entries, and shows them.
#[derive(Debug)]
pub(super) struct Reporter {
    flops: Flops,
    /// Operations a second of a large product here.
    peak: f64,
    total: u64,
    batch_tokens: u64,
    log_every: u64,
    /// On a terminal.
    bar: Option<Progress>,
}

impl Reporter {
    /// Measures the machine and says what is trained.
    pub(super) fn new(config: &TrainConfig, prepared: &Prepared, device: &Device) -> Result<Self> {
        let (main, own) = prepared.network.parameters();
        let fgram = prepared.fgrams.as_ref().map(|f| (&f.config, &own));
        let sequence = config.training.sequence_length;
        let model = &prepared.model_config;
        let reporter = Self {
            flops: Flops::new(model, &main, fgram, config.trainable, sequence),
            peak: peak(device)?,
            total: prepared.total_steps(config),
            batch_tokens: config.training.batch_tokens as u64,
            log_every: config.training.log_every,
            bar: None,
        };
        let count = |parameters: &Parameters| -> usize {
            parameters.values().map(Tensor::elem_count).sum()
        };
        let vars = prepared.network.vars();
        tracing::info!(
            steps = reporter.total,
            device = %config.device,
            main_parameters = count(&main),
            fgram_parameters = count(&own),
            trained_parameters = vars.values().map(|var| var.elem_count()).sum::<usize>(),
            fgrams = prepared.fgrams.as_ref().map_or(0, |f| f.set.len()),
            peak_gflops = format_args!("{:.0}", reporter.peak / 1e9),
            "training"
        );
        Ok(reporter)
    }

    /// Begins with the step after `first`, and ends with `last`.
    pub(super) fn begin(&mut self, first: u64, last: u64) {
        if std::io::stderr().is_terminal() {
            let bar = Progress::new("train", last, Unit::Items);
            bar.set(first);
            self.bar = Some(bar);
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&mut self) {
        self.bar = None;
    }

    /// The entry of the steps since the last one.
    pub(super) fn entry(&self, interval: &Interval, state: &State, lr: f64) -> Value {
        let steps = state.step - interval.first;
        let seconds = interval.times.total().as_secs_f64().max(1e-9);
        // Of all steps since the line before, also those that a run before this one made.
        let line_before = (state.step - 1) / self.log_every * self.log_every;
        let recent = &state.losses[line_before as usize..];
        let loss = recent.iter().map(|&l| f64::from(l)).sum::<f64>() / recent.len().max(1) as f64;
        let flops = self.flops.of(interval.positions, interval.nodes);
        let left = (self.total - state.step) as f64 * seconds / steps.max(1) as f64;
        json!({
            "step": state.step,
            "tokens": state.step * self.batch_tokens,
            "loss": loss,
            "lr": lr,
            "grad_norm": interval.grad_norm,
            "tokens_per_s": ((steps * self.batch_tokens) as f64 / seconds).round(),
            "peak_share": (flops / seconds / self.peak * 1e4).round() / 1e4,
            "memory_bytes": resident_bytes(),
            "seconds": state.seconds,
            "seconds_left": left.round(),
            "ms": interval.times.json(steps),
        })
    }

    /// One line on the terminal or in the log.
    pub(super) fn show(&self, entry: &Value) {
        tracing::info!("{}", line(entry, self.total));
        if let Some(bar) = &self.bar {
            bar.set(entry["step"].as_u64().unwrap_or(0));
        }
    }
}

fn line(entry: &Value, total: u64) -> String {
    let number = |key: &str| entry[key].as_f64().unwrap_or(f64::NAN);
    format!(
        "step {}/{total} loss {:.4} grad_norm {:.3} lr {:.2e} {:.0} tokens/s {:.0}% of peak {:.0} MiB \
         {} left",
        entry["step"],
        number("loss"),
        number("grad_norm"),
        number("lr"),
        number("tokens_per_s"),
        100.0 * number("peak_share"),
        number("memory_bytes") / f64::from(1 << 20),
        duration(number("seconds_left"))
    )
}

/// Two units: `1h20m`, `3m05s`, `12s`.
fn duration(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).map_or(0, |d| d.as_secs());
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_all_that_one_looks_for() {
        let entry = json!({
            "step": 20, "loss": 3.91234, "grad_norm": 0.5, "lr": 0.0003, "tokens_per_s": 8123.0,
            "peak_share": 0.413, "memory_bytes": 851_443_712, "seconds_left": 3725.0,
        });
        assert_eq!(
            line(&entry, 100),
            "step 20/100 loss 3.9123 grad_norm 0.500 lr 3.00e-4 8123 tokens/s 41% of peak 812 MiB \
             1h02m left"
        );
        assert_eq!(duration(185.2), "3m05s");
        assert_eq!(duration(12.0), "12s");
    }
}
