//! The report in Markdown, and its picture.

use std::fmt::Write as _;

use serde_json::Value;

use super::Measured;
use super::config::Benchmark;
use crate::plot::bars::{Group, bars};

/// The report.
pub(super) fn markdown(benchmark: &Benchmark, measured: &[Measured]) -> String {
    let mut out = "# Benchmark\n\n".to_owned();
    let tokens = match benchmark.max_tokens {
        Some(most) => format!("at most {most} tokens a text"),
        None => "every token".to_owned(),
    };
    let _ = writeln!(
        out,
        "Made by `trainer benchmark`, version {}, on {}, {} processors; {tokens}, windows of {}.\n",
        env!("CARGO_PKG_VERSION"),
        benchmark.device,
        std::thread::available_parallelism().map_or(0, usize::from),
        windows(measured)
    );
    quality(&mut out, measured);
    costs(&mut out, measured);
    out.push_str("\n![Nats a token](report.svg)\n\nRaw results: [report.jsonl](report.jsonl).\n");
    out
}

/// How text was cut, as the evaluations said.
fn windows(measured: &[Measured]) -> String {
    let first = measured.first().and_then(|model| model.texts.first());
    let number = |key| first.map_or(0, |(_, result)| result[key].as_u64().unwrap_or(0));
    format!(
        "{} tokens that slide by {}",
        number("context"),
        number("stride")
    )
}

fn quality(out: &mut String, measured: &[Measured]) {
    out.push_str("## Quality\n\n| text | model | rows | nats/token | against the first | perplexity | bits/byte | matched |\n");
    out.push_str("|---|---|---|---|---|---|---|---|\n");
    let texts = measured.first().map_or(0, |first| first.texts.len());
    for text in 0..texts {
        let of_first = number(&measured[0].texts[text].1, "nats_per_token");
        for model in measured {
            let (name, result) = &model.texts[text];
            let nats = number(result, "nats_per_token");
            let _ = writeln!(
                out,
                "| {name} | {} | {} | {nats:.4} | {:+.4} | {:.2} | {:.4} | {:.1} % |",
                model.name,
                result["rows"].as_str().unwrap_or("-"),
                nats - of_first,
                number(result, "perplexity"),
                number(result, "bits_per_byte"),
                100.0 * number(result, "matched"),
            );
        }
    }
}

fn costs(out: &mut String, measured: &[Measured]) {
    out.push_str("\n## Cost\n\n| model | parameters served | of the f-gram model | MFLOP a token, inference | training | a prefix, in the f-gram model | table rows | table MB | scored tokens/s | peak memory, MB |\n");
    out.push_str("|---|---|---|---|---|---|---|---|---|---|\n");
    for model in measured {
        let facts = &model.facts;
        let results = || model.texts.iter().map(|(_, result)| result);
        let tokens: f64 = results().map(|result| number(result, "tokens")).sum();
        let time = |result: &Value| number(result, "tokens") / number(result, "tokens_per_s");
        let seconds: f64 = results().map(time).sum();
        let memory = results().map(|result| number(result, "peak_memory_bytes"));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {:.2} | {:.2} | {} | {} | {} | {:.0} | {:.0} |",
            model.name,
            millions(facts.parameters),
            facts.fgram_parameters.map_or("-".to_owned(), millions),
            facts.inference_flops / 1e6,
            facts.training_flops / 1e6,
            match facts.fgram_parameters {
                Some(_) => format!("{:.2}", facts.training_flops_a_prefix / 1e6),
                None => "-".to_owned(),
            },
            facts
                .table_rows
                .map_or("-".to_owned(), |rows| rows.to_string()),
            facts
                .table_bytes
                .map_or("-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6)),
            tokens / seconds,
            memory.fold(0.0, f64::max) / 1e6,
        );
    }
}

fn number(result: &Value, key: &str) -> f64 {
    result[key].as_f64().unwrap_or(f64::NAN)
}

fn millions(count: u64) -> String {
    format!("{:.2} M", count as f64 / 1e6)
}

/// Nats a token of all models on each text.
pub(super) fn svg(measured: &[Measured]) -> String {
    let names: Vec<&str> = measured.iter().map(|model| model.name.as_str()).collect();
    let texts = measured.first().map_or(&[][..], |first| &first.texts);
    let group = |(at, (name, _)): (usize, &(String, Value))| Group {
        name: name.clone(),
        values: measured
            .iter()
            .map(|model| number(&model.texts[at].1, "nats_per_token"))
            .collect(),
    };
    let groups: Vec<Group> = texts.iter().enumerate().map(group).collect();
    bars("nats/token", &names, &groups)
}
