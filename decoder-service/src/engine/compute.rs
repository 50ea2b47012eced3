//! One step: ONE look-up for the whole batch (one for each table version), the model, sampling.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use scone_fgram::EncodedRow;
use scone_model::{Decoder, KvPool, Segment};
use tracing::{error, warn};

use super::{
    EngineParts, OnLookupFailure,
    live::Live,
    lookups::{Lookups, Stretch},
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
    /// Tokens of the prompt that were scored.
    pub(super) prompt: Vec<GeneratedToken>,
    /// Whether every position got an answer of the embed tier.
    pub(super) sound: bool,
}

/// Result of a step, for each sequence that took part.
type Outcomes = Vec<(Planned, Result<Computed, Error>)>;

/// A sequence's part of a step, and where its positions lie in the look-ups.
struct Part<'a> {
    planned: Planned,
    live: &'a mut Live,
    stretch: Stretch,
}

pub(super) struct Compute {
    info: Arc<ModelInfo>,
    decoder: Decoder,
    pool: KvPool,
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
            pool: parts.pool,
            tier: parts.tier,
            on_failure,
            metrics: parts.metrics,
            lookups: Lookups::default(),
            warned: None,
        }
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
        match self.forward(&parts) {
            Ok(logits) => self.finish(parts, logits, lookup, &mut outcomes),
            Err(error) => {
                error!(error = %error, "step failed");
                let failed = parts.into_iter().map(|p| (p.planned, Err(Error::Internal)));
                outcomes.extend(failed);
            }
        }
        outcomes
    }

    /// The table version of sequences that get a slot of the batch now.
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
            let stretch = self.lookups.add(live.table.as_ref(), ids, context);
            parts.push(Part {
                planned,
                live,
                stretch,
            });
        }
        parts
    }

    /// Asks the embed tier; returns how long that took.
    fn look_up(&mut self) -> Duration {
        let began = Instant::now();
        let tier = self.tier.as_deref_mut();
        let any = tier.is_some();
        self.lookups.look_up(tier.map(|tier| tier as _));
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
            let missing = self.lookups.failed(&part.stretch).contains(&true);
            if missing {
                outcomes.push((part.planned, Err(Error::Lookup(error.clone()))));
            }
            !missing
        });
    }

    /// Runs the model. Returns the logits of the parts that sample, and of all positions of those
    /// whose prompt is scored, in order.
    fn forward(&mut self, parts: &[Part<'_>]) -> Result<Vec<f32>, Error> {
        let rows: Vec<Vec<Option<EncodedRow<'_>>>> = parts
            .iter()
            .map(|part| self.lookups.rows(&part.stretch).collect())
            .collect();
        let mut segments = Vec::with_capacity(parts.len());
        for (part, rows) in parts.iter().zip(&rows) {
            let Live {
                sequence, blocks, ..
            } = &*part.live;
            segments.push(Segment {
                blocks: blocks.as_ref().ok_or(Error::Internal)?.ids(),
                held: sequence.computed(),
                token_ids: sequence.window(part.planned.tokens, 0).0,
                rows,
                samples: part.planned.samples,
            });
        }
        let scored: Vec<bool> = parts.iter().map(|p| p.live.sequence.scores()).collect();
        let decoder = &self.decoder;
        Ok(decoder.step_scoring(&mut self.pool, &segments, &scored)?)
    }

    /// Books what was computed and chooses tokens.
    fn finish(
        &mut self,
        parts: Vec<Part<'_>>,
        mut logits: Vec<f32>,
        lookup: Duration,
        outcomes: &mut Outcomes,
    ) {
        let vocab_size = self.info.vocab_size;
        let mut logits = logits.as_mut_slice();
        // Cuts off the logits of the next positions; the model gave as many as it was asked for.
        let mut next = move |positions: usize| {
            let all = std::mem::take(&mut logits);
            let (next, rest) = all
                .split_at_mut_checked(positions * vocab_size)
                .ok_or(Error::Internal)?;
            logits = rest;
            Ok::<_, Error>(next)
        };
        for Part {
            planned,
            live,
            stretch,
        } in parts
        {
            let lengths = self.lookups.match_lengths(&stretch);
            let matched = lengths.iter().filter(|&&length| length > 0).count() as u32;
            let failed = self.lookups.failed(&stretch);
            let fallback = failed.iter().filter(|failed| **failed).count() as u32;
            let last_match = lengths.last().copied().unwrap_or(0);
            let wanted = match live.sequence.scores() {
                true => planned.tokens,
                false => usize::from(planned.samples),
            };
            let taken = next(wanted);
            let sequence = &mut live.sequence;
            let mut prompt = Vec::new();
            if let (Ok(logits), true) = (&taken, sequence.scores()) {
                prompt = sequence.score(logits, lengths);
            }
            sequence.step_computed(planned.tokens, matched, fallback, lookup);
            self.metrics.positions.inc_by(planned.tokens as u64);
            self.metrics.matched_positions.inc_by(u64::from(matched));
            self.metrics.fallback_positions.inc_by(u64::from(fallback));
            let chosen = match planned.samples {
                false => Ok(None),
                true => taken.and_then(|logits| {
                    let last = logits.len().saturating_sub(vocab_size);
                    choose(live, &mut logits[last..], last_match).map(Some)
                }),
            };
            let sound = fallback == 0;
            let computed = chosen.map(|token| Computed {
                token,
                prompt,
                sound,
            });
            let outcome = computed.map_err(|error| {
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
