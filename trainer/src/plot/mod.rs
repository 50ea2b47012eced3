//! Pictures of training runs: losses and speed over tokens, from `log.jsonl`.

pub(crate) mod bars;
mod chart;
mod series;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use chart::{Chart, Line};
use series::Run;

/// Draws `plot.svg` beside the log of the run in `dir`; nothing for a log without steps.
///
/// # Errors
/// When the log cannot be read or the picture not be written.
pub fn of_run(dir: &Path) -> Result<()> {
    let run = Run::read(dir)?;
    if run.is_empty() {
        return Ok(());
    }
    let svg = picture(&[run]);
    Ok(scone_files::write_atomic(
        &dir.join("plot.svg"),
        svg.as_bytes(),
    )?)
}

/// Draws some runs in one picture.
///
/// # Errors
/// When a log cannot be read, or none of the runs has a step.
pub fn of_runs(dirs: &[PathBuf]) -> Result<String> {
    let runs: Vec<Run> = dirs
        .iter()
        .map(|dir| Run::read(dir))
        .collect::<Result<_>>()?;
    ensure!(
        runs.iter().any(|run| !run.is_empty()),
        "no run has a step to draw"
    );
    Ok(picture(&runs))
}

fn picture(runs: &[Run]) -> String {
    let lines = |points: fn(&Run) -> &[(f64, f64)]| -> Vec<Line> {
        let line = |run: &Run| Line {
            name: run.name.clone(),
            points: points(run).to_vec(),
        };
        runs.iter().map(line).collect()
    };
    let charts = [
        Chart::new("training loss, nats/token", lines(|run| &run.loss)),
        Chart::new("held-out loss, nats/token", lines(|run| &run.valid)),
        Chart::new("tokens/s", lines(|run| &run.speed)).zero_based(),
    ];
    chart::svg(&charts, "tokens")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;

    use super::*;

    fn write_log(dir: &Path, factor: f64) {
        let mut text = String::new();
        for step in 1..=2000 {
            let loss = factor * (3.0 + 2.0 / f64::from(step).sqrt());
            let entry = serde_json::json!({
                "step": step, "tokens": 128 * step, "loss": loss, "tokens_per_s": 900.0,
            });
            text.push_str(&format!("{entry}\n"));
            if step % 500 == 0 {
                let entry = serde_json::json!({
                    "step": step, "tokens": 128 * step, "valid_nats_per_token": loss + 0.1,
                });
                text.push_str(&format!("{entry}\n"));
            }
        }
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("log.jsonl"), text).unwrap();
    }

    #[test]
    fn runs_share_a_picture_of_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let runs = [dir.path().join("a&b"), dir.path().join("other")];
        write_log(&runs[0], 1.0);
        write_log(&runs[1], 0.5);
        let svg = of_runs(&runs).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        // A line a run in each of three charts, names in words that XML can hold.
        assert_eq!(svg.matches("<polyline").count(), 6);
        assert!(svg.contains("a&amp;b") && !svg.contains("a&b"));
        for word in ["training loss", "held-out loss", "tokens/s", "other"] {
            assert!(svg.contains(word), "{word}");
        }
        assert!(!svg.contains("NaN") && svg.len() < 80_000, "{}", svg.len());

        of_run(&runs[0]).unwrap();
        let own = fs::read_to_string(runs[0].join("plot.svg")).unwrap();
        assert_eq!(own.matches("<polyline").count(), 3);
    }

    #[test]
    fn a_run_without_steps_is_named_or_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("log.jsonl"), "").unwrap();
        of_run(dir.path()).unwrap();
        assert!(!dir.path().join("plot.svg").exists());
        let missing = dir.path().join("nowhere");
        let text = format!("{:#}", of_runs(std::slice::from_ref(&missing)).unwrap_err());
        assert!(text.contains("nowhere"), "{text}");
        assert!(of_runs(&[dir.path().to_owned()]).is_err());
    }
}
