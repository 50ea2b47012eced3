//! Every parameter's gradient, of whole models: fused f32 against composed f64, and f64 against
//! finite differences.
use crate::common::{decoder, fgram_config, fgram_model, fgram_parameters, parameters, variables};
use candle_core::{DType, Device, Tensor};
use scone_model::config::{Gpt2Config, LlamaConfig};
use scone_model::{Decoder, FgramModel, FgramModelConfig, ModelConfig, Parameters, PrefixTree};
use std::sync::Arc;

const FGRAMS: [&[u32]; 6] = [
    &[1, 2],
    &[1, 2, 3],
    &[4, 5],
    &[1, 2, 3, 4, 5],
    &[7, 1],
    &[4, 6, 6],
];

/// Loss of a SCONE model on a fixed batch: some positions by tokens, some by f-grams.
fn loss(
    config: &ModelConfig,
    fgram: &FgramModelConfig,
    main: &Parameters,
    a: &Parameters,
) -> Tensor {
    loss_of(&decoder(config, main), &fgram_model(fgram, config, a))
}

fn loss_of(decoder: &Decoder, model: &FgramModel) -> Tensor {
    let tree = Arc::new(PrefixTree::new(&FGRAMS).unwrap());
    let rows = model
        .forward_tree(decoder.token_embedding(), &tree)
        .unwrap();
    let index: Vec<u32> = (0..18)
        .map(|i| if i % 3 == 0 { i } else { 23 + i % 6 })
        .collect();
    let embeds = decoder.input_embeddings(Some(&rows), &index).unwrap();
    let hidden = decoder
        .forward(&embeds.reshape((2, 9, ())).unwrap())
        .unwrap();
    let targets: Vec<u32> = (0..18).map(|i| i * 5 % 23).collect();
    decoder.loss(&hidden, &targets).unwrap()
}

fn scalar(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

#[test]
fn every_parameter_has_the_right_gradient() {
    for config in crate::common::families() {
        let fgram = fgram_config(true);
        let reference = compare(&config, &fgram);
        finite_differences(&config, &fgram, &reference);
        compare(&config, &fgram_config(false));
    }
}

/// Gradients of the fused operations in f32 against those of the composed ones in f64; returns
/// parameters and gradients of the latter.
fn compare(config: &ModelConfig, fgram: &FgramModelConfig) -> Gradients {
    let main = parameters(config);
    let a = fgram_parameters(fgram, config);
    let (fused_loss, fused) = gradients(&main, &a, DType::F32, |main, a| {
        loss(config, fgram, main, a)
    });
    let (reference_loss, reference) = gradients(&main, &a, DType::F64, |main, a| {
        loss(config, fgram, main, a)
    });
    assert!((fused_loss - reference_loss).abs() < 1e-5);
    assert_same(&fused, &reference);
    reference
}

type Gradients = Vec<(String, Tensor, Tensor)>;

/// Loss and, by name, parameters and gradients.
fn gradients(
    main: &Parameters,
    a: &Parameters,
    dtype: DType,
    loss: impl Fn(&Parameters, &Parameters) -> Tensor,
) -> (f64, Gradients) {
    let (main, a) = (variables(main, dtype), variables(a, dtype));
    let loss = loss(&main, &a);
    let grads = loss.backward().unwrap();
    let all = main
        .into_iter()
        .chain(a)
        .map(|(name, tensor)| {
            let grad = grads.get(&tensor).unwrap_or_else(|| panic!("{name}"));
            (name, tensor.clone(), grad.clone())
        })
        .collect();
    (scalar(&loss), all)
}

fn assert_same(fused: &Gradients, reference: &Gradients) {
    for ((name, _, got), (_, _, expected)) in fused.iter().zip(reference) {
        let got: Vec<f32> = crate::common::values(got);
        let expected = crate::common::values(&expected.to_dtype(DType::F32).unwrap());
        let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        // Without rotary positions (A) a bias of the keys moves all scores of a query alike.
        let neutral = name.starts_with("layers.") && name.ends_with("k_proj.bias");
        assert!(neutral || largest > 1e-6, "{name} has an effect");
        let largest = if neutral { largest.max(1e-4) } else { largest };
        for (got, expected) in got.iter().zip(&expected) {
            let error = (got - expected).abs();
            assert!(error <= 3e-4 * largest, "{name}: {got} {expected}");
        }
    }
}

/// Several groups of queries and of trees, heads that fill vectors and heads that do not.
#[test]
fn larger_shapes_have_the_right_gradients_too() {
    let mut wide = LlamaConfig::new(23, 64, 1, 2, 80, 80);
    wide.num_key_value_heads = Some(1);
    let mut odd = LlamaConfig::new(23, 60, 2, 3, 37, 80);
    odd.head_dim = Some(22);
    let gpt2 = Gpt2Config::new(23, 48, 1, 2, 80);
    for mut config in [
        ModelConfig::Llama(wide),
        ModelConfig::Llama(odd),
        ModelConfig::Gpt2(gpt2),
    ] {
        match &mut config {
            ModelConfig::Llama(c) => c.initializer_range = 0.2,
            ModelConfig::Gpt2(c) => c.initializer_range = 0.2,
        }
        let fgram = FgramModelConfig {
            num_attention_heads: 2,
            ..fgram_config(false)
        };
        let main = parameters(&config);
        let a = fgram_parameters(&fgram, &config);
        let run = |dtype| {
            gradients(&main, &a, dtype, |main, a| {
                large_loss(&config, &fgram, main, a)
            })
        };
        let (fused, reference) = (run(DType::F32), run(DType::F64));
        assert!((fused.0 - reference.0).abs() < 1e-5);
        assert_same(&fused.1, &reference.1);
    }
}

/// Two sequences of 73 positions, most by one of 700 f-grams.
fn large_loss(
    config: &ModelConfig,
    fgram: &FgramModelConfig,
    main: &Parameters,
    a: &Parameters,
) -> Tensor {
    let decoder = decoder(config, main);
    let model = fgram_model(fgram, config, a);
    let fgrams: Vec<Vec<u32>> = (0..700u32)
        .map(|i| {
            (0..2 + i % 4)
                .map(|j| (i * i + 7 * i * j + j) % 23)
                .collect()
        })
        .collect();
    let slices: Vec<&[u32]> = fgrams.iter().map(Vec::as_slice).collect();
    let tree = Arc::new(PrefixTree::new(&slices).unwrap());
    let rows = model
        .forward_tree(decoder.token_embedding(), &tree)
        .unwrap();
    let index: Vec<u32> = (0..146).map(|i| i * 5 % 723).collect();
    let embeds = decoder.input_embeddings(Some(&rows), &index).unwrap();
    let hidden = decoder
        .forward(&embeds.reshape((2, 73, ())).unwrap())
        .unwrap();
    let targets: Vec<u32> = (0..146).map(|i| i * 5 % 23).collect();
    decoder.loss(&hidden, &targets).unwrap()
}

/// Moves a few elements of every parameter and compares the change of the loss, in f64.
fn finite_differences(config: &ModelConfig, fgram: &FgramModelConfig, gradients: &Gradients) {
    const STEP: f64 = 1e-5;
    let (main, a) = (parameters(config), fgram_parameters(fgram, config));
    for (name, tensor, gradient) in gradients {
        let values: Vec<f64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        for i in [values.len() / 3, values.len() - 1] {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[i] += by;
                let moved = Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap();
                let (mut main, mut a) = (variables(&main, DType::F64), variables(&a, DType::F64));
                let all = if main.contains_key(name) {
                    &mut main
                } else {
                    &mut a
                };
                all.insert(name.clone(), moved);
                scalar(&loss(config, fgram, &main, &a))
            };
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let error = (slope - gradient[i]).abs();
            assert!(
                error <= 1e-6 + 1e-4 * slope.abs(),
                "{name}[{i}]: {} instead of {slope}",
                gradient[i]
            );
        }
    }
}

/// What is no variable is not trained: it gets no gradient, and the others get the same.
#[test]
fn a_frozen_main_model_passes_gradients_on_and_gets_none() {
    for config in crate::common::families() {
        let fgram = fgram_config(false);
        let (main, a) = (parameters(&config), fgram_parameters(&fgram, &config));
        let (all, a_all) = (variables(&main, DType::F32), variables(&a, DType::F32));
        let whole = loss(&config, &fgram, &all, &a_all).backward().unwrap();
        let a_only = variables(&a, DType::F32);
        let grads = loss(&config, &fgram, &main, &a_only).backward().unwrap();
        for (name, tensor) in &main {
            assert!(grads.get(tensor).is_none(), "{name}");
        }
        for ((name, tensor), same) in a_only.iter().zip(a_all.values()) {
            let got = crate::common::values(grads.get(tensor).unwrap());
            let expected = crate::common::values(whole.get(same).unwrap());
            let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (got, expected) in got.iter().zip(&expected) {
                let error = (got - expected).abs();
                assert!(
                    error <= 1e-5 * largest.max(1e-3),
                    "{name}: {got} {expected}"
                );
            }
        }
        // The embedding alone: its gradient is that of the whole.
        let name = config.token_embedding_name();
        let mut embeddings = main.clone();
        let table = variables(&main, DType::F32).remove(name).unwrap();
        embeddings.insert(name.to_owned(), table.clone());
        let grads = loss(&config, &fgram, &embeddings, &a).backward().unwrap();
        let got = crate::common::values(grads.get(&table).unwrap());
        let expected = crate::common::values(whole.get(&all[name]).unwrap());
        crate::common::assert_close(name, &got, &expected, 1e-6);
    }
}

/// Frozen weights are put end to end once; other weights of the same model are not those.
#[test]
fn a_frozen_model_gives_the_same_each_time_and_after_a_cast() {
    let config = crate::common::llama(true);
    let decoder = decoder(&config, &parameters(&config));
    let x = crate::common::embeddings(&[2, 5, decoder.shape().hidden_size], 1.0);
    let forward =
        |decoder: &scone_model::Decoder| crate::common::values(&decoder.forward(&x).unwrap());
    let first = forward(&decoder);
    assert_eq!(first, forward(&decoder));
    let rounded = decoder.clone().cast(scone_model::Dtype::Bf16).unwrap();
    let rounded = rounded.cast(scone_model::Dtype::F32).unwrap();
    assert_ne!(first, forward(&rounded));
    assert_eq!(first, forward(&decoder));
}

/// Computing blocks twice changes no bit, of trained and of frozen models.
#[test]
fn blocks_that_are_computed_again_give_the_same_gradients() {
    for config in [crate::common::llama(true), crate::common::gpt2()] {
        let fgram = fgram_config(false);
        let (main, a) = (parameters(&config), fgram_parameters(&fgram, &config));
        let run = |again: bool, frozen: bool| -> Vec<Vec<f32>> {
            let vars = variables(&a, DType::F32);
            let body = match frozen {
                true => main.clone(),
                false => variables(&main, DType::F32),
            };
            let (mut decoder, mut model) =
                (decoder(&config, &body), fgram_model(&fgram, &config, &vars));
            if again {
                decoder.recompute_blocks().unwrap();
                model.recompute_blocks().unwrap();
            }
            let loss = loss_of(&decoder, &model);
            let grads = loss.backward().unwrap();
            let all = body.values().chain(vars.values());
            let found = all.filter_map(|x| grads.get(x)).map(crate::common::values);
            found.chain([vec![loss.to_scalar().unwrap()]]).collect()
        };
        for frozen in [false, true] {
            let (kept, again) = (run(false, frozen), run(true, frozen));
            assert!(kept.len() > 10);
            assert_eq!(kept, again);
        }
    }
    let mut decoder = decoder(
        &crate::common::qwen3(),
        &parameters(&crate::common::qwen3()),
    );
    assert!(decoder.recompute_blocks().is_err());
}

#[test]
fn the_gradient_does_not_depend_on_the_number_of_threads() {
    let config = crate::common::llama(true);
    let fgram = fgram_config(true);
    let (main, a) = (parameters(&config), fgram_parameters(&fgram, &config));
    let run = |threads: usize| -> Vec<Vec<f32>> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let (main, a) = (variables(&main, DType::F32), variables(&a, DType::F32));
            let grads = loss(&config, &fgram, &main, &a).backward().unwrap();
            main.values()
                .chain(a.values())
                .map(|x| crate::common::values(grads.get(x).unwrap()))
                .collect()
        })
    };
    assert_eq!(run(1), run(3));
}
