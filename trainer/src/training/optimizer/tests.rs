#![allow(clippy::unwrap_used, reason = "tests")]
use candle_core::Device;

use super::fused::CHUNK;
use super::*;
use crate::training::config::GroupScales;

fn var(values: &[f32], shape: &[usize]) -> Var {
    Var::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn values(var: &Var) -> Vec<f32> {
    var.flatten_all().unwrap().to_vec1().unwrap()
}

/// Gradients of `sum(weights * var)` are the weights.
fn gradients(pairs: &[(&Var, Vec<f32>)]) -> GradStore {
    let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
    for (var, weights) in pairs {
        let weights = Tensor::from_slice(weights, var.shape(), &Device::Cpu).unwrap();
        loss = (loss + (var.as_tensor() * weights).unwrap().sum_all().unwrap()).unwrap();
    }
    loss.backward().unwrap()
}

fn config() -> OptimizerConfig {
    OptimizerConfig {
        weight_decay: 0.5,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        clip: 0.0,
        ..OptimizerConfig::default()
    }
}

#[test]
fn two_updates_equal_the_hand_computed_ones() {
    let matrix = var(&[1.0], &[1, 1]);
    let vector = var(&[1.0], &[1]);
    let vars = BTreeMap::from([
        ("m".to_owned(), matrix.clone()),
        ("v".to_owned(), vector.clone()),
    ]);
    let mut optimizer = Optimizer::new(vars, config()).unwrap();

    // Step 1, g = 2: m = 0.2, v = 0.04; corrected 2 and 4; step = lr * 2 / 2 = lr.
    let report = optimizer
        .update(
            &gradients(&[(&matrix, vec![2.0]), (&vector, vec![2.0])]),
            0.1,
        )
        .unwrap();
    assert!((report.grad_norm - 8f64.sqrt()).abs() < 1e-6);
    assert!((values(&matrix)[0] - (0.95 - 0.1)).abs() < 1e-6);
    assert!((values(&vector)[0] - 0.9).abs() < 1e-6);

    // Step 2, g = -1: m = 0.08, v = 0.0496; corrected 0.08/0.19 and 0.0496/0.0199.
    optimizer
        .update(
            &gradients(&[(&matrix, vec![-1.0]), (&vector, vec![-1.0])]),
            0.1,
        )
        .unwrap();
    let step = 0.1 * (0.08 / 0.19) / (0.0496f32 / 0.0199).sqrt();
    assert!((values(&matrix)[0] - (0.85 * 0.95 - step)).abs() < 1e-5);
    assert!((values(&vector)[0] - (0.9 - step)).abs() < 1e-5);
    assert_eq!(optimizer.step(), 2);
}

#[test]
fn clipping_scales_all_gradients_by_the_global_norm() {
    let a = var(&[0.0; 2], &[2]);
    let b = var(&[0.0; 1], &[1]);
    let vars = BTreeMap::from([("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())]);
    let mut optimizer = Optimizer::new(
        vars,
        OptimizerConfig {
            clip: 1.0,
            ..config()
        },
    )
    .unwrap();
    // The norm of (2, 3, 6) is 7.
    let grads = gradients(&[(&a, vec![2.0, 3.0]), (&b, vec![6.0])]);
    let report = optimizer.update(&grads, 0.1).unwrap();
    assert!((report.grad_norm - 7.0).abs() < 1e-6);
    let first: Vec<f32> = optimizer.moments().unwrap()["b"].first.to_vec1().unwrap();
    assert!((first[0] - 0.1 * 6.0 / 7.0).abs() < 1e-6);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let a = var(&[1.0; 2], &[2]);
    let mut optimizer =
        Optimizer::new(BTreeMap::from([("a".to_owned(), a.clone())]), config()).unwrap();
    let text = optimizer
        .update(&gradients(&[(&a, vec![f32::NAN, 0.0])]), 0.1)
        .unwrap_err()
        .to_string();
    assert!(text.contains("not finite"), "{text}");
    assert_eq!(values(&a), [1.0, 1.0]);
    assert_eq!(optimizer.step(), 0);
}

#[test]
fn a_parameter_without_gradient_is_named() {
    let a = var(&[1.0], &[1]);
    let b = var(&[1.0], &[1]);
    let vars = BTreeMap::from([("a".to_owned(), a.clone()), ("b".to_owned(), b)]);
    let mut optimizer = Optimizer::new(vars, config()).unwrap();
    let text = optimizer
        .update(&gradients(&[(&a, vec![1.0])]), 0.1)
        .unwrap_err()
        .to_string();
    assert!(text.contains('b'), "{text}");
}

#[test]
fn state_of_another_shape_is_refused() {
    let a = var(&[1.0], &[1]);
    let mut optimizer = Optimizer::new(BTreeMap::from([("a".to_owned(), a)]), config()).unwrap();
    let moments = |n: usize| Moments {
        first: var(&vec![0.0; n], &[n]).as_detached_tensor(),
        second: Some(var(&vec![0.0; n], &[n]).as_detached_tensor()),
    };
    assert!(optimizer.restore(3, BTreeMap::new()).is_err());
    assert!(
        optimizer
            .restore(3, BTreeMap::from([("a".to_owned(), moments(2))]))
            .is_err()
    );
    optimizer
        .restore(3, BTreeMap::from([("a".to_owned(), moments(1))]))
        .unwrap();
    assert_eq!(optimizer.step(), 3);
}

#[test]
fn large_parameters_are_updated_as_small_ones() {
    // More than one chunk, and not a whole number of chunks or lanes.
    let n = 2 * CHUNK + 1001;
    let start: Vec<f32> = (0..n).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    let weights: Vec<f32> = (0..n).map(|i| (i % 89) as f32 / 89.0 - 0.4).collect();
    let large = var(&start, &[1, n]);
    let vars = BTreeMap::from([("a".to_owned(), large.clone())]);
    let mut optimizer = Optimizer::new(vars, config()).unwrap();
    let report = optimizer
        .update(&gradients(&[(&large, weights.clone())]), 0.1)
        .unwrap();
    let square: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
    assert!((report.grad_norm / square.sqrt() - 1.0).abs() < 1e-12);
    let updated = values(&large);
    for at in [0, 7, CHUNK - 1, CHUNK, 2 * CHUNK, n - 1] {
        let step = 0.1 * weights[at].signum() * f32::from(u8::from(weights[at] != 0.0));
        let expected = start[at] * 0.95 - step;
        assert!((updated[at] - expected).abs() < 1e-4, "{at}");
    }
}

/// The update for parameters on other devices, on the one device that is always there.
#[test]
fn parameters_on_a_device_are_updated_as_by_the_fused_pass() {
    let start: Vec<f32> = (0..60).map(|i| (i as f32 * 0.7).sin()).collect();
    let make = |zeros: fn(&Var) -> Result<State>| {
        let (matrix, vector) = (var(&start, &[5, 12]), var(&start[..7], &[7]));
        let vars = BTreeMap::from([
            ("m".to_owned(), matrix.clone()),
            ("v".to_owned(), vector.clone()),
        ]);
        let clipped = OptimizerConfig {
            clip: 1.0,
            ..config()
        };
        let optimizer = Optimizer::with_state(vars, clipped, |_, var| zeros(var)).unwrap();
        (matrix, vector, optimizer)
    };
    let (matrix, vector, mut fused) = make(State::zeros);
    let (other_matrix, other_vector, mut on_device) = make(State::zeros_on_device);
    for step in 0..4 {
        if step == 2 {
            // What one saves, the other goes on from.
            on_device.restore(2, fused.moments().unwrap()).unwrap();
            fused.restore(2, on_device.moments().unwrap()).unwrap();
        }
        let weights = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|i| ((i + 3 * step) as f32).cos() * 0.3)
                .collect()
        };
        let own = gradients(&[(&matrix, weights(60)), (&vector, weights(7))]);
        let other = gradients(&[(&other_matrix, weights(60)), (&other_vector, weights(7))]);
        let norm = fused.update(&own, 0.1).unwrap().grad_norm;
        let other_norm = on_device.update(&other, 0.1).unwrap().grad_norm;
        assert!(
            (norm / other_norm - 1.0).abs() < 1e-6,
            "{norm} {other_norm}"
        );
    }
    for (fused, on_device) in [(&matrix, &other_matrix), (&vector, &other_vector)] {
        for (a, b) in values(fused).iter().zip(values(on_device)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        assert_ne!(values(fused)[1], start[1]);
    }
}

/// Muon for matrices of blocks, AdamW for all else; saved and restored to the digit.
#[test]
fn muon_goes_on_from_what_it_saved() {
    let start: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin()).collect();
    let config = OptimizerConfig {
        kind: OptimizerKind::Muon,
        ..config()
    };
    let make = || {
        let (block, table) = (var(&start, &[3, 4]), var(&start, &[3, 4]));
        let vars = BTreeMap::from([
            ("model/layers.0.up.weight".to_owned(), block.clone()),
            ("model/embed.weight".to_owned(), table.clone()),
        ]);
        let optimizer = Optimizer::new(vars, config.clone()).unwrap();
        (block, table, optimizer)
    };
    let update = |(block, table, optimizer): &mut (Var, Var, Optimizer), step: usize| {
        let weights: Vec<f32> = (0..12).map(|i| ((i + 5 * step) as f32).cos()).collect();
        let grads = gradients(&[(&*block, weights.clone()), (&*table, weights)]);
        optimizer.update(&grads, 0.1).unwrap();
    };
    let mut whole = make();
    update(&mut whole, 0);
    let (block, table, mut optimizer) = make();
    let moments = whole.2.moments().unwrap();
    assert!(moments["model/layers.0.up.weight"].second.is_none());
    assert!(moments["model/embed.weight"].second.is_some());
    block.set(&whole.0.as_detached_tensor()).unwrap();
    table.set(&whole.1.as_detached_tensor()).unwrap();
    optimizer.restore(1, moments.clone()).unwrap();
    let mut again = (block, table, optimizer);
    update(&mut whole, 1);
    update(&mut again, 1);
    assert_eq!(values(&whole.0), values(&again.0));
    assert_eq!(values(&whole.1), values(&again.1));
    assert_ne!(values(&whole.0), values(&whole.1));

    let vars = whole.2.vars().clone();
    let mut adamw = Optimizer::new(vars, self::config()).unwrap();
    let text = format!("{:#}", adamw.restore(1, moments).unwrap_err());
    assert!(text.contains("another optimizer.kind"), "{text}");
}

#[test]
fn groups_have_learning_rates_of_their_own() {
    let config = OptimizerConfig {
        weight_decay: 0.0,
        groups: GroupScales {
            embeddings: 0.0,
            matrices: 2.0,
            vectors: 1.0,
            fgram_model: 3.0,
        },
        ..config()
    };
    let names = [
        ("model/embed.weight", 0.0),
        ("model/layers.0.up.weight", 0.2),
        ("model/layers.0.norm.weight", 0.1),
        ("fgram_model/layers.0.up.weight", 0.3),
    ];
    let vars: BTreeMap<String, Var> = names
        .iter()
        .map(|(name, _)| {
            let shape: &[usize] = if name.contains("norm") { &[1] } else { &[1, 1] };
            ((*name).to_owned(), var(&[1.0], shape))
        })
        .collect();
    let pairs: Vec<(&Var, Vec<f32>)> = vars.values().map(|var| (var, vec![2.0])).collect();
    let grads = gradients(&pairs);
    let mut optimizer = Optimizer::new(vars.clone(), config).unwrap();
    optimizer.update(&grads, 0.1).unwrap();
    for (name, moved) in names {
        let value = values(&vars[name])[0];
        assert!((value - (1.0 - moved)).abs() < 1e-6, "{name}: {value}");
    }
}
