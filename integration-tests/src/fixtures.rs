//! Text, models and tables made by the real `trainer`, once per test run.

use std::{
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    binaries::binaries,
    process::{Finished, run},
};

pub mod text;

/// Vocabulary of the fixture's tokenizer.
pub const VOCAB_SIZE: u32 = 400;
/// K of the fixture's f-gram set.
pub const MAX_N: u32 = 5;
/// Longest context of the fixture's models.
pub const CONTEXT_TOKENS: u32 = 2048;
/// Width of the fixture's models.
pub const DIM: u32 = 32;

/// The folder of this test run, empty at its start. A second run in the same target folder waits
/// for the first one to end.
///
/// # Panics
/// When the folder cannot be made.
pub fn run_dir() -> &'static Path {
    static RUN_DIR: LazyLock<(PathBuf, File)> = LazyLock::new(|| {
        let parent = binaries().target.join("tmp");
        fs::create_dir_all(&parent).expect("create the tmp folder");
        let lock = File::create(parent.join("integration-tests.lock")).expect("create a lock file");
        lock.lock().expect("lock the folder of the test run");
        let path = parent.join("integration-tests");
        if path.exists() {
            fs::remove_dir_all(&path).expect("remove the folder of the last run");
        }
        fs::create_dir_all(path.join("logs")).expect("create the folder of this run");
        (path, lock)
    });
    &RUN_DIR.0
}

/// A new empty folder for one test.
///
/// # Panics
/// When it cannot be made.
pub fn scratch(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = run_dir().join(format!("scratch/{number:03}-{name}"));
    fs::create_dir_all(&path).expect("create a scratch folder");
    path
}

/// A copy of a folder for one test: sled lets one process in, and some tests break files.
///
/// # Panics
/// When it cannot be copied.
pub fn copy_of(dir: &Path) -> PathBuf {
    let name = dir.file_name().and_then(|name| name.to_str());
    let copy = scratch(name.expect("a named folder")).join("copy");
    copy_folder(dir, &copy).expect("copy a fixture");
    copy
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// What the trainer made. Read only: tests work on a [`copy_of`] what they open or change.
#[derive(Debug)]
pub struct Fixtures {
    /// Training text, one document a line.
    pub corpus: PathBuf,
    /// Other text of the same kind.
    pub heldout: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// `fgrams.bin`.
    pub fgrams: PathBuf,
    /// The training config; models differ by overrides.
    pub config: PathBuf,
    /// The model most tests serve.
    pub model: PathBuf,
    /// Its table, f16.
    pub table: PathBuf,
    /// The same table in two shards.
    pub shards: [PathBuf; 2],
    /// A model of another seed, with the same tokenizer, f-gram set and shape.
    pub other_model: PathBuf,
    /// The table of the other model.
    pub other_table: PathBuf,
}

/// The fixtures, made on the first call.
///
/// # Panics
/// When the trainer fails; its logs are in the message.
pub fn fixtures() -> &'static Fixtures {
    static FIXTURES: LazyLock<Fixtures> = LazyLock::new(|| {
        let dir = run_dir().join("fixtures");
        fs::create_dir_all(&dir).expect("create the folder of the fixtures");
        let fixtures = Fixtures::at(&dir);
        fixtures.write_text();
        fixtures.mine();
        fixtures.train(&fixtures.model, &["training.seed=1"]);
        fixtures.train(
            &fixtures.other_model,
            &["training.seed=2", "training.steps=2"],
        );
        fixtures.precompute(&fixtures.model, &fixtures.table, &[]);
        for (shard, path) in fixtures.shards.iter().enumerate() {
            let shard = format!("{shard}/2");
            fixtures.precompute(&fixtures.model, path, &["--shard", &shard]);
        }
        fixtures.precompute(&fixtures.other_model, &fixtures.other_table, &[]);
        fixtures
    });
    &FIXTURES
}

impl Fixtures {
    fn at(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        Self {
            corpus: path("corpus.jsonl"),
            heldout: path("heldout.txt"),
            tokenizer: path("tokenizer.json"),
            fgrams: path("fgrams.bin"),
            config: path("train.yaml"),
            model: path("model"),
            table: path("table"),
            shards: [path("shard-0"), path("shard-1")],
            other_model: path("other-model"),
            other_table: path("other-table"),
        }
    }

    fn write_text(&self) {
        let documents = text::documents(1, 400);
        let lines: Vec<String> = documents
            .iter()
            .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
            .collect();
        fs::write(&self.corpus, lines.concat()).expect("write the corpus");
        fs::write(&self.heldout, text::documents(2, 40).join("\n\n")).expect("write the text");
        fs::write(&self.config, self.train_config()).expect("write the training config");
    }

    fn mine(&self) {
        let mut command = trainer(&["tokenizer"]);
        command.arg("--input").arg(&self.corpus);
        command.args(["--vocab-size", &VOCAB_SIZE.to_string()]);
        command.arg("--out").arg(&self.tokenizer);
        run("trainer-tokenizer", command).success();

        let mut command = trainer(&["mine", "--min-count", "3", "--max-fgrams", "2000"]);
        command.args(["--max-n", &MAX_N.to_string()]);
        command.arg("--input").arg(&self.corpus);
        command.arg("--tokenizer").arg(&self.tokenizer);
        command.arg("--out").arg(&self.fgrams);
        run("trainer-mine", command).success();
    }

    fn train_config(&self) -> String {
        let quoted = |path: &Path| serde_json::json!(path).to_string();
        format!(
            "\
data:
  train: [{corpus}]
  valid: [{heldout}]
tokenizer: {tokenizer}
fgrams: {fgrams}
model:
  family: llama
  hidden_size: {DIM}
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  intermediate_size: 64
  max_position_embeddings: {CONTEXT_TOKENS}
fgram_model:
  num_hidden_layers: 1
training:
  sequence_length: 64
  batch_tokens: 512
  steps: 40
  log_every: 1
  eval_every: 0
  eval_tokens: 1024
  checkpoint_every: 0
optimizer:
  lr: 5e-3
  warmup_steps: 4
",
            corpus = quoted(&self.corpus),
            heldout = quoted(&self.heldout),
            tokenizer = quoted(&self.tokenizer),
            fgrams = quoted(&self.fgrams),
        )
    }

    /// Trains a model into `out`.
    ///
    /// # Panics
    /// When the trainer fails.
    pub fn train(&self, out: &Path, overrides: &[&str]) {
        run("trainer-train", self.train_command(out, overrides)).success();
    }

    /// `trainer train` with the config of the fixtures and these overrides.
    pub fn train_command(&self, out: &Path, overrides: &[&str]) -> Command {
        let mut command = trainer(&["train"]);
        command.arg("--config").arg(&self.config);
        command.arg("--out").arg(out).args(overrides);
        command
    }

    /// Precomputes a table, a sled one of f16 rows unless `flags` say otherwise.
    ///
    /// # Panics
    /// When the trainer fails.
    pub fn precompute(&self, model: &Path, out: &Path, flags: &[&str]) {
        run("trainer-precompute", precompute_command(model, out, flags)).success();
    }
}

/// `trainer precompute`, by default into a sled table of f16 rows.
pub fn precompute_command(model: &Path, out: &Path, flags: &[&str]) -> Command {
    let mut command = trainer(&["precompute"]);
    command.arg("--model").arg(model);
    command.arg("--out").arg(out).args(flags);
    command
}

/// A `trainer` command, on two threads.
pub fn trainer(args: &[&str]) -> Command {
    let mut command = Command::new(&binaries().trainer);
    command.args(args).args(["--threads", "2"]);
    command
}

/// Runs `trainer evaluate --json` and returns its last JSON line.
///
/// # Panics
/// When it fails or prints something else.
pub fn evaluate(model: &Path, input: &Path, flags: &[&str]) -> serde_json::Value {
    let stdout = evaluate_command(model, input, flags).success();
    let line = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
}

fn evaluate_command(model: &Path, input: &Path, flags: &[&str]) -> Finished {
    let mut command = trainer(&["evaluate", "--json"]);
    command.arg("--model").arg(model);
    command.arg("--input").arg(input).args(flags);
    // Enough to compare; in a build without optimisation every position costs.
    command.args(["--max-tokens", "3000", "--context", "256"]);
    run("trainer-evaluate", command)
}

/// The facts of a table, from its `table.json`.
///
/// # Panics
/// When there is no manifest.
pub fn manifest(table: &Path) -> serde_json::Value {
    let text = fs::read_to_string(table.join("table.json")).expect("a manifest");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let facts = json["table"].take();
    assert!(facts["table_id"].is_string(), "no table id in {text}");
    facts
}
