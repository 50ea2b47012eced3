//! What is drawn of a run.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Most points of a line; more are averaged, which also smooths it.
const POINTS: usize = 300;

/// The lines of one run: tokens and a value.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) loss: Vec<(f64, f64)>,
    pub(super) valid: Vec<(f64, f64)>,
    pub(super) speed: Vec<(f64, f64)>,
}

impl Run {
    /// Reads the log of a run's directory, or the log itself. A line that a kill left unfinished is
    /// passed over.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let (dir, log) = match path.is_file() {
            true => (path.parent().unwrap_or(path), path.to_owned()),
            false => (path, path.join("log.jsonl")),
        };
        let text = std::fs::read_to_string(&log)
            .with_context(|| format!("cannot read {}", log.display()))?;
        let name = dir.file_name().unwrap_or(dir.as_os_str());
        let mut run = Self {
            name: name.to_string_lossy().into_owned(),
            ..Self::default()
        };
        for entry in text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
        {
            run.add(&entry);
        }
        for line in [&mut run.loss, &mut run.valid, &mut run.speed] {
            *line = thinned(line);
        }
        Ok(run)
    }

    /// Whether there is nothing to draw.
    pub(super) fn is_empty(&self) -> bool {
        self.loss.is_empty() && self.valid.is_empty()
    }

    fn add(&mut self, entry: &Value) {
        let number = |key: &str| entry.get(key).and_then(Value::as_f64);
        let Some(at) = number("tokens") else { return };
        for (key, line) in [
            ("loss", &mut self.loss),
            ("valid_nats_per_token", &mut self.valid),
            ("tokens_per_s", &mut self.speed),
        ] {
            line.extend(number(key).map(|value| (at, value)));
        }
    }
}

/// Means of runs of points, `POINTS` of them at most.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let chunk = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        let (x, y) = part
            .iter()
            .fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        (x / n, y / n)
    };
    points.chunks(chunk).map(mean).collect()
}
