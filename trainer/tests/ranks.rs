//! Several ranks train what one process trains. Here they are threads; `mpi.rs` has processes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use anyhow::Result;
use support::{Fixture, bytes};
use trainer::training::ranks::Ranks;
use trainer::training::{Outcome, RunOptions, train};

/// Losses of one process and of ranks differ by the order of sums alone; nats a token.
const NOISE: f32 = 1e-4;

/// What all of them share.
#[derive(Debug)]
struct Job {
    all_here: Barrier,
    sums: Mutex<Vec<f32>>,
    values: Mutex<Vec<u64>>,
}

#[derive(Debug)]
struct Rank {
    number: usize,
    count: usize,
    job: Arc<Job>,
}

impl Ranks for Rank {
    fn rank(&self) -> usize {
        self.number
    }

    fn count(&self) -> usize {
        self.count
    }

    fn add_up(&self, values: &mut [f32]) -> Result<()> {
        // One after the other, so that the sum is the same each time.
        for turn in 0..self.count {
            if turn == self.number {
                let mut sums = self.job.sums.lock().unwrap();
                sums.resize(values.len(), 0.0);
                sums.iter_mut().zip(&*values).for_each(|(sum, v)| *sum += v);
            }
            self.job.all_here.wait();
        }
        values.copy_from_slice(&self.job.sums.lock().unwrap());
        self.job.all_here.wait();
        self.job.sums.lock().unwrap().clear();
        self.job.all_here.wait();
        Ok(())
    }

    fn gather(&self, value: u64) -> Result<Vec<u64>> {
        self.job.values.lock().unwrap()[self.number] = value;
        self.job.all_here.wait();
        let all = self.job.values.lock().unwrap().clone();
        self.job.all_here.wait();
        Ok(all)
    }
}

/// Trains into `out` with so many ranks.
fn train_by(
    fixture: &Fixture,
    count: usize,
    out: &str,
    overrides: &[&str],
    stop_after: Option<u64>,
) -> Vec<Result<Outcome>> {
    // A pool of its own for each: ranks wait for each other within it.
    let overrides = [overrides, &["training.threads=1"]].concat();
    let job = Arc::new(Job {
        all_here: Barrier::new(count),
        sums: Mutex::default(),
        values: Mutex::new(vec![0; count]),
    });
    let one = |number| {
        let job = job.clone();
        let options = RunOptions {
            ranks: Some(Arc::new(Rank { number, count, job })),
            ..fixture.run_options(stop_after)
        };
        train(
            &fixture.config(&overrides).unwrap(),
            &fixture.path(out),
            &options,
        )
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (step, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() < NOISE, "step {step}: {a} and {b}");
    }
}

#[test]
fn ranks_train_what_one_process_trains() {
    let fixture = Fixture::new();
    let alone = fixture.train("alone", &[]).unwrap();
    let ranks = train_by(&fixture, 2, "two", &[], None);
    let losses: Vec<_> = ranks
        .iter()
        .map(|r| r.as_ref().unwrap().losses.clone())
        .collect();
    assert_eq!(losses[0], losses[1], "all ranks know of the whole batch");
    assert_close(&losses[0], &alone.losses);
    let valid = |outcome: &Outcome| outcome.valid[0].1.nats_per_token();
    let (alone, first) = (valid(&alone), valid(ranks[0].as_ref().unwrap()));
    assert!((alone - first).abs() < 1e-3, "{alone} and {first}");
    let lines = |out: &str| {
        fs::read_to_string(fixture.path(out).join("log.jsonl"))
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(lines("two"), lines("alone"), "rank 0 alone writes");
}

#[test]
fn any_number_of_ranks_goes_on_from_a_checkpoint() {
    let fixture = Fixture::new();
    let whole = train_by(&fixture, 2, "whole", &[], None);
    train_by(&fixture, 2, "parts", &[], Some(13));
    let same = train_by(&fixture, 2, "parts", &[], None);
    let weights = |out: &str| bytes(&fixture.path(out).join("model.safetensors"));
    assert_eq!(weights("parts"), weights("whole"), "to the last bit");
    let losses = |ranks: &[Result<Outcome>]| ranks[0].as_ref().unwrap().losses.clone();
    assert_eq!(losses(&same), losses(&whole));

    train_by(&fixture, 4, "changed", &[], Some(13));
    let one = fixture.train("changed", &[]).unwrap();
    assert_close(&one.losses, &losses(&whole));
}

#[test]
fn ranks_stop_at_the_same_step_and_leave_out_the_same_batches() {
    let fixture = Fixture::new();
    // A learning rate that makes held-out text worse soon.
    let early = [
        "training.patience=1",
        "training.eval_every=2",
        "optimizer.lr=0.3",
    ];
    let ranks = train_by(&fixture, 2, "early", &early, None);
    let steps: Vec<_> = ranks
        .iter()
        .map(|r| r.as_ref().unwrap().losses.len())
        .collect();
    assert_eq!(steps[0], steps[1]);
    assert!(steps[0] < 20, "stopped after {}", steps[0]);

    // A learning rate that blows up: steps are spikes as soon as there is a mean to compare with.
    let spikes = [
        "training.spike=0.001",
        "training.max_skips=2",
        "training.steps=80",
        "optimizer.lr=20.0",
    ];
    for rank in train_by(&fixture, 2, "spikes", &spikes, None) {
        let text = format!("{:#}", rank.unwrap_err());
        assert!(
            text.contains("after 2 batches were left out"),
            "all ranks end: {text}"
        );
    }
}

#[test]
fn ranks_that_do_not_fit_are_refused() {
    let fixture = Fixture::new();
    for rank in train_by(&fixture, 3, "three", &[], None) {
        let text = format!("{:#}", rank.unwrap_err());
        assert!(
            text.contains("8 windows a step") && text.contains("3 ranks"),
            "{text}"
        );
    }
}
