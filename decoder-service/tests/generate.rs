//! `decoder-service generate`, as the program runs it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use clap::Parser;
use common::fixture;
use decoder_service::generate::{GenerateArgs, run};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: GenerateArgs,
}

fn generate(args: &[&str]) -> Result<(String, String), decoder_service::Error> {
    let args = Cli::parse_from(["generate"].iter().chain(args)).args;
    let (mut out, mut summary) = (Vec::new(), Vec::new());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(&args, &mut out, &mut summary))?;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ok((text(out), text(summary)))
}

#[test]
fn a_prompt_of_words_is_continued_and_summed_up() {
    let (fixture, cache) = (fixture(), tempfile::tempdir().unwrap());
    let model = fixture.model.to_str().unwrap();
    let cache = cache.path().to_str().unwrap();
    let common = ["--model", model, "--cache-dir", cache, "--max-tokens", "9"];
    let common = [&common[..], &["--ignore-eos", "--seed", "5"]].concat();

    // Without a table flag the table is built into the cache.
    let (text, summary) = generate(&[&common[..], &["then", "the", "fox"]].concat()).unwrap();
    for part in [
        "9 tokens",
        "tokens/s",
        "% of positions",
        "look-up",
        "seed 5",
    ] {
        assert!(summary.contains(part), "{summary}");
    }
    // Another way to say the same, with the answer for programs.
    let table = fixture.table.to_str().unwrap();
    let more = ["--prompt", "then the fox", "--table", table, "--json"];
    let (json, summary) = generate(&[&common[..], &more].concat()).unwrap();
    assert!(summary.is_empty());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(format!("{}\n", json["text"].as_str().unwrap()), text);
    assert_eq!(json["token_ids"].as_array().unwrap().len(), 9);
    assert_eq!(json["embed_mode"], "embedded");
    assert!(json["matched_share"].as_f64().unwrap() > 0.0);

    // The same table by a name, and none.
    let named = format!("mine={table}");
    let more = [
        "--prompt",
        "then the fox",
        "--table",
        &named,
        "--json",
        "--use",
    ];
    let of_table = |name: &'static str| {
        let (json, _) = generate(&[&common[..], &more, &[name]].concat())?;
        Ok::<_, decoder_service::Error>(serde_json::from_str::<serde_json::Value>(&json).unwrap())
    };
    assert_eq!(of_table("mine").unwrap()["text"], json["text"]);
    assert_eq!(of_table("none").unwrap()["matched_share"], 0.0);
    let unknown = of_table("other").unwrap_err().to_string();
    assert!(unknown.contains("\"other\""), "{unknown}");
}

#[test]
fn what_cannot_work_says_why() {
    let fixture = fixture();
    let model = fixture.model.to_str().unwrap();
    let error = generate(&["--model", "/no/such", "x"]).unwrap_err();
    assert!(error.to_string().contains("/no/such"), "{error}");
    let args = ["--model", model, "--table", "/no/such", "x"];
    let error = generate(&args).unwrap_err();
    assert!(error.to_string().contains("/no/such"), "{error}");

    // A SCONE model without the parts a table is built from.
    std::fs::remove_file(fixture.model.join("fgrams.bin")).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().to_str().unwrap();
    let error = generate(&["--model", model, "--cache-dir", cache, "x"]).unwrap_err();
    assert!(error.to_string().contains("--table"), "{error}");

    // A plain model takes no table that does not name its base, and works without.
    std::fs::remove_file(fixture.model.join("scone.json")).unwrap();
    let table = fixture.table.to_str().unwrap();
    let error = generate(&["--model", model, "--table", table, "x"]).unwrap_err();
    let error = error.to_string();
    let none = "(base_hash none), the model's is none (base_hash ";
    assert!(error.contains(none), "{error}");
    let args = [
        "--model",
        model,
        "--cache-dir",
        cache,
        "--max-tokens",
        "3",
        "x",
    ];
    let (_, summary) = generate(&args).unwrap();
    assert!(summary.contains("plain model"), "{summary}");
}

#[test]
fn two_at_once_on_one_cached_table_both_succeed() {
    let (fixture, cache) = (fixture(), tempfile::tempdir().unwrap());
    let model = fixture.model.to_str().unwrap();
    let cache = cache.path().to_str().unwrap();
    let args = ["--model", model, "--cache-dir", cache, "--max-tokens", "5"];
    let args = [&args[..], &["--temperature", "0", "the fox"]].concat();
    let texts: Vec<String> = std::thread::scope(|scope| {
        let runs = [0, 1].map(|_| scope.spawn(|| generate(&args).unwrap().0));
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn a_table_held_for_long_is_an_error_that_says_how_to_share_it() {
    let fixture = fixture();
    let options = scone_fgram::TableOptions::default();
    let _held = scone_fgram::Table::open(&fixture.table, &options).unwrap();
    let (model, table) = (
        fixture.model.to_str().unwrap(),
        fixture.table.to_str().unwrap(),
    );
    let error = generate(&["--model", model, "--table", table, "x"]).unwrap_err();
    assert!(
        error.to_string().contains("embed-service serve --table"),
        "{error}"
    );
}
