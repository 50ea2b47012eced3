//! `decoder-service chat`: a conversation with a server's model, by its chat template.

use std::io::{BufRead, Write};

use clap::Args;
use minijinja::Value;

use super::{
    Format, Output, SamplingArgs, Summary,
    server::{Server, ServerArgs},
};
use crate::{chat::Conversation, error::Error, request::Prompt};

/// The flags of `decoder-service chat`.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// Which server.
    #[command(flatten)]
    pub server: ServerArgs,

    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Shade every token by the length of the f-gram whose row was the input that chose it.
    #[arg(long)]
    pub color: bool,
}

fn message(role: &str, content: &str) -> Value {
    Value::from_iter([("role", role), ("content", content)])
}

/// Reads a message a line from `input` and streams each answer to `out`, until the input ends or
/// says `/exit`; `/clear` begins anew. Prompts and summaries go to `summary`.
///
/// # Errors
/// When the server cannot be reached, refuses a conversation, or ends early; when the terminal
/// cannot be read or written.
pub async fn run(
    args: &ChatArgs,
    input: &mut (dyn BufRead + Send),
    out: &mut (dyn Write + Send),
    summary: &mut (dyn Write + Send),
) -> Result<(), Error> {
    let mut server = Server::reach(&args.server).await?;
    let beginning: Vec<Value> = args.system.iter().map(|s| message("system", s)).collect();
    let mut messages = beginning.clone();
    let mut line = String::new();
    loop {
        write!(summary, "> ")
            .and_then(|()| summary.flush())
            .map_err(Error::Output)?;
        line.clear();
        if input.read_line(&mut line).map_err(Error::Input)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => continue,
            "/exit" => return Ok(()),
            "/clear" => {
                messages.clone_from(&beginning);
                continue;
            }
            text => messages.push(message("user", text)),
        }
        let answer = answer(args, &mut server, &messages, out, summary).await?;
        messages.push(message("assistant", &answer));
    }
}

async fn answer(
    args: &ChatArgs,
    server: &mut Server,
    messages: &[Value],
    out: &mut (dyn Write + Send),
    summary: &mut (dyn Write + Send),
) -> Result<String, Error> {
    let seed = args.sampling.seed();
    let conversation = Conversation {
        messages: messages.to_vec(),
        ..Conversation::default()
    };
    let draft = args.sampling.draft(Prompt::Chat(conversation), seed);
    let mut generation = server.generate(&args.server, draft).await?;
    let mut output = Output::new(Format::of(args.color, false), out, summary);
    while let Some(delta) = generation.next().await? {
        output.delta(delta)?;
    }
    let answer = output.text().to_owned();
    let mode = server.embed_mode.clone();
    output.finish(&Summary { seed, mode })?;
    Ok(answer)
}
