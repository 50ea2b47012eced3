//! What runs came to: a line each, and a table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::spec::Planned;
use crate::evaluation::Totals;
use crate::training::Outcome;
use crate::training::config::TrainConfig;

/// Name of the file of lines.
const RESULTS: &str = "results.jsonl";
/// Name of the table.
pub(super) const SUMMARY: &str = "summary.md";

/// Steps at the end whose mean training loss is told, of a hundred.
const LAST_PERCENT: usize = 5;

/// How a run ended that did not fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    steps: u64,
    tokens: u64,
    /// Mean training loss of the last steps, nats a token.
    loss: f64,
    /// Held-out loss of all texts together; absent without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_nats_per_token: Option<f64>,
    /// Held-out loss by text.
    valid: BTreeMap<String, f64>,
    /// Share of held-out positions where an f-gram matched.
    valid_matched: f64,
    /// Of training.
    seconds: f64,
}

impl Ended {
    pub(super) fn new(config: &TrainConfig, outcome: &Outcome) -> Self {
        let steps = outcome.losses.len();
        let last = (steps * LAST_PERCENT).div_ceil(100).max(1);
        let last = &outcome.losses[steps.saturating_sub(last)..];
        let sum: f64 = last.iter().map(|&loss| f64::from(loss)).sum();
        let mut all = Totals::default();
        outcome.valid.iter().for_each(|(_, totals)| all.add(totals));
        let by_text = outcome.valid.iter();
        Self {
            steps: steps as u64,
            tokens: (steps * config.training.batch_tokens) as u64,
            loss: sum / last.len().max(1) as f64,
            valid_nats_per_token: (!outcome.valid.is_empty()).then(|| all.nats_per_token()),
            valid: by_text
                .map(|(name, totals)| (name.clone(), totals.nats_per_token()))
                .collect(),
            valid_matched: all.matched_share(),
            seconds: outcome.seconds,
        }
    }
}

/// A line of `results.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    run: String,
    overrides: Vec<String>,
    /// SHA-256 of the effective config.
    config: String,
    #[serde(flatten)]
    ended: Option<Ended>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The lines so far.
#[derive(Debug)]
pub(super) struct Results {
    out: PathBuf,
    lines: Vec<Line>,
}

impl Results {
    /// Reads those of an earlier command; runs that are planned no more, or otherwise, go from the files
    /// too.
    pub(super) fn open(out: &Path, planned: &[Planned]) -> Result<Self> {
        let path = out.join(RESULTS);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let mut lines = Vec::new();
        let mut gone = false;
        for (number, text) in text.lines().enumerate() {
            let line: Line = serde_json::from_str(text)
                .with_context(|| format!("{} line {}", path.display(), number + 1))?;
            let same = |run: &Planned| Ok(run.name == line.run && hash(run)? == line.config);
            let known: Vec<bool> = planned.iter().map(same).collect::<Result<_>>()?;
            match known.contains(&true) {
                true => lines.push(line),
                false => gone = true,
            }
        }
        std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let results = Self {
            out: out.to_owned(),
            lines,
        };
        if gone {
            results.write()?;
        }
        Ok(results)
    }

    /// Whether a run has ended; one that failed is tried again.
    pub(super) fn has(&self, run: &Planned) -> bool {
        let of = |line: &&Line| line.run == run.name;
        self.lines
            .iter()
            .find(of)
            .is_some_and(|l| l.ended.is_some())
    }

    /// Adds what a run came to, and writes lines and table.
    pub(super) fn add(&mut self, run: &Planned, ended: &Result<Ended>) -> Result<()> {
        self.lines.retain(|line| line.run != run.name);
        if let Err(error) = ended {
            tracing::error!(run = run.name, error = format!("{error:#}"), "failed");
        }
        self.lines.push(Line {
            run: run.name.clone(),
            overrides: run.overrides.clone(),
            config: hash(run)?,
            ended: ended.as_ref().ok().cloned(),
            error: ended.as_ref().err().map(|error| format!("{error:#}")),
        });
        self.write()
    }

    /// Writes lines and table.
    fn write(&self) -> Result<()> {
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        scone_files::write_atomic(&self.out.join(RESULTS), text.as_bytes())?;
        Ok(scone_files::write_atomic(
            &self.out.join(SUMMARY),
            self.summary().as_bytes(),
        )?)
    }

    /// Names and errors of runs that failed.
    pub(super) fn failures(&self) -> Vec<String> {
        let failed = self.lines.iter().filter_map(|line| {
            let error = line.error.as_ref()?;
            Some(format!("{}: {error}", line.run))
        });
        failed.collect()
    }

    /// A Markdown table, the best first.
    pub(super) fn summary(&self) -> String {
        let mut ended: Vec<(&str, &Ended)> = self
            .lines
            .iter()
            .filter_map(|line| Some((line.run.as_str(), line.ended.as_ref()?)))
            .collect();
        let score = |ended: &Ended| ended.valid_nats_per_token.unwrap_or(ended.loss);
        ended.sort_by(|a, b| score(a.1).total_cmp(&score(b.1)));
        let mut text =
            "| run | held-out nats/token | training loss | matched | tokens | seconds |\n\
                        |---|---|---|---|---|---|\n"
                .to_owned();
        for (name, run) in ended {
            let valid = run.valid_nats_per_token;
            let valid = valid.map_or_else(|| "-".to_owned(), |nats| format!("{nats:.4}"));
            text.push_str(&format!(
                "| {name} | {valid} | {:.4} | {:.0} % | {} | {:.0} |\n",
                run.loss,
                100.0 * run.valid_matched,
                run.tokens,
                run.seconds
            ));
        }
        for failed in self.failures() {
            text.push_str(&format!("\nfailed: {failed}\n"));
        }
        text
    }
}

fn hash(run: &Planned) -> Result<String> {
    let text = run.config.to_yaml()?;
    Ok(scone_files::hex(&Sha256::digest(text.as_bytes())))
}
