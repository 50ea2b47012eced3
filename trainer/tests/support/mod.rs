//! A corpus of our own words, its tokenizer and f-gram set, in a temporary directory.
#![allow(clippy::unwrap_used, dead_code, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;
use trainer::corpus::{self, TokenizedCorpus};
use trainer::mining::{MiningOptions, count_matches, mine};
use trainer::tokenizer::{self, TextTokenizer};
use trainer::training::config::TrainConfig;
use trainer::training::{Outcome, RunOptions, train};

/// Files of a fixture.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) tokenizer: TextTokenizer,
}

const WHO: [&str; 6] = [
    "the fox",
    "an old miller",
    "my sister",
    "the river",
    "a grey cat",
    "our cook",
];
const DOES: [&str; 6] = [
    "looks at",
    "runs after",
    "hears",
    "finds",
    "carries",
    "waits for",
];
const WHAT: [&str; 6] = [
    "a lantern",
    "the bread",
    "two stones",
    "the gate",
    "a blue kite",
    "the moon",
];
const WHERE: [&str; 4] = [
    "by the mill",
    "in the rain",
    "before supper",
    "under the bridge",
];

/// Some sentences with a little structure.
fn document(rng: &mut ChaCha12Rng) -> String {
    let mut text = String::new();
    for _ in 0..rng.random_range(3..9) {
        let mut pick = |words: &[&'static str]| *words.choose(rng).unwrap();
        let (who, does, what, scene) = (pick(&WHO), pick(&DOES), pick(&WHAT), pick(&WHERE));
        text.push_str(&format!("{who} {does} {what} {scene}. "));
    }
    text
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = ChaCha12Rng::seed_from_u64(3);
        let mut lines = |count: usize| -> String {
            let line = |_| serde_json::json!({"text": document(&mut rng)}).to_string() + "\n";
            (0..count).map(line).collect()
        };
        fs::write(dir.path().join("train.jsonl"), lines(120)).unwrap();
        fs::write(dir.path().join("valid.jsonl"), lines(12)).unwrap();
        let text = fs::read_to_string(dir.path().join("train.jsonl")).unwrap();
        let tokenizer = tokenizer::train(text.lines().map(|l| Ok(l.to_owned())), 300, 2).unwrap();
        fs::write(dir.path().join("tokenizer.json"), tokenizer.json()).unwrap();
        let fixture = Self { dir, tokenizer };
        let corpus = fixture.corpus("train.jsonl");
        let options = MiningOptions {
            max_n: 4,
            min_count: 5,
            max_fgrams: 300,
        };
        let vocab = fixture.tokenizer.vocab_size();
        let mut set = mine(&corpus, vocab, fixture.tokenizer.sha256(), &options).unwrap();
        let counts = count_matches(&corpus, &set);
        set.set_match_counts(counts.by_rank).unwrap();
        set.write(fixture.path("fgrams.bin")).unwrap();
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn corpus_options(&self) -> corpus::Options {
        corpus::Options {
            cache_dir: None,
            ..corpus::Options::default()
        }
    }

    pub(crate) fn corpus(&self, name: &str) -> TokenizedCorpus {
        corpus::tokenize(&[self.path(name)], &self.tokenizer, &self.corpus_options()).unwrap()
    }

    /// A config of a tiny model, with overrides.
    pub(crate) fn config(&self, overrides: &[&str]) -> anyhow::Result<TrainConfig> {
        let path = |name: &str| self.path(name).display().to_string();
        let text = format!(
            "
data: {{train: [{}], valid: [{}]}}
tokenizer: {}
fgrams: {}
model: {{family: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 32}}
fgram_model: {{num_hidden_layers: 1}}
training: {{sequence_length: 16, batch_tokens: 128, steps: 20, seed: 5, log_every: 5, eval_every: 10, checkpoint_every: 10, eval_tokens: 400}}
optimizer: {{lr: 0.01, warmup_steps: 5}}
",
            path("train.jsonl"),
            path("valid.jsonl"),
            path("tokenizer.json"),
            path("fgrams.bin"),
        );
        let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
        TrainConfig::parse(&text, &overrides)
    }

    pub(crate) fn run_options(&self, stop_after: Option<u64>) -> RunOptions {
        RunOptions {
            corpus: self.corpus_options(),
            stop_after,
            ranks: None,
        }
    }

    /// Trains into `out` below the fixture.
    pub(crate) fn train(&self, out: &str, overrides: &[&str]) -> anyhow::Result<Outcome> {
        train(
            &self.config(overrides)?,
            &self.path(out),
            &self.run_options(None),
        )
    }
}

/// Bytes of a file.
pub(crate) fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// An entry without what a clock or the machine decides.
pub(crate) fn timeless(mut entry: serde_json::Value) -> serde_json::Value {
    for key in [
        "tokens_per_s",
        "peak_share",
        "memory_bytes",
        "seconds",
        "seconds_left",
        "ms",
    ] {
        entry.as_object_mut().unwrap().remove(key);
    }
    entry
}
