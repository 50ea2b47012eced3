//! The file of a sweep.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};

use crate::training::config::TrainConfig;

/// The keys of the file. Every combination of a run and a value of each key of the grid is trained.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    /// Training config that all runs start from; relative to the current directory.
    config: PathBuf,
    /// Overrides of all runs, `key=value`.
    #[serde(default)]
    set: Vec<String>,
    /// Overrides by name of a run; absent: one run without any.
    #[serde(default)]
    runs: Mapping,
    /// Values to try by key.
    #[serde(default)]
    grid: Mapping,
}

/// One run.
#[derive(Debug)]
pub(super) struct Planned {
    /// Also the name of its directory.
    pub(super) name: String,
    pub(super) overrides: Vec<String>,
    pub(super) config: TrainConfig,
}

/// A name and overrides.
type Variant = (String, Vec<String>);

impl Spec {
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the sweep {}", file.display()))?;
        serde_yaml_ng::from_str(&text).with_context(|| format!("in {}", file.display()))
    }

    /// All runs, their configs checked; `overrides` go before those of the file.
    pub(super) fn plan(&self, overrides: &[String]) -> Result<Vec<Planned>> {
        let mut variants = self.variants()?;
        for (key, values) in &self.grid {
            variants = crossed(&variants, key, values)?;
        }
        let mut names = BTreeSet::new();
        let plan = |(name, own): Variant| {
            let name = directory_name(&name);
            ensure!(
                names.insert(name.clone()),
                "two runs have the same directory, `{name}`: give them other names under `runs`"
            );
            let all = [self.set.as_slice(), &own, overrides].concat();
            let config =
                TrainConfig::load(&self.config, &all).with_context(|| format!("run `{name}`"))?;
            Ok(Planned {
                name,
                overrides: all,
                config,
            })
        };
        variants.into_iter().map(plan).collect()
    }

    fn variants(&self) -> Result<Vec<Variant>> {
        if self.runs.is_empty() {
            return Ok(vec![(String::new(), Vec::new())]);
        }
        let variant = |(name, own): (&Value, &Value)| {
            let name = name.as_str().context("a name under `runs` is not text")?;
            let own: Vec<String> = match own {
                Value::Null => Vec::new(),
                own => serde_yaml_ng::from_value(own.clone())
                    .with_context(|| format!("run `{name}`: expected a list of key=value"))?,
            };
            Ok((name.to_owned(), own))
        };
        self.runs.iter().map(variant).collect()
    }
}

/// Every variant with every value of a key.
fn crossed(variants: &[Variant], key: &Value, values: &Value) -> Result<Vec<Variant>> {
    let key = key.as_str().context("a key under `grid` is not text")?;
    let values = values
        .as_sequence()
        .filter(|values| !values.is_empty())
        .with_context(|| format!("`grid`: {key} needs a list of values"))?;
    let mut found = Vec::new();
    for (name, own) in variants {
        for value in values {
            let text = match value {
                Value::String(text) => text.clone(),
                value => serde_json::to_string(value)?,
            };
            let part = format!("{key}={text}");
            let name = match name.as_str() {
                "" => part.clone(),
                name => format!("{name},{part}"),
            };
            found.push((name, [own.as_slice(), &[part]].concat()));
        }
    }
    Ok(found)
}

/// A name that any file system holds; `run` for the only run without one.
fn directory_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".,=+-_".contains(c);
    let name: String = name
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect();
    match name.trim_matches('.') {
        "" => "run".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const CONFIG: &str = "
data: {train: [a.jsonl]}
tokenizer: tokenizer.json
model: {family: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, max_position_embeddings: 64}
training: {sequence_length: 16, batch_tokens: 64, tokens: 1000}
";

    fn plan(text: &str, overrides: &[String]) -> Result<Vec<Planned>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train.yaml"), CONFIG).unwrap();
        let config = dir.path().join("train.yaml");
        let text = format!("config: {}\n{text}", config.display());
        let spec: Spec = serde_yaml_ng::from_str(&text)?;
        spec.plan(overrides)
    }

    #[test]
    fn every_run_meets_every_value() {
        let text = "
set: [training.seed=7]
runs:
  m:
  wide: [model.hidden_size=64, optimizer.beta1=0.8]
grid:
  optimizer.lr: [1e-3, 0.01]
  model.tie_word_embeddings: [true, false]
";
        let runs = plan(text, &["optimizer.clip=2".to_owned()]).unwrap();
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names.len(), 8);
        assert_eq!(
            names[0],
            "m,optimizer.lr=0.001,model.tie_word_embeddings=true"
        );
        let last = &runs[7].config;
        assert_eq!(last.optimizer.lr, 0.01);
        assert_eq!(runs[0].config.optimizer.lr, 0.001);
        assert_eq!(last.model.as_ref().unwrap().hidden_size, 64);
        assert!(!last.model.as_ref().unwrap().tie_word_embeddings);
        assert!(runs.iter().all(|run| run.config.training.seed == 7));
        assert!(runs.iter().all(|run| run.config.optimizer.clip == 2.0));
        assert_eq!(plan("", &[]).unwrap()[0].name, "run");
    }

    #[test]
    fn mistakes_are_named_before_the_first_run() {
        for (text, mistake) in [
            ("grids: {}", "grids"),
            ("grid: {optimizer.lr: []}", "optimizer.lr needs a list"),
            ("grid: {optimizer.lr: 3}", "optimizer.lr needs a list"),
            ("grid: {optimizer.lr: [0.1, -1]}", "optimizer.lr=-1"),
            ("runs: {a: 3}", "run `a`"),
            ("runs: {a/b: , a?b: }", "the same directory, `a-b`"),
            ("set: [model.width=3]", "width"),
        ] {
            let error = format!("{:#}", plan(text, &[]).unwrap_err());
            assert!(error.contains(mistake), "{text}: {error}");
        }
    }
}
