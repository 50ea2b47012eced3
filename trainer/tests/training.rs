//! Joint training from text to a model directory, on a tiny corpus of our own words.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;

use candle_core::{Device, Tensor};
use scone_model::checkpoint::load_model_dir;
use scone_model::config::{FgramModelConfig, LlamaConfig, ModelConfig};
use scone_model::{init_fgram_parameters, init_parameters};
use support::{Fixture, bytes};
use trainer::embedding::{Inputs, Source};
use trainer::training::batch::Batch;
use trainer::training::config::Trainable;
use trainer::training::network::Network;
use trainer::training::train;

fn mean(losses: &[f32]) -> f32 {
    losses.iter().sum::<f32>() / losses.len() as f32
}

#[test]
fn the_loss_falls_and_a_model_directory_is_left() {
    let fixture = Fixture::new();
    let outcome = fixture
        .train("run", &["training.steps=60", "output.dtype=bf16"])
        .unwrap();
    assert_eq!(outcome.losses.len(), 60);
    assert!(
        (outcome.losses[0] - 300f32.ln()).abs() < 0.3,
        "{}",
        outcome.losses[0]
    );
    let (first, last) = (mean(&outcome.losses[..5]), mean(&outcome.losses[55..]));
    assert!(last < first - 1.5, "{first} to {last}");
    let (_, valid) = &outcome.valid[0];
    assert!(valid.nats_per_token() < f64::from(first) - 1.5);
    assert!(valid.matched_share() > 0.5);

    let out = fixture.path("run");
    let model = load_model_dir(&out, &Device::Cpu).unwrap();
    assert!(model.fgram.is_some());
    assert_eq!(bytes(&out.join("tokenizer.json")), fixture.tokenizer.json());
    assert_eq!(
        bytes(&out.join("fgrams.bin")),
        bytes(&fixture.path("fgrams.bin"))
    );
    for name in ["generation_config.json", "train.yaml", "log.jsonl"] {
        assert!(out.join(name).exists(), "{name}");
    }
    let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    // 12 of losses, 5 of held-out text on the way and one at the end.
    assert_eq!(lines.len(), 18);
    // Read from text, so not the same to the last bit.
    let logged = lines.last().unwrap()["valid_nats_per_token"].as_f64();
    assert!((logged.unwrap() - valid.nats_per_token()).abs() < 1e-9);
}

#[test]
fn both_families_and_the_plain_model_learn_by_the_same_code() {
    let fixture = Fixture::new();
    for (out, change) in [
        ("plain", "fgrams=null"),
        ("gpt2", "model.family=gpt2"),
        ("untied", "model.tie_word_embeddings=false"),
        ("grouped", "model.num_key_value_heads=1"),
        ("normed", "fgram_model.final_norm=true"),
    ] {
        let outcome = fixture.train(out, &["training.steps=30", change]).unwrap();
        let (first, last) = (mean(&outcome.losses[..5]), mean(&outcome.losses[25..]));
        assert!(last < first - 0.7, "{change}: {first} to {last}");
        let model = load_model_dir(&fixture.path(out), &Device::Cpu).unwrap();
        assert_eq!(model.scone.is_none(), out == "plain");
    }
}

#[test]
fn controls_learn_and_leave_no_model() {
    let fixture = Fixture::new();
    let plain = fixture
        .train("plain", &["training.steps=30", "fgrams=null"])
        .unwrap();
    for (out, changes) in [
        ("direct", &["control={kind: direct}"][..]),
        ("unigram", &["control={kind: unigram}", "fgrams=null"]),
        (
            "bigram",
            &["control={kind: bigram, rows: 500}", "fgrams=null"],
        ),
    ] {
        let changes = [
            &["training.steps=30", "training.checkpoint_every=15"],
            changes,
        ]
        .concat();
        let outcome = fixture.train(out, &changes).unwrap();
        let (first, last) = (mean(&outcome.losses[..5]), mean(&outcome.losses[25..]));
        assert!(last < first - 0.7, "{out}: {first} to {last}");
        // Rows begin at zero, or as token embeddings: the first step is the plain model's.
        assert!((outcome.losses[0] - plain.losses[0]).abs() < 1e-6, "{out}");
        assert!(last != mean(&plain.losses[25..]), "{out}");
        assert!(outcome.valid[0].1.matched_share() > 0.5, "{out}");
        assert!(!fixture.path(out).join("model.safetensors").exists());
    }
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_same_curve_and_weights() {
    let fixture = Fixture::new();
    let whole = fixture.train("whole", &[]).unwrap();
    let config = fixture.config(&[]).unwrap();
    let out = fixture.path("killed");
    // Stopped at 13: the checkpoint is of step 10, three steps are done again.
    let part = train(&config, &out, &fixture.run_options(Some(13))).unwrap();
    assert_eq!(part.losses, whole.losses[..13]);
    assert!(!out.join("model.safetensors").exists());
    let resumed = train(&config, &out, &fixture.run_options(None)).unwrap();
    assert_eq!(resumed.losses, whole.losses);
    for name in ["model.safetensors", "fgram_model.safetensors", "scone.json"] {
        assert_eq!(
            bytes(&out.join(name)),
            bytes(&fixture.path("whole").join(name)),
            "{name}"
        );
    }
    let steps = |out: &str| -> Vec<u64> {
        let log = fs::read_to_string(fixture.path(out).join("log.jsonl")).unwrap();
        let step = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64();
        log.lines().map(|l| step(l).unwrap()).collect()
    };
    assert_eq!(steps("killed"), steps("whole"));

    // A finished run is left as it is.
    let again = train(&config, &out, &fixture.run_options(None)).unwrap();
    assert_eq!(again.losses, whole.losses);
    let kept: Vec<_> = fs::read_dir(out.join("checkpoints")).unwrap().collect();
    assert_eq!(kept.len(), 2);
}

#[test]
fn a_run_does_not_go_on_with_another_config_or_text() {
    let fixture = Fixture::new();
    let config = fixture.config(&[]).unwrap();
    train(
        &config,
        &fixture.path("run"),
        &fixture.run_options(Some(10)),
    )
    .unwrap();
    let error = fixture.train("run", &["optimizer.lr=0.5"]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("optimizer.lr was 0.01 and is now 0.5"),
        "{error}"
    );

    let text = fs::read_to_string(fixture.path("train.jsonl")).unwrap();
    let fewer: Vec<&str> = text.lines().skip(1).collect();
    fs::write(fixture.path("train.jsonl"), fewer.join("\n")).unwrap();
    let error = fixture.train("run", &[]).unwrap_err().to_string();
    assert!(error.contains("or training text changed"), "{error}");
}

#[test]
fn divergence_says_what_to_do_and_keeps_the_checkpoints() {
    let fixture = Fixture::new();
    let changes = [
        "optimizer.lr=1e30",
        "optimizer.warmup_steps=0",
        "training.checkpoint_every=1",
    ];
    let error = format!("{:#}", fixture.train("run", &changes).unwrap_err());
    assert!(error.contains("lower optimizer.lr"), "{error}");
    assert!(
        error.contains("is not finite") || error.contains("NaN"),
        "{error}"
    );
    assert!(
        fixture
            .path("run")
            .join("checkpoints/step-1/state.json")
            .exists()
    );
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let fixture = Fixture::new();
    let error = |changes: &[&str]| format!("{:#}", fixture.train("run", changes).unwrap_err());
    let missing = error(&["data.train=[nowhere.txt]"]);
    assert!(
        missing.contains("data.train") && missing.contains("nowhere.txt"),
        "{missing}"
    );
    let missing = error(&["tokenizer=nowhere.json"]);
    assert!(missing.contains("nowhere.json"), "{missing}");
    let missing = error(&["fgrams=nowhere.bin"]);
    assert!(missing.contains("nowhere.bin"), "{missing}");
    let short = error(&["training.batch_tokens=16777216"]);
    assert!(short.contains("less than one batch"), "{short}");

    let text = String::from_utf8(fixture.tokenizer.json().to_vec()).unwrap() + "\n";
    fs::write(fixture.path("other.json"), text).unwrap();
    let other = format!("tokenizer={}", fixture.path("other.json").display());
    let other = error(&[&other]);
    assert!(
        other.contains("mined with the tokenizer of hash"),
        "{other}"
    );
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_was_not_compiled_in_is_refused_before_anything_is_written() {
    let fixture = Fixture::new();
    let error = format!(
        "{:#}",
        fixture.train("run", &["device=cuda:3"]).unwrap_err()
    );
    assert!(error.contains("cuda:3") && error.contains("cpu"), "{error}");
    assert!(!fixture.path("run").exists());
}

#[test]
fn two_runs_do_not_share_a_directory() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path("run")).unwrap();
    let held = fs::File::create(fixture.path("run").join(".lock")).unwrap();
    held.try_lock().unwrap();
    let error = fixture.train("run", &[]).unwrap_err().to_string();
    assert!(error.contains("another run"), "{error}");
}

/// A joint model of a few hundred weights, larger than usual so that gradients are not tiny.
fn small_network() -> Network {
    let mut llama = LlamaConfig::new(11, 8, 1, 2, 12, 8);
    llama.initializer_range = 0.4;
    let main = ModelConfig::Llama(llama);
    let fgram = FgramModelConfig {
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: None,
        intermediate_size: 12,
        final_norm: false,
        max_n: 3,
    };
    let weights = init_parameters(&main, 1).unwrap();
    let mut own = init_fgram_parameters(&fgram, &main, 1).unwrap();
    // A starts as the identity, where most of its weights have no gradient yet.
    for tensor in own.values_mut().filter(|tensor| tensor.rank() == 2) {
        let n = tensor.elem_count();
        let noise: Vec<f32> = (0..n).map(|i| (i as f32 * 12.9898).sin() * 0.3).collect();
        let noise = Tensor::from_vec(noise, tensor.dims(), &Device::Cpu).unwrap();
        *tensor = (&*tensor + noise).unwrap();
    }
    let own = Some((&fgram, &own));
    Network::new(&main, &weights, own, Trainable::All, &Device::Cpu).unwrap()
}

/// Two windows; one f-gram comes twice, so that its gradient is a sum.
fn small_batch() -> Batch<'static> {
    let sources = [
        Source::Token(1),
        Source::Fgram(&[1, 2]),
        Source::Fgram(&[1, 2, 3]),
        Source::Token(4),
        Source::Fgram(&[9, 1]),
        Source::Fgram(&[1, 2]),
    ];
    Batch {
        inputs: Inputs::new(sources.into_iter(), 11),
        targets: vec![2, 3, 4, 1, 2, 5],
        sequences: 2,
        length: 3,
    }
}

#[test]
fn gradients_of_the_joint_loss_equal_finite_differences() {
    let network = small_network();
    let batch = small_batch();
    let grads = network.loss(&batch).unwrap().backward().unwrap();
    let mut checked = 0;
    for (name, var) in network.vars() {
        let grad = grads
            .get(var.as_tensor())
            .unwrap_or_else(|| panic!("no gradient for {name}"));
        let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
        assert!(
            grad.iter().any(|g| g.abs() > 1e-4),
            "{name} has no gradient to speak of"
        );
        let values: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        // T of tokens 9 is read by A alone, of 4 by the decoder alone.
        for at in (0..values.len()).step_by(values.len().div_ceil(12)) {
            let loss = |shift: f32| -> f64 {
                let mut moved = values.clone();
                moved[at] += shift;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap())
                    .unwrap();
                f64::from(network.loss(&batch).unwrap().to_scalar::<f32>().unwrap())
            };
            let slope = (loss(4e-3) - loss(-4e-3)) / 8e-3;
            loss(0.0);
            let error = (slope - f64::from(grad[at])).abs();
            assert!(
                error < 2e-3 + 0.03 * slope.abs(),
                "{name}[{at}]: {} and {slope}",
                grad[at]
            );
            checked += 1;
        }
    }
    assert!(checked > 150, "{checked}");
}

#[test]
fn an_fgram_replaces_the_token_embedding() {
    let network = small_network();
    let inputs = Inputs::new([Source::Fgram(&[1, 2]), Source::Token(2)].into_iter(), 11);
    let embeds: Vec<Vec<f32>> = network.embed(&inputs).unwrap().to_vec2().unwrap();
    let row: Vec<Vec<f32>> = network
        .fgram_rows(&[&[1, 2]])
        .unwrap()
        .unwrap()
        .to_vec2()
        .unwrap();
    let table: Vec<Vec<f32>> = network.decoder().token_embedding().to_vec2().unwrap();
    assert_eq!(embeds, [row[0].clone(), table[2].clone()]);
}
