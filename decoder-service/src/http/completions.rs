//! `POST /v1/completions`.

use serde_json::Value;

use super::{
    answer::Details, error::Refusal, fields::Fields, generate::Generation, respond::Delivery,
    write::Endpoint,
};
use crate::request::{Draft, Prompt};

/// Tokens generated when a request does not say; OpenAI's default.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Most prompts of one request; what runs and waits at one time is bounded by the engine.
const MAX_PROMPTS: usize = 1024;

/// Reads a request.
pub(super) fn read(mut fields: Fields) -> Result<Generation, Refusal> {
    let f = &mut fields;
    if f.take::<String>("suffix")?
        .is_some_and(|suffix| !suffix.is_empty())
    {
        let problem = "is not possible here: the model writes forwards only";
        return Err(Refusal::field("suffix", problem));
    }
    let prompts = prompts(f)?;
    let logprobs: Option<u32> = f.take("logprobs")?;
    let echo = f.is_set("echo")?;
    let draft = Draft {
        max_tokens: Some(f.take("max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS)),
        logprobs,
        echo: Some(echo),
        ..f.draft()?
    };
    Ok(Generation {
        endpoint: Endpoint::Completions,
        n: draft.n.unwrap_or(1),
        details: Details {
            logprobs: logprobs.is_some(),
            echo,
            ..Details::read(f)?
        },
        delivery: Delivery::read(f)?,
        model: f.take("model")?,
        drafts: prompts
            .into_iter()
            .map(|prompt| Draft {
                prompt: Some(prompt),
                ..draft.clone()
            })
            .collect(),
    })
}

/// A text, a list of texts, token ids, or lists of token ids.
fn prompts(fields: &mut Fields) -> Result<Vec<Prompt>, Refusal> {
    let prompts = match fields.take::<Value>("prompt")? {
        None => {
            let problem = "is missing; a text, token ids, or a list of these is needed";
            return Err(Refusal::field("prompt", problem));
        }
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            vec![ids(list)?]
        }
        Some(Value::Array(list)) => list.into_iter().map(one).collect::<Result<_, _>>()?,
        Some(text) => vec![one(text)?],
    };
    match prompts.len() {
        0 => Err(Refusal::field("prompt", "is an empty list")),
        1..=MAX_PROMPTS => Ok(prompts),
        many => Err(Refusal::field(
            "prompt",
            format!("has {many} prompts; at most {MAX_PROMPTS} are allowed"),
        )),
    }
}

/// A text or token ids.
pub(super) fn one(value: Value) -> Result<Prompt, Refusal> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(list) => ids(list),
        _ => Err(Refusal::field(
            "prompt",
            "has something that is neither a text nor a list of token ids",
        )),
    }
}

fn ids(list: Vec<Value>) -> Result<Prompt, Refusal> {
    let ids = list.iter().map(|value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Refusal::field("prompt", "has something in a list that is no token id"))
    });
    Ok(Prompt::Ids(ids.collect::<Result<_, _>>()?))
}
