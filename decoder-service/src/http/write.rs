//! Answers as OpenAI's two endpoints write them: whole, or as chunks of a stream.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{
    answer::{Answer, Details, News},
    logprobs,
};

/// Which endpoint writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/chat/completions`.
    Chat,
}

/// What is the same in all chunks of an answer.
#[derive(Debug)]
pub(super) struct Writer {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
    /// Of each choice.
    choices: Vec<Written>,
}

/// What was written of a choice so far.
#[derive(Clone, Debug, Default)]
struct Written {
    /// Characters of its tokens.
    characters: usize,
    begun: bool,
}

/// Now, as clients get it.
pub(super) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Writer {
    /// For an answer of so many choices.
    pub(super) fn new(endpoint: Endpoint, model: &str, choices: usize) -> Self {
        let prefix = match endpoint {
            Endpoint::Completions => "cmpl",
            Endpoint::Chat => "chatcmpl",
        };
        Self {
            endpoint,
            id: format!("{prefix}-{:032x}", rand::random::<u128>()),
            created: unix_seconds(),
            model: model.to_owned(),
            choices: vec![Written::default(); choices],
        }
    }

    fn envelope(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": null,
            "choices": choices,
        })
    }

    fn chunk_of(&self, choices: Value) -> Value {
        match self.endpoint {
            Endpoint::Completions => self.envelope("text_completion", choices),
            Endpoint::Chat => self.envelope("chat.completion.chunk", choices),
        }
    }

    /// The chunks of some news; a choice's first has the role of who speaks.
    pub(super) fn chunks(&mut self, details: &Details, news: &News) -> Vec<Value> {
        let first = !self.choices[news.index as usize].begun;
        self.choices[news.index as usize].begun = true;
        let choice = self.choice(details, news, true);
        let mut chunks = Vec::with_capacity(2);
        if first && self.endpoint == Endpoint::Chat {
            chunks.push(self.chunk_of(json!([{
                "index": news.index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": null,
                "finish_reason": null,
            }])));
        }
        chunks.push(self.chunk_of(json!([choice])));
        chunks
    }

    /// The chunk with the counts, which has no choices.
    pub(super) fn usage_chunk(&self, answer: &Answer) -> Value {
        let mut chunk = self.chunk_of(json!([]));
        chunk["usage"] = answer.counts().json();
        chunk
    }

    /// The whole answer.
    pub(super) fn whole(&mut self, answer: &Answer, all: &[News]) -> Value {
        let details = answer.details();
        let choices = all.iter().map(|news| self.choice(details, news, false));
        let choices: Value = choices.collect();
        let mut whole = match self.endpoint {
            Endpoint::Completions => self.envelope("text_completion", choices),
            Endpoint::Chat => self.envelope("chat.completion", choices),
        };
        whole["usage"] = answer.counts().json();
        whole
    }

    /// A choice of a chunk, or of a whole answer.
    fn choice(&mut self, details: &Details, news: &News, chunk: bool) -> Value {
        let characters = &mut self.choices[news.index as usize].characters;
        let logprobs = match (details.logprobs, self.endpoint) {
            (false, _) => Value::Null,
            (true, Endpoint::Completions) => logprobs::of_completion(details, news, characters),
            (true, Endpoint::Chat) => logprobs::of_chat(details, news),
        };
        let mut choice = json!({
            "index": news.index,
            "logprobs": logprobs,
            "finish_reason": news.finish_reason(),
            "stop_reason": news.stop_reason(),
        });
        match (self.endpoint, chunk) {
            (Endpoint::Completions, _) => choice["text"] = json!(news.text),
            // The last chunk may have nothing to add.
            (Endpoint::Chat, true) if news.text.is_empty() => choice["delta"] = json!({}),
            (Endpoint::Chat, true) => choice["delta"] = json!({"content": news.text}),
            (Endpoint::Chat, false) => {
                choice["message"] =
                    json!({"role": "assistant", "content": news.text, "refusal": null});
            }
        }
        news.add_lists(details, &mut choice);
        choice
    }
}
