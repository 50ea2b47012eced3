//! One step: ONE look-up for the whole batch (one for each table version), or the answers of one that
//! was begun before; the model; sampling.

use std::{
    sync::Arc,
    time::{Duration, Instant},
    vec::IntoIter,
};

use scone_embed_client::LookupTrace;
use scone_fgram::EncodedRow;
use scone_model::sampling::no_numbers;
use scone_model::{Decoder, Given, Giving, KvPool, Segment};
use tracing::{error, warn};

use super::{
    EngineParts, OnLookupFailure,
    ahead::{Ahead, Asked},
    live::{Live, Rows},
    lookups::{Lookups, Stretch},
};
use crate::{
    embed_tier::{EmbedTier, LookupBatch, LookupError, TableFacts},
    error::Error,
    metrics::Metrics,
    model::ModelInfo,
    request::TableChoice,
    scheduler::Planned,
    sequence::{GeneratedToken, Sequence, StepTimes},
};

/// Positions of a prompt that are asked for at a time, at most.
const ASKED_AHEAD: usize = 256;

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
    /// What the model is to give of it.
    giving: Giving,
}

impl Part<'_> {
    /// Whether its last position gets the token embedding, whatever its row is.
    fn ends_in_token_embedding(&self) -> bool {
        let sequence = &self.live.sequence;
        sequence.ends_in_token_embedding(self.planned.tokens)
    }
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
        let began = Instant::now();
        let mut parts = self.collect(lives);
        self.look_up();
        let mut times = StepTimes::default();
        if self.tier.is_some() {
            times.lookup = began.elapsed();
            self.metrics
                .lookup_seconds
                .observe(times.lookup.as_secs_f64());
        }
        let mut outcomes = Vec::with_capacity(parts.len());
        if self.on_failure == OnLookupFailure::Fail
            && let Some(error) = self.lookups.error().cloned()
        {
            self.drop_unanswered(&mut parts, &error, &mut outcomes);
        }
        if parts.is_empty() {
            return outcomes;
        }
        self.ask_for_prompts(&mut parts);
        let began = Instant::now();
        match self.forward(&parts) {
            Ok(given) => {
                times.forward = began.elapsed();
                self.finish(parts, given, times, &mut outcomes);
            }
            Err(error) => {
                error!(error = %error, "step failed");
                let failed = parts.into_iter().map(|p| (p.planned, Err(Error::Internal)));
                outcomes.extend(failed);
            }
        }
        outcomes
    }

    /// The rows of a sequence that gets a slot of the batch now; `None` when the table it asks for is
    /// not there.
    pub(super) fn rows_of(&self, table: &TableChoice) -> Option<Rows> {
        let TableChoice::Named(name) = table else {
            return Some(Rows::Plain);
        };
        let current = self.tier.as_ref().and_then(|tier| tier.current(name));
        let needs_none = self.tier.is_none() || self.info.max_n.is_none();
        match current {
            Some(facts) => Some(Rows::Table(facts)),
            None => (name.is_default() && needs_none).then_some(Rows::Plain),
        }
    }

    /// Fills the look-ups.
    fn collect<'a>(&mut self, lives: Vec<(Planned, &'a mut Live)>) -> Vec<Part<'a>> {
        self.lookups.clear();
        let mut parts = Vec::with_capacity(lives.len());
        for (planned, live) in lives {
            let first = live.sequence.computed();
            let positions = first..first + planned.tokens;
            let asked = live.ahead.as_ref().and_then(|ahead| ahead.of(&positions));
            let stretch = match asked {
                Some(early) => Stretch::asked(early),
                None => {
                    live.ahead = None;
                    let table = live.rows.table();
                    let context = context_of(table.map(AsRef::as_ref));
                    let (ids, context) = live.sequence.window(planned.tokens, context);
                    self.lookups
                        .add(table, (ids, context), || trace_of(&live.sequence))
                }
            };
            parts.push(Part {
                giving: giving(live),
                planned,
                live,
                stretch,
            });
        }
        parts
    }

    /// Asks the embed tier for what was not asked for before.
    fn look_up(&mut self) {
        let tier = self.tier.as_deref_mut();
        self.lookups.look_up(tier.map(|tier| tier as _));
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
    }

    /// Asks for the rows of the prompts' next positions, so that they come while this step computes.
    fn ask_for_prompts(&mut self, parts: &mut [Part<'_>]) {
        for part in parts.iter_mut().filter(|part| !part.planned.samples) {
            let (live, tokens) = (&mut *part.live, part.planned.tokens);
            let next = live.sequence.computed() + tokens;
            let left = live.sequence.ids().len() - next;
            // As long as this part, with room for a step that takes more.
            let soon = next..next + left.min(2 * tokens);
            if !live.ahead.as_ref().is_some_and(|of| of.covers(&soon)) {
                self.ask_ahead(&mut [live], tokens, left.min(ASKED_AHEAD));
            }
        }
    }

    /// Asks for the rows of tokens just chosen.
    pub(super) fn ask_for_chosen(&mut self, lives: &mut [&mut Live]) {
        self.ask_ahead(lives, 0, 1);
    }

    /// Asks for the rows of `count` positions of each sequence, behind `skipped` others that are
    /// known but not computed.
    fn ask_ahead(&mut self, lives: &mut [&mut Live], skipped: usize, count: usize) {
        let Some(tier) = &mut self.tier else {
            return;
        };
        let mut lookups: Vec<(Arc<TableFacts>, LookupBatch)> = Vec::new();
        // For each sequence which look-up it is in, and where.
        let mut places = Vec::with_capacity(lives.len());
        for live in lives.iter().filter(|_| count > 0) {
            let Some(table) = live.rows.table() else {
                places.push(None);
                continue;
            };
            let known = lookups.iter().position(|(of, _)| of == table);
            let of = known.unwrap_or_else(|| {
                lookups.push((table.clone(), LookupBatch::default()));
                lookups.len() - 1
            });
            let batch = &mut lookups[of].1;
            let at = batch.positions();
            let context = context_of(Some(table));
            let (ids, context) = live.sequence.window_behind(skipped, count, context);
            batch.push(ids, context);
            batch.trace = batch.trace.or_else(|| trace_of(&live.sequence));
            places.push(Some((of, at)));
        }
        if lookups.is_empty() {
            return;
        }
        let Some(asked) = tier.begin(lookups).map(Asked::new) else {
            return;
        };
        for (live, place) in lives.iter_mut().zip(places) {
            let Some((of, at)) = place else { continue };
            let first = live.sequence.computed() + skipped;
            live.ahead = Some(Ahead::new(asked.clone(), of, first, at..at + count));
        }
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

    /// Runs the model. Returns what each part is to be given, in order.
    fn forward(&mut self, parts: &[Part<'_>]) -> Result<Given, Error> {
        let rows: Vec<Vec<Option<EncodedRow<'_>>>> = parts
            .iter()
            .map(|part| inputs(&self.lookups, part))
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
        let giving: Vec<Giving> = parts.iter().map(|part| part.giving).collect();
        let decoder = &self.decoder;
        Ok(decoder.step_giving(&mut self.pool, &segments, &giving)?)
    }

    /// Length of the f-gram whose row is the input of a part's last position; 0: none.
    fn last_match(&self, part: &Part<'_>) -> u8 {
        let lengths = self.lookups.match_lengths(&part.stretch);
        match part.ends_in_token_embedding() {
            true => 0,
            false => lengths.last().copied().unwrap_or(0),
        }
    }

    /// Chooses tokens and books what was computed.
    fn finish(
        &self,
        mut parts: Vec<Part<'_>>,
        given: Given,
        mut times: StepTimes,
        outcomes: &mut Outcomes,
    ) {
        let began = Instant::now();
        let mut given = Results::new(given, self.info.vocab_size);
        let chosen = parts.iter_mut().map(|part| self.chosen(part, &mut given));
        let chosen: Vec<_> = chosen.collect();
        times.sampling = began.elapsed();
        self.metrics
            .forward_seconds
            .observe(times.forward.as_secs_f64());
        self.metrics
            .sampling_seconds
            .observe(times.sampling.as_secs_f64());
        for (mut part, chosen) in parts.into_iter().zip(chosen) {
            // What nobody else would compute is not for others to find.
            let others_would = !part.ends_in_token_embedding();
            let sound = self.book(&mut part, times) == 0 && others_would;
            let outcome = chosen.map(|(token, prompt)| Computed {
                token,
                prompt,
                sound,
            });
            let outcome = outcome.map_err(|error| {
                error!(error = %error, "sampling failed");
                Error::Internal
            });
            outcomes.push((part.planned, outcome));
        }
    }

    /// The next token of a part, if it samples, and its tokens of the prompt that are scored.
    fn chosen(
        &self,
        part: &mut Part<'_>,
        given: &mut Results,
    ) -> Result<(Option<GeneratedToken>, Vec<GeneratedToken>), Error> {
        let (tokens, samples) = (part.planned.tokens, part.planned.samples);
        let last_match = self.last_match(part);
        let (logits, prompt) = match part.giving {
            Giving::Best if samples => {
                let id = given.best.next().flatten().ok_or_else(no_numbers)?;
                return Ok((Some(best_token(id, last_match)), Vec::new()));
            }
            Giving::Best => return Ok((None, Vec::new())),
            Giving::All => {
                let logits = given.next(tokens)?;
                let lengths = self.lookups.match_lengths(&part.stretch);
                let prompt = part.live.sequence.score(logits, lengths);
                (logits, prompt)
            }
            Giving::Last => (given.next(usize::from(samples))?, Vec::new()),
        };
        let last = logits.len().saturating_sub(self.info.vocab_size);
        let token = match samples {
            true => Some(choose(part.live, &mut logits[last..], last_match)?),
            false => None,
        };
        Ok((token, prompt))
    }

    /// Counts a part; returns how many of its positions nobody answered for.
    fn book(&self, part: &mut Part<'_>, times: StepTimes) -> u32 {
        let tokens = part.planned.tokens;
        let lengths = self.lookups.match_lengths(&part.stretch);
        let mut matched = lengths.iter().filter(|&&length| length > 0).count() as u32;
        if part.ends_in_token_embedding() && lengths.last().is_some_and(|&length| length > 0) {
            matched -= 1;
        }
        let failed = self.lookups.failed(&part.stretch);
        let fallback = failed.iter().filter(|failed| **failed).count() as u32;
        let sequence = &mut part.live.sequence;
        sequence.step_computed(tokens, matched, fallback, times);
        self.metrics.positions.inc_by(tokens as u64);
        self.metrics.matched_positions.inc_by(u64::from(matched));
        self.metrics.fallback_positions.inc_by(u64::from(fallback));
        fallback
    }
}

/// What the model gave, from which part after part takes its own.
struct Results {
    logits: Vec<f32>,
    /// Logits that were taken.
    taken: usize,
    best: IntoIter<Option<u32>>,
    vocab_size: usize,
}

impl Results {
    fn new(given: Given, vocab_size: usize) -> Self {
        Self {
            logits: given.logits,
            taken: 0,
            best: given.best.into_iter(),
            vocab_size,
        }
    }

    /// The logits of the next positions; the model gave as many as it was asked for.
    fn next(&mut self, positions: usize) -> Result<&mut [f32], Error> {
        let end = self.taken + positions * self.vocab_size;
        // Past the end when there are too few: then nobody gets those of others.
        let start = std::mem::replace(&mut self.taken, end);
        self.logits.get_mut(start..end).ok_or(Error::Internal)
    }
}

/// The span of a look-up for a sequence, if it is to have one. A look-up for several is a part of the
/// first one's trace.
fn trace_of(sequence: &Sequence) -> Option<LookupTrace> {
    let trace = sequence.request().trace.as_ref()?;
    trace.look_up(sequence.usage().completion_tokens > 0)
}

/// Ids before a position that an f-gram which ends there may begin with.
fn context_of(table: Option<&TableFacts>) -> usize {
    table.map_or(0, |facts| facts.max_n as usize - 1)
}

/// The row of each position of a part; none where the token embedding is the input.
fn inputs<'a>(lookups: &'a Lookups, part: &'a Part<'_>) -> Vec<Option<EncodedRow<'a>>> {
    let mut rows: Vec<_> = lookups.rows(&part.stretch).collect();
    if part.ends_in_token_embedding()
        && let Some(last) = rows.last_mut()
    {
        *last = None;
    }
    rows
}

/// What the model is to give of a sequence's part: logits leave the device only where they are looked at.
fn giving(live: &Live) -> Giving {
    if live.sequence.scores() {
        Giving::All
    } else if live.sampler.takes_best() && live.sequence.banned().next().is_none() {
        Giving::Best
    } else {
        Giving::Last
    }
}

fn best_token(id: u32, match_length: u8) -> GeneratedToken {
    GeneratedToken {
        id,
        match_length,
        logprob: None,
        top_logprobs: Vec::new(),
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
