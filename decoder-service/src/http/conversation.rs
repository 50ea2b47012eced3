//! `POST /v1/chat/completions`, and what other endpoints read of conversations.

use std::collections::BTreeMap;

use minijinja::{Value, value::ValueKind};
use serde::Deserialize;

use super::{
    answer::Details, error::Refusal, fields::Fields, generate::Generation, respond::Delivery,
    write::Endpoint,
};
use crate::{
    chat::Conversation,
    request::{Draft, Prompt},
};

/// What templates see. Read apart from the other fields, since the order of names counts there.
#[derive(Deserialize)]
struct Seen {
    #[serde(default)]
    messages: Option<Vec<Value>>,
    #[serde(default)]
    tools: Option<Value>,
    #[serde(default)]
    documents: Option<Value>,
    #[serde(default)]
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
}

/// Reads a request; `body` is what `fields` are from.
pub(super) fn read(mut fields: Fields, body: &[u8]) -> Result<Generation, Refusal> {
    let f = &mut fields;
    let conversation = conversation(f, body)?;
    let max_tokens: Option<u32> = f.take("max_tokens")?;
    let logprobs = f.is_set("logprobs")?;
    let top: Option<u32> = f.take("top_logprobs")?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        let problem = "needs logprobs to be true";
        return Err(Refusal::field("top_logprobs", problem));
    }
    let draft = Draft {
        prompt: Some(Prompt::Chat(conversation)),
        max_tokens: f.take("max_completion_tokens")?.or(max_tokens),
        logprobs: logprobs.then_some(top.unwrap_or(0)),
        ..f.draft()?
    };
    Ok(Generation {
        endpoint: Endpoint::Chat,
        n: draft.n.unwrap_or(1),
        details: Details {
            logprobs,
            ..Details::read(f)?
        },
        delivery: Delivery::read(f)?,
        model: f.take("model")?,
        drafts: vec![draft],
    })
}

/// The conversation of a request.
pub(super) fn conversation(fields: &mut Fields, body: &[u8]) -> Result<Conversation, Refusal> {
    fields.refuse("chat_template", "cannot be chosen by a request")?;
    match fields.take::<serde_json::Value>("tool_choice")? {
        None => {}
        Some(choice) if choice == "auto" || choice == "none" => {}
        Some(_) => {
            let problem = "can be \"auto\" or \"none\": calls are not enforced, and come as text";
            return Err(Refusal::field("tool_choice", problem));
        }
    }
    let seen: Seen = serde_json::from_slice(body).map_err(|error| {
        Refusal::field(
            "messages",
            format!("(or tools, documents) cannot be read: {error}"),
        )
    })?;
    let messages = seen.messages.unwrap_or_default();
    let messages = messages.into_iter().enumerate();
    let messages = messages.map(|(i, message)| plain_content(i, message));
    let mut variables = seen.chat_template_kwargs.unwrap_or_default();
    if let Some(documents) = seen.documents {
        variables.insert("documents".to_owned(), documents);
    }
    Ok(Conversation {
        messages: messages.collect::<Result<_, _>>()?,
        tools: seen.tools.filter(|tools| !tools.is_none()),
        add_generation_prompt: fields.take("add_generation_prompt")?,
        continue_final_message: fields.is_set("continue_final_message")?,
        variables,
    })
}

/// A message whose content, if it came in parts, is one text; templates of text models read that.
fn plain_content(index: usize, message: Value) -> Result<Value, Refusal> {
    let wrong = |problem: &str| {
        let problem = format!("has at {index} {problem}");
        Refusal::field("messages", problem)
    };
    if message.kind() != ValueKind::Map {
        return Err(wrong("something that is no object"));
    }
    let get = |name: &str| message.get_attr(name).unwrap_or_default();
    if get("role").as_str().is_none() {
        return Err(wrong("a message without a role"));
    }
    let content = get("content");
    if content.kind() != ValueKind::Seq {
        return Ok(message);
    }
    let mut text = Vec::new();
    for part in content.try_iter().into_iter().flatten() {
        let field = |name: &str| part.get_attr(name).unwrap_or_default();
        match (field("type").as_str(), field("text").as_str()) {
            (Some("text"), Some(part)) => text.push(part.to_owned()),
            _ => return Err(wrong("a part that is no text; the model reads only text")),
        }
    }
    let text = Value::from(text.join("\n"));
    let keys = message.try_iter().into_iter().flatten();
    Ok(Value::from_iter(keys.map(|key| {
        let name = key.as_str().unwrap_or_default().to_owned();
        let value = match name.as_str() {
            "content" => text.clone(),
            _ => message.get_item(&key).unwrap_or_default(),
        };
        (name, value)
    })))
}
