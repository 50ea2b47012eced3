//! One report of several models: quality on several texts, speed, memory, parameters, operations and
//! table bytes.

mod config;
mod facts;
mod report;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use scone_files::write_atomic;
use serde_json::Value;

use config::{Benchmark, Model, Text};
use facts::Facts;

/// What one model came to.
#[derive(Debug)]
struct Measured {
    name: String,
    facts: Facts,
    /// What `trainer evaluate --json` said of each text.
    texts: Vec<(String, Value)>,
}

/// Measures what `file` names and writes `report.md`, `report.svg` and `report.jsonl` into `out`; returns the
/// report.
///
/// Every model is evaluated on every text by a process of its own, so that its memory is its own.
///
/// # Errors
/// A config with mistakes, a model that cannot be read, an evaluation that failed.
pub(crate) fn benchmark(file: &Path, overrides: &[String], out: &Path) -> Result<String> {
    let benchmark = Benchmark::load(file, overrides)?;
    // All of them before the first long evaluation.
    let facts = benchmark.models.iter().map(Facts::read);
    let facts = facts.collect::<Result<Vec<_>>>()?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut measured = Vec::new();
    let mut lines = String::new();
    for (model, facts) in benchmark.models.iter().zip(facts) {
        let mut texts = Vec::new();
        for text in &benchmark.texts {
            tracing::info!(model = model.name, text = text.name, "evaluating");
            let result = evaluate(&benchmark, model, text)?;
            let line = serde_json::json!({
                "model": model.name, "text": text.name, "facts": facts, "result": result,
            });
            lines.push_str(&format!("{line}\n"));
            texts.push((text.name.clone(), result));
        }
        let name = model.name.clone();
        measured.push(Measured { name, facts, texts });
    }
    let report = report::markdown(&benchmark, &measured);
    write_atomic(&out.join("report.jsonl"), lines.as_bytes())?;
    write_atomic(&out.join("report.svg"), report::svg(&measured).as_bytes())?;
    write_atomic(&out.join("report.md"), report.as_bytes())?;
    Ok(report)
}

/// Runs `trainer evaluate` on one text.
fn evaluate(benchmark: &Benchmark, model: &Model, text: &Text) -> Result<Value> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command
        .arg("evaluate")
        .arg("--json")
        .args(["--log", "warn"]);
    command.arg("--model").arg(&model.model);
    command.arg("--input").args(&text.input);
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    };
    flag("--device", Some(benchmark.device.to_string()));
    flag("--text-field", benchmark.text_field.clone());
    flag("--max-tokens", benchmark.max_tokens.map(|n| n.to_string()));
    flag("--context", benchmark.context.map(|n| n.to_string()));
    flag("--stride", benchmark.stride.map(|n| n.to_string()));
    flag(
        "--table",
        model.table.as_ref().map(|dir| dir.display().to_string()),
    );
    flag(
        "--row-dtype",
        model.row_dtype.map(|dtype| dtype.to_string()),
    );
    flag(
        "--weights",
        model.weights.map(|weights| weights.to_string()),
    );
    let output = command.output().context("cannot run the evaluation")?;
    ensure!(
        output.status.success(),
        "evaluating {} on {} failed: {}",
        model.name,
        text.name,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("the evaluation printed no JSON")
}
