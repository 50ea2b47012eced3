//! One completion on a terminal: streamed, shaded, or as JSON, and a summary of it.

use std::io::Write;

use serde_json::{Value, json};

use super::shade::Shade;
use crate::{
    error::Error,
    sequence::{Delta, Finish, FinishReason, GeneratedToken},
};

/// How a completion is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text as it comes, then a summary.
    Text,
    /// The same with every token shaded by its match length.
    Shaded,
    /// One JSON object at the end.
    Json,
}

impl Format {
    /// By the flags `--color` and `--json`.
    pub fn of(color: bool, json: bool) -> Self {
        match (json, color) {
            (true, _) => Self::Json,
            (false, true) => Self::Shaded,
            (false, false) => Self::Text,
        }
    }
}

/// What a summary says beside counts and times.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The seed of the completion.
    pub seed: u64,
    /// "embedded", "remote" or "none".
    pub mode: String,
}

/// Writes one completion.
pub struct Output<'a> {
    format: Format,
    out: &'a mut (dyn Write + Send),
    summary: &'a mut (dyn Write + Send),
    shade: Shade,
    tokens: Vec<GeneratedToken>,
    text: String,
    finish: Option<Finish>,
}

impl<'a> Output<'a> {
    /// Text goes to `out`, the summary line to `summary`.
    pub fn new(
        format: Format,
        out: &'a mut (dyn Write + Send),
        summary: &'a mut (dyn Write + Send),
    ) -> Self {
        Self {
            format,
            out,
            summary,
            shade: Shade::default(),
            tokens: Vec::new(),
            text: String::new(),
            finish: None,
        }
    }

    /// Shows what is new; whether that was the last of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn delta(&mut self, delta: Delta) -> Result<bool, Error> {
        self.text.push_str(&delta.text);
        match self.format {
            Format::Json => {}
            Format::Text => write(self.out, &delta.text)?,
            Format::Shaded => write(self.out, &self.shade.text(&delta))?,
        }
        self.tokens.extend(delta.tokens);
        self.finish = delta.finish;
        Ok(self.finish.is_some())
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it has not finished, or cannot be written.
    pub fn finish(self, summary: &Summary) -> Result<(), Error> {
        let finish = self.finish.ok_or(Error::Internal)?;
        if self.format == Format::Json {
            let line = as_json(&finish, &self.tokens, &self.text, summary);
            return write(self.out, &format!("{line}\n"));
        }
        write(self.out, "\n")?;
        if self.format == Format::Shaded {
            write(self.summary, &format!("\n{}", self.shade.legend()))?;
        }
        write(self.summary, &format!("\n{}\n", as_text(&finish, summary)))
    }
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

fn as_text(finish: &Finish, summary: &Summary) -> String {
    let Summary { seed, mode } = summary;
    let figures = Figures::of(finish);
    let tokens = finish.usage.completion_tokens;
    let rate = figures.tokens_per_second;
    let table = match mode.as_str() {
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

fn as_json(finish: &Finish, tokens: &[GeneratedToken], text: &str, summary: &Summary) -> Value {
    let figures = Figures::of(finish);
    let (reason, stopped_by) = match &finish.reason {
        FinishReason::StopString(stop) => ("stop", json!(stop)),
        FinishReason::StopToken(id) => ("stop", json!(id)),
        FinishReason::Length => ("length", json!(null)),
    };
    let (usage, timings) = (&finish.usage, &finish.timings);
    json!({
        "text": text,
        "token_ids": tokens.iter().map(|token| token.id).collect::<Value>(),
        "match_lengths": tokens.iter().map(|token| token.match_length).collect::<Value>(),
        "finish_reason": reason,
        "stopped_by": stopped_by,
        "seed": summary.seed,
        "embed_mode": summary.mode,
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
