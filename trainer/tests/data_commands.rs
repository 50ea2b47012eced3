//! The data commands as a user runs them: text to tokenizer to f-gram set to listing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn trainer(dir: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command
        .current_dir(dir.path())
        .env("SCONE_CACHE_DIR", dir.path().join("cache"));
    command
}

fn run(dir: &TempDir, args: &[&str]) -> Output {
    trainer(dir).args(args).output().unwrap()
}

/// The JSON objects on stdout of a run that must succeed.
fn json(dir: &TempDir, args: &[&str]) -> Vec<Value> {
    let output = run(dir, args);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let stdout = String::from_utf8(output.stdout).unwrap();
    stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// stderr of a run that must fail without a panic.
fn failure(dir: &TempDir, args: &[&str]) -> String {
    let output = run(dir, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && !stderr.contains("panicked"),
        "{stderr}"
    );
    stderr
}

fn make_tokenizer(dir: &TempDir, vocab_size: &str, out: &str) -> Value {
    let input = data("harbour.txt");
    let input = input.to_str().unwrap();
    let args = [
        "tokenizer",
        "--input",
        input,
        "--vocab-size",
        vocab_size,
        "--out",
        out,
        "--json",
    ];
    json(dir, &args).remove(0)
}

fn mine(dir: &TempDir, input: &Path, out: &str) -> Value {
    let input = input.to_str().unwrap();
    let args = [
        "mine",
        "--input",
        input,
        "--tokenizer",
        "t.json",
        "--min-count",
        "3",
    ];
    let more = [
        "--max-fgrams",
        "120",
        "--verify",
        "1000",
        "--out",
        out,
        "--json",
    ];
    json(dir, &[&args[..], &more[..]].concat()).remove(0)
}

fn read(dir: &TempDir, name: &str) -> Vec<u8> {
    std::fs::read(dir.path().join(name)).unwrap()
}

#[test]
fn text_becomes_a_tokenizer_and_a_set_the_same_ones_every_time() {
    let dir = TempDir::new().unwrap();
    let summary = make_tokenizer(&dir, "400", "t.json");
    assert_eq!(summary["vocab_size"], 400);
    assert_eq!(summary["text_bytes"], summary["sample_bytes"]);
    make_tokenizer(&dir, "400", "again.json");
    assert!(read(&dir, "t.json") == read(&dir, "again.json"));

    let first = mine(&dir, &data("harbour.txt"), "a.bin");
    // Compressed by the zstd program; other file, same text.
    let second = mine(&dir, &data("harbour.txt.zst"), "b.bin");
    assert!(read(&dir, "a.bin") == read(&dir, "b.bin"));
    assert_eq!(first["fgram_set_hash"], second["fgram_set_hash"]);
    assert_eq!(
        (&first["fgrams"], &first["verified"]),
        (&120.into(), &120.into())
    );
    let lengths = first["fgrams_by_length"].as_object().unwrap();
    assert_eq!(
        lengths.values().map(|n| n.as_u64().unwrap()).sum::<u64>(),
        120
    );
    let matched = first["matched_share"].as_f64().unwrap();
    assert!(matched > 0.2 && matched < 1.0, "{matched}");
    // Once from each input, the second time from the cache.
    assert_eq!(
        std::fs::read_dir(dir.path().join("cache")).unwrap().count(),
        2
    );
    mine(&dir, &data("harbour.txt"), "c.bin");
    assert!(read(&dir, "a.bin") == read(&dir, "c.bin"));
}

#[test]
fn a_set_is_listed_by_rank() {
    let dir = TempDir::new().unwrap();
    make_tokenizer(&dir, "400", "t.json");
    let mined = mine(&dir, &data("harbour.txt"), "f.bin");
    let args = [
        "fgrams",
        "--fgrams",
        "f.bin",
        "--tokenizer",
        "t.json",
        "--limit",
        "7",
        "--json",
    ];
    let rows = json(&dir, &args);
    let (summary, rows) = rows.split_last().unwrap();
    assert_eq!(rows.len(), 7);
    assert_eq!(summary["fgram_set_hash"], mined["fgram_set_hash"]);
    assert_eq!(summary["cut_count"], mined["cut_count"]);
    for (rank, row) in rows.iter().enumerate() {
        assert_eq!(row["rank"], rank);
        assert!(row["count"].as_u64() >= row["match_count"].as_u64());
        assert!(!row["text"].as_str().unwrap().is_empty());
    }
    assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(row["count"].as_u64())));

    make_tokenizer(&dir, "300", "other.json");
    let args = ["fgrams", "--fgrams", "f.bin", "--tokenizer", "other.json"];
    assert!(failure(&dir, &args).contains("another tokenizer"));
    let plain = run(&dir, &["fgrams", "--fgrams", "f.bin", "--limit", "0"]);
    assert!(
        String::from_utf8(plain.stdout)
            .unwrap()
            .starts_with("120 f-grams")
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = TempDir::new().unwrap();
    make_tokenizer(&dir, "400", "t.json");
    mine(&dir, &data("harbour.txt"), "f.bin");
    let mut child = trainer(&dir)
        .args(["fgrams", "--fgrams", "f.bin", "--limit", "120"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn mistakes_are_named() {
    let dir = TempDir::new().unwrap();
    make_tokenizer(&dir, "300", "t.json");
    let input = data("harbour.txt");
    let input = input.to_str().unwrap();
    let mine = |out: &str, more: &[&str]| {
        let args = [
            "mine",
            "--input",
            input,
            "--tokenizer",
            "t.json",
            "--out",
            out,
        ];
        failure(&dir, &[&args[..], more].concat())
    };
    assert!(mine("f.bin", &[]).contains("--max-fgrams"));
    assert!(mine("f.bin", &["--max-fgrams", "0"]).contains("max_fgrams is 0"));
    assert!(
        mine("f.bin", &["--max-fgrams", "5", "--max-n", "9"])
            .contains("max_n is 9, must be 2 to 8")
    );
    // Said before anything is done, which would be for nothing.
    for no_file in [".", "..", "/"] {
        let said = mine(no_file, &["--max-fgrams", "5"]);
        let expected = format!("--out {no_file} is no file's name");
        assert!(said.contains(&expected), "{said}");
    }
    assert!(mine("/proc/f.bin", &["--max-fgrams", "5"]).contains("/proc/f.bin"));
    assert!(!dir.path().join("f.bin").exists());

    let tokenizer =
        |more: &[&str]| failure(&dir, &[&["tokenizer", "--out", "x.json"], more].concat());
    assert!(tokenizer(&["--input", input, "--vocab-size", "100"]).contains("the least is 257"));
    assert!(tokenizer(&["--input", "none.txt", "--vocab-size", "300"]).contains("none.txt"));
    assert!(failure(&dir, &["fgrams", "--fgrams", "t.json"]).contains("t.json"));
    let args = [
        "mine",
        "--input",
        input,
        "--tokenizer",
        "f.bin",
        "--max-fgrams",
        "5",
        "--out",
        "g",
    ];
    assert!(failure(&dir, &args).contains("f.bin"));
}

#[test]
fn a_device_is_checked_before_files_are_read() {
    let dir = TempDir::new().unwrap();
    let evaluate = ["evaluate", "--model", "m", "--input", "i.txt", "--device"];
    let precompute = ["precompute", "--model", "m", "--out", "o", "--device"];
    for command in [&evaluate[..], &precompute[..]] {
        let error = failure(&dir, &[command, &["abacus"]].concat());
        assert!(
            error.contains("--device") && error.contains("abacus"),
            "{error}"
        );
        if cfg!(not(feature = "cuda")) {
            let error = failure(&dir, &[command, &["cuda:1"]].concat());
            assert!(error.contains("cuda:1") && error.contains("cpu"), "{error}");
        }
    }
    std::fs::write(dir.path().join("c.yaml"), "{}").unwrap();
    let train = [
        "train", "--config", "c.yaml", "--out", "r", "--device", "cuda:1",
    ];
    // The flag replaces what the config says.
    let error = failure(&dir, &[&train[..], &["device=abacus"]].concat());
    assert!(
        error.contains("missing key `data`") && !error.contains("abacus"),
        "{error}"
    );
}

#[test]
fn flags_have_twins_in_the_environment() {
    let dir = TempDir::new().unwrap();
    std::fs::write(
        dir.path().join("one, and two.txt"),
        "one and two and one and two",
    )
    .unwrap();
    let inputs = format!("one, and two.txt:{}", data("harbour.txt").display());
    let output = trainer(&dir)
        .arg("tokenizer")
        .envs([
            ("SCONE_INPUT", &inputs[..]),
            ("SCONE_VOCAB_SIZE", "260"),
            ("SCONE_OUT", "t.json"),
        ])
        .env("SCONE_JSON", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text_bytes = std::fs::metadata(data("harbour.txt")).unwrap().len() + 27;
    assert_eq!(
        (&summary["vocab_size"], &summary["text_bytes"]),
        (&260.into(), &text_bytes.into())
    );
}

#[test]
fn mining_reports_by_length_and_on_held_out_text() {
    let dir = TempDir::new().unwrap();
    make_tokenizer(&dir, "400", "t.json");
    let input = data("harbour.txt");
    std::fs::copy(input, dir.path().join("in.txt")).unwrap();
    let input = "in.txt";
    let mine = "mine --tokenizer t.json --min-count 3 --max-fgrams 120 --out f.bin --input";
    let args: Vec<&str> = mine.split(' ').chain([input]).collect();
    let with = |more: &[&'static str]| [&args[..], more].concat();
    let summary = json(&dir, &with(&["--valid", input, "--json"])).remove(0);
    let scans = summary["scans"].as_array().unwrap();
    assert_eq!(scans.len(), 4);
    for scan in scans {
        let number = |key: &str| scan[key].as_u64().unwrap();
        assert!(number("survivors") <= number("distinct"), "{scan}");
        let kept = summary["fgrams_by_length"][number("n").to_string()].as_u64();
        assert!(kept.unwrap() <= number("survivors"), "{scan}");
    }
    // Held-out text that is the training text matches as it does.
    assert_eq!(summary["valid"]["matched_share"], summary["matched_share"]);
    let cuts = summary["cut_count_by_length"].as_object().unwrap();
    let lowest = cuts.values().map(|cut| cut.as_u64().unwrap()).min();
    assert_eq!(lowest, summary["cut_count"].as_u64());
    let plain = run(&dir, &with(&["--valid", input]));
    let plain = String::from_utf8(plain.stdout).unwrap();
    assert!(plain.contains("distinct") && plain.contains("in held-out text"));

    let error = failure(&dir, &with(&["--memory", "1MiB"]));
    assert!(error.contains("120 f-grams needs at least"), "{error}");
    let error = failure(&dir, &with(&["--memory", "many"]));
    assert!(error.contains("--memory"), "{error}");
    // Enough for all of it: as without, and nothing is left beside the result.
    run(&dir, &with(&["--memory", "1GiB", "--json"]));
    assert!(!dir.path().join("f.bin.work").exists());
}
