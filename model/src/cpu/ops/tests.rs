//! The fused operations against those of the tensor path in f64: results and gradients.

use crate::cpu::ops;
use crate::layers::Norm;
use crate::precision::Precision;
use crate::tensor;
use candle_core::{DType, Device, Tensor, Var};

fn numbers(dims: &[usize], seed: f64) -> Tensor {
    let n: usize = dims.iter().product();
    let values: Vec<f64> = (0..n)
        .map(|i| (i as f64 * 0.7311 + seed).sin() * 1.3 + (i as f64 * 0.2113 + seed).cos())
        .collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims(), "{what}: shape");
    for (i, (a, b)) in values(got).iter().zip(values(expected)).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * (1.0 + b.abs()),
            "{what}[{i}]: {a} instead of {b}"
        );
    }
}

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Tensor;

/// Runs one operation in f32 (fused) and in f64 (composed), with a weighted sum as the loss.
fn compare(inputs: &[Tensor], fused: Op<'_>, reference: Op<'_>) {
    let run = |dtype: DType, op: Op<'_>| {
        let vars: Vec<Var> = inputs
            .iter()
            .map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap())
            .collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let out = op(&tensors);
        let weights = numbers(out.dims(), 0.4).to_dtype(dtype).unwrap();
        let grads = (&out * weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let grads: Vec<Tensor> = tensors
            .iter()
            .map(|x| grads.get(x).expect("a gradient for every input").clone())
            .collect();
        (out, grads)
    };
    let (got, got_grads) = run(DType::F32, fused);
    let (expected, expected_grads) = run(DType::F64, reference);
    close("result", &got, &expected, 2e-5);
    for (i, (got, expected)) in got_grads.iter().zip(&expected_grads).enumerate() {
        close(&format!("gradient {i}"), got, expected, 5e-5);
    }
}

fn rms(weight: &Tensor) -> Norm {
    Norm::Rms {
        weight: weight.clone(),
        eps: 1e-5,
    }
}

fn layer(weight: &Tensor, bias: &Tensor) -> Norm {
    Norm::Layer {
        weight: weight.clone(),
        bias: bias.clone(),
        eps: 1e-5,
    }
}

#[test]
fn norms() {
    let x = numbers(&[150, 37], 0.3);
    let (w, b) = (numbers(&[37], 0.5), numbers(&[37], 0.6));
    compare(
        &[x.clone(), w.clone()],
        &|x| ops::norm(&rms(&x[1]), &x[0]).unwrap(),
        &|x| tensor::norm(&rms(&x[1]), &x[0]).unwrap(),
    );
    compare(
        &[x, w, b],
        &|x| ops::norm(&layer(&x[1], &x[2]), &x[0]).unwrap(),
        &|x| tensor::norm(&layer(&x[1], &x[2]), &x[0]).unwrap(),
    );
}

#[test]
fn rows_of_one_table_and_of_two() {
    let index = [3, 0, 6, 3, 9, 7, 7];
    let (first, second) = (numbers(&[7, 5], 0.1), numbers(&[3, 5], 0.2));
    compare(
        &[first.clone(), second.clone()],
        &|x| ops::select_rows(&x[0], Some(&x[1]), &index).unwrap(),
        &|x| tensor::select_rows(&x[0], Some(&x[1]), &index).unwrap(),
    );
    compare(
        std::slice::from_ref(&first),
        &|x| ops::select_rows(&x[0], None, &index[..4]).unwrap(),
        &|x| tensor::select_rows(&x[0], None, &index[..4]).unwrap(),
    );
    assert!(ops::select_rows(&first, None, &index).is_err());
    assert!(ops::select_rows(&first, Some(&second), &[10]).is_err());
}

#[test]
fn cross_entropy_of_hidden_states() {
    let targets: Vec<u32> = (0..75).map(|i| i * 5 % 33).collect();
    let inputs = [numbers(&[75, 12], 0.2), numbers(&[33, 12], 0.3)];
    compare(
        &inputs,
        &|x| ops::linear_cross_entropy((&x[0], &x[1]), &targets, Precision::F32).unwrap(),
        &|x| tensor::linear_cross_entropy(&x[0], &x[1], &targets).unwrap(),
    );
    let f32s: Vec<Tensor> = inputs
        .iter()
        .map(|x| x.to_dtype(DType::F32).unwrap())
        .collect();
    let each = ops::token_losses(&f32s[0], &f32s[1], &targets).unwrap();
    let expected = tensor::token_losses(&f32s[0], &f32s[1], &targets).unwrap();
    for (a, b) in each.iter().zip(expected) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    assert!(
        ops::linear_cross_entropy((&f32s[0], &f32s[1]), &targets[..74], Precision::F32).is_err()
    );
}
