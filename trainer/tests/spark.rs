//! Counts made by PySpark on a small cluster give the set that `trainer mine` makes itself.
//!
//! Needs Java 17 and, in the Python that `SCONE_TEST_PYTHON` names (else `python3`), the packages
//! pyspark and pyarrow; without them the test says so and checks nothing.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn python() -> String {
    std::env::var("SCONE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

fn works(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn ensure_success(what: &str, output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {stderr}");
}

fn trainer(dir: &Path, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command
        .current_dir(dir)
        .env("SCONE_CACHE_DIR", dir.join("cache"));
    command.args(args.split(' ')).output().unwrap()
}

#[test]
fn spark_counts_what_mining_counts() {
    let packages = Command::new(python())
        .args(["-c", "import pyspark, pyarrow"])
        .status();
    if !packages.is_ok_and(|status| status.success())
        || !works(Command::new("java").arg("-version"))
    {
        println!(
            "skipped: needs Java, and pyspark and pyarrow in {}",
            python()
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Each paragraph is a document, and all of it one more: several files, long and short rows.
    let text = fs::read_to_string(data.join("tests/data/harbour.txt")).unwrap();
    let lines: String = text
        .split("\n\n")
        .chain([text.as_str(), "x"])
        .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
        .collect();
    fs::write(dir.path().join("a.jsonl"), lines).unwrap();
    for args in [
        "tokenizer --input a.jsonl --vocab-size 400 --out t.json",
        "tokenize --input a.jsonl --tokenizer t.json --format parquet --shard-tokens 300 --out tokens",
    ] {
        ensure_success(args, &trainer(dir.path(), args));
    }
    let options = "--max-n 5 --min-count 2 --max-fgrams 300";
    let counted = Command::new(python())
        .current_dir(dir.path())
        .arg(data.join("spark/count_ngrams.py"))
        .args("--tokens tokens --out counts --master local-cluster[2,1,1024]".split(' '))
        .args(options.split(' '))
        .env("SPARK_LOCAL_DIRS", dir.path().join("spark"))
        .env("PYSPARK_PYTHON", python())
        .output()
        .unwrap();
    ensure_success("count_ngrams.py", &counted);
    let mine = format!("mine --input tokens --tokenizer t.json {options}");
    ensure_success(
        "mine",
        &trainer(dir.path(), &format!("{mine} --out own.bin")),
    );
    let counts = trainer(
        dir.path(),
        &format!("{mine} --counts counts --out spark.bin --verify 300"),
    );
    ensure_success("mine --counts", &counts);
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(read("own.bin") == read("spark.bin"));

    // Counts that are not finished, or of something else, make no set.
    let refused = |args: &str| {
        let output = trainer(dir.path(), &format!("{args} --counts counts --out no.bin"));
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(
        refused(&mine.replace("--max-fgrams 300", "--max-fgrams 301")).contains("enough for 300")
    );
    assert!(refused(&mine.replace("--min-count 2", "--min-count 3")).contains("--min-count 2"));
    fs::remove_dir_all(dir.path().join("counts/complete")).unwrap();
    assert!(refused(&mine).contains("not complete"));
}
