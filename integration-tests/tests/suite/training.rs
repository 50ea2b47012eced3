//! The trainer's promises: a killed run goes on as if nothing had happened, and the table holds what
//! the f-gram model says.

use std::{fs, path::Path};

use integration_tests::{
    eventually::{PATIENCE, eventually_within},
    fixtures::{evaluate, fixtures, manifest, precompute_command},
    folders::{copy_of, scratch},
    process::{Process, run},
};

/// The loss of every step, from the newest checkpoint.
fn losses(out: &Path, step: u64) -> Vec<f64> {
    let path = out.join(format!("checkpoints/step-{step}/state.json"));
    let state: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let losses = state["losses"].as_array().unwrap();
    losses.iter().map(|loss| loss.as_f64().unwrap()).collect()
}

#[test]
fn a_killed_run_resumes_to_the_same_loss_curve() {
    let f = fixtures();
    let overrides = [
        "training.steps=30",
        "training.checkpoint_every=5",
        "training.seed=3",
    ];
    let whole = scratch("whole").join("model");
    f.train(&whole, &overrides);
    let expected = losses(&whole, 30);
    assert_eq!(expected.len(), 30);
    assert!(
        expected[29] < expected[0],
        "nothing was learnt: {expected:?}"
    );

    let killed = scratch("killed").join("model");
    let mut process = Process::spawn("trainer-killed", f.train_command(&killed, &overrides));
    eventually_within(2 * PATIENCE, "checkpoint", || {
        killed
            .join("checkpoints/step-5/state.json")
            .exists()
            .then_some(())
    });
    assert!(
        process.exit_status().is_none(),
        "it ended before it could be killed"
    );
    process.kill();
    assert!(
        !killed.join("model.safetensors").exists(),
        "killed too late"
    );

    f.train(&killed, &overrides);
    assert_eq!(losses(&killed, 30), expected);
    let weights = |out: &Path, name: &str| fs::read(out.join(name)).unwrap();
    for name in ["model.safetensors", "fgram_model.safetensors"] {
        assert!(
            weights(&killed, name) == weights(&whole, name),
            "{name} differs"
        );
    }
}

#[test]
fn a_killed_precompute_resumes_to_the_same_table() {
    let f = fixtures();
    let out = scratch("precompute").join("table");
    let mut process = Process::spawn("trainer-killed", precompute_command(&f.model, &out, &[]));
    eventually_within(2 * PATIENCE, "rows", || {
        out.join("rows.sled").exists().then_some(())
    });
    process.kill();
    run(
        "trainer-precompute",
        precompute_command(&f.model, &out, &[]),
    )
    .success();
    let (resumed, whole) = (manifest(&out), manifest(&f.table));
    for key in ["table_id", "rows", "dim", "dtype", "rows_sha256"] {
        assert!(!whole[key].is_null(), "no {key} in the manifest");
        assert_eq!(resumed[key], whole[key], "{key}");
    }
}

#[test]
fn live_rows_rounded_to_f16_and_the_f16_table_give_the_same_loss() {
    let f = fixtures();
    let table = copy_of(&f.table);
    let live = evaluate(&f.model, &f.heldout, &["--row-dtype", "f16"]);
    let stored = evaluate(&f.model, &f.heldout, &["--table", table.to_str().unwrap()]);
    let nats = |report: &serde_json::Value| report["nats_per_token"].as_f64().unwrap();
    let (live_nats, stored_nats) = (nats(&live), nats(&stored));
    assert!(live_nats > 1.0, "{live}");
    let relative = (live_nats - stored_nats).abs() / live_nats;
    assert!(relative <= 1e-6, "live {live_nats}, table {stored_nats}");
    assert_eq!(live["matched_by_length"], stored["matched_by_length"]);
}

/// As Kubernetes ends a pod, where the trainer is the first process of its container.
#[test]
fn sigterm_ends_a_training_run_with_a_checkpoint_and_other_work_with_a_message() {
    let f = fixtures();
    // No checkpoint but the one that SIGTERM brings.
    let overrides = ["training.steps=100000", "training.checkpoint_every=0"];
    let out = scratch("terminated").join("model");
    let mut process = Process::spawn("trainer-train", f.train_command(&out, &overrides));
    eventually_within(2 * PATIENCE, "log of steps", || {
        let log = fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
        (!log.is_empty()).then_some(())
    });
    process.terminate();
    assert_eq!(process.wait_within(2 * PATIENCE).code(), Some(143));
    let said = process.stderr();
    assert!(said.contains("ended by SIGTERM after step"), "{said}");
    let checkpoints = fs::read_dir(out.join("checkpoints")).unwrap();
    let names: Vec<_> = checkpoints
        .map(|entry| entry.unwrap().file_name())
        .collect();
    let step = names[0].to_str().unwrap().strip_prefix("step-").unwrap();
    assert!(said.contains(&format!("after step {step},")), "{said}");

    let out = scratch("terminated").join("table");
    let mut process = Process::spawn("trainer-stop", precompute_command(&f.model, &out, &[]));
    eventually_within(2 * PATIENCE, "rows", || {
        out.join("rows.sled").exists().then_some(())
    });
    process.terminate();
    // It may have been about to end by itself.
    let code = process.wait().code();
    let said = process.stderr();
    assert!(
        code == Some(143) && said.contains("ended by SIGTERM") || code == Some(0),
        "{code:?}: {said}"
    );
}
