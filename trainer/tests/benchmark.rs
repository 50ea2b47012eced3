//! `trainer benchmark` as a user runs it: two models, one served in two ways, on two texts.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use support::Fixture;

fn benchmark(file: &Path, out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.arg("benchmark").arg(file).arg("--out").arg(out);
    // The texts are not to stay in the user's cache.
    command.env("SCONE_CACHE_DIR", out.join("cache"));
    command.output().unwrap()
}

#[test]
fn a_report_has_every_model_on_every_text() {
    let fixture = Fixture::new();
    fixture
        .train("M", &["training.steps=5", "fgrams=null"])
        .unwrap();
    fixture.train("SCONE", &["training.steps=5"]).unwrap();
    let (text, dir) = (fixture.path("held-out.txt"), fixture.path("report"));
    fs::write(&text, "The boats came into the harbour before the rain.\n").unwrap();
    let file = fixture.path("benchmark.yaml");
    let models = |changes: &str| {
        format!(
            "models:\n\
             - {{name: plain, model: {m}}}\n\
             - {{name: SCONE, model: {scone}}}\n\
             - {{name: 'SCONE, served', model: {scone}, row_dtype: f16, weights: int8{changes}}}\n\
             texts:\n- {{name: one, input: [{text}]}}\n- {{name: both, input: [{text}, {text}]}}\n",
            m = fixture.path("M").display(),
            scone = fixture.path("SCONE").display(),
            text = text.display(),
        )
    };
    fs::write(&file, models("")).unwrap();
    let output = benchmark(&file, &dir);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let report = fs::read_to_string(dir.join("report.md")).unwrap();
    assert_eq!(
        report.trim_end(),
        String::from_utf8(output.stdout).unwrap().trim_end()
    );
    // 3 models on 2 texts, and once in the costs.
    let rows = |name: &str| report.matches(&format!("| {name} |")).count();
    assert_eq!(
        [rows("plain"), rows("SCONE"), rows("SCONE, served")],
        [3, 3, 3]
    );
    assert!(report.contains("live-f16"), "{report}");
    assert!(
        fs::read_to_string(dir.join("report.svg"))
            .unwrap()
            .starts_with("<svg ")
    );
    let lines = fs::read_to_string(dir.join("report.jsonl")).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 6);
    let [plain, scone] = [&lines[0]["facts"], &lines[2]["facts"]];
    assert_eq!(
        plain["parameters"], scone["parameters"],
        "what is served has one size"
    );
    assert!(plain["fgram_parameters"].is_null() && scone["fgram_parameters"].as_u64() > Some(0));
    assert!(
        lines
            .iter()
            .all(|line| line["result"]["nats_per_token"].as_f64() > Some(0.0))
    );

    // A mistake is found before anything is evaluated.
    fs::write(&file, models(", table: /nowhere")).unwrap();
    let output = benchmark(&file, &dir);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && stderr.contains("leave row_dtype away"),
        "{stderr}"
    );
}
