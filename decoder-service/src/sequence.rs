//! One text being generated: its ids, when it stops, what it has to tell its client.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use scone_model::sampling;

use crate::{
    embed_tier::TableFacts,
    request::Request,
    text::{Decode, DecodeError, TextStream},
};

/// News of one completion for its client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Which of the request's completions.
    pub index: u32,
    /// Tokens of the prompt that were scored now, in order; before all others. The first of a
    /// prompt has no log probability.
    pub prompt: Vec<GeneratedToken>,
    /// New tokens.
    pub tokens: Vec<GeneratedToken>,
    /// New text, whole characters; may lag behind the tokens.
    pub text: String,
    /// Set in the last delta of a completion.
    pub finish: Option<Finish>,
}

impl Delta {
    /// Appends `next`, which came later, for a client that did not take this one yet.
    pub fn merge(&mut self, next: Delta) {
        self.prompt.extend(next.prompt);
        self.tokens.extend(next.tokens);
        self.text.push_str(&next.text);
        self.finish = next.finish;
    }

    /// Nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.prompt.is_empty()
            && self.tokens.is_empty()
            && self.text.is_empty()
            && self.finish.is_none()
    }
}

/// One token, generated or of a prompt that was scored.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedToken {
    /// Token id.
    pub id: u32,
    /// Length of the f-gram whose row was the input of the step that chose this token; 0: none.
    pub match_length: u8,
    /// Natural logarithm of the token's probability, when asked.
    pub logprob: Option<f32>,
    /// The most probable tokens, best first, when asked.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// How a completion ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Counts.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The table version whose rows it used; `None` for none.
    pub table: Option<Arc<TableFacts>>,
}

/// Why a completion ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop string, not part of the text.
    StopString(String),
    /// A stop token or end-of-text.
    StopToken(u32),
    /// `max_tokens` or the end of the context.
    Length,
}

/// Counts of one completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Positions fed to the model.
    pub positions: u32,
    /// Of these, with an f-gram row as input.
    pub matched_positions: u32,
    /// Of these, with the token embedding because the embed tier did not answer.
    pub fallback_positions: u32,
    /// Positions that were taken from the prefix cache instead of being computed.
    pub cached_tokens: u32,
}

/// Where the time of one completion went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From arrival to the first step.
    pub queue: Duration,
    /// From the first step to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// Parts of prefill and decode, by what the steps did.
    pub steps: StepTimes,
}

/// Where the time of steps went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Waiting for the embed tier.
    pub lookup: Duration,
    /// In the model.
    pub forward: Duration,
    /// Choosing tokens from logits.
    pub sampling: Duration,
}

/// One text being generated. Knows nothing of models, caches and channels.
#[derive(Debug)]
pub struct Sequence {
    request: Arc<Request>,
    index: u32,
    /// Prompt and output.
    ids: Vec<u32>,
    /// How many of `ids` the model has computed: they are held in KV blocks.
    computed: usize,
    /// How many tokens of the prompt were scored.
    scored: usize,
    text: TextStream,
    usage: Usage,
    steps: StepTimes,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

impl Sequence {
    /// Completion `index` of a request.
    pub fn new(request: Arc<Request>, index: u32, decoder: Arc<dyn Decode>) -> Self {
        let text = TextStream::new(decoder, &request.prompt_ids, request.stop.strings.clone());
        Self {
            ids: request.prompt_ids.clone(),
            computed: 0,
            scored: 0,
            text,
            usage: Usage {
                prompt_tokens: request.prompt_ids.len() as u32,
                ..Usage::default()
            },
            steps: StepTimes::default(),
            started: None,
            first_token: None,
            request,
            index,
        }
    }

    /// The request it belongs to.
    pub fn request(&self) -> &Arc<Request> {
        &self.request
    }

    /// Prompt and output.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How many of the ids the model has computed.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// It got KV blocks, in which so many of its positions are computed already; all others are to
    /// be computed, again if need be.
    pub fn begin_at(&mut self, cached: usize) {
        self.computed = cached;
        // Found again after it gave way, they are its own.
        if self.started.is_none() {
            self.usage.cached_tokens = cached as u32;
        }
    }

    /// Which of the request's completions it is.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// When its first step began, and when it had its first token.
    pub fn begun(&self) -> (Option<Instant>, Option<Instant>) {
        (self.started, self.first_token)
    }

    /// Where the time of its steps went so far.
    pub fn step_times(&self) -> StepTimes {
        self.steps
    }

    /// Counts so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The next `tokens` ids to compute, and before them the ids of at most `context` positions
    /// that matching may look back on; with the number of these.
    pub fn window(&self, tokens: usize, context: usize) -> (&[u32], usize) {
        self.window_behind(0, tokens, context)
    }

    /// As [`window`](Self::window), of the ids behind the next `skipped`.
    pub fn window_behind(&self, skipped: usize, tokens: usize, context: usize) -> (&[u32], usize) {
        let first = self.computed + skipped;
        let from = first.saturating_sub(context);
        (&self.ids[from..first + tokens], first - from)
    }

    /// Whether a step had this sequence in it.
    pub fn has_started(&self) -> bool {
        self.started.is_some()
    }

    /// A step begins that this sequence takes part in.
    pub fn step_started(&mut self, now: Instant) {
        self.started.get_or_insert(now);
    }

    /// A step computed the next `tokens` ids; `matched` of them from f-gram rows, `fallback`
    /// without an answer of the embed tier. The step took `times`.
    pub fn step_computed(&mut self, tokens: usize, matched: u32, fallback: u32, times: StepTimes) {
        self.computed += tokens;
        self.usage.positions += tokens as u32;
        self.usage.matched_positions += matched;
        self.usage.fallback_positions += fallback;
        self.steps.lookup += times.lookup;
        self.steps.forward += times.forward;
        self.steps.sampling += times.sampling;
    }

    /// Whether the prompt has tokens that are still to be scored, so that the logits of all its
    /// positions are wanted, and none may come from the prefix cache.
    pub fn scores(&self) -> bool {
        self.request.scores_prompt && self.scored < self.request.prompt_ids.len()
    }

    /// Whether the last of the next `tokens` positions is one that gets the token embedding, whatever
    /// f-gram ends there.
    pub fn ends_in_token_embedding(&self, tokens: usize) -> bool {
        let request = &self.request;
        request.token_embedding_at_end && self.computed + tokens == request.prompt_ids.len()
    }

    /// Whether nothing is wanted once the prompt is computed.
    pub fn wants_no_tokens(&self) -> bool {
        self.request.stop.max_tokens == 0
    }

    /// What to tell the client of a prompt after which no token is wanted.
    pub fn ended_with_prompt(&self, now: Instant) -> Delta {
        Delta {
            index: self.index,
            finish: Some(self.finish(FinishReason::Length, now)),
            ..Delta::default()
        }
    }

    /// Scores tokens of the prompt by the logits of the next `lengths.len()` positions, before
    /// [`step_computed`](Self::step_computed) books them. `lengths` are the match lengths there.
    /// What was scored before the sequence gave way is not scored again.
    pub fn score(&mut self, logits: &[f32], lengths: &[u8]) -> Vec<GeneratedToken> {
        let vocab_size = logits.len() / lengths.len().max(1);
        let prompt = &self.request.prompt_ids;
        let top = self.request.sampling.logprobs.unwrap_or(0) as usize;
        let mut scored = Vec::with_capacity(lengths.len());
        if self.scored == 0 {
            scored.push(GeneratedToken {
                id: prompt[0],
                match_length: 0,
                logprob: None,
                top_logprobs: Vec::new(),
            });
            self.scored = 1;
        }
        let positions = logits.chunks_exact(vocab_size.max(1)).zip(lengths);
        for (position, (logits, &match_length)) in (self.computed..).zip(positions) {
            let next = position + 1;
            if next < self.scored || next >= prompt.len() {
                continue;
            }
            let score = sampling::score(logits, prompt[next], top);
            scored.push(GeneratedToken {
                id: prompt[next],
                match_length,
                logprob: score.logprob,
                top_logprobs: score.top_logprobs,
            });
            self.scored = next + 1;
        }
        scored
    }

    /// What to tell the client of tokens of its prompt that were scored.
    pub fn scored(&self, prompt: Vec<GeneratedToken>) -> Delta {
        Delta {
            index: self.index,
            prompt,
            ..Delta::default()
        }
    }

    /// Tokens that may not be chosen next: the stop tokens, before `min_tokens`.
    pub fn banned(&self) -> impl Iterator<Item = u32> + '_ {
        let stop = &self.request.stop;
        let early = self.usage.completion_tokens < stop.min_tokens;
        stop.token_ids.iter().copied().filter(move |_| early)
    }

    /// The text to send before the first token, when the request asked for it.
    pub fn echo(&self) -> Option<Delta> {
        let text = self.request.echo.clone()?;
        Some(Delta {
            index: self.index,
            text,
            ..Delta::default()
        })
    }

    /// Takes the token that a step chose, and returns what to tell the client.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub fn accept(&mut self, token: GeneratedToken, now: Instant) -> Result<Delta, DecodeError> {
        self.first_token.get_or_insert(now);
        let id = token.id;
        self.ids.push(id);
        self.usage.completion_tokens += 1;
        let stop = &self.request.stop;
        let may_stop = self.usage.completion_tokens >= stop.min_tokens.max(1);
        let full = self.usage.completion_tokens >= stop.max_tokens;
        let stop_token = may_stop && stop.token_ids.contains(&id);

        let mut text = String::new();
        let mut stopped = None;
        if !stop_token {
            stopped = self.text.push(id, may_stop, &mut text)?;
        }
        if stopped.is_none() && (stop_token || full) {
            stopped = self.text.finish(may_stop, &mut text)?;
        }
        let reason = match stopped {
            Some(stopped) => Some(FinishReason::StopString(
                stop.strings[stopped.index].clone(),
            )),
            None if stop_token => Some(FinishReason::StopToken(id)),
            None if full => Some(FinishReason::Length),
            None => None,
        };
        let finish = reason.map(|reason| self.finish(reason, now));
        Ok(Delta {
            index: self.index,
            tokens: vec![token],
            text,
            finish,
            ..Delta::default()
        })
    }

    fn finish(&self, reason: FinishReason, now: Instant) -> Finish {
        let started = self.started.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Finish {
            reason,
            usage: self.usage,
            timings: Timings {
                queue: started.saturating_duration_since(self.request.arrived),
                prefill: first_token.saturating_duration_since(started),
                decode: now.saturating_duration_since(first_token),
                steps: self.steps,
            },
            table: None,
        }
    }
}
