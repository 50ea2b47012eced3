//! `decoder-service client`: one generation by a server.

use std::io::Write;

use clap::Args;

use super::{
    Format, Output, SamplingArgs, Summary,
    server::{Server, ServerArgs},
};
use crate::{
    error::Error,
    request::{Draft, Prompt},
};

/// The flags of `decoder-service client`.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// Text to continue; several words need no quotes. Empty starts a new text.
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub words: Vec<String>,

    /// Text to continue, as one value.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Which server.
    #[command(flatten)]
    pub server: ServerArgs,

    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// Print the prompt before its continuation.
    #[arg(long)]
    pub echo: bool,

    /// Shade every token by the length of the f-gram whose row was the input that chose it.
    #[arg(long, conflicts_with = "json")]
    pub color: bool,

    /// Print one JSON object at the end instead of streamed text and a summary.
    #[arg(long)]
    pub json: bool,
}

/// Has a server generate one text: streams it to `out`, then writes a summary line to `summary`.
///
/// # Errors
/// When the server cannot be reached, refuses, or ends early.
pub async fn run(
    args: &ClientArgs,
    out: &mut (dyn Write + Send),
    summary: &mut (dyn Write + Send),
) -> Result<(), Error> {
    let mut server = Server::reach(&args.server).await?;
    let seed = args.sampling.seed();
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => args.words.join(" "),
    };
    let draft = Draft {
        echo: Some(args.echo),
        ..args.sampling.draft(Prompt::Text(prompt), seed)
    };
    let mut generation = server.generate(&args.server, draft).await?;
    let mut output = Output::new(Format::of(args.color, args.json), out, summary);
    while let Some(delta) = generation.next().await? {
        output.delta(delta)?;
    }
    let mode = server.embed_mode;
    output.finish(&Summary { seed, mode })
}
