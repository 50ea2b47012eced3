//! The chat template of a model directory.

use std::{collections::BTreeMap, io::ErrorKind, path::Path};

use serde::Deserialize;
use serde_json::Value;

use super::ChatTemplate;
use crate::error::Error;

/// `chat_template` of a tokenizer_config.json.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// A token of tokenizer_config.json.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

/// A text file of a model directory; `None` when there is none.
fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(path, error)),
    }
}

fn wrong(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::File {
        action: "read",
        path: path.display().to_string(),
        source: source.into(),
    }
}

/// What `dir` says of its tokenizer and chats: the content of tokenizer_config.json (an empty
/// object without one), and the template of `file`, else chat_template.jinja, else
/// tokenizer_config.json, else none. `special_tokens` stand in for those that the file does not
/// name.
///
/// # Errors
/// A file that cannot be read, or is not what it should be.
pub fn load(
    dir: &Path,
    file: Option<&Path>,
    mut special_tokens: BTreeMap<String, String>,
) -> Result<(Value, Option<ChatTemplate>), Error> {
    let config_path = dir.join("tokenizer_config.json");
    let config: Value = match read(&config_path)? {
        Some(text) => serde_json::from_str(&text).map_err(|error| wrong(&config_path, error))?,
        None => Value::Object(serde_json::Map::new()),
    };
    for (key, value) in config.as_object().into_iter().flatten() {
        if key.ends_with("_token")
            && let Ok(Token::Text(content) | Token::Added { content }) = Token::deserialize(value)
        {
            special_tokens.insert(key.clone(), content);
        }
    }
    let jinja = dir.join("chat_template.jinja");
    let path = file.unwrap_or(&jinja);
    let source = match read(path)? {
        None if file.is_some() => return Err(wrong(path, "no such file")),
        Some(source) => Some((path, source, None)),
        None => of_config(&config, &config_path)?
            .map(|(plain, with_tools)| (config_path.as_path(), plain, with_tools)),
    };
    let Some((path, plain, with_tools)) = source else {
        return Ok((config, None));
    };
    let template = ChatTemplate::new(&plain, with_tools.as_deref(), special_tokens);
    let template = template.map_err(|error| wrong(path, error))?;
    Ok((config, Some(template)))
}

/// The template, and the one for tools, of a tokenizer_config.json.
fn of_config(config: &Value, path: &Path) -> Result<Option<(String, Option<String>)>, Error> {
    let Some(field) = config.get("chat_template").filter(|field| !field.is_null()) else {
        return Ok(None);
    };
    let wrong_field = |problem: &str| wrong(path, format!("chat_template: {problem}"));
    match Templates::deserialize(field) {
        Ok(Templates::One(plain)) => Ok(Some((plain, None))),
        Ok(Templates::Named(named)) => {
            let mut find = BTreeMap::new();
            find.extend(named.into_iter().map(|one| (one.name, one.template)));
            let with_tools = find.remove("tool_use");
            let plain = find.remove("default");
            let plain = plain.ok_or_else(|| wrong_field("has no template named \"default\""))?;
            Ok(Some((plain, with_tools)))
        }
        Err(_) => Err(wrong_field(
            "is neither a text nor a list of named templates",
        )),
    }
}
