//! `state.json`: what a run knows besides its weights.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::training::config::TrainConfig;

/// Layout of a checkpoint.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Steps whose mean loss a spike is compared with.
const SPIKE_WINDOW: usize = 16;

/// Hashes of what a run reads; a continuation must read the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputHashes {
    /// SHA-256 of tokenizer.json.
    pub tokenizer: String,
    /// SHA-256 of the f-gram set; empty without one.
    pub fgram_set: String,
    /// SHA-256 over the token stream in training order.
    pub token_stream: String,
    /// Hash of a base model's weights; empty without one.
    #[serde(default)]
    pub base: String,
}

impl InputHashes {
    /// Of all of them and the config in one number, for ranks to compare.
    pub(in crate::training) fn short(&self, config: &str) -> u64 {
        let hash = Sha256::new()
            .chain_update(config)
            .chain_update(format!("{self:?}"))
            .finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        u64::from_le_bytes(first)
    }
}

/// `state.json`: all of a checkpoint that is not a tensor. How far the data is read needs no entry:
/// it is a function of seed and step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Layout of the checkpoint.
    pub format_version: u32,
    /// Steps done.
    pub step: u64,
    /// Seconds of training so far, over all runs.
    pub seconds: f64,
    /// Training loss of every step so far, in nats a token.
    pub losses: Vec<f32>,
    /// Batches that were left out, by their number in the order of the data, ascending.
    #[serde(default)]
    pub skipped: Vec<u64>,
    /// The best evaluation so far, where the best is kept.
    #[serde(default)]
    pub best: Option<Best>,
    /// Evaluations since then.
    #[serde(default)]
    pub since_best: u64,
    /// The effective config.
    pub config: TrainConfig,
    /// What was read.
    pub inputs: InputHashes,
}

impl State {
    /// The state before the first step.
    pub fn new(config: TrainConfig, inputs: InputHashes) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            step: 0,
            seconds: 0.0,
            losses: Vec::new(),
            skipped: Vec::new(),
            best: None,
            since_best: 0,
            config,
            inputs,
        }
    }

    /// The number, in the order of the data, of the batch that the next step trains on.
    pub fn batch(&self) -> u64 {
        let past = |batch: u64, &skipped: &u64| batch + u64::from(skipped <= batch);
        self.skipped.iter().fold(self.step, past)
    }

    /// The loss above which a step is a spike: `nats` above the mean of the last steps; infinite
    /// without `nats` and while there are too few steps for a mean.
    pub fn spike_limit(&self, nats: Option<f64>) -> f32 {
        let recent = &self.losses[self.losses.len().saturating_sub(SPIKE_WINDOW)..];
        match nats {
            Some(nats) if recent.len() == SPIKE_WINDOW => {
                let sum: f64 = recent.iter().map(|&loss| f64::from(loss)).sum();
                (sum / recent.len() as f64 + nats) as f32
            }
            _ => f32::INFINITY,
        }
    }
}

/// An evaluation of held-out text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done.
    pub step: u64,
    /// Mean loss of all texts together.
    pub nats_per_token: f64,
}
