//! Every parameter's gradient, of whole models: fused f32 against composed f64, and f64 against
//! finite differences.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{decoder, fgram_config, fgram_model, fgram_parameters, parameters, variables};
use scone_model::{FgramModelConfig, ModelConfig, Parameters, PrefixTree};
use std::sync::Arc;

const FGRAMS: [&[u32]; 6] = [
    &[1, 2],
    &[1, 2, 3],
    &[4, 5],
    &[1, 2, 3, 4, 5],
    &[7, 1],
    &[4, 6, 6],
];

/// Loss of a SCONE model on a fixed batch: some positions by tokens, some by f-grams. `padded`
/// gives A its f-grams as padded embeddings.
fn loss(
    config: &ModelConfig,
    fgram: &FgramModelConfig,
    main: &Parameters,
    a: &Parameters,
    padded: bool,
) -> Tensor {
    let decoder = decoder(config, main);
    let model = fgram_model(fgram, config, a);
    let rows = if padded {
        let lens: Vec<u32> = FGRAMS.iter().map(|f| f.len() as u32).collect();
        let ids: Vec<u32> = FGRAMS
            .iter()
            .flat_map(|f| (0..5).map(|i| f.get(i).copied().unwrap_or(22)))
            .collect();
        let embeds = decoder.input_embeddings(None, &ids).unwrap();
        let embeds = embeds.reshape((FGRAMS.len(), 5, ())).unwrap();
        model.forward(&embeds, &lens).unwrap()
    } else {
        let tree = Arc::new(PrefixTree::new(&FGRAMS).unwrap());
        model
            .forward_tree(decoder.token_embedding(), &tree)
            .unwrap()
    };
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
    for config in common::families() {
        for final_norm in [false, true] {
            for padded in [false, true] {
                check(&config, &fgram_config(final_norm), padded);
            }
        }
    }
}

fn check(config: &ModelConfig, fgram: &FgramModelConfig, padded: bool) {
    let main = parameters(config);
    let a = fgram_parameters(fgram, config);
    let run = |dtype| {
        let (main, a) = (variables(&main, dtype), variables(&a, dtype));
        let loss = loss(config, fgram, &main, &a, padded);
        let grads = loss.backward().unwrap();
        let all: Vec<(String, Tensor, Tensor)> = main
            .into_iter()
            .chain(a)
            .map(|(name, tensor)| {
                let grad = grads.get(&tensor).unwrap_or_else(|| panic!("{name}"));
                (name, tensor.clone(), grad.clone())
            })
            .collect();
        (loss, all)
    };
    let (fused_loss, fused) = run(DType::F32);
    let (reference_loss, reference) = run(DType::F64);
    assert!((scalar(&fused_loss) - scalar(&reference_loss)).abs() < 1e-5);
    for ((name, _, got), (_, _, expected)) in fused.iter().zip(&reference) {
        let got: Vec<f32> = common::values(got);
        let expected = common::values(&expected.to_dtype(DType::F32).unwrap());
        let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(largest > 1e-6, "{name} has an effect");
        for (got, expected) in got.iter().zip(&expected) {
            let error = (got - expected).abs();
            assert!(error <= 2e-4 * largest, "{name}: {got} {expected}");
        }
    }
    finite_differences(config, fgram, (&main, &a), &reference, padded);
}

/// Moves a few elements of every parameter and compares the change of the loss, in f64.
fn finite_differences(
    config: &ModelConfig,
    fgram: &FgramModelConfig,
    (main, a): (&Parameters, &Parameters),
    gradients: &[(String, Tensor, Tensor)],
    padded: bool,
) {
    const STEP: f64 = 1e-5;
    for (name, tensor, gradient) in gradients {
        let values: Vec<f64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        for i in [0, values.len() / 3, values.len() - 1] {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[i] += by;
                let moved = Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap();
                let (mut main, mut a) = (variables(main, DType::F64), variables(a, DType::F64));
                let all = if main.contains_key(name) {
                    &mut main
                } else {
                    &mut a
                };
                all.insert(name.clone(), moved);
                scalar(&loss(config, fgram, &main, &a, padded))
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

#[test]
fn the_gradient_does_not_depend_on_the_number_of_threads() {
    let config = common::llama(true);
    let fgram = fgram_config(true);
    let (main, a) = (
        parameters(&config),
        fgram_parameters(&fgram, &config),
    );
    let run = |threads: usize| -> Vec<Vec<f32>> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let (main, a) = (variables(&main, DType::F32), variables(&a, DType::F32));
            let grads = loss(&config, &fgram, &main, &a, false).backward().unwrap();
            main.values()
                .chain(a.values())
                .map(|x| common::values(grads.get(x).unwrap()))
                .collect()
        })
    };
    assert_eq!(run(1), run(3));
}
