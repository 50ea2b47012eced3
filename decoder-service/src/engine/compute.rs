//! One step: ONE look-up for the whole batch (one for each table version), input embeddings, the model, sampling.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use scone_model::{Decoder, KvCache, Segment};
use tracing::{error, warn};

use super::{
    EngineParts, OnLookupFailure,
    live::Live,
    lookups::{Lookups, Place},
};
use crate::{
    embed_tier::{EmbedTier, LookupError, TableFacts},
    error::Error,
    metrics::Metrics,
    model::ModelInfo,
    scheduler::Planned,
    sequence::GeneratedToken,
};

/// What a step did for one sequence.
pub(super) struct Computed {
    /// The token chosen, when the sequence's known tokens are all computed.
    pub(super) token: Option<GeneratedToken>,
}

/// Result of a step, for each sequence that took part.
type Outcomes = Vec<(Planned, Result<Computed, Error>)>;

/// A sequence's part of a step, and where its positions lie in the look-ups.
struct Part<'a> {
    planned: Planned,
    live: &'a mut Live,
    place: Place,
}

pub(super) struct Compute {
    info: Arc<ModelInfo>,
    decoder: Decoder,
    tier: Option<Box<dyn EmbedTier>>,
    on_failure: OnLookupFailure,
    metrics: Metrics,
    lookups: Lookups,
    /// When a failed look-up was last logged.
    warned: Option<Instant>,
}

impl Compute {
    pub(super) fn new(parts: EngineParts, on_failure: OnLookupFailure) -> Self {
        Self {
            info: parts.info,
            decoder: parts.decoder,
            tier: parts.tier,
            on_failure,
            metrics: parts.metrics,
            lookups: Lookups::default(),
            warned: None,
        }
    }

    pub(super) fn new_cache(&self) -> KvCache {
        self.decoder.new_cache()
    }

    pub(super) fn step(&mut self, lives: Vec<(Planned, &mut Live)>) -> Outcomes {
        let mut parts = self.collect(lives);
        let lookup = self.look_up();
        let mut outcomes = Vec::with_capacity(parts.len());
        if self.on_failure == OnLookupFailure::Fail
            && let Some(error) = self.lookups.error().cloned()
        {
            self.drop_unanswered(&mut parts, &error, &mut outcomes);
        }
        if parts.is_empty() {
            return outcomes;
        }
        match self.forward(&mut parts) {
            Ok(logits) => self.finish(parts, logits, lookup, &mut outcomes),
            Err(error) => {
                error!(error = %error, "step failed");
                let failed = parts.into_iter().map(|p| (p.planned, Err(Error::Internal)));
                outcomes.extend(failed);
            }
        }
        outcomes
    }

    /// The table version that sequences use which get their place now.
    pub(super) fn current_table(&self) -> Option<Arc<TableFacts>> {
        self.tier.as_ref().map(|tier| tier.current())
    }

    /// Fills the look-ups.
    fn collect<'a>(&mut self, lives: Vec<(Planned, &'a mut Live)>) -> Vec<Part<'a>> {
        let context = self.info.max_n.map_or(0, |max_n| max_n - 1);
        self.lookups.clear();
        let mut parts = Vec::with_capacity(lives.len());
        for (planned, live) in lives {
            let (ids, context) = live.sequence.window(planned.tokens, context);
            let place = self.lookups.add(live.table.as_ref(), ids, context);
            parts.push(Part {
                planned,
                live,
                place,
            });
        }
        parts
    }

    /// Asks the embed tier; returns how long that took.
    fn look_up(&mut self) -> Duration {
        let began = Instant::now();
        let tier = self.tier.as_deref_mut();
        let any = tier.is_some();
        self.lookups
            .look_up(tier.map(|tier| tier as _), self.info.dim);
        if !any {
            return Duration::ZERO;
        }
        let took = began.elapsed();
        self.metrics.lookup_seconds.observe(took.as_secs_f64());
        if let Some(error) = self.lookups.error() {
            self.metrics.lookup_failures.inc();
            // Once a second: a tier that is away fails every step.
            if self
                .warned
                .is_none_or(|at| at.elapsed() > Duration::from_secs(1))
            {
                self.warned = Some(Instant::now());
                let failures = self.metrics.lookup_failures.get();
                warn!(error = %error, failures, "look-up failed");
            }
        }
        took
    }

    /// Ends the sequences that miss an answer. The others go on: their answers are whole.
    fn drop_unanswered(
        &self,
        parts: &mut Vec<Part<'_>>,
        error: &LookupError,
        outcomes: &mut Outcomes,
    ) {
        parts.retain(|part| {
            let missing = self.lookups.failed(&part.place).contains(&true);
            if missing {
                outcomes.push((part.planned, Err(Error::Lookup(error.clone()))));
            }
            !missing
        });
    }

    /// Runs the model. Returns the logits of the last position of each part that samples, in
    /// order.
    fn forward(&mut self, parts: &mut [Part<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        let input = self.input(parts)?;
        let mut segments = Vec::with_capacity(parts.len());
        let mut last_rows = Vec::with_capacity(parts.len());
        let mut row = 0;
        for part in parts.iter_mut() {
            let len = part.planned.tokens;
            row += len;
            if part.planned.samples {
                last_rows.push(row as u32 - 1);
            }
            let cache = part.live.cache.as_mut().ok_or(Error::Internal)?;
            segments.push(Segment { cache, len });
        }
        let hidden = self.decoder.step(&input, &mut segments)?;
        if last_rows.is_empty() {
            return Ok(Vec::new());
        }
        let count = last_rows.len();
        let last_rows = Tensor::from_vec(last_rows, count, &Device::Cpu).map_err(candle)?;
        let hidden = hidden.index_select(&last_rows, 0).map_err(candle)?;
        let logits = self.decoder.logits(&hidden)?;
        logits.to_vec2::<f32>().map_err(candle)
    }

    /// The input rule, `(positions, dim)`: the row where an f-gram matched, the token embedding
    /// elsewhere.
    fn input(&self, parts: &[Part<'_>]) -> Result<Tensor, Error> {
        let dim = self.info.dim;
        let positions: usize = parts.iter().map(|part| part.planned.tokens).sum();
        let mut input = Vec::with_capacity(positions * dim);
        let (mut unmatched, mut ids) = (Vec::new(), Vec::new());
        for part in parts {
            let first = input.len() / dim;
            input.extend_from_slice(self.lookups.embeddings(&part.place, dim));
            let (window, _) = part.live.sequence.window(part.planned.tokens, 0);
            let lengths = self.lookups.match_lengths(&part.place);
            for (position, (&id, &length)) in (first..).zip(window.iter().zip(lengths)) {
                if length == 0 {
                    unmatched.push(position);
                    ids.push(id);
                }
            }
        }
        if !ids.is_empty() {
            let embeddings = self.decoder.input_embeddings(None, &ids)?;
            let embeddings = embeddings.flatten_all().and_then(|t| t.to_vec1::<f32>());
            let embeddings = embeddings.map_err(candle)?;
            for (position, embedding) in unmatched.into_iter().zip(embeddings.chunks(dim)) {
                input[position * dim..][..dim].copy_from_slice(embedding);
            }
        }
        Tensor::from_vec(input, (positions, dim), &Device::Cpu).map_err(candle)
    }

    /// Books what was computed and chooses tokens.
    fn finish(
        &mut self,
        parts: Vec<Part<'_>>,
        logits: Vec<Vec<f32>>,
        lookup: Duration,
        outcomes: &mut Outcomes,
    ) {
        let mut logits = logits.into_iter();
        for Part {
            planned,
            live,
            place,
        } in parts
        {
            let lengths = self.lookups.match_lengths(&place);
            let matched = lengths.iter().filter(|&&length| length > 0).count() as u32;
            let failed = self.lookups.failed(&place);
            let fallback = failed.iter().filter(|failed| **failed).count() as u32;
            let last_match = lengths.last().copied().unwrap_or(0);
            let sequence = &mut live.sequence;
            sequence.step_computed(planned.tokens, matched, fallback, lookup);
            self.metrics.positions.inc_by(planned.tokens as u64);
            self.metrics.matched_positions.inc_by(u64::from(matched));
            self.metrics.fallback_positions.inc_by(u64::from(fallback));
            let chosen = match planned.samples {
                false => Ok(None),
                true => logits
                    .next()
                    .ok_or(Error::Internal)
                    .and_then(|mut row| choose(live, &mut row, last_match))
                    .map(Some),
            };
            let outcome = chosen.map(|token| Computed { token }).map_err(|error| {
                error!(error = %error, "sampling failed");
                Error::Internal
            });
            outcomes.push((planned, outcome));
        }
    }
}

/// Chooses the next token of a sequence from its logits.
fn choose(live: &mut Live, logits: &mut [f32], match_length: u8) -> Result<GeneratedToken, Error> {
    for id in live.sequence.banned() {
        logits[id as usize] = f32::NEG_INFINITY;
    }
    let sampled = live.sampler.sample(logits)?;
    Ok(GeneratedToken {
        id: sampled.id,
        match_length,
        logprob: sampled.logprob,
        top_logprobs: sampled.top_logprobs,
    })
}

fn candle(error: candle_core::Error) -> Error {
    Error::Model(error.into())
}
