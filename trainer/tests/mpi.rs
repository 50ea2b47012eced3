//! Processes that `mpirun` starts train what one process trains. With the feature `mpi` alone.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::Fixture;

/// Differences by the order of sums alone; nats a token.
const NOISE: f64 = 1e-4;

fn write_config(fixture: &Fixture, overrides: &[&str]) {
    let config = fixture.config(overrides).unwrap().to_yaml().unwrap();
    fs::write(fixture.path("train.yaml"), config).unwrap();
}

/// `trainer train` by so many processes; without `mpirun` by one that knows nothing of MPI.
fn train(fixture: &Fixture, ranks: usize, out: &str) -> Command {
    let trainer = env!("CARGO_BIN_EXE_trainer");
    let mut command = match ranks {
        1 => Command::new(trainer),
        ranks => {
            let mut command = Command::new("mpirun");
            // Open MPI refuses root and more ranks than cores, unless it is told.
            command
                .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
                .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
                .args(["-n", &ranks.to_string(), "--oversubscribe", trainer]);
            command
        }
    };
    let (config, out) = (fixture.path("train.yaml"), fixture.path(out));
    command
        .args(["train", "--config"])
        .arg(config)
        .arg("--out")
        .arg(out);
    command.env("SCONE_CACHE_DIR", fixture.path("cache"));
    if ranks > 1 {
        command.arg("--mpi");
    }
    command
}

fn succeed(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    output
}

/// Training loss by step.
fn losses(fixture: &Fixture, out: &str) -> Vec<(u64, f64)> {
    let log = fs::read_to_string(fixture.path(out).join("log.jsonl")).unwrap();
    let entries = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries
        .filter_map(|entry| Some((entry["step"].as_u64()?, entry["loss"].as_f64()?)))
        .collect()
}

fn assert_close(a: &[(u64, f64)], b: &[(u64, f64)]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!(a.0 == b.0 && (a.1 - b.1).abs() < NOISE, "{a:?} and {b:?}");
    }
}

#[test]
fn two_processes_train_what_one_trains() {
    let fixture = Fixture::new();
    write_config(&fixture, &["training.log_every=1"]);
    succeed(train(&fixture, 1, "one"));
    succeed(train(&fixture, 2, "two"));
    let one = losses(&fixture, "one");
    assert_eq!(one.len(), 20);
    assert_close(&losses(&fixture, "two"), &one);
}

#[test]
fn a_lost_rank_ends_the_job_and_any_number_goes_on() {
    let fixture = Fixture::new();
    let steps = [
        "training.log_every=1",
        "training.steps=400",
        "training.eval_every=0",
    ];
    write_config(&fixture, &steps);
    succeed(train(&fixture, 1, "one"));
    let mut job = train(&fixture, 2, "lost")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let checkpoint = fixture.path("lost/checkpoints/step-20");
    while !checkpoint.exists() {
        assert!(job.try_wait().unwrap().is_none(), "ended before it was hit");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The last of its ranks, as a machine that goes away.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", job.id())).unwrap();
    let rank = children.split_whitespace().last().unwrap();
    assert!(
        Command::new("kill")
            .args(["-9", rank])
            .status()
            .unwrap()
            .success()
    );
    let output = job.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(stderr.contains("signal 9"), "{stderr}");

    succeed(train(&fixture, 4, "lost"));
    let (lost, one) = (losses(&fixture, "lost"), losses(&fixture, "one"));
    assert_eq!((lost.len(), one.len()), (400, 400));
    // Later on the noise of sums has grown.
    assert_close(&lost[..100], &one[..100]);
}

#[test]
fn an_error_of_one_rank_ends_all() {
    let fixture = Fixture::new();
    write_config(&fixture, &[]);
    let output = train(&fixture, 3, "three").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        stderr.contains("of 3: ") && stderr.contains("8 windows a step"),
        "{stderr}"
    );
}
