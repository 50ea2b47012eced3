//! What a long run needs: parts of a step, stopping at the right time, bad batches, and logs that a
//! kill does not spoil.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{Fixture, bytes, timeless};
use trainer::training::train;

fn entries(dir: &Path) -> Vec<Value> {
    let log = fs::read_to_string(dir.join("log.jsonl")).unwrap();
    log.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// Steps and losses of the event file.
fn events(dir: &Path) -> Vec<(u64, Option<f32>)> {
    let folder = fs::read_dir(dir.join("tensorboard")).unwrap();
    let files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let file = fs::read(&files[0]).unwrap();
    let (mut rest, mut found) = (&file[..], Vec::new());
    while !rest.is_empty() {
        let size = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        // After the time comes the step, of less than 128 here, except in the first record.
        let data = &rest[12..12 + size];
        if data[9] == 2 << 3 {
            let tag = b"train/loss";
            let at = data.windows(tag.len()).position(|part| part == tag);
            let loss = at
                .map(|at| at + tag.len() + 1)
                .map(|at| f32::from_le_bytes(data[at..at + 4].try_into().unwrap()));
            found.push((u64::from(data[10]), loss));
        }
        rest = &rest[16 + size..];
    }
    found
}

/// Step and loss of the rows of log.csv.
fn rows(dir: &Path) -> Vec<(String, String)> {
    let csv = fs::read_to_string(dir.join("log.csv")).unwrap();
    let cells = |line: &str| -> Vec<String> { line.split(',').map(str::to_owned).collect() };
    let rows = csv.lines().map(cells);
    rows.map(|row| (row[0].clone(), row[2].clone())).collect()
}

fn assert_same_logs(a: &Path, b: &Path) {
    let without_time = |dir| entries(dir).into_iter().map(timeless).collect::<Vec<_>>();
    assert_eq!(without_time(a), without_time(b));
    assert_eq!(rows(a), rows(b));
    assert_eq!(events(a), events(b));
}

#[test]
fn factors_in_bf16_train_about_the_same() {
    let fixture = Fixture::new();
    let exact = fixture.train("f32", &[]).unwrap();
    let rounded = fixture.train("bf16", &["training.precision=bf16"]).unwrap();
    assert_ne!(exact.losses, rounded.losses);
    for (step, (exact, rounded)) in exact.losses.iter().zip(&rounded.losses).enumerate() {
        assert!(
            (exact - rounded).abs() < 0.03,
            "step {step}: {exact} and {rounded}"
        );
    }
    // The same numbers again, in one run or in two, with or without computing blocks twice.
    let two = ["training.precision=bf16", "training.recompute=true"];
    let config = fixture.config(&two).unwrap();
    let out = fixture.path("two");
    train(&config, &out, &fixture.run_options(Some(10))).unwrap();
    let config = fixture.config(&two[..1]).unwrap();
    let again = train(&config, &out, &fixture.run_options(None)).unwrap();
    assert_eq!(again.losses, rounded.losses);
    let error = train(
        &fixture.config(&[]).unwrap(),
        &out,
        &fixture.run_options(None),
    )
    .unwrap_err();
    assert!(
        format!("{error:#}").contains("training.precision"),
        "{error:#}"
    );
}

#[test]
fn a_step_in_parts_is_the_step() {
    let fixture = Fixture::new();
    let whole = fixture.train("whole", &[]).unwrap();
    let parts = fixture.train("parts", &["training.accumulate=4"]).unwrap();
    assert_eq!(whole.losses.len(), parts.losses.len());
    for (whole, parts) in whole.losses.iter().zip(&parts.losses) {
        assert!((whole - parts).abs() < 1e-3, "{whole} {parts}");
    }
    assert_ne!(whole.losses, parts.losses, "sums in another order");
    let (_, whole) = &whole.valid[0];
    let (_, parts) = &parts.valid[0];
    assert!((whole.nats_per_token() - parts.nats_per_token()).abs() < 2e-3);
}

#[test]
fn an_epoch_reads_every_window_once() {
    let fixture = Fixture::new();
    let outcome = fixture
        .train("run", &["training.steps=null", "training.epochs=0.5"])
        .unwrap();
    let tokens = fixture.corpus("train.jsonl");
    let tokens = tokens.total_tokens() as usize + tokens.document_count();
    let windows = (tokens - 1) / 16;
    assert_eq!(outcome.losses.len(), windows.div_ceil(2).div_ceil(8));
}

/// The binary, killed at moments that differ from time to time.
#[test]
fn a_process_that_is_killed_goes_on_to_the_same_bytes() {
    let fixture = Fixture::new();
    let changes = [
        "training.steps=60",
        "training.checkpoint_every=3",
        "training.keep_best=true",
    ];
    let whole = fixture.train("whole", &changes).unwrap();
    let config = fixture.config(&changes).unwrap();
    fs::write(fixture.path("train.yaml"), config.to_yaml().unwrap()).unwrap();
    let out = fixture.path("killed");
    let run = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trainer"));
        command
            .args(["train", "--no-cache", "--config"])
            .arg(fixture.path("train.yaml"))
            .arg("--out")
            .arg(&out)
            .stderr(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let lines = || fs::read_to_string(out.join("log.jsonl")).map_or(0, |log| log.lines().count());
    for more in [1, 2, 5, 3, 4] {
        let (mut child, before) = (run(), lines());
        while lines() < before + more && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(run().wait().unwrap().success());
    assert_same_logs(&fixture.path("whole"), &out);
    for name in ["model.safetensors", "fgram_model.safetensors", "scone.json"] {
        let other = fixture.path("whole").join(name);
        assert_eq!(bytes(&out.join(name)), bytes(&other), "{name}");
    }
    let again = train(&config, &out, &fixture.run_options(None)).unwrap();
    assert_eq!(again.losses, whole.losses);
}

#[test]
fn blocks_may_be_computed_twice_from_any_step_on() {
    let fixture = Fixture::new();
    let whole = fixture.train("whole", &[]).unwrap();
    let out = fixture.path("again");
    let start = fixture.config(&["training.recompute=true"]).unwrap();
    train(&start, &out, &fixture.run_options(Some(13))).unwrap();
    let rest = fixture.config(&[]).unwrap();
    let again = train(&rest, &out, &fixture.run_options(None)).unwrap();
    assert_eq!(again.losses, whole.losses);
}

#[test]
fn all_logs_go_on_after_a_kill_as_if_there_had_been_none() {
    let fixture = Fixture::new();
    let changes = ["training.log_every=1", "training.accumulate=2"];
    fixture.train("whole", &changes).unwrap();
    let (whole, out) = (fixture.path("whole"), fixture.path("killed"));
    let config = fixture.config(&changes).unwrap();
    for stop in [7, 13, 14] {
        train(&config, &out, &fixture.run_options(Some(stop))).unwrap();
        // What a kill in the middle of a write leaves behind.
        for name in ["log.jsonl", "log.csv"] {
            let mut text = fs::read_to_string(out.join(name)).unwrap();
            text.push_str("{\"step\": 1");
            fs::write(out.join(name), text).unwrap();
        }
        let events = fs::read_dir(out.join("tensorboard")).unwrap().next();
        let events = events.unwrap().unwrap().path();
        let mut file = fs::read(&events).unwrap();
        file.truncate(file.len() - 3);
        fs::write(&events, file).unwrap();
    }
    train(&config, &out, &fixture.run_options(None)).unwrap();
    assert_same_logs(&whole, &out);
    let losses = events(&out).into_iter().filter(|(_, loss)| loss.is_some());
    assert_eq!(losses.count(), 20);
    assert!(out.join("plot.svg").exists());
    let entry = &entries(&out)[0];
    for key in ["grad_norm", "lr", "tokens_per_s"] {
        assert!(entry[key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert!(entry["seconds_left"].as_f64().unwrap() >= 0.0);
    let share = entry["peak_share"].as_f64().unwrap();
    assert!(share > 0.0 && share < 2.0, "{share}");
}

/// Held-out text gets worse after the first evaluations: a learning rate that does not fall.
const OVERSHOOT: [&str; 5] = [
    "training.steps=60",
    "training.eval_every=5",
    "training.checkpoint_every=5",
    "optimizer.lr=0.3",
    "optimizer.min_lr_ratio=1",
];

fn with(more: &[&'static str]) -> Vec<&'static str> {
    [&OVERSHOOT[..], more].concat()
}

fn held_out(dir: &Path) -> Vec<(u64, f64)> {
    let entries = entries(dir);
    let scored = entries.iter().filter_map(|entry| {
        let nats = entry["valid_nats_per_token"].as_f64()?;
        Some((entry["step"].as_u64().unwrap(), nats))
    });
    scored.collect()
}

#[test]
fn the_best_evaluation_is_the_model_that_is_written() {
    let fixture = Fixture::new();
    let outcome = fixture
        .train("run", &with(&["training.keep_best=true"]))
        .unwrap();
    let mut scores = held_out(&fixture.path("run"));
    let (_, at_the_end) = scores.pop().unwrap();
    assert_eq!(scores.len(), 12);
    let best = scores.iter().map(|s| s.1).fold(f64::INFINITY, f64::min);
    assert!(
        best < scores[11].1,
        "the last one is not the best: {scores:?}"
    );
    assert!((at_the_end - best).abs() < 1e-9, "{at_the_end} {best}");
    let (_, valid) = &outcome.valid[0];
    assert!((valid.nats_per_token() - best).abs() < 1e-9);
    let last = entries(&fixture.path("run")).pop().unwrap();
    let step = last["model_of_step"].as_u64().unwrap();
    assert!(scores.contains(&(step, best)));

    // Killed between the best evaluation and the next checkpoint, also.
    let config = fixture.config(&with(&["training.keep_best=true"])).unwrap();
    let out = fixture.path("killed");
    train(&config, &out, &fixture.run_options(Some(step + 3))).unwrap();
    train(&config, &out, &fixture.run_options(None)).unwrap();
    let model = |dir: &str| bytes(&fixture.path(dir).join("model.safetensors"));
    assert_eq!(model("killed"), model("run"));
}

#[test]
fn a_run_stops_when_held_out_text_gets_no_better() {
    let fixture = Fixture::new();
    let changes = with(&["training.patience=2"]);
    let outcome = fixture.train("run", &changes).unwrap();
    let steps = outcome.losses.len();
    assert!(steps < 60 && steps.is_multiple_of(5), "{steps}");
    let scores = held_out(&fixture.path("run"));
    let n = scores.len();
    // The best, two worse ones, and the best again as it was written.
    assert!(
        (scores[n - 1].1 - scores[n - 4].1).abs() < 1e-9,
        "{scores:?}"
    );
    assert!(scores[n - 2].1 >= scores[n - 4].1 && scores[n - 3].1 >= scores[n - 4].1);
    // Again: nothing is left to do. With more patience: it goes on.
    let again = fixture.train("run", &changes).unwrap();
    assert_eq!(again.losses, outcome.losses);
    let more = fixture
        .train("run", &with(&["training.patience=100"]))
        .unwrap();
    assert_eq!(more.losses[..steps], outcome.losses);
    assert_eq!(more.losses.len(), 60);
}

#[test]
fn spikes_are_left_out_from_the_last_checkpoint_on() {
    let fixture = Fixture::new();
    let changes = [
        "training.steps=40",
        "training.checkpoint_every=4",
        "training.log_every=1",
        "training.spike=0.1",
        "training.max_skips=1000",
        "optimizer.lr=0.3",
        "optimizer.min_lr_ratio=1",
    ];
    let whole = fixture.train("whole", &changes).unwrap();
    assert_eq!(whole.losses.len(), 40);
    let skips: Vec<Value> = entries(&fixture.path("whole"))
        .into_iter()
        .filter(|entry| entry.get("skipped_batch").is_some())
        .collect();
    assert!(!skips.is_empty(), "{:?}", whole.losses);
    for skip in &skips {
        assert!(skip["reason"].as_str().unwrap().contains("spike"));
        let (back, at) = (skip["back_to"].as_u64(), skip["at_step"].as_u64());
        assert!(back < at && at <= back.map(|back| back + 4), "{skip}");
    }
    // None of the losses that count is one.
    for (at, loss) in whole.losses.iter().enumerate().skip(16) {
        let recent = &whole.losses[at - 16..at];
        let mean = recent.iter().sum::<f32>() / recent.len() as f32;
        assert!(*loss < mean + 0.1001, "{at}: {loss} {mean}");
    }

    let config = fixture.config(&changes).unwrap();
    let out = fixture.path("killed");
    for stop in [11, 23, 30] {
        train(&config, &out, &fixture.run_options(Some(stop))).unwrap();
    }
    let resumed = train(&config, &out, &fixture.run_options(None)).unwrap();
    assert_eq!(resumed.losses, whole.losses);
    assert_same_logs(&fixture.path("whole"), &out);

    let few = ["training.max_skips=0"];
    let few: Vec<&str> = changes.iter().chain(&few).copied().collect();
    let error = format!("{:#}", fixture.train("few", &few).unwrap_err());
    assert!(
        error.contains("spike") && error.contains("training.max_skips = 0"),
        "{error}"
    );
}

#[test]
fn a_part_of_the_set_is_what_mining_less_gives() {
    let fixture = Fixture::new();
    let outcome = fixture
        .train("run", &["max_fgrams=50", "training.steps=3"])
        .unwrap();
    let read = |path: &Path| scone_fgram::set::FgramSet::read(path).unwrap();
    let all = read(&fixture.path("fgrams.bin"));
    let part = read(&fixture.path("run").join("fgrams.bin"));
    assert_eq!(part.len(), 50);
    for (part, all) in part.iter().zip(all.iter()) {
        assert_eq!((part.ids, part.count), (all.ids, all.count));
    }
    let matched: u64 = part.iter().map(|f| f.match_count).sum();
    assert!(matched > 0);
    assert!(outcome.valid[0].1.matched_share() < 0.9);
    let error = format!(
        "{:#}",
        fixture.train("more", &["max_fgrams=5000"]).unwrap_err()
    );
    assert!(error.contains("max_fgrams = 5000"), "{error}");
}

#[test]
fn muon_and_groups_train_and_go_on_to_the_digit() {
    let fixture = Fixture::new();
    let changes = ["optimizer.kind=muon", "optimizer.groups.fgram_model=2"];
    let whole = fixture.train("whole", &changes).unwrap();
    assert!(
        whole.losses[19] < whole.losses[0] - 0.5,
        "{:?}",
        whole.losses
    );
    let config = fixture.config(&changes).unwrap();
    let out = fixture.path("killed");
    train(&config, &out, &fixture.run_options(Some(13))).unwrap();
    let resumed = train(&config, &out, &fixture.run_options(None)).unwrap();
    assert_eq!(resumed.losses, whole.losses);
    let plain = fixture.train("plain", &[]).unwrap();
    assert_ne!(plain.losses, whole.losses);
}
