#![allow(clippy::unwrap_used, reason = "tests")]
use anyhow::Result;
use scone_model::{DeviceChoice, Dtype, Precision};

use super::*;

const TEXT: &str = "
data: {train: [a.jsonl], valid: [b.txt]}
tokenizer: tokenizer.json
fgrams: fgrams.bin
model: {family: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, max_position_embeddings: 64}
training: {sequence_length: 16, batch_tokens: 64, tokens: 1000}
";

fn parse(overrides: &[&str]) -> Result<TrainConfig> {
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    TrainConfig::parse(TEXT, &overrides)
}

fn error(overrides: &[&str]) -> String {
    format!("{:#}", parse(overrides).unwrap_err())
}

#[test]
fn epochs_are_parts_of_the_text_too() {
    let config = parse(&["training.tokens=null", "training.epochs=1.5"]).unwrap();
    // 7 windows, 4 a step: 10.5 windows are 3 steps.
    assert_eq!(config.training.total_steps(7), 3);
    let text = error(&["training.epochs=2"]);
    assert!(text.contains("exactly one"), "{text}");
    for bad in ["0", "-1", ".nan"] {
        let text = error(&["training.tokens=null", &format!("training.epochs={bad}")]);
        assert!(text.contains("must be above 0"), "{text}");
    }
}

fn model(config: &TrainConfig) -> &ModelShape {
    config.model.as_ref().unwrap()
}

#[test]
fn defaults_are_filled_and_tokens_round_up_to_steps() {
    let config = parse(&[]).unwrap();
    assert_eq!(config.training.total_steps(9), 16);
    assert_eq!(model(&config).intermediate_size(), 128);
    assert_eq!(config.optimizer.beta2, 0.95);
    assert!(model(&config).tie_word_embeddings);
}

#[test]
fn overrides_reach_nested_and_absent_sections() {
    let config = parse(&[
        "optimizer.lr=3e-3",
        "fgram_model.num_hidden_layers=1",
        "data.valid=[x, y]",
        "fgrams=null",
        "training.seed=7",
        "output.dtype=bf16",
    ])
    .unwrap();
    assert_eq!(config.optimizer.lr, 3e-3);
    assert_eq!(config.fgram_model.num_hidden_layers, 1);
    assert_eq!(config.data.valid.len(), 2);
    assert_eq!(config.fgrams, None);
    assert_eq!(config.training.seed, 7);
    assert_eq!(config.output.dtype, Some(OutputDtype::Bf16));
}

#[test]
fn unknown_keys_are_named() {
    let text = error(&["optimizer.learning_rate=1"]);
    assert!(
        text.contains("optimizer") && text.contains("learning_rate"),
        "{text}"
    );
    let text = error(&["optimiser.lr=1"]);
    assert!(text.contains("optimiser"), "{text}");
    let text = error(&["model.hidden_size.x=1"]);
    assert!(text.contains("hidden_size"), "{text}");
    assert!(error(&["lr"]).contains("key=value"));
}

#[test]
fn values_out_of_range_are_named_with_the_limit() {
    for (change, key) in [
        ("training.batch_tokens=65", "training.batch_tokens = 65"),
        (
            "model.num_attention_heads=5",
            "model.num_attention_heads = 5",
        ),
        (
            "training.sequence_length=128",
            "training.sequence_length = 128",
        ),
        ("training.steps=5", "training.steps"),
        ("optimizer.beta1=1.0", "optimizer.beta1"),
        ("optimizer.lr=-1", "optimizer.lr"),
        ("training.tokens=many", "training"),
        ("data.train=[]", "data.train"),
        (
            "data.train=[{path: a.txt, weight: 0}]",
            "weight of a.txt is 0",
        ),
        ("data.train=[{path: a.txt, wait: 2}]", "`weight`"),
        ("training.threads=0", "training.threads"),
        ("model.family=bert", "model"),
    ] {
        let text = error(&[change]);
        assert!(text.contains(key), "{change}: {text}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = error(&[
        "lr",
        "optimiser.lr=1",
        "model.family=bert",
        "optimizer.beta1=1.0",
        "optimizer.clip=-1",
        "training.batch_tokens=65",
        "training.log_every=0",
        "fgram_model.num_hidden_layers=0",
        "tokenizer=null",
    ]);
    assert!(text.starts_with("9 mistakes:\n- "), "{text}");
    for mistake in [
        "override `lr` is not of the form key=value",
        "unknown key `optimiser`",
        "key `model`",
        "optimizer.beta1 = 1 ",
        "optimizer.clip must not be negative",
        "training.batch_tokens = 65",
        "training.log_every",
        "fgram_model.num_hidden_layers",
        "missing key `tokenizer`",
    ] {
        assert!(text.contains(mistake), "{mistake}: {text}");
    }
}

#[test]
fn a_zero_is_one_mistake_and_no_panic() {
    for (change, mistake) in [
        ("model.num_attention_heads=0", "model.num_attention_heads"),
        ("model.hidden_size=0", "model.hidden_size"),
        ("training.sequence_length=0", "training.sequence_length"),
        ("training.batch_tokens=0", "training.batch_tokens = 0"),
        ("training.tokens=0", "must be above 0"),
        (
            "fgram_model.num_attention_heads=0",
            "fgram_model.num_attention_heads = 0",
        ),
    ] {
        let text = error(&[change]);
        assert!(text.contains(mistake), "{change}: {text}");
        assert!(!text.contains("mistakes"), "{change}: {text}");
    }
}

#[test]
fn sections_that_do_not_fit_each_other_are_named() {
    let text = error(&[
        "fgram_model.num_attention_heads=5",
        "training.sequence_length=128",
        "training.batch_tokens=128",
    ]);
    assert!(text.starts_with("2 mistakes"), "{text}");
    assert!(
        text.contains("fgram_model.num_attention_heads = 5"),
        "{text}"
    );
    assert!(text.contains("training.sequence_length = 128"), "{text}");
}

#[test]
fn the_effective_config_reads_back_as_itself() {
    let config = parse(&["optimizer.lr=0.002"]).unwrap();
    let again = TrainConfig::parse(&config.to_yaml().unwrap(), &[]).unwrap();
    assert_eq!(config, again);
}

#[test]
fn only_harmless_keys_may_change_on_resume() {
    let old = parse(&[]).unwrap();
    check_resumable(
        &old,
        &parse(&["training.eval_every=5", "data.valid=[]"]).unwrap(),
    )
    .unwrap();
    let text = check_resumable(&old, &parse(&["optimizer.lr=0.5", "fgrams=null"]).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("optimizer.lr was 0.001 and is now 0.5"),
        "{text}"
    );
    assert!(text.contains("fgrams"), "{text}");
}

#[test]
fn device_and_element_type_are_words_that_are_checked() {
    let config = parse(&[]).unwrap();
    assert_eq!(
        (config.device, config.dtype),
        (DeviceChoice::Cpu, Dtype::F32)
    );
    let config = parse(&["device=cuda:1", "dtype=f32"]).unwrap();
    assert_eq!(config.device, DeviceChoice::Cuda(1));
    let yaml = config.to_yaml().unwrap();
    assert!(
        yaml.contains("device: cuda:1\n") && yaml.contains("dtype: f32\n"),
        "{yaml}"
    );
    assert_eq!(TrainConfig::parse(&yaml, &[]).unwrap(), config);
    assert!(error(&["dtype=bf16"]).contains("training computes in f32"));
    assert!(!config.tf32 && parse(&["device=cuda:1", "tf32=true"]).unwrap().tf32);
    assert!(error(&["tf32=true"]).contains("tf32 is for GPUs"));
    let bf16 = "training.precision=bf16";
    assert_eq!(parse(&[bf16]).unwrap().training.precision, Precision::Bf16);
    assert!(error(&[bf16, "device=cuda:1"]).contains("training.precision: bf16 is for CPUs"));
    let text = error(&["device=abacus", "dtype=int3"]);
    assert!(
        text.contains("key `device`") && text.contains("abacus"),
        "{text}"
    );
    assert!(
        text.contains("key `dtype`") && text.contains("int3"),
        "{text}"
    );
}

#[test]
fn a_run_stays_on_its_kind_of_device() {
    let on = |device: &str| parse(&[&format!("device={device}")]).unwrap();
    check_resumable(&on("cuda:0"), &on("cuda:1")).unwrap();
    let text = check_resumable(&on("cpu"), &on("cuda:0"))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("device was \"cpu\" and is now \"cuda:0\""),
        "{text}"
    );
}

#[test]
fn the_state_of_a_run_before_there_were_devices_reads_back() {
    let config = parse(&[]).unwrap();
    let mut state = serde_json::to_value(&config).unwrap();
    let keys = state.as_object_mut().unwrap();
    assert!(keys.remove("device").is_some() && keys.remove("dtype").is_some());
    assert_eq!(
        serde_json::from_value::<TrainConfig>(state).unwrap(),
        config
    );
}

#[test]
fn a_source_may_have_a_weight() {
    let config = parse(&["data.train=[a.txt, {path: b, weight: 2.5}, {path: c}]"]).unwrap();
    let weights: Vec<f64> = config
        .data
        .train
        .iter()
        .map(|source| source.weight)
        .collect();
    assert_eq!(weights, [1.0, 2.5, 1.0]);
    let written = serde_json::to_value(&config.data.train).unwrap();
    let expected = serde_json::json!(["a.txt", {"path": "b", "weight": 2.5}, "c"]);
    assert_eq!(written, expected);
}

#[test]
fn a_base_brings_shape_and_tokenizer() {
    let base = ["base=my/base", "model=null", "tokenizer=null"];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let config = parse(&with(&["trainable=fgram_model+embeddings"])).unwrap();
    assert_eq!(config.trainable, Trainable::FgramModelAndEmbeddings);
    assert_eq!(
        config.tokenizer_path(),
        std::path::Path::new("my/base/tokenizer.json")
    );
    let yaml = config.to_yaml().unwrap();
    assert_eq!(TrainConfig::parse(&yaml, &[]).unwrap(), config);
    let own = parse(&with(&["tokenizer=other.json"])).unwrap();
    assert_eq!(own.tokenizer_path(), std::path::Path::new("other.json"));

    for (changes, mistake) in [
        (vec!["base=my/base"], "give one of `base` and `model`"),
        (vec!["model=null"], "missing key `model`"),
        (vec!["trainable=fgram_model"], "which is for a `base`"),
        (vec!["trainable=some"], "key `trainable`"),
        (with(&["trainable=embeddings"]), "set fgrams=null"),
        (
            with(&["trainable=fgram_model", "fgrams=null"]),
            "there are no fgrams",
        ),
        (
            with(&["fgram_model.final_norm=true"]),
            "fgram_model.final_norm with a `base`",
        ),
    ] {
        let text = error(&changes);
        assert!(text.contains(mistake), "{changes:?}: {text}");
    }
}

#[test]
fn presets_go_before_the_file_and_overrides_before_presets() {
    let config = parse(&["preset=medium-500k"]).unwrap();
    assert_eq!(config.fgram_model.num_hidden_layers, 4);
    assert_eq!(config.max_fgrams, Some(500_000));
    let config = parse(&["max_fgrams=7", "preset=large-1m"]).unwrap();
    assert_eq!(config.fgram_model.num_hidden_layers, 8);
    assert_eq!(config.max_fgrams, Some(7));
    // What is written down reads back as it is.
    let again = TrainConfig::parse(&config.to_yaml().unwrap(), &[]).unwrap();
    assert_eq!(config, again);

    let file = format!("{TEXT}\nfgram_model: {{num_hidden_layers: 3}}\npreset: small-10k\n");
    let config = TrainConfig::parse(&file, &[]).unwrap();
    assert_eq!(config.fgram_model.num_hidden_layers, 2);
    assert_eq!(config.max_fgrams, Some(10_000));
    let none = TrainConfig::parse(&file, &["preset=null".to_owned()]).unwrap();
    assert_eq!(none.fgram_model.num_hidden_layers, 3);

    for name in ["tiny-10k", "small-11k", "small", "3"] {
        let text = error(&[&format!("preset={name}")]);
        assert!(text.contains("{small,medium,large}"), "{text}");
    }
    let text = error(&["preset=small-10k", "fgrams=null"]);
    assert!(text.contains("without fgrams"), "{text}");
}

#[test]
fn what_keeps_a_run_safe_is_checked() {
    for (changes, mistake) in [
        (
            &["training.accumulate=3"][..],
            "does not divide the 4 windows",
        ),
        (&["training.accumulate=0"], "training.accumulate"),
        (&["training.patience=0"], "training.patience"),
        (&["training.patience=2", "data.valid=[]"], "need data.valid"),
        (
            &["training.keep_best=true", "training.eval_every=0"],
            "need training.eval_every",
        ),
        (&["training.spike=0"], "training.spike"),
        (&["optimizer.kind=sgd"], "optimizer"),
        (
            &["optimizer.groups.fgram_model=-1"],
            "groups.fgram_model = -1",
        ),
        (&["optimizer.groups.all=1"], "unknown field `all`"),
        (&["optimizer.momentum=1"], "optimizer.momentum"),
        (&["max_fgrams=0"], "max_fgrams"),
    ] {
        let text = error(changes);
        assert!(text.contains(mistake), "{changes:?}: {text}");
    }
    let config = parse(&["training.accumulate=4", "optimizer.groups.embeddings=0.5"]).unwrap();
    assert_eq!(config.optimizer.groups.embeddings, 0.5);
    assert_eq!(config.optimizer.groups.matrices, 1.0);
}

#[test]
fn controls_say_what_they_need() {
    let config = parse(&["control={kind: direct}"]).unwrap();
    assert_eq!(config.control, Some(ControlKind::Direct));
    let config = parse(&["control={kind: bigram, rows: 9}", "fgrams=null"]).unwrap();
    assert_eq!(config.control, Some(ControlKind::Bigram { rows: 9 }));
    for (overrides, expected) in [
        (
            &["control={kind: direct}", "fgrams=null"][..],
            "there are no fgrams",
        ),
        (&["control={kind: unigram}"], "set fgrams=null"),
        (
            &["control={kind: bigram, rows: 0}", "fgrams=null"],
            "control.rows = 0",
        ),
        (&["control={kind: trigram}"], "trigram"),
    ] {
        let text = error(overrides);
        assert!(text.contains(expected), "{text}");
    }
}
