//! The flags of one text in a terminal, whoever generates it.

use clap::Args;

use super::{Format, SamplingArgs};
use crate::request::{Draft, Prompt};

/// What to continue, how, and how to show it.
#[derive(Args, Clone, Debug)]
pub struct TextArgs {
    /// Text to continue; several words need no quotes. Empty starts a new text.
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub words: Vec<String>,

    /// Text to continue, as one value.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Print the prompt before its continuation.
    #[arg(long)]
    pub echo: bool,

    /// Shade every token by the length of the f-gram whose row was the input that chose it.
    #[arg(long, conflicts_with = "json")]
    pub color: bool,

    /// Print one JSON object at the end instead of streamed text and a summary.
    #[arg(long)]
    pub json: bool,

    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

impl TextArgs {
    /// How the text is shown.
    pub fn format(&self) -> Format {
        Format::of(self.color, self.json)
    }

    /// A request for it.
    pub fn draft(&self, seed: u64) -> Draft {
        let prompt = match &self.prompt {
            Some(prompt) => prompt.clone(),
            None => self.words.join(" "),
        };
        Draft {
            echo: Some(self.echo),
            ..self.sampling.draft(Prompt::Text(prompt), seed)
        }
    }
}
