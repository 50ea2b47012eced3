//! Commands that are killed at any moment and started again end with the same bytes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;
use tempfile::TempDir;

/// Words in a row, some of them often: text for which every command takes a few tenths of a second.
fn write_text(path: &Path, seed: u64, documents: usize) {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let mut text = String::new();
    for _ in 0..documents {
        let mut line = String::new();
        for _ in 0..400 {
            let (a, b) = (rng.random_range(0..300u32), rng.random_range(0..300u32));
            line.push_str(&format!("w{} ", a.min(b)));
        }
        text.push_str(&serde_json::json!({ "text": line }).to_string());
        text.push('\n');
    }
    fs::write(path, text).unwrap();
}

struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new(documents: usize) -> Self {
        let fixture = Self {
            dir: TempDir::new().unwrap(),
        };
        write_text(&fixture.path("a.jsonl"), 1, documents);
        write_text(&fixture.path("b.jsonl"), 2, documents);
        fixture.run("tokenizer --input a.jsonl --vocab-size 500 --out t.json");
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command
            .current_dir(self.dir.path())
            .env("SCONE_CACHE_DIR", self.path("cache"))
            .args(args.split(' '))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &str) {
        let output = self.command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args}: {stderr}");
    }

    /// Runs to the end after being killed several times on the way. Says how often it was.
    fn run_killed(&self, args: &str, rng: &mut ChaCha12Rng) -> usize {
        let started = Instant::now();
        self.run(args);
        let whole = started.elapsed();
        fs::remove_dir_all(self.path("out")).unwrap();
        let mut kills = 0;
        for _ in 0..6 {
            let mut child = self.command(args).stderr(Stdio::null()).spawn().unwrap();
            let wait = whole.mul_f64(rng.random_range(0.02..0.9));
            kills += usize::from(kill_after(&mut child, wait));
        }
        self.run(args);
        kills
    }
}

/// Sends SIGKILL after `wait`; `false` when the process had ended before.
fn kill_after(child: &mut Child, wait: Duration) -> bool {
    std::thread::sleep(wait);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

/// Every file below `dir`, by its path.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), fs::read(path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn tokenizing_and_mining_survive_kills() {
    let fixture = Fixture::new(400);
    let mut rng = ChaCha12Rng::seed_from_u64(9);
    let tokenize =
        "tokenize --input a.jsonl b.jsonl --tokenizer t.json --shard-tokens 40000 --out out/tokens";
    fixture.run(tokenize);
    let expected = files(&fixture.path("out"));
    let mut kills = fixture.run_killed(tokenize, &mut rng);
    assert!(files(&fixture.path("out")) == expected);
    fs::rename(fixture.path("out/tokens"), fixture.path("tokens")).unwrap();

    let mine =
        "mine --input tokens --tokenizer t.json --max-fgrams 5000 --min-count 2 --out out/f.bin";
    fixture.run(mine);
    let expected = files(&fixture.path("out"));
    fs::remove_dir_all(fixture.path("out")).unwrap();
    // Below what it would take in memory, so that it works on disk.
    let bounded = format!("{mine} --memory 52MiB");
    let log = fixture.command(&bounded).output().unwrap().stderr;
    assert!(String::from_utf8_lossy(&log).contains("in bounded memory"));
    kills += fixture.run_killed(&bounded, &mut rng);
    assert!(
        files(&fixture.path("out")) == expected,
        "the same set, and nothing left beside it"
    );
    assert!(kills > 0, "no run was caught before its end");
}

#[test]
fn precomputing_survives_kills() {
    let fixture = Fixture::new(1);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let mut rng = ChaCha12Rng::seed_from_u64(10);
    // A part of the demo's rows is enough.
    let args = format!(
        "precompute --model {} --shard 0/12 --store mapped --verify-rows 50 --out out/table",
        model.display()
    );
    fixture.run(&args);
    let expected = files(&fixture.path("out"));
    let kills = fixture.run_killed(&args, &mut rng);
    assert!(files(&fixture.path("out")) == expected);
    assert!(kills > 0, "no run was caught before its end");
}

const CONFIG: &str = "
data: {train: [a.jsonl], valid: [b.jsonl]}
tokenizer: t.json
model: {family: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 32}
fgram_model: {num_hidden_layers: 1}
training: {sequence_length: 16, batch_tokens: 256, steps: 120, seed: 5, log_every: 10, eval_every: 40, checkpoint_every: 15, eval_tokens: 600, keep_best: true}
optimizer: {lr: 0.01, warmup_steps: 5}
";

/// The entries of a log, timeless.
fn entries(path: &Path) -> Vec<serde_json::Value> {
    let log = fs::read_to_string(path).unwrap();
    let entry = |line| support::timeless(serde_json::from_str(line).unwrap());
    log.lines().map(entry).collect()
}

#[test]
fn training_survives_kills() {
    let fixture = Fixture::new(40);
    let mut rng = ChaCha12Rng::seed_from_u64(11);
    fs::write(fixture.path("train.yaml"), CONFIG).unwrap();
    fixture
        .run("mine --input a.jsonl --tokenizer t.json --max-fgrams 500 --min-count 2 --out f.bin");
    let args = "train --config train.yaml fgrams=f.bin --out out/run";
    fixture.run(args);
    let result = || {
        let log = entries(&fixture.path("out/run/log.jsonl"));
        let file = |name: &str| fs::read(fixture.path("out/run").join(name)).unwrap();
        let weights = ["model.safetensors", "fgram_model.safetensors"].map(file);
        (log, weights)
    };
    let expected = result();
    let kills = fixture.run_killed(args, &mut rng);
    let (log, weights) = result();
    assert_eq!(log, expected.0, "the same loss curve");
    assert!(weights == expected.1, "the same weights");
    assert!(kills > 0, "no run was caught before its end");
}

#[test]
fn sweeps_survive_kills() {
    let fixture = Fixture::new(40);
    let mut rng = ChaCha12Rng::seed_from_u64(12);
    fs::write(fixture.path("train.yaml"), CONFIG).unwrap();
    let sweep = "config: train.yaml\ngrid: {optimizer.lr: [0.003, 0.01], model.num_hidden_layers: [1, 2]}\n";
    fs::write(fixture.path("sweep.yaml"), sweep).unwrap();
    let args = "sweep sweep.yaml --out out/sweep";
    fixture.run(args);
    let result = || {
        let runs = fs::read_dir(fixture.path("out/sweep/runs")).unwrap();
        let mut runs: Vec<PathBuf> = runs.map(|run| run.unwrap().path()).collect();
        runs.sort();
        let one = |run: &PathBuf| {
            let weights = fs::read(run.join("model.safetensors")).unwrap();
            (run.clone(), entries(&run.join("log.jsonl")), weights)
        };
        runs.iter().map(one).collect::<Vec<_>>()
    };
    let expected = result();
    assert_eq!(expected.len(), 4);
    let kills = fixture.run_killed(args, &mut rng);
    assert!(result() == expected, "the same curves and weights");
    assert!(kills > 0, "no run was caught before its end");
}
