//! The file that says what to measure.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use scone_fgram::RowDtype;
use scone_model::{DeviceChoice, WeightType};
use serde::{Deserialize, Deserializer};
use serde_yaml_ng::Value;

use crate::training::config::apply_override;

/// What to measure, on what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Benchmark {
    /// The first one is what the others are compared with.
    pub(super) models: Vec<Model>,
    pub(super) texts: Vec<Text>,
    /// Tokens scored of each text, at most.
    #[serde(default = "default_max_tokens")]
    pub(super) max_tokens: Option<u64>,
    /// Positions of a window; absent: all that a model has.
    #[serde(default)]
    pub(super) context: Option<usize>,
    /// Tokens that a window slides; absent: half the context.
    #[serde(default)]
    pub(super) stride: Option<usize>,
    #[serde(default)]
    pub(super) text_field: Option<String>,
    #[serde(default)]
    pub(super) device: DeviceChoice,
}

/// A model and what it is served with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    pub(super) name: String,
    /// Model directory.
    pub(super) model: PathBuf,
    /// Where its rows come from; absent: from its f-gram model.
    #[serde(default)]
    pub(super) table: Option<PathBuf>,
    /// What rows of the f-gram model are rounded to.
    #[serde(default)]
    pub(super) row_dtype: Option<RowDtype>,
    /// What the main model's weights are packed in.
    #[serde(default, deserialize_with = "parsed")]
    pub(super) weights: Option<WeightType>,
}

/// A held-out text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Text {
    pub(super) name: String,
    /// Files, in the forms that `--input` takes.
    pub(super) input: Vec<PathBuf>,
}

fn default_max_tokens() -> Option<u64> {
    Some(20_000)
}

/// A value in the words of its `FromStr`.
fn parsed<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
    D: Deserializer<'de>,
{
    let text = Option::<String>::deserialize(from)?;
    let value = text.map(|text| text.parse().map_err(serde::de::Error::custom));
    value.transpose()
}

impl Benchmark {
    /// Reads `path` and applies `overrides` (`max_tokens=5000`).
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub(super) fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the benchmark {}", path.display()))?;
        Self::parse(&text, overrides).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        let value: Value = serde_yaml_ng::from_str(text).context("not valid YAML")?;
        let Value::Mapping(mut root) = value else {
            bail!("the benchmark must be a mapping of keys");
        };
        for spec in overrides {
            apply_override(&mut root, spec)?;
        }
        let benchmark: Self = serde_yaml_ng::from_value(Value::Mapping(root))?;
        ensure!(!benchmark.models.is_empty(), "models is empty");
        ensure!(!benchmark.texts.is_empty(), "texts is empty");
        for model in &benchmark.models {
            ensure!(
                model.table.is_none() || model.row_dtype.is_none(),
                "{}: rows of a table have a type already, leave row_dtype away",
                model.name
            );
        }
        Ok(benchmark)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const TEXT: &str = "
models:
- {name: plain, model: runs/M}
- {name: SCONE, model: runs/SCONE, row_dtype: int8, weights: bf16}
texts:
- {name: books, input: [books.jsonl.zst]}
";

    #[test]
    fn types_are_read_by_name_and_mistakes_are_told() {
        let benchmark = Benchmark::parse(TEXT, &["max_tokens=7".to_owned()]).unwrap();
        assert_eq!(benchmark.max_tokens, Some(7));
        assert_eq!(benchmark.models[1].row_dtype, Some(RowDtype::Int8));
        assert_eq!(benchmark.models[1].weights, Some(WeightType::Bf16));
        for (spec, expected) in [
            ("texts=[]", "texts is empty"),
            ("model=3", "unknown field `model`"),
            ("models=[{name: a, model: b, row_dtype: f12}]", "f12"),
            (
                "models=[{name: a, model: b, row_dtype: f16, table: t}]",
                "leave row_dtype away",
            ),
        ] {
            let error = Benchmark::parse(TEXT, &[spec.to_owned()]).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
