//! Choosing the next token.
//!
//! The order is that of `transformers`: logit bias and penalties, temperature, top_k, top_p,
//! min_p, then one draw. Ties always go to the lower token id, and each token takes one number of
//! a seeded generator, so the same logits, parameters and seed give the same tokens everywhere.

mod params;

use crate::error::{Error, Result};
pub use params::{MAX_LOGPROBS, SamplingParams};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Ordering;
use std::collections::HashMap;

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token id.
    pub id: u32,
    /// Natural logarithm of its probability, when asked: of the model's own distribution, before
    /// bias, penalties, temperature and truncation.
    pub logprob: Option<f32>,
    /// The most probable tokens of that distribution, best first, as many as asked.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Chooses the tokens of one completion.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    seen: HashMap<u32, Seen>,
    /// Scratch: the tokens still in the running and their weights.
    candidates: Vec<(u32, f32)>,
}

/// Where a token occurred.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Times it was chosen.
    output: u32,
}

impl Sampler {
    /// A sampler for one completion of a prompt; the parameters must be
    /// [valid](SamplingParams::validate).
    pub fn new(params: SamplingParams, seed: u64, prompt_ids: &[u32]) -> Self {
        let seen = if params.penalises() {
            prompt_ids.iter().map(|&id| (id, Seen::default())).collect()
        } else {
            HashMap::new()
        };
        Self {
            params,
            rng: ChaCha8Rng::seed_from_u64(seed),
            seen,
            candidates: Vec::new(),
        }
    }

    /// Chooses a token by its logits, one for each token id. The logits are scratch afterwards. A
    /// caller who forbids tokens sets their logits to negative infinity.
    ///
    /// # Errors
    /// Logits that are NaN, or none of which is above negative infinity.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled> {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !best.is_finite() || logits.iter().any(|x| x.is_nan()) {
            return Err(no_numbers());
        }
        let raw = self
            .params
            .logprobs
            .map(|n| Logprobs::of(logits, n as usize));
        self.adjust(logits);
        let id = if self.params.temperature == 0.0 {
            argmax(logits)
        } else {
            self.draw(logits)
        };
        if self.params.penalises() {
            self.seen.entry(id).or_default().output += 1;
        }
        Ok(Sampled {
            id,
            logprob: raw.as_ref().map(|raw| raw.logprob(id)),
            top_logprobs: raw.map(|raw| raw.top).unwrap_or_default(),
        })
    }

    /// Whether [`sample`](Self::sample) does no more than to take the token of the largest logit.
    pub fn takes_best(&self) -> bool {
        let p = &self.params;
        p.temperature == 0.0 && !p.penalises() && p.logit_bias.is_empty() && p.logprobs.is_none()
    }

    /// Logit bias, then penalties.
    fn adjust(&self, logits: &mut [f32]) {
        for &(id, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        let p = &self.params;
        for (&id, seen) in &self.seen {
            let Some(logit) = logits.get_mut(id as usize) else {
                continue;
            };
            *logit = if *logit > 0.0 {
                *logit / p.repetition_penalty
            } else {
                *logit * p.repetition_penalty
            };
            if seen.output > 0 {
                *logit -= p.presence_penalty + p.frequency_penalty * seen.output as f32;
            }
        }
    }

    /// Draws from the tokens that the parameters leave.
    fn draw(&mut self, logits: &[f32]) -> u32 {
        let p = &self.params;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend((0u32..).zip(logits.iter().copied()));
        candidates.retain(|c| c.1 > f32::NEG_INFINITY);
        let k = p.top_k as usize;
        if k > 0 && k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, better);
            candidates.truncate(k);
        }
        let truncates = p.top_p < 1.0 || p.min_p > 0.0;
        if truncates || k > 0 {
            candidates.sort_unstable_by(better);
        }
        let best = candidates
            .iter()
            .map(|c| c.1)
            .fold(f32::NEG_INFINITY, f32::max);
        for candidate in candidates.iter_mut() {
            candidate.1 = ((candidate.1 - best) / p.temperature).exp();
        }
        let mut total: f64 = candidates.iter().map(|c| f64::from(c.1)).sum();
        if truncates {
            let kept = kept(candidates, total, p);
            candidates.truncate(kept);
            total = candidates.iter().map(|c| f64::from(c.1)).sum();
        }
        let mut left = self.rng.random::<f64>() * total;
        for &(id, weight) in candidates.iter() {
            left -= f64::from(weight);
            if left < 0.0 {
                return id;
            }
        }
        // Rounding may leave a crumb: the last token that had any weight.
        let last = candidates.iter().rev().find(|c| c.1 > 0.0);
        last.map_or(0, |c| c.0)
    }
}

/// Why nothing can be chosen from logits that are NaN, or of which none is finite.
pub fn no_numbers() -> Error {
    Error::Argument("logits that are not numbers: the weights may be corrupt".into())
}

/// The log probability of a token that is known, and of the `top` most probable ones, by the logits
/// of its position; nothing for an id that has no logit.
pub fn score(logits: &[f32], id: u32, top: usize) -> Sampled {
    let known = (id as usize) < logits.len();
    let raw = known.then(|| Logprobs::of(logits, top));
    Sampled {
        id,
        logprob: raw.as_ref().map(|raw| raw.logprob(id)),
        top_logprobs: raw.map(|raw| raw.top).unwrap_or_default(),
    }
}

/// How many of the sorted candidates top_p and min_p leave; at least one.
fn kept(candidates: &[(u32, f32)], total: f64, params: &SamplingParams) -> usize {
    let mut before = 0.0;
    let inside = candidates.iter().take_while(|(_, weight)| {
        let inside = before < f64::from(params.top_p) * total && *weight >= params.min_p;
        before += f64::from(*weight);
        inside
    });
    inside.count().max(1)
}

/// Higher logit first, then lower id.
fn better(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The lowest id of the largest logit.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Log probabilities of the model's own distribution.
struct Logprobs {
    logits: Vec<f32>,
    log_total: f64,
    top: Vec<(u32, f32)>,
}

impl Logprobs {
    fn of(logits: &[f32], n: usize) -> Self {
        let best = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total: f64 = logits.iter().map(|&x| (f64::from(x) - best).exp()).sum();
        let mut top: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
        let n = n.min(top.len());
        if n < top.len() {
            top.select_nth_unstable_by(n, better);
            top.truncate(n);
        }
        top.sort_unstable_by(better);
        let mut all = Self {
            logits: logits.to_vec(),
            log_total: best + total.ln(),
            top: Vec::new(),
        };
        all.top = top
            .into_iter()
            .map(|(id, _)| (id, all.logprob(id)))
            .collect();
        all
    }

    fn logprob(&self, id: u32) -> f32 {
        (f64::from(self.logits[id as usize]) - self.log_total) as f32
    }
}

#[cfg(test)]
mod tests;
