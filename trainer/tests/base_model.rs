//! Training from a base model: where it starts, what stays as it was, what is left behind.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use scone_model::checkpoint::{ModelFiles, load_model_dir, save_model_dir};
use scone_model::config::{Gpt2Config, LlamaConfig, LlamaVariant};
use scone_model::{ModelConfig, init_parameters};
use support::{Fixture, bytes};
use trainer::evaluation::{Evaluator, HeldOut, NoRows, Options};
use trainer::precompute::{self, precompute};
use trainer::training::train;

/// Small models of all kinds, large enough weights for losses to differ.
fn bases(vocab: usize) -> [ModelConfig; 3] {
    let mut llama = LlamaConfig::new(vocab, 32, 2, 4, 48, 64);
    llama.num_key_value_heads = Some(2);
    llama.torch_dtype = "bfloat16".into();
    llama.initializer_range = 0.2;
    llama.eos_token_id = Some(scone_model::config::TokenIds::One(0));
    let mut qwen3 = llama.clone();
    qwen3.model_type = LlamaVariant::Qwen3;
    (qwen3.num_attention_heads, qwen3.head_dim) = (6, Some(10));
    let mut gpt2 = Gpt2Config::new(vocab, 32, 2, 4, 64);
    gpt2.initializer_range = 0.2;
    [
        ModelConfig::Llama(llama),
        ModelConfig::Llama(qwen3),
        ModelConfig::Gpt2(gpt2),
    ]
}

fn save_base(fixture: &Fixture, name: &str, config: &ModelConfig) -> PathBuf {
    let dir = fixture.path(name);
    save_model_dir(&dir, config, &init_parameters(config, 9).unwrap(), None).unwrap();
    fs::copy(fixture.path("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    fs::write(dir.join("generation_config.json"), r#"{"top_k": 7}"#).unwrap();
    dir
}

fn llama(fixture: &Fixture) -> PathBuf {
    let vocab = fixture.tokenizer.vocab_size() as usize;
    save_base(fixture, "base", &bases(vocab)[0])
}

/// Changes of the fixture's config for a run from `base`.
fn from(base: &Path, more: &[&str]) -> Vec<String> {
    let mut changes = vec![
        format!("base={}", base.display()),
        "model=null".to_owned(),
        "tokenizer=null".to_owned(),
    ];
    changes.extend(more.iter().map(|&change| change.to_owned()));
    changes
}

fn run(
    fixture: &Fixture,
    out: &str,
    changes: &[String],
) -> anyhow::Result<trainer::training::Outcome> {
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    fixture.train(out, &changes)
}

/// The same model with files that are not ours: another header, keys that we do not read.
fn as_others_write(base: &Path) {
    let path = base.join("model.safetensors");
    let ours = bytes(&path);
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    assert_ne!(bytes(&path), ours);
    let config = fs::read_to_string(base.join("config.json")).unwrap();
    let config = config.replacen('{', "{\"use_cache\": true,", 1);
    fs::write(base.join("config.json"), config).unwrap();
}

/// Contents of all files of a directory.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), bytes(&path))).collect()
}

/// Nats/token of the fixture's held-out text by a model without f-grams.
fn plain_score(fixture: &Fixture, dir: &Path) -> f64 {
    let model = load_model_dir(dir, &Device::Cpu).unwrap();
    let text = HeldOut::load(
        "valid",
        &[fixture.path("valid.jsonl")],
        &fixture.tokenizer,
        &fixture.corpus_options(),
        Some(400),
    )
    .unwrap();
    let eos = model.config.eos_token_ids().first().copied();
    let options = Options {
        context: 16,
        stride: 16,
        batch_tokens: 128,
        eos: eos.unwrap_or_else(|| fixture.tokenizer.token_id("<|endoftext|>").unwrap()),
    };
    let mut evaluator = Evaluator::new(&model.decoder, Box::new(NoRows), options).unwrap();
    evaluator.run(&text, |_| {}).unwrap().nats_per_token()
}

fn first_log_line(dir: &Path) -> serde_json::Value {
    let log = fs::read_to_string(dir.join("log.jsonl")).unwrap();
    serde_json::from_str(log.lines().next().unwrap()).unwrap()
}

#[test]
fn the_first_step_is_the_base_model() {
    let fixture = Fixture::new();
    let vocab = fixture.tokenizer.vocab_size() as usize;
    for (i, config) in bases(vocab).iter().enumerate() {
        let base = save_base(&fixture, &format!("base-{i}"), config);
        let plain = run(
            &fixture,
            &format!("plain-{i}"),
            &from(&base, &["fgrams=null", "training.steps=1"]),
        )
        .unwrap();
        for trainable in ["all", "fgram_model", "fgram_model+embeddings"] {
            let out = format!("run-{i}-{trainable}");
            let trainable = format!("trainable={trainable}");
            let changes = from(&base, &[&trainable, "training.steps=1"]);
            let outcome = run(&fixture, &out, &changes).unwrap();
            assert_eq!(outcome.losses, plain.losses, "{trainable}");
            let line = first_log_line(&fixture.path(&out));
            assert_eq!(line["step"], 0);
            assert!(line["valid_matched"].as_f64().unwrap() > 0.5);
            let logged = line["valid_nats_per_token"].as_f64().unwrap();
            let expected = plain_score(&fixture, &base);
            assert!((logged - expected).abs() < 1e-9, "{logged} {expected}");
        }
    }
}

#[test]
fn a_table_adapter_leaves_the_base_as_it_was() {
    let fixture = Fixture::new();
    let base = llama(&fixture);
    as_others_write(&base);
    let before = contents(&base);
    let changes = from(&base, &["trainable=fgram_model", "training.steps=40"]);
    let outcome = run(&fixture, "adapter", &changes).unwrap();
    assert_eq!(contents(&base), before);
    let (first, last) = (outcome.losses[0], outcome.losses[39]);
    assert!(last < first - 0.5, "{first} to {last}");

    let out = fixture.path("adapter");
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    ] {
        assert_eq!(bytes(&out.join(name)), bytes(&base.join(name)), "{name}");
    }
    // The tokens without a table are those of the base, and the table can be made.
    assert_eq!(plain_score(&fixture, &out), plain_score(&fixture, &base));
    let table = fixture.path("table");
    let manifest = precompute(&out, &table, &Device::Cpu, &precompute::Options::default()).unwrap();
    // The table names the base, whose file is another.
    let base_hash = ModelFiles::open(&base).unwrap().base_hash().unwrap();
    assert_eq!(manifest.base_hash, Some(base_hash));
    let (_, valid) = &outcome.valid[0];
    assert!(valid.nats_per_token() < plain_score(&fixture, &base) - 0.3);

    // Moments, the larger part of a checkpoint, are those of A alone.
    let saved = candle_core::safetensors::load(
        out.join("checkpoints/step-40/optimizer.safetensors"),
        &Device::Cpu,
    )
    .unwrap();
    assert!(!saved.is_empty());
    assert!(saved.keys().all(|name| name.contains(".fgram_model/")));
}

#[test]
fn embeddings_alone_are_the_control() {
    let fixture = Fixture::new();
    let base = llama(&fixture);
    let changes = from(&base, &["trainable=embeddings", "fgrams=null"]);
    let outcome = run(&fixture, "control", &changes).unwrap();
    assert!(outcome.losses[19] < outcome.losses[0] - 0.5);
    let read = |dir: &Path| {
        candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap()
    };
    let (old, new) = (read(&base), read(&fixture.path("control")));
    assert_eq!(old.len(), new.len());
    for (name, tensor) in &old {
        let values = |x: &candle_core::Tensor| -> Vec<f32> {
            let x = x.to_dtype(candle_core::DType::F32).unwrap();
            x.flatten_all().unwrap().to_vec1().unwrap()
        };
        let same = values(tensor) == values(&new[name]);
        assert_eq!(same, name != "model.embed_tokens.weight", "{name}");
    }
    assert!(!fixture.path("control/scone.json").exists());
}

#[test]
fn an_adapter_that_was_killed_goes_on_to_the_same_bytes() {
    let fixture = Fixture::new();
    let base = llama(&fixture);
    let changes = from(&base, &["trainable=fgram_model"]);
    let whole = run(&fixture, "whole", &changes).unwrap();
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    let config = fixture.config(&changes).unwrap();
    let out = fixture.path("killed");
    train(&config, &out, &fixture.run_options(Some(13))).unwrap();
    let resumed = train(&config, &out, &fixture.run_options(None)).unwrap();
    assert_eq!(resumed.losses, whole.losses);
    for name in ["fgram_model.safetensors", "scone.json"] {
        let other = fixture.path("whole").join(name);
        assert_eq!(bytes(&out.join(name)), bytes(&other), "{name}");
    }

    // Another base is another run.
    fs::remove_file(out.join("model.safetensors")).unwrap();
    let other = init_parameters(&bases(fixture.tokenizer.vocab_size() as usize)[0], 10).unwrap();
    let shape = load_model_dir(&base, &Device::Cpu).unwrap().config;
    save_model_dir(&base, &shape, &other, None).unwrap();
    let error = train(&config, &out, &fixture.run_options(None)).unwrap_err();
    assert!(error.to_string().contains("base model"), "{error}");
}

#[test]
fn what_does_not_fit_a_base_is_named() {
    let fixture = Fixture::new();
    let base = llama(&fixture);
    let error = |more: &[&str]| {
        let changes = from(&base, more);
        format!("{:#}", run(&fixture, "run", &changes).unwrap_err())
    };
    let text = error(&["base=nowhere"]);
    assert!(text.contains("nowhere"), "{text}");
    let text = error(&["training.sequence_length=128"]);
    assert!(text.contains("64 positions"), "{text}");
    let text = error(&["trainable=fgram_model", "output.dtype=f16"]);
    assert!(text.contains("stay in bfloat16"), "{text}");
    let text = error(&["fgram_model.num_attention_heads=5"]);
    assert!(text.contains("num_attention_heads"), "{text}");

    let vocab = fixture.tokenizer.vocab_size() as usize;
    let other = save_base(&fixture, "other", &bases(vocab + 7)[0]);
    let changes = from(&other, &[]);
    let text = format!("{:#}", run(&fixture, "run", &changes).unwrap_err());
    assert!(text.contains("vocab_size"), "{text}");
}
