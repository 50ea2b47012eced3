//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM and
//! lm-evaluation-harness have them.

use serde::Serialize;
use serde_json::{Value, json};

use super::{conversation, error::Refusal, fields::Fields};
use crate::{error::Error, model::ModelInfo, request::Prompt};

/// The answer of `POST /tokenize`. As JSON in memory the ids of a long text would take a dozen times as much.
#[derive(Serialize)]
struct Tokens<'a> {
    count: usize,
    max_model_len: usize,
    tokens: &'a [u32],
    token_strs: Option<Vec<Option<String>>>,
}

/// A request of `POST /tokenize`.
pub(super) struct Tokenize {
    prompt: Prompt,
    special: Option<bool>,
    with_texts: bool,
}

impl Tokenize {
    /// Reads a request: a `prompt`, or `messages` for the chat template.
    pub(super) fn read(mut fields: Fields, body: &[u8]) -> Result<Self, Refusal> {
        let special = fields.take("add_special_tokens")?;
        let with_texts = fields.is_set("return_token_strs")?;
        let prompt = match fields.take("prompt")? {
            Some(text) => Prompt::Text(text),
            None if fields.has("messages") => {
                Prompt::Chat(conversation::conversation(&mut fields, body)?)
            }
            None => return Err(Refusal::field("prompt", "is missing, and messages too")),
        };
        Ok(Self {
            prompt,
            special,
            with_texts,
        })
    }

    /// Bytes of text to tokenise.
    pub(super) fn text_bytes(&self) -> usize {
        self.prompt.text_bytes()
    }

    /// The ids, as JSON. Special tokens written in the text are one id each. A text may be longer than the
    /// context: tools cut what they evaluate themselves.
    pub(super) fn answer(self, model: &ModelInfo) -> Result<String, Refusal> {
        let ids = match self.prompt {
            Prompt::Text(text) => model.encode(&text, self.special.unwrap_or(true)),
            Prompt::Chat(conversation) => model
                .render(&conversation)
                .and_then(|text| model.encode(&text, self.special.unwrap_or(false))),
            Prompt::Ids(ids) => Ok(ids),
        };
        let ids = ids?;
        let text = |&id: &u32| model.tokenizer.id_to_token(id);
        let tokens = Tokens {
            count: ids.len(),
            max_model_len: model.context_tokens,
            tokens: &ids,
            token_strs: self.with_texts.then(|| ids.iter().map(text).collect()),
        };
        serde_json::to_string(&tokens).map_err(|_| Refusal::from(Error::Internal))
    }
}

/// Reads a request of `POST /detokenize`.
pub(super) fn read_detokenize(mut fields: Fields) -> Result<Vec<u32>, Refusal> {
    let tokens = fields.take("tokens")?;
    tokens.ok_or_else(|| Refusal::field("tokens", "is missing; a list of token ids is needed"))
}

/// The text of token ids, special tokens as they are spelled.
pub(super) fn detokenized(model: &ModelInfo, ids: &[u32]) -> Result<Value, Refusal> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= model.vocab_size) {
        let problem = format!("has the id {id}; ids are below {}", model.vocab_size);
        return Err(Refusal::field("tokens", problem));
    }
    let text = model.tokenizer.decode(ids, false);
    let text = text
        .map_err(|error| Refusal::field("tokens", format!("cannot be written as text: {error}")))?;
    Ok(json!({"prompt": text}))
}

/// tokenizer_config.json, with what clients need of it from elsewhere where it is silent.
pub(super) fn tokenizer_info(model: &ModelInfo) -> Value {
    let token = |id: Option<u32>| id.and_then(|id| model.tokenizer.id_to_token(id));
    let mut info = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context_tokens,
        "bos_token": token(model.bos_token_id),
        "eos_token": token(model.eos_token_ids.first().copied()),
        "pad_token": null,
        "chat_template": null,
    });
    for (key, value) in model.tokenizer_config.as_object().into_iter().flatten() {
        info[key] = value.clone();
    }
    if let Some(template) = &model.chat_template {
        info["chat_template"] = json!(template.source());
    }
    // Clients cut windows to this: what this server takes, whatever the file says.
    info["model_max_length"] = json!(model.context_tokens);
    info
}
