//! `log.jsonl`: one JSON object a line, for plots and for whoever looks in on a run.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Appends to the log of a run.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
}

impl Log {
    /// Opens the log for a run that goes on after `step`; lines of later steps, written by a run
    /// that was stopped before its next checkpoint, are dropped: they come again. So does all before
    /// the first step.
    pub(super) fn open(path: &Path, step: u64) -> Result<Self> {
        Self::try_open(path, step).with_context(|| format!("cannot write {}", path.display()))
    }

    fn try_open(path: &Path, step: u64) -> Result<Self> {
        let old = match fs::read_to_string(path) {
            Ok(old) => old,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let keep = |line: &&str| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value
                .and_then(|v| v.get("step")?.as_u64())
                .is_some_and(|at| step > 0 && at <= step)
        };
        let mut kept = String::new();
        for line in old.lines().filter(keep) {
            kept.push_str(line);
            kept.push('\n');
        }
        if kept != old {
            scone_files::write_atomic(path, kept.as_bytes())?;
        }
        Ok(Self {
            file: OpenOptions::new().create(true).append(true).open(path)?,
        })
    }

    /// Adds one line.
    pub(super) fn write(&mut self, entry: &Value) -> Result<()> {
        let mut line = entry.to_string();
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .context("cannot write log.jsonl")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_after_the_step_and_broken_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = Log::open(&path, 0).unwrap();
        for step in 1..=3 {
            log.write(&json!({ "step": step })).unwrap();
        }
        log.file.write_all(b"{\"step\":").unwrap();
        Log::open(&path, 2)
            .unwrap()
            .write(&json!({"step": 9}))
            .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"step\":9}\n");
    }
}
