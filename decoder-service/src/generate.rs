//! `decoder-service generate`: one generation in the terminal, by the same engine as `serve`.

use std::{io::Write, time::Duration};

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::{
    config::ModelArgs,
    engine::{self, EngineConfig},
    error::Error,
    request::{Draft, Prompt},
    scheduler::Limits,
    startup,
    terminal::{Format, Output, SamplingArgs, Summary},
};

/// Prompt tokens of one step; one sequence has nobody to hold up, but rows come in parts.
const STEP_TOKENS: usize = 256;

/// The flags of `decoder-service generate`.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// Text to continue; several words need no quotes. Empty starts a new text.
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub words: Vec<String>,

    /// Text to continue, as one value.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Model, table and threads.
    #[command(flatten)]
    pub model: ModelArgs,

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

impl GenerateArgs {
    fn format(&self) -> Format {
        Format::of(self.color, self.json)
    }

    fn draft(&self, seed: u64) -> Draft {
        let prompt = match &self.prompt {
            Some(prompt) => prompt.clone(),
            None => self.words.join(" "),
        };
        Draft {
            request_id: "generate".to_owned(),
            echo: Some(self.echo),
            ..self.sampling.draft(Prompt::Text(prompt), seed)
        }
    }
}

/// Generates one text: streams it to `out`, then writes a summary line to `summary`.
///
/// # Errors
/// When the model or table cannot be used, the request is refused, or a look-up fails.
pub async fn run(
    args: &GenerateArgs,
    out: &mut (dyn Write + Send),
    summary: &mut (dyn Write + Send),
) -> Result<(), Error> {
    let config = args.model.check()?;
    let (parts, tier) =
        startup::prepare(&config, Default::default(), CancellationToken::new()).await?;
    let seed = args.sampling.seed();
    let request = args.draft(seed).check(&parts.info, None)?;
    let engine_config = EngineConfig {
        limits: Limits {
            max_batch: 1,
            max_queue: 1,
            max_step_tokens: STEP_TOKENS,
        },
        on_lookup_failure: config.on_lookup_failure,
        // Of one text there is nothing to share, and nobody waits.
        prefix_cache: false,
        step_target: Duration::MAX,
        client_timeout: Duration::MAX,
        stall_time: Duration::MAX,
        max_queue_time: Duration::MAX,
        max_per_client: 1,
    };
    let (engine, _ended) = engine::start(engine_config, parts)?;
    let mut messages = engine.submit(request)?;
    let mut output = Output::new(args.format(), out, summary);
    while let Some(message) = messages.recv().await {
        if output.delta(message?)? {
            let mode = tier.mode().to_owned();
            return output.finish(&Summary { seed, mode });
        }
    }
    Err(Error::Internal)
}
