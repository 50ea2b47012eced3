//! What a client asks for, checked: every limit is enforced here, before any work is queued.

use std::{collections::HashMap, sync::Arc, time::Instant};

use scone_model::sampling::SamplingParams;
use scone_proto::TraceContext;

use crate::{
    chat::Conversation, client::Client, embed_tier::TableName, error::Error, keys::Key,
    model::ModelInfo, traces::RequestTrace, turns::Turn,
};

/// Most stop strings of a request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// Most stop token ids of a request.
pub const MAX_STOP_TOKEN_IDS: usize = 64;
/// Most completions of a request.
pub const MAX_N: u32 = 16;
/// Longest request id in characters.
pub const MAX_REQUEST_ID_CHARS: usize = 128;

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, for the model's own tokenizer.
    Text(String),
    /// Token ids as they are.
    Ids(Vec<u32>),
    /// A conversation, for the model's own chat template and tokenizer.
    Chat(Conversation),
}

impl Prompt {
    /// Bytes of text to tokenise.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Chat(conversation) => conversation.size(),
            Self::Ids(_) => 0,
        }
    }
}

/// A request as it came: nothing is checked, absent fields are `None`.
/// Fields are those of `scone.decoder.v1.GenerateRequest`.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "documented in decoder.proto")]
pub struct Draft {
    pub request_id: String,
    pub prompt: Option<Prompt>,
    /// Whether the tokenizer adds its special tokens to a text; by default it does, but for
    /// conversations, whose template writes them.
    pub add_special_tokens: Option<bool>,
    pub max_tokens: Option<u32>,
    pub min_tokens: Option<u32>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: Option<bool>,
    pub seed: Option<u64>,
    pub n: Option<u32>,
    pub logprobs: Option<u32>,
    pub echo: Option<bool>,
    pub logit_bias: HashMap<u32, f32>,
    pub table: Option<String>,
    /// The last position of the prompt gets the token embedding, whatever f-gram ends there: what the
    /// model would have said without its row. One token is generated; no request has this field.
    pub token_embedding_at_end: bool,
    /// Who asks, as the server sees it.
    pub client: Option<Client>,
    /// How it is known when it comes back after a refusal.
    pub turn: Option<Turn>,
    /// The key that came with it.
    pub key: Option<Arc<Key>>,
    /// The caller's span.
    pub caller: Option<TraceContext>,
}

/// A request that can be served.
#[derive(Clone, Debug)]
pub struct Request {
    /// For logs.
    pub id: String,
    /// At least one id, all in the vocabulary; leaves room for a token in the context, if one is wanted.
    pub prompt_ids: Vec<u32>,
    /// The prompt's text, when it is to be sent back.
    pub echo: Option<String>,
    /// Whether the prompt's tokens are scored and sent back: it is echoed, with log probabilities.
    pub scores_prompt: bool,
    /// Number of completions.
    pub n: u32,
    /// Completion `i` uses `seed + i`.
    pub seed: u64,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopConditions,
    /// When the request came in.
    pub arrived: Instant,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Whose rows it uses.
    pub table: TableChoice,
    /// The last position of the prompt gets the token embedding. Then one token is generated.
    pub token_embedding_at_end: bool,
    /// Whose share of the places it counts towards.
    pub client: Option<Client>,
    /// How it is known when it comes back after a refusal.
    pub turn: Option<Turn>,
    /// The caller's span.
    pub caller: Option<TraceContext>,
    /// Its own, when it is traced.
    pub trace: Option<Arc<RequestTrace>>,
}

/// Whose f-gram rows a request uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableChoice {
    /// Nobody's: the token embedding at every position.
    None,
    /// Those of this table.
    Named(TableName),
}

impl Default for TableChoice {
    fn default() -> Self {
        Self::Named(TableName::default())
    }
}

impl TableChoice {
    /// Reads a name as requests have it. Whether there is such a table is for others to find.
    ///
    /// # Errors
    /// [`Error::UnknownTable`] for what no table can be called.
    pub fn read(text: Option<&str>) -> Result<Self, Error> {
        match text.unwrap_or_default() {
            none if TableName::is_none(none) => Ok(Self::None),
            text => match text.parse() {
                Ok(name) => Ok(Self::Named(name)),
                Err(_) => Err(Error::UnknownTable(text.chars().take(64).collect())),
            },
        }
    }

    /// What is told when there is no such table.
    pub fn unknown(&self) -> Error {
        Error::UnknownTable(match self {
            Self::None => String::new(),
            Self::Named(name) => name.to_string(),
        })
    }
}

/// When a completion ends.
#[derive(Clone, Debug)]
pub struct StopConditions {
    /// No more than the context leaves; 0 when the prompt is all that is wanted.
    pub max_tokens: u32,
    /// No stop before this many tokens.
    pub min_tokens: u32,
    /// Stop tokens of the request, and end-of-text unless it is ignored.
    pub token_ids: Vec<u32>,
    /// Stop strings, none empty.
    pub strings: Arc<[String]>,
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Error {
    Error::InvalidField {
        field,
        problem: problem.into(),
    }
}

impl Draft {
    /// Checks every field against its limit and fills in the model's defaults.
    ///
    /// # Errors
    /// [`Error::InvalidField`] for the first field outside its limit.
    pub fn check(self, model: &ModelInfo, deadline: Option<Instant>) -> Result<Request, Error> {
        let arrived = Instant::now();
        if self.request_id.chars().count() > MAX_REQUEST_ID_CHARS {
            return Err(invalid(
                "request_id",
                format!("has more than {MAX_REQUEST_ID_CHARS} characters"),
            ));
        }
        let n = self.n.unwrap_or(1);
        if !(1..=MAX_N).contains(&n) {
            return Err(invalid("n", format!("is {n}; allowed is 1 to {MAX_N}")));
        }
        let table = TableChoice::read(self.table.as_deref())?;
        // Cheap checks come first: a prompt of megabytes is not tokenised for nothing.
        let sampling = self.sampling(model)?;
        self.check_stop(model)?;
        let prompt_ids = self.prompt_ids(model)?;
        let mut stop = self.stop_conditions(model, prompt_ids.len())?;
        if self.token_embedding_at_end {
            stop.max_tokens = 1;
        }
        let echo = match (self.echo.unwrap_or(false), &self.prompt) {
            (false, _) => None,
            (true, Some(Prompt::Text(text))) => Some(text.clone()),
            (true, _) => Some(model.decode(&prompt_ids)?),
        };
        Ok(Request {
            prompt_ids,
            scores_prompt: echo.is_some() && sampling.logprobs.is_some(),
            echo,
            n,
            seed: self.seed.unwrap_or_else(rand::random),
            sampling,
            stop,
            arrived,
            deadline,
            table,
            token_embedding_at_end: self.token_embedding_at_end,
            client: self.client,
            turn: self.turn,
            caller: self.caller,
            trace: None,
            id: self.request_id,
        })
    }

    /// Bytes of text to tokenise.
    pub fn text_bytes(&self) -> usize {
        self.prompt.as_ref().map_or(0, Prompt::text_bytes)
    }

    /// Tokens of the context that are kept for the completion, at least.
    fn room_for_new(&self) -> usize {
        let prompt_alone = self.max_tokens == Some(0) && self.echo == Some(true);
        usize::from(!prompt_alone)
    }

    fn prompt_ids(&self, model: &ModelInfo) -> Result<Vec<u32>, Error> {
        let most = model.context_tokens - self.room_for_new();
        let (field, mut ids) = match &self.prompt {
            None => return Err(invalid("prompt", "is missing; set text or token_ids")),
            Some(Prompt::Text(text)) => {
                let special = self.add_special_tokens.unwrap_or(true);
                check_length("text", text, most, model)?;
                ("text", model.encode(text, special)?)
            }
            Some(Prompt::Ids(ids)) => ("token_ids", ids.clone()),
            Some(Prompt::Chat(conversation)) => {
                let special = self.add_special_tokens.unwrap_or(false);
                let text = model.render(conversation)?;
                check_length("messages", &text, most, model)?;
                ("messages", model.encode(&text, special)?)
            }
        };
        if ids.is_empty() {
            let bos = model.bos_token_id.ok_or_else(|| {
                invalid(
                    field,
                    "is empty, and the model has no beginning-of-text token to start from",
                )
            })?;
            ids.push(bos);
        }
        if ids.len() > most {
            let (len, context) = (ids.len(), model.context_tokens);
            let bound = match model.context_bound {
                Some(flag) => format!(", which {flag} bounds,"),
                None => String::new(),
            };
            return Err(invalid(
                field,
                format!(
                    "has {len} tokens; the context of {context}{bound} allows {most}{}",
                    and_new(most, model)
                ),
            ));
        }
        in_vocabulary(field, &ids, model)?;
        Ok(ids)
    }

    fn check_stop(&self, model: &ModelInfo) -> Result<(), Error> {
        if self.stop.len() > MAX_STOP_STRINGS {
            let got = self.stop.len();
            return Err(invalid(
                "stop",
                format!("has {got} strings; at most {MAX_STOP_STRINGS} are allowed"),
            ));
        }
        for stop in &self.stop {
            if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
                let got = stop.len();
                return Err(invalid(
                    "stop",
                    format!("has a string of {got} bytes; allowed is 1 to {MAX_STOP_BYTES}"),
                ));
            }
        }
        if self.stop_token_ids.len() > MAX_STOP_TOKEN_IDS {
            let got = self.stop_token_ids.len();
            return Err(invalid(
                "stop_token_ids",
                format!("has {got} ids; at most {MAX_STOP_TOKEN_IDS} are allowed"),
            ));
        }
        in_vocabulary("stop_token_ids", &self.stop_token_ids, model)
    }

    fn stop_conditions(&self, model: &ModelInfo, prompt: usize) -> Result<StopConditions, Error> {
        let left = (model.context_tokens - prompt) as u32;
        let max_tokens = match self.max_tokens.or(model.defaults.max_new_tokens) {
            Some(0) if self.echo != Some(true) => {
                let problem = "is 0; at least 1 is allowed, or 0 with echo";
                return Err(invalid("max_tokens", problem));
            }
            Some(most) => most.min(left),
            None => left,
        };
        let min_tokens = self.min_tokens.unwrap_or(0);
        if min_tokens > max_tokens {
            return Err(invalid(
                "min_tokens",
                format!("is {min_tokens}; at most {max_tokens} tokens will be generated"),
            ));
        }
        let mut token_ids = self.stop_token_ids.clone();
        if !self.ignore_eos.unwrap_or(false) {
            token_ids.extend(&model.eos_token_ids);
        }
        Ok(StopConditions {
            max_tokens,
            min_tokens,
            token_ids,
            strings: self.stop.clone().into(),
        })
    }

    fn sampling(&self, model: &ModelInfo) -> Result<SamplingParams, Error> {
        let defaults = &model.defaults.sampling;
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            logprobs: self.logprobs,
            logit_bias: self
                .logit_bias
                .iter()
                .map(|(&id, &bias)| (id, bias))
                .collect(),
        };
        match params.validate(model.vocab_size) {
            Ok(()) => Ok(params),
            Err(scone_model::Error::Sampling { field, reason }) => Err(invalid(field, reason)),
            Err(other) => Err(other.into()),
        }
    }
}

/// Refuses a text that is too long for the context however it is cut into tokens, before it is.
fn check_length(
    field: &'static str,
    text: &str,
    tokens: usize,
    model: &ModelInfo,
) -> Result<(), Error> {
    let Some(longest) = model.longest_token else {
        return Ok(());
    };
    let most = tokens.saturating_mul(longest);
    if text.len() <= most {
        return Ok(());
    }
    let (bytes, context) = (text.len(), model.context_tokens);
    Err(invalid(
        field,
        format!(
            "has {bytes} bytes; the context of {context} allows {tokens} tokens{}, at most {most} bytes \
             of text",
            and_new(tokens, model)
        ),
    ))
}

/// What the context allows beside a prompt of so many tokens, in words.
fn and_new(prompt: usize, model: &ModelInfo) -> &'static str {
    match prompt < model.context_tokens {
        true => " and one new token",
        false => "",
    }
}

fn in_vocabulary(field: &'static str, ids: &[u32], model: &ModelInfo) -> Result<(), Error> {
    match ids.iter().find(|&&id| id as usize >= model.vocab_size) {
        None => Ok(()),
        Some(id) => Err(invalid(
            field,
            format!("has the id {id}; ids are below {}", model.vocab_size),
        )),
    }
}
