//! `decoder-service generate`: one generation in the terminal, by the same engine as `serve`.

use std::{io::Write, time::Duration};

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    config::ModelArgs,
    engine::{self, EngineConfig},
    error::Error,
    metrics::Metrics,
    request::{Draft, Prompt},
    scheduler::Limits,
    sequence::{Finish, FinishReason},
    startup,
};

/// Tokens generated when `--max-tokens` is absent.
const DEFAULT_MAX_TOKENS: u32 = 128;

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

    /// Print one JSON object at the end instead of streamed text and a summary.
    #[arg(long)]
    pub json: bool,
}

/// How tokens are chosen and when to stop. Absent flags mean the model's generation_config.json.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most tokens to generate.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_TOKENS)]
    pub max_tokens: u32,

    /// 0 always takes the most probable token; higher is more varied. 0 to 100.
    #[arg(long, value_name = "X")]
    pub temperature: Option<f32>,

    /// Choose among the K most probable tokens; 0 is all.
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,

    /// Choose among the most probable tokens whose probabilities add up to this. Above 0, to 1.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,

    /// Drop tokens less probable than this times the most probable one. 0 to below 1.
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,

    /// Makes tokens seen before less likely when above 1.
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,

    /// Same seed, same text. Default: random, and shown in the summary.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// End the text before this string; may be given up to 16 times.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Do not end at the model's end-of-text token.
    #[arg(long)]
    pub ignore_eos: bool,
}

impl GenerateArgs {
    fn draft(&self, seed: u64) -> Draft {
        let sampling = &self.sampling;
        let prompt = match &self.prompt {
            Some(prompt) => prompt.clone(),
            None => self.words.join(" "),
        };
        Draft {
            request_id: "generate".to_owned(),
            prompt: Some(Prompt::Text(prompt)),
            max_tokens: Some(sampling.max_tokens),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            seed: Some(seed),
            stop: sampling.stop.clone(),
            ignore_eos: Some(sampling.ignore_eos),
            echo: Some(self.echo),
            ..Draft::default()
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
        startup::prepare(&config, Metrics::default(), CancellationToken::new()).await?;
    let seed = args
        .sampling
        .seed
        .unwrap_or_else(|| rand::random::<u32>().into());
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
    };
    let (engine, _ended) = engine::start(engine_config, parts)?;
    let mut messages = engine.submit(request)?;
    let (mut ids, mut text) = (Vec::new(), String::new());
    while let Some(message) = messages.recv().await {
        let delta = message?;
        ids.extend(delta.tokens.iter().map(|token| token.id));
        if args.json {
            text.push_str(&delta.text);
        } else {
            write(out, &delta.text)?;
        }
        let Some(finish) = delta.finish else {
            continue;
        };
        if args.json {
            let line = as_json(&finish, &ids, &text, seed, tier.mode());
            return write(out, &format!("{line}\n"));
        }
        write(out, "\n")?;
        return write(
            summary,
            &format!("\n{}\n", as_text(&finish, seed, tier.mode())),
        );
    }
    Err(Error::Internal)
}

fn write(out: &mut (dyn Write + Send), text: &str) -> Result<(), Error> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(Error::Output)
}

/// Figures of a generation that both summaries show.
struct Figures {
    tokens_per_second: f64,
    matched_share: f64,
    lookup_share: f64,
}

impl Figures {
    fn of(finish: &Finish) -> Self {
        let (usage, timings) = (&finish.usage, &finish.timings);
        let steps = timings.prefill + timings.decode;
        Self {
            tokens_per_second: ratio(f64::from(usage.completion_tokens), steps.as_secs_f64()),
            matched_share: ratio(
                f64::from(usage.matched_positions),
                f64::from(usage.positions),
            ),
            lookup_share: ratio(timings.steps.lookup.as_secs_f64(), steps.as_secs_f64()),
        }
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn as_text(finish: &Finish, seed: u64, mode: &str) -> String {
    let figures = Figures::of(finish);
    let tokens = finish.usage.completion_tokens;
    let rate = figures.tokens_per_second;
    let table = match mode {
        "none" => "plain model, no f-gram table".to_owned(),
        mode => format!(
            "{:.0}% of positions from the f-gram table ({mode}), look-up {:.1}% of the step time",
            figures.matched_share * 100.0,
            figures.lookup_share * 100.0
        ),
    };
    let fallback = match finish.usage.fallback_positions {
        0 => String::new(),
        n => format!(", {n} positions without an answer of the embed tier"),
    };
    format!("[{tokens} tokens, {rate:.1} tokens/s, {table}{fallback}, seed {seed}]")
}

fn as_json(finish: &Finish, ids: &[u32], text: &str, seed: u64, mode: &str) -> serde_json::Value {
    let figures = Figures::of(finish);
    let (reason, stopped_by) = match &finish.reason {
        FinishReason::StopString(stop) => ("stop", json!(stop)),
        FinishReason::StopToken(id) => ("stop", json!(id)),
        FinishReason::Length => ("length", json!(null)),
    };
    let (usage, timings) = (&finish.usage, &finish.timings);
    json!({
        "text": text,
        "token_ids": ids,
        "finish_reason": reason,
        "stopped_by": stopped_by,
        "seed": seed,
        "embed_mode": mode,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "positions": usage.positions,
        "matched_positions": usage.matched_positions,
        "fallback_positions": usage.fallback_positions,
        "cached_tokens": usage.cached_tokens,
        "prefill_us": timings.prefill.as_micros() as u64,
        "decode_us": timings.decode.as_micros() as u64,
        "lookup_us": timings.steps.lookup.as_micros() as u64,
        "forward_us": timings.steps.forward.as_micros() as u64,
        "sampling_us": timings.steps.sampling.as_micros() as u64,
        "tokens_per_second": figures.tokens_per_second,
        "matched_share": figures.matched_share,
        "lookup_share": figures.lookup_share,
    })
}
