//! What a request's completions say, however it is written down in the end: news of the choices of
//! one or several prompts, with the text of every token.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use serde_json::{Value, json};
use tokio_stream::Stream as _;

use crate::{
    error::Error,
    intake::Deltas,
    sequence::{Delta, Finish, FinishReason, GeneratedToken},
    text::Pieces,
};

/// What the client wants to know of tokens beside their text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Details {
    /// Log probabilities.
    pub(super) logprobs: bool,
    /// Tokens by their ids, where their text would stand (`token_id:7`).
    pub(super) tokens_as_ids: bool,
    /// The ids, in a list of their own.
    pub(super) token_ids: bool,
    /// For each token the length of the f-gram whose row was the input that chose it.
    pub(super) match_lengths: bool,
    /// The prompt comes back, and with log probabilities its tokens.
    pub(super) echo: bool,
}

impl Details {
    /// Whether tokens matter even when they bring no text.
    fn of_tokens(&self) -> bool {
        self.logprobs || self.token_ids || self.match_lengths
    }
}

/// A token with its text.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) token: GeneratedToken,
    pub(super) bytes: Vec<u8>,
    /// Of the most probable tokens, in their order.
    pub(super) top_bytes: Vec<Vec<u8>>,
}

/// What is new of a choice.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) index: u32,
    /// Ids of the prompt, once for each choice, where ids are asked for.
    pub(super) prompt_ids: Option<Arc<[u32]>>,
    pub(super) text: String,
    /// Of the prompt, then of the completion.
    pub(super) tokens: Vec<Said>,
    pub(super) finish: Option<Finish>,
}

impl News {
    /// Appends what came later.
    pub(super) fn merge(&mut self, next: News) {
        self.prompt_ids = self.prompt_ids.take().or(next.prompt_ids);
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.finish = next.finish;
    }

    /// `stop` or `length`; null before the end.
    pub(super) fn finish_reason(&self) -> Value {
        match self.finish.as_ref().map(|finish| &finish.reason) {
            None => Value::Null,
            Some(FinishReason::StopString(_) | FinishReason::StopToken(_)) => json!("stop"),
            Some(FinishReason::Length) => json!("length"),
        }
    }

    /// The stop string or stop token, if one ended it.
    pub(super) fn stop_reason(&self) -> Value {
        match self.finish.as_ref().map(|finish| &finish.reason) {
            None | Some(FinishReason::Length) => Value::Null,
            Some(FinishReason::StopString(stop)) => json!(stop),
            Some(FinishReason::StopToken(id)) => json!(id),
        }
    }

    /// The lists of ids and match lengths, where asked for.
    pub(super) fn add_lists(&self, details: &Details, choice: &mut Value) {
        let tokens = self.tokens.iter().map(|said| &said.token);
        if let Some(ids) = &self.prompt_ids {
            choice["prompt_token_ids"] = json!(**ids);
        }
        if details.token_ids {
            choice["token_ids"] = tokens.clone().map(|token| token.id).collect();
        }
        if details.match_lengths {
            choice["match_lengths"] = tokens.map(|token| token.match_length).collect();
        }
    }
}

/// Counts of a whole answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
    positions: u64,
    matched_positions: u64,
    fallback_positions: u64,
    /// Longest of all choices, in microseconds.
    queue_us: u64,
    prefill_us: u64,
    decode_us: u64,
    lookup_us: u64,
    forward_us: u64,
    sampling_us: u64,
}

impl Counts {
    /// Adds those of a completion.
    pub(super) fn add(&mut self, finish: &Finish, first_of_its_prompt: bool) {
        let (usage, timings) = (&finish.usage, &finish.timings);
        if first_of_its_prompt {
            self.prompt_tokens += u64::from(usage.prompt_tokens);
            self.cached_tokens += u64::from(usage.cached_tokens);
        }
        self.completion_tokens += u64::from(usage.completion_tokens);
        self.positions += u64::from(usage.positions);
        self.matched_positions += u64::from(usage.matched_positions);
        self.fallback_positions += u64::from(usage.fallback_positions);
        for (most, time) in [
            (&mut self.queue_us, timings.queue),
            (&mut self.prefill_us, timings.prefill),
            (&mut self.decode_us, timings.decode),
            (&mut self.lookup_us, timings.steps.lookup),
            (&mut self.forward_us, timings.steps.forward),
            (&mut self.sampling_us, timings.steps.sampling),
        ] {
            *most = (*most).max(time.as_micros() as u64);
        }
    }

    /// OpenAI's counts, and under `scone` those of the f-grams and where the time went.
    pub(super) fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "scone": {
                "positions": self.positions,
                "matched_positions": self.matched_positions,
                "fallback_positions": self.fallback_positions,
                "queue_us": self.queue_us,
                "prefill_us": self.prefill_us,
                "decode_us": self.decode_us,
                "lookup_us": self.lookup_us,
                "forward_us": self.forward_us,
                "sampling_us": self.sampling_us,
            },
        })
    }
}

/// One choice as it grows.
#[derive(Debug, Default)]
struct Choice {
    /// Ids of the prompt that are still to be told.
    prompt_ids: Option<Arc<[u32]>>,
    /// The last token, which decides how the next one is written.
    last: Option<u32>,
    /// The prompt, until its tokens are all scored: it is told with the first token.
    held: Option<News>,
}

/// The news of all choices of a request. Dropping it cancels the request within one step.
#[derive(Debug)]
pub(super) struct Answer {
    /// One for each prompt; `None` after its end.
    prompts: Vec<Option<Deltas>>,
    choices: Vec<Choice>,
    /// Completions of each prompt.
    n: u32,
    /// Which prompt is looked at first; another one each time.
    turn: usize,
    details: Details,
    pieces: Arc<Pieces>,
    counts: Counts,
}

impl Answer {
    pub(super) fn new(prompts: Vec<Deltas>, n: u32, details: Details, pieces: Arc<Pieces>) -> Self {
        let scored = details.echo && details.logprobs;
        let choices = prompts.iter().flat_map(|deltas| {
            let last = deltas.prompt_ids().last().copied().filter(|_| !scored);
            let ids = details.token_ids.then(|| Arc::from(deltas.prompt_ids()));
            (0..n).map(move |_| Choice {
                prompt_ids: ids.clone(),
                last,
                held: None,
            })
        });
        Self {
            choices: choices.collect(),
            prompts: prompts.into_iter().map(Some).collect(),
            n,
            turn: 0,
            details,
            pieces,
            counts: Counts::default(),
        }
    }

    pub(super) fn choices(&self) -> usize {
        self.choices.len()
    }

    pub(super) fn details(&self) -> &Details {
        &self.details
    }

    /// Whole once there is no more news.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The next news; `None` when all choices have finished. Nothing is lost when it is dropped
    /// before it resolves.
    ///
    /// # Errors
    /// Why the request ends early; nothing comes after that.
    pub(super) async fn next(&mut self) -> Option<Result<News, Error>> {
        loop {
            let (prompt, delta) = match self.next_delta().await? {
                Ok(next) => next,
                Err(error) => return Some(Err(error)),
            };
            if let Some(news) = self.news(prompt, delta) {
                return Some(Ok(news));
            }
        }
    }

    /// All of every choice.
    ///
    /// # Errors
    /// Why the request ended early.
    pub(super) async fn whole(&mut self) -> Result<Vec<News>, Error> {
        let empty = |index| News {
            index,
            ..News::default()
        };
        let mut all: Vec<News> = (0..self.choices.len() as u32).map(empty).collect();
        while let Some(news) = self.next().await {
            let news = news?;
            all[news.index as usize].merge(news);
        }
        Ok(all)
    }

    async fn next_delta(&mut self) -> Option<Result<(usize, Delta), Error>> {
        let (prompts, turn) = (&mut self.prompts, &mut self.turn);
        poll_fn(|context| {
            let count = prompts.len();
            let mut waits = false;
            for i in 0..count {
                let at = (*turn + i) % count;
                let Some(deltas) = prompts[at].as_mut() else {
                    continue;
                };
                match Pin::new(deltas).poll_next(context) {
                    Poll::Pending => waits = true,
                    Poll::Ready(None) => prompts[at] = None,
                    Poll::Ready(Some(Ok(delta))) => {
                        *turn = at + 1;
                        return Poll::Ready(Some(Ok((at, delta))));
                    }
                    Poll::Ready(Some(Err(error))) => {
                        // The others end with it.
                        prompts.clear();
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
            if waits {
                Poll::Pending
            } else {
                Poll::Ready(None)
            }
        })
        .await
    }

    /// What a delta has to tell; `None` when that can wait.
    fn news(&mut self, prompt: usize, delta: Delta) -> Option<News> {
        let index = prompt as u32 * self.n + delta.index;
        if let Some(finish) = &delta.finish {
            self.counts.add(finish, delta.index == 0);
        }
        let choice = &mut self.choices[index as usize];
        let wanted = self.details.of_tokens();
        let has_tokens = !delta.tokens.is_empty();
        let tokens = delta.prompt.into_iter().chain(delta.tokens);
        let mut news = News {
            index,
            prompt_ids: choice.prompt_ids.take(),
            text: delta.text,
            tokens: Vec::new(),
            finish: delta.finish,
        };
        if wanted {
            let said = tokens.map(|token| said(&self.pieces, &mut choice.last, token));
            news.tokens = said.collect();
        }
        if let Some(mut held) = choice.held.take() {
            held.merge(news);
            news = held;
        }
        if self.details.echo && self.details.logprobs && !has_tokens && news.finish.is_none() {
            choice.held = Some(news);
            return None;
        }
        let empty = news.text.is_empty()
            && news.tokens.is_empty()
            && news.prompt_ids.is_none()
            && news.finish.is_none();
        (!empty).then_some(news)
    }
}

fn said(pieces: &Pieces, last: &mut Option<u32>, token: GeneratedToken) -> Said {
    let before = last.replace(token.id);
    let top = token.top_logprobs.iter();
    Said {
        bytes: pieces.piece(before, token.id),
        top_bytes: top.map(|&(id, _)| pieces.piece(before, id)).collect(),
        token,
    }
}
