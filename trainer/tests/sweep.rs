//! Sweeps as a user runs them: killed at any moment, started again.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Fixture, bytes};

const GRID: &str = "
runs:
  plain: [fgrams=null]
  scone:
grid:
  optimizer.lr: [0.003, 0.02]
";

fn write_sweep(fixture: &Fixture, text: &str) {
    let config = fixture.config(&["training.checkpoint_every=4"]).unwrap();
    fs::write(fixture.path("train.yaml"), config.to_yaml().unwrap()).unwrap();
    let text = format!("config: {}\n{text}", fixture.path("train.yaml").display());
    fs::write(fixture.path("sweep.yaml"), text).unwrap();
}

fn trainer(fixture: &Fixture, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command
        .arg("sweep")
        .arg(fixture.path("sweep.yaml"))
        .arg("--out")
        .arg(fixture.path(out))
        .args(more)
        .env("SCONE_CACHE_DIR", fixture.path("cache"));
    command
}

/// Lines of results by run, without times.
fn results(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("results.jsonl")).unwrap_or_default();
    let mut lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    for line in &mut lines {
        line.as_object_mut().unwrap().remove("seconds");
    }
    lines.sort_by_key(|line| line["run"].to_string());
    lines
}

fn models(out: &Path) -> Vec<Vec<u8>> {
    let mut runs: Vec<_> = fs::read_dir(out.join("runs"))
        .unwrap()
        .map(|run| run.unwrap().path().join("model.safetensors"))
        .collect();
    runs.sort();
    runs.iter().map(|path| bytes(path)).collect()
}

/// Waits until a checkpoint of any run but the finished ones is there, or the child ends.
fn wait_for_work(child: &mut Child, out: &Path, before: usize) {
    let started = Instant::now();
    let count = || {
        let runs = fs::read_dir(out.join("runs")).into_iter().flatten();
        let checkpoints = runs.map(|run| run.unwrap().path().join("checkpoints"));
        checkpoints
            .flat_map(|dir| fs::read_dir(dir).into_iter().flatten())
            .count()
    };
    while count() <= before && child.try_wait().unwrap().is_none() {
        assert!(
            started.elapsed() < Duration::from_secs(300),
            "nothing happens"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_sweep_that_is_killed_goes_on_to_the_same_results() {
    let fixture = Fixture::new();
    write_sweep(&fixture, GRID);
    let output = trainer(&fixture, "whole", &[]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(table.lines().count(), 6, "{table}");
    let whole = results(&fixture.path("whole"));
    assert_eq!(whole.len(), 4);
    assert!(
        whole
            .iter()
            .all(|line| line["valid_nats_per_token"].as_f64().unwrap() > 1.0)
    );
    assert!(table.contains("| scone,optimizer.lr=0.02 |"), "{table}");

    let out = fixture.path("killed");
    for kill in 0..4 {
        let mut child = trainer(&fixture, "killed", &[])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_work(&mut child, &out, 2 * kill);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = trainer(&fixture, "killed", &[]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(results(&out), whole);
    assert_eq!(models(&out), models(&fixture.path("whole")));

    // Again: nothing is trained, the table is the same.
    let log = fixture.path("killed/runs/plain,optimizer.lr=0.003/log.jsonl");
    fs::remove_file(&log).unwrap();
    let again = trainer(&fixture, "killed", &[]).output().unwrap();
    assert!(again.status.success() && !log.exists());
    assert_eq!(again.stdout, output.stdout);
}

#[test]
fn a_run_that_fails_does_not_stop_the_others() {
    let fixture = Fixture::new();
    let text = "runs: {bad: [optimizer.lr=1e30, optimizer.warmup_steps=0], good: }";
    write_sweep(&fixture, text);
    let output = trainer(&fixture, "out", &["training.steps=6", "--jobs", "2"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && !stderr.contains("panicked"),
        "{stderr}"
    );
    assert!(stderr.contains("1 of 2 runs failed"), "{stderr}");
    let lines = results(&fixture.path("out"));
    assert!(lines[0]["error"].as_str().unwrap().contains("optimizer.lr"));
    assert_eq!(lines[1]["steps"], 6);
    let summary = fs::read_to_string(fixture.path("out/summary.md")).unwrap();
    assert!(
        summary.contains("| good |") && summary.contains("failed: bad"),
        "{summary}"
    );

    // What is planned no more is no result any more, although nothing is left to train.
    write_sweep(&fixture, "runs: {good: }");
    let output = trainer(&fixture, "out", &["training.steps=6"]).output();
    assert!(output.unwrap().status.success());
    let lines = results(&fixture.path("out"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["run"], "good");

    // Mistakes are told before anything is made.
    write_sweep(&fixture, "grid: {optimizer.lr: [0.1, no]}");
    let output = trainer(&fixture, "none", &[]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && stderr.contains("optimizer"),
        "{stderr}"
    );
    assert!(!fixture.path("none").exists());
}
