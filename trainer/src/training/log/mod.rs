//! What a run writes down as it goes: `log.jsonl`, one JSON object a line, the same numbers in
//! `log.csv`, and in an event file for TensorBoard.
//!
//! A run that goes on after a step drops what came after it, from all three: those entries come
//! again, so no entry is there twice.

mod crc32c;
mod csv;
mod events;
mod lines;

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use events::Events;
use lines::Lines;

/// The logs of a run.
#[derive(Debug)]
pub(super) struct Log {
    jsonl: Lines,
    csv: Lines,
    events: Events,
}

impl Log {
    /// Opens the logs in `out` for a run that goes on after `step`; before the first step they
    /// begin anew.
    pub(super) fn open(out: &Path, step: u64) -> Result<Self> {
        Ok(Self {
            jsonl: Lines::open(&out.join("log.jsonl"), "", json_step, step)?,
            csv: Lines::open(&out.join("log.csv"), csv::HEADER, csv::step_of, step)?,
            events: Events::open(&out.join("tensorboard"), step)?,
        })
    }

    /// Drops what came after `step`.
    pub(super) fn rewind(&mut self, step: u64) -> Result<()> {
        self.jsonl.rewind(step)?;
        self.csv.rewind(step)?;
        self.events.rewind(step)
    }

    /// Adds one entry, an object with a `step`.
    pub(super) fn write(&mut self, entry: &Value) -> Result<()> {
        self.jsonl.write(&entry.to_string())?;
        self.csv.write(&csv::line(entry))?;
        self.events.write(entry)
    }
}

fn json_step(line: &str) -> Option<u64> {
    let value: Value = serde_json::from_str(line).ok()?;
    value.get("step")?.as_u64()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;
    use std::io::Write as _;

    use serde_json::json;

    use super::*;

    fn entry(step: u64) -> Value {
        json!({"step": step, "loss": step as f64 / 4.0, "valid": {"a": 1.5}})
    }

    #[test]
    fn entries_after_the_step_and_broken_ones_go_from_all_logs() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        let mut log = Log::open(out, 0).unwrap();
        for step in 1..=3 {
            log.write(&entry(step)).unwrap();
        }
        for (name, part) in [("log.jsonl", &b"{\"step\":"[..]), ("log.csv", b"1")] {
            let mut file = fs::OpenOptions::new()
                .append(true)
                .open(out.join(name))
                .unwrap();
            file.write_all(part).unwrap();
        }
        let mut log = Log::open(out, 2).unwrap();
        log.write(&entry(9)).unwrap();
        let jsonl = fs::read_to_string(out.join("log.jsonl")).unwrap();
        let steps: Vec<u64> = jsonl.lines().map(|l| json_step(l).unwrap()).collect();
        assert_eq!(steps, [1, 2, 9]);
        let csv = fs::read_to_string(out.join("log.csv")).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[0], csv::HEADER);
        assert!(lines[1].starts_with("1,,0.25,"), "{}", lines[1]);
        assert_eq!(lines.len(), 4);
        assert_eq!(
            events::read(&out.join("tensorboard").join(events::NAME)).unwrap(),
            [
                (1, "train/loss".to_owned(), 0.25),
                (1, "valid/a".to_owned(), 1.5),
                (2, "train/loss".to_owned(), 0.5),
                (2, "valid/a".to_owned(), 1.5),
                (9, "train/loss".to_owned(), 2.25),
                (9, "valid/a".to_owned(), 1.5),
            ]
        );
        // A run that begins leaves nothing of the one before.
        log.rewind(0).unwrap();
        assert_eq!(fs::read_to_string(out.join("log.jsonl")).unwrap(), "");
        let csv = fs::read_to_string(out.join("log.csv")).unwrap();
        assert_eq!(csv.trim_end(), csv::HEADER);
        let left = events::read(&out.join("tensorboard").join(events::NAME)).unwrap();
        assert!(left.is_empty());
    }
}
