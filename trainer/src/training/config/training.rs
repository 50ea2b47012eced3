//! Section `training`.

use scone_model::Precision;
use serde::{Deserialize, Serialize};

/// `training`: batches, length, evaluation, checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Positions of one training window.
    pub sequence_length: usize,
    /// Positions of one step; a multiple of sequence_length.
    pub batch_tokens: usize,
    /// Parts of a step that are computed one after the other, their gradients added up: less
    /// memory, the same step. batch_tokens / sequence_length is a multiple of it.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Times the training text is read, also in parts, rounded up to whole steps. Give this, `steps`
    /// or `tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Optimiser steps. Give this, `epochs` or `tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Training positions in all, rounded up to whole steps. Give this, `epochs` or
    /// `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Seed of initial weights and data order.
    #[serde(default)]
    pub seed: u64,
    /// Steps between lines of the log; a line's loss is the mean of its steps.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
    /// Steps between evaluations on data.valid; 0: only at the end.
    #[serde(default = "default_eval_every")]
    pub eval_every: u64,
    /// Most positions evaluated of each valid file while training.
    #[serde(default = "default_eval_tokens")]
    pub eval_tokens: u64,
    /// Steps between checkpoints; 0: only at the end.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// Gradient checkpointing: keep only what goes into each block and compute the rest again for
    /// the backward pass. The same numbers with less memory and more time. On a CPU.
    #[serde(default)]
    pub recompute: bool,
    /// What the factors of matrix products are rounded to, forward and backward: f32 or bf16. Weights,
    /// sums, everything between the products and evaluations are f32. bf16 is for CPUs.
    #[serde(default)]
    pub precision: Precision,
    /// Stop after this many evaluations in a row without a lower held-out loss, and keep the best;
    /// absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// Whether the model that is written is that of the evaluation with the lowest held-out loss.
    #[serde(default)]
    pub keep_best: bool,
    /// Most batches that are left out because their loss or gradient is not finite, or a spike. Each
    /// time the run goes back to its last checkpoint.
    #[serde(default = "default_max_skips")]
    pub max_skips: u64,
    /// A loss this much above the mean of the last 16 steps is a spike, in nats; absent: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spike: Option<f64>,
    /// Worker threads; absent: one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

impl TrainingConfig {
    /// Whether the best evaluation is kept.
    pub fn keeps_best(&self) -> bool {
        self.keep_best || self.patience.is_some()
    }

    /// Number of optimiser steps over a text of so many windows, from `steps`, `tokens` or `epochs`.
    pub fn total_steps(&self, windows: usize) -> u64 {
        match (self.steps, self.tokens, self.epochs) {
            (Some(steps), _, _) => steps,
            (None, Some(tokens), _) => tokens.div_ceil(self.batch_tokens as u64),
            (None, None, Some(epochs)) => {
                let per_step = self.batch_tokens / self.sequence_length;
                (epochs * windows as f64 / per_step as f64).ceil() as u64
            }
            (None, None, None) => 0,
        }
    }
}

fn one() -> usize {
    1
}
fn default_max_skips() -> u64 {
    3
}
fn default_log_every() -> u64 {
    1
}
fn default_eval_every() -> u64 {
    250
}
fn default_eval_tokens() -> u64 {
    32_768
}
fn default_checkpoint_every() -> u64 {
    250
}
