//! `decoder-service generate`: one generation in the terminal, by the same engine as `serve`.

use std::{io::Write, time::Duration};

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::{
    config::ModelArgs,
    engine::{self, EngineConfig},
    error::Error,
    request::Draft,
    scheduler::Limits,
    startup,
    terminal::{Output, Summary, TextArgs},
};

/// Prompt tokens of one step; one sequence has nobody to hold up, but rows come in parts.
const STEP_TOKENS: usize = 256;

/// The flags of `decoder-service generate`.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// What to continue, and how.
    #[command(flatten)]
    pub text: TextArgs,

    /// Model, table and threads.
    #[command(flatten)]
    pub model: ModelArgs,
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
    let seed = args.text.sampling.seed();
    let draft = Draft {
        request_id: "generate".to_owned(),
        ..args.text.draft(seed)
    };
    let request = draft.check(&parts.info, None)?;
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
    let mut output = Output::new(args.text.format(), out, summary);
    while let Some(message) = messages.recv().await {
        if output.delta(message?)? {
            let mode = tier.mode().to_owned();
            return output.finish(&Summary { seed, mode });
        }
    }
    Err(Error::Internal)
}
