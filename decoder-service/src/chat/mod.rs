//! Conversations as text: the model's chat template, rendered as `transformers` does.
//!
//! A template is Jinja, with blocks trimmed on both sides, the loop controls `break` and
//! `continue`, the methods of Python's strings and dictionaries, and four names of
//! `transformers`: `raise_exception`, `strftime_now`, the filter `tojson` (Python's `json.dumps`,
//! without HTML escapes), and the block `generation`, which marks what training learns and means
//! nothing here. Times are UTC.

mod functions;
mod load;
mod strftime;

use std::collections::BTreeMap;

use minijinja::{Environment, ErrorKind, Value, context};

pub use load::load;

/// Names of the two templates a model may have.
const PLAIN: &str = "chat_template";
const WITH_TOOLS: &str = "chat_template_with_tools";

/// What was said so far, and what to make of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Maps with at least `role`, as the template reads them; at least one.
    pub messages: Vec<Value>,
    /// Functions the model may call, for templates that write them down.
    pub tools: Option<Value>,
    /// End with the words that begin an answer. Default: yes.
    pub add_generation_prompt: Option<bool>,
    /// End inside the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// Further variables of the template, by name.
    pub variables: BTreeMap<String, Value>,
}

impl Conversation {
    /// About how many bytes it has, to know whether rendering takes long.
    pub fn size(&self) -> usize {
        self.messages.iter().map(|one| text_of(one).len()).sum()
    }
}

/// The text of a message; empty when its content is none.
fn text_of(message: &Value) -> String {
    let content = message.get_attr("content").unwrap_or_default();
    content.as_str().unwrap_or_default().to_owned()
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token`, `eos_token` and so on, as text.
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// A template from its source, and another for conversations with tools, if there is one.
    ///
    /// # Errors
    /// Where the source is wrong.
    pub fn new(
        plain: &str,
        with_tools: Option<&str>,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, minijinja::Error> {
        let mut environment = functions::environment();
        environment.add_template_owned(PLAIN, without_generation_blocks(plain))?;
        if let Some(source) = with_tools {
            environment.add_template_owned(WITH_TOOLS, without_generation_blocks(source))?;
        }
        Ok(Self {
            environment,
            source: plain.to_owned(),
            special_tokens,
        })
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// What the template says against it, in a line.
    pub fn render(&self, conversation: &Conversation) -> Result<String, String> {
        let name = match &conversation.tools {
            Some(_) if self.environment.get_template(WITH_TOOLS).is_ok() => WITH_TOOLS,
            _ => PLAIN,
        };
        let continues = conversation.continue_final_message;
        let add_generation_prompt = conversation.add_generation_prompt.unwrap_or(!continues);
        if continues && add_generation_prompt {
            return Err("cannot both continue the last message and begin another".to_owned());
        }
        let conversation_variables = context! {
            messages => conversation.messages,
            tools => conversation.tools,
            add_generation_prompt,
        };
        let variables = context! {
            ..conversation_variables,
            ..Value::from_serialize(&conversation.variables),
            ..Value::from_serialize(&self.special_tokens)
        };
        let template = self.environment.get_template(name);
        let rendered = template.and_then(|template| template.render(variables));
        let text = rendered.map_err(|error| problem(&error))?;
        match conversation.messages.last() {
            Some(last) if continues => up_to_the_end_of(&text_of(last), text),
            _ => Ok(text),
        }
    }
}

/// What a template said itself, else where it failed.
fn problem(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail(), error.line()) {
        (ErrorKind::InvalidOperation, Some(detail), _) if detail.starts_with(functions::RAISED) => {
            let said = detail.trim_start_matches(functions::RAISED);
            format!("are refused by the chat template: {said}")
        }
        (kind, detail, line) => format!(
            "do not fit the chat template: {kind}{}{}",
            detail.map(|d| format!(" ({d})")).unwrap_or_default(),
            line.map(|l| format!(" in line {l} of it"))
                .unwrap_or_default(),
        ),
    }
}

/// The rendered text without what the template writes after the last message.
fn up_to_the_end_of(last: &str, mut text: String) -> Result<String, String> {
    let trimmed = last.trim();
    let found = text.rfind(last).map(|at| at + last.len());
    // Most templates trim what is said.
    let found = found.or_else(|| text.rfind(trimmed).map(|at| at + trimmed.len()));
    match found {
        Some(end) if !trimmed.is_empty() => {
            text.truncate(end);
            Ok(text)
        }
        _ => Err("end with a message whose text cannot be continued".to_owned()),
    }
}

/// `{% generation %}` … `{% endgeneration %}` as a block that is always rendered, with its
/// whitespace control.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let name = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let block = match name {
            "generation" => inside.replace(name, " if true "),
            "endgeneration" => inside.replace(name, " endif "),
            _ => inside.to_owned(),
        };
        out.push_str("{%");
        out.push_str(&block);
        out.push_str("%}");
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
