#![allow(clippy::unwrap_used, reason = "tests")]
use candle_core::Device;

use super::*;
use crate::training::config::{OptimizerConfig, TrainConfig};

fn optimizer(value: f32) -> Optimizer {
    let var = Var::from_slice(&[value, -value], 2, &Device::Cpu).unwrap();
    Optimizer::new(
        BTreeMap::from([("w".to_owned(), var)]),
        OptimizerConfig::default(),
    )
    .unwrap()
}

fn state(step: u64) -> State {
    let text = "{data: {train: [a]}, tokenizer: t, \
        model: {family: llama, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 8}, \
        training: {sequence_length: 8, batch_tokens: 8, steps: 9}}";
    let hashes = InputHashes {
        base: String::new(),
        tokenizer: "a".to_owned(),
        fgram_set: String::new(),
        token_stream: "b".to_owned(),
    };
    let mut state = State::new(TrainConfig::parse(text, &[]).unwrap(), hashes);
    state.step = step;
    state.losses = vec![0.1 + 0.2, 1.0 / 3.0];
    state
}

fn weights(optimizer: &Optimizer) -> Vec<f32> {
    optimizer.vars()["w"].to_vec1().unwrap()
}

#[test]
fn what_is_written_reads_back_and_old_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), &Device::Cpu);
    assert!(checkpoints.newest().unwrap().is_none());
    for step in [2, 10, 4] {
        checkpoints
            .write(&state(step), &optimizer(step as f32))
            .unwrap();
    }
    assert_eq!(checkpoints.steps().unwrap(), [4, 10]);
    let mut fresh = optimizer(0.0);
    let read = checkpoints
        .newest()
        .unwrap()
        .unwrap()
        .restore(&mut fresh)
        .unwrap();
    assert_eq!(read, state(10));
    assert_eq!(weights(&fresh), [10.0, -10.0]);
    assert_eq!(fresh.step(), 10);
}

#[test]
fn a_damaged_newest_falls_back_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), &Device::Cpu);
    checkpoints.write(&state(1), &optimizer(1.0)).unwrap();
    checkpoints.write(&state(2), &optimizer(2.0)).unwrap();
    let damaged = checkpoints.path(2).join(PARAMETERS);
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(checkpoints.newest().unwrap().unwrap().state.step, 1);
    fs::write(checkpoints.path(1).join(STATE), "{").unwrap();
    let text = format!("{:#}", checkpoints.newest().unwrap_err());
    assert!(
        text.contains("no checkpoint") && text.contains("move the directory"),
        "{text}"
    );
}

#[test]
fn a_partial_checkpoint_is_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), &Device::Cpu);
    fs::create_dir_all(checkpoints.dir.join(".step-7.partial")).unwrap();
    assert!(checkpoints.newest().unwrap().is_none());
}

#[test]
fn batches_that_were_left_out_shift_those_behind() {
    let mut state = state(4);
    assert_eq!(state.batch(), 4);
    state.skipped = vec![4];
    assert_eq!(state.batch(), 5);
    state.skipped = vec![2, 4, 6, 9];
    let batches: Vec<u64> = (0..8)
        .map(|step| {
            State {
                step,
                ..state.clone()
            }
            .batch()
        })
        .collect();
    assert_eq!(batches, [0, 1, 3, 5, 7, 8, 10, 11]);
}

#[test]
fn the_best_parameters_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), &Device::Cpu);
    checkpoints.write_best(3, &optimizer(3.0)).unwrap();
    checkpoints.write_best(7, &optimizer(7.0)).unwrap();
    checkpoints.write(&state(8), &optimizer(8.0)).unwrap();
    let fresh = optimizer(0.0);
    checkpoints.restore_best(3, &fresh).unwrap();
    assert_eq!(weights(&fresh), [3.0, -3.0]);
    checkpoints.keep_best(Some(7)).unwrap();
    checkpoints.restore_best(7, &fresh).unwrap();
    assert_eq!(weights(&fresh), [7.0, -7.0]);
    assert!(checkpoints.restore_best(3, &fresh).is_err());
    assert_eq!(checkpoints.steps().unwrap(), [8]);
}
