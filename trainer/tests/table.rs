//! precompute and evaluate on a model that `train` wrote.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use candle_core::Device;
use scone_fgram::table::{BuildOptions, build_table};
use scone_fgram::{RowDtype, StoreKind, Table, TableOptions};
use scone_model::checkpoint::{LoadedModel, load_model_dir};
use support::Fixture;
use trainer::evaluation::{
    Evaluator, HeldOut, LiveRows, NoRows, Options, RowSource, TableRows, Totals,
};
use trainer::join::join;
use trainer::model_dir::read_fgram_set;
use trainer::precompute::{self, precompute};

fn trained(fixture: &Fixture) -> LoadedModel {
    fixture.train("model", &[]).unwrap();
    load_model_dir(&fixture.path("model"), &Device::Cpu).unwrap()
}

fn evaluate(fixture: &Fixture, model: &LoadedModel, source: Box<dyn RowSource + '_>) -> Totals {
    evaluate_with(fixture, model, source, 32, 16)
}

fn evaluate_with(
    fixture: &Fixture,
    model: &LoadedModel,
    source: Box<dyn RowSource + '_>,
    context: usize,
    stride: usize,
) -> Totals {
    let text = HeldOut::new(
        "valid",
        &fixture.corpus("valid.jsonl"),
        &fixture.tokenizer,
        None,
    );
    let options = Options {
        context,
        stride,
        batch_tokens: 256,
        eos: 0,
    };
    let mut evaluator = Evaluator::new(&model.decoder, source, options).unwrap();
    evaluator.run(&text.unwrap(), |_| {}).unwrap()
}

fn live<'a>(
    dir: &Path,
    model: &'a LoadedModel,
    dtype: Option<RowDtype>,
) -> Box<dyn RowSource + 'a> {
    let set = read_fgram_set(dir, model).unwrap();
    let fgram = model.fgram.as_ref().unwrap();
    let compute = |fgrams: &[&[u32]]| Ok(fgram.rows(model.decoder.token_embedding(), fgrams)?);
    Box::new(LiveRows::new(
        set.matcher(),
        model.config.hidden_size(),
        dtype,
        compute,
    ))
}

fn options(store: StoreKind, dtype: RowDtype) -> precompute::Options {
    precompute::Options {
        store,
        dtype,
        batch_rows: 37,
        ..precompute::Options::default()
    }
}

#[test]
fn a_table_scores_as_the_live_model_rounded_to_its_type() {
    let fixture = Fixture::new();
    let model = trained(&fixture);
    let dir = fixture.path("model");
    let exact = evaluate(&fixture, &model, live(&dir, &model, None));
    for (store, dtype) in [
        (StoreKind::Sled, RowDtype::F32),
        (StoreKind::Sled, RowDtype::F16),
        (StoreKind::Mapped, RowDtype::F16),
        (StoreKind::Mapped, RowDtype::Int8),
        (StoreKind::Mapped, RowDtype::Int4),
    ] {
        let out = fixture.path(&format!("table-{store}-{dtype}"));
        let manifest = precompute(&dir, &out, &Device::Cpu, &options(store, dtype)).unwrap();
        assert_eq!(manifest.rows, 300);
        let table = Table::open(&out, &TableOptions::default()).unwrap();
        let from_table = evaluate(&fixture, &model, Box::new(TableRows::new(&table).unwrap()));
        let rounded = evaluate(&fixture, &model, live(&dir, &model, Some(dtype)));
        assert_eq!(from_table, rounded, "{store} {dtype}");
        assert_eq!(rounded == exact, dtype == RowDtype::F32, "{dtype}");
        assert!((rounded.nats_per_token() - exact.nats_per_token()).abs() < 0.02);
    }
}

#[test]
fn what_training_reports_at_the_end_is_what_the_files_score() {
    let fixture = Fixture::new();
    let outcome = fixture
        .train(
            "model",
            &["output.dtype=bf16", "training.eval_tokens=1000000"],
        )
        .unwrap();
    let model = load_model_dir(&fixture.path("model"), &Device::Cpu).unwrap();
    let source = live(&fixture.path("model"), &model, None);
    let totals = evaluate_with(&fixture, &model, source, 16, 16);
    let (_, at_end) = &outcome.valid[0];
    assert_eq!(totals.tokens, at_end.tokens);
    assert_eq!(totals.bytes, at_end.bytes);
    let difference = (totals.nats_per_token() - at_end.nats_per_token()).abs();
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn every_token_is_scored_once_and_more_context_is_no_worse() {
    let fixture = Fixture::new();
    fixture
        .train("plain", &["fgrams=null", "training.steps=60"])
        .unwrap();
    let model = load_model_dir(&fixture.path("plain"), &Device::Cpu).unwrap();
    let tokens = fixture.corpus("valid.jsonl").total_tokens();
    let far = evaluate_with(&fixture, &model, Box::new(NoRows), 32, 1);
    let near = evaluate_with(&fixture, &model, Box::new(NoRows), 4, 4);
    assert_eq!((far.tokens, near.tokens), (tokens, tokens));
    assert_eq!(far.by_match_length, [tokens]);
    assert!(far.nats < near.nats, "{} and {}", far.nats, near.nats);
    assert!((far.bits_per_byte() * far.bytes as f64 * 2f64.ln() - far.nats).abs() < 1e-6);
    let text = std::fs::read_to_string(fixture.path("valid.jsonl")).unwrap();
    let documents = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().split_whitespace().count()
    });
    assert_eq!(far.words, documents.sum::<usize>() as u64);
    let word_perplexity = (far.nats / far.words as f64).exp();
    assert!((far.word_perplexity() / word_perplexity - 1.0).abs() < 1e-9);
}

#[test]
fn an_interrupted_precomputation_is_finished_to_the_same_table() {
    let fixture = Fixture::new();
    let model = trained(&fixture);
    for store in StoreKind::ALL {
        check_interruption(&fixture, &model, store);
    }
}

fn check_interruption(fixture: &Fixture, model: &LoadedModel, store: StoreKind) {
    let dir = fixture.path("model");
    let options = options(store, RowDtype::F16);
    let whole = precompute(
        &dir,
        &fixture.path(&format!("whole-{store}")),
        &Device::Cpu,
        &options,
    )
    .unwrap();

    let set = read_fgram_set(&dir, model).unwrap();
    let build = BuildOptions {
        store,
        dim: model.config.hidden_size(),
        model_hash: model.model_hash.clone().unwrap(),
        batch_rows: 37,
        ..BuildOptions::default()
    };
    let out = fixture.path(&format!("part-{store}"));
    let fgram = model.fgram.as_ref().unwrap();
    let mut batches = 0;
    let stopped = build_table(
        &out,
        &set,
        &build,
        |fgrams, rows| -> anyhow::Result<()> {
            batches += 1;
            anyhow::ensure!(batches < 4, "killed");
            rows.extend(fgram.rows(model.decoder.token_embedding(), fgrams)?);
            Ok(())
        },
        |_, _| {},
    );
    assert_eq!(stopped.unwrap_err().to_string(), "killed");
    assert!(Table::open(&out, &TableOptions::default()).is_err());
    assert_eq!(
        precompute(&dir, &out, &Device::Cpu, &options).unwrap(),
        whole
    );
}

#[test]
fn shards_hold_all_rows_between_them_and_share_the_table_id() {
    let fixture = Fixture::new();
    trained(&fixture);
    let manifests: Vec<_> = (0..3)
        .map(|shard| {
            let options = precompute::Options {
                shard: (shard, 3),
                ..options(StoreKind::Mapped, RowDtype::F16)
            };
            let out = fixture.path(&format!("shard-{shard}"));
            precompute(&fixture.path("model"), &out, &Device::Cpu, &options).unwrap()
        })
        .collect();
    assert_eq!(manifests.iter().map(|m| m.rows).sum::<u64>(), 300);
    assert!(
        manifests
            .iter()
            .all(|m| m.table_id == manifests[0].table_id)
    );
    let table = Table::open(&fixture.path("shard-0"), &TableOptions::default()).unwrap();
    let error = TableRows::new(&table).unwrap_err().to_string();
    assert!(error.contains("shard 0 of 3"), "{error}");
}

#[test]
fn rows_that_another_model_made_are_found_out() {
    let fixture = Fixture::new();
    let model = trained(&fixture);
    let dir = fixture.path("model");
    let set = read_fgram_set(&dir, &model).unwrap();
    let build = BuildOptions {
        store: StoreKind::Sled,
        dim: model.config.hidden_size(),
        model_hash: model.model_hash.clone().unwrap(),
        ..BuildOptions::default()
    };
    let out = fixture.path("wrong");
    let zeros = |fgrams: &[&[u32]], rows: &mut Vec<f32>| -> anyhow::Result<()> {
        rows.resize(fgrams.len() * 32, 0.0);
        Ok(())
    };
    build_table(&out, &set, &build, zeros, |_, _| {}).unwrap();
    let error = precompute(
        &dir,
        &out,
        &Device::Cpu,
        &options(StoreKind::Sled, RowDtype::F16),
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("differs from the f-gram model's"), "{error}");
}

#[test]
fn a_plain_model_has_no_table_and_a_swapped_set_is_refused() {
    let fixture = Fixture::new();
    fixture
        .train("plain", &["fgrams=null", "training.steps=1"])
        .unwrap();
    let out = fixture.path("table");
    let error = precompute(
        &fixture.path("plain"),
        &out,
        &Device::Cpu,
        &options(StoreKind::Sled, RowDtype::F16),
    )
    .unwrap_err();
    assert!(error.to_string().contains("plain model"), "{error}");

    let model = trained(&fixture);
    let set = fixture.path("model").join("fgrams.bin");
    let mut other = read_fgram_set(&fixture.path("model"), &model).unwrap();
    other.set_match_counts(vec![1; other.len()]).unwrap();
    other.write(&set).unwrap();
    let error = precompute(
        &fixture.path("model"),
        &out,
        &Device::Cpu,
        &options(StoreKind::Sled, RowDtype::F16),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("set of another model"),
        "{error}"
    );
}

#[test]
fn shards_join_into_the_table_that_one_run_makes() {
    let fixture = Fixture::new();
    let model = trained(&fixture);
    let dir = fixture.path("model");
    let set = read_fgram_set(&dir, &model).unwrap();
    for dtype in [RowDtype::F16, RowDtype::Int4] {
        let whole = fixture.path(&format!("whole-{dtype}"));
        let mapped = options(StoreKind::Mapped, dtype);
        precompute(&dir, &whole, &Device::Cpu, &mapped).unwrap();
        let shards: Vec<_> = (0..3)
            .map(|index| {
                let out = fixture.path(&format!("shard-{index}-{dtype}"));
                let store = [StoreKind::Sled, StoreKind::Mapped][index as usize % 2];
                let shard = precompute::Options {
                    shard: (index, 3),
                    ..options(store, dtype)
                };
                precompute(&dir, &out, &Device::Cpu, &shard).unwrap();
                out
            })
            .collect();
        let joined = fixture.path(&format!("joined-{dtype}"));
        let order = [2, 0, 1].map(|index: usize| shards[index].clone());
        join(&set, &order, &joined, StoreKind::Mapped).unwrap();
        for name in ["table.json", "keys.bin", "index.bin", "rows.bin"] {
            let same = support::bytes(&joined.join(name)) == support::bytes(&whole.join(name));
            assert!(same, "{name}, {dtype}");
        }
        let again = join(&set, &order, &joined, StoreKind::Mapped).unwrap();
        assert_eq!(again.rows, 300);
        assert!(again.base_hash.is_some());

        let refused = |shards: &[std::path::PathBuf], says: &str| {
            let out = fixture.path("refused");
            let error = join(&set, shards, &out, StoreKind::Mapped).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{says}: {error:#}");
        };
        refused(&shards[..2], "one of 3 shards, 2 are given");
        refused(
            &[0, 1, 1].map(|index: usize| shards[index].clone()),
            "given twice",
        );
        let mixed = [
            shards[0].clone(),
            shards[1].clone(),
            fixture.path("shard-2-f16"),
        ];
        if dtype == RowDtype::Int4 {
            refused(&mixed, "a shard of the table");
        }
        refused(&[], "no shards");
    }
}
