//! Muon: the momentum of a matrix's gradient, made orthogonal, is its update (Jordan and others,
//! 2024), so that all directions of a matrix are learnt alike.
//!
//! The update is scaled by `0.2 * sqrt(max(rows, columns))`, which gives its elements the size that
//! AdamW's have, so that learning rate and weight decay of one suit the other (Liu and others,
//! "Muon is Scalable for LLM Training").

use anyhow::Result;
use candle_core::{Tensor, Var};
use rayon::prelude::*;

use super::coefficients::Coefficients;

/// Coefficients of one Newton-Schulz step: an odd polynomial that pulls singular values of (0, 1]
/// to about 1, steep at 0. They do not converge to 1 but stay within 0.7 and 1.2.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ROUNDS: usize = 5;

/// A matrix, its gradient and its momentum.
pub(super) type Update<'a> = (&'a Var, &'a Tensor, &'a mut Tensor, Coefficients);

/// Updates some matrices. On a CPU several at a time: the products of one are too small to share.
pub(super) fn update_all(matrices: Vec<Update<'_>>) -> Result<()> {
    let one = |(var, grad, momentum, step): Update<'_>| update(var, grad, momentum, step);
    match matrices.iter().all(|(var, ..)| var.device().is_cpu()) {
        true => matrices.into_par_iter().with_max_len(1).try_for_each(one),
        false => matrices.into_iter().try_for_each(one),
    }
}

/// Updates the matrix `var` and its momentum where they are.
fn update(var: &Var, grad: &Tensor, momentum: &mut Tensor, step: Coefficients) -> Result<()> {
    let beta = f64::from(step.momentum);
    let grad = (grad.detach() * f64::from(step.clip))?;
    let fresh = (&grad * (1.0 - beta))?;
    let next = ((&*momentum * beta)? + &fresh)?;
    // Nesterov: the gradient counts once more.
    let direction = orthogonal(&(fresh + (&next * beta)?)?)?;
    let (rows, columns) = var.dims2()?;
    let size = 0.2 * (rows.max(columns) as f64).sqrt();
    let decayed = (var.as_detached_tensor() * f64::from(step.decay))?;
    var.set(&(decayed - (direction * (f64::from(step.lr) * size))?)?)?;
    *momentum = next;
    Ok(())
}

/// About `U Vt` of a matrix `U S Vt`.
fn orthogonal(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    // The smaller side is the one to square.
    let tall = rows > columns;
    let x = if tall {
        matrix.t()?.contiguous()?
    } else {
        matrix.clone()
    };
    let norm = x.sqr()?.sum_all()?.sqrt()?;
    let mut x = x.broadcast_div(&(norm + 1e-7)?)?;
    let [a, b, c] = QUINTIC;
    for _ in 0..ROUNDS {
        let square = x.matmul(&x.t()?)?;
        let mixed = ((&square * b)? + (square.matmul(&square)? * c)?)?;
        x = ((&x * a)? + mixed.matmul(&x)?)?;
    }
    Ok(if tall { x.t()?.contiguous()? } else { x })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use candle_core::Device;

    use super::*;
    use crate::training::config::OptimizerConfig;

    type Matrix = Vec<Vec<f64>>;

    fn product(a: &Matrix, b: &Matrix) -> Matrix {
        let columns = b[0].len();
        let cell = |row: &Vec<f64>, j: usize| row.iter().zip(b).map(|(x, b)| x * b[j]).sum();
        a.iter()
            .map(|row| (0..columns).map(|j| cell(row, j)).collect())
            .collect()
    }

    fn transposed(a: &Matrix) -> Matrix {
        (0..a[0].len())
            .map(|j| a.iter().map(|row| row[j]).collect())
            .collect()
    }

    fn combined(parts: &[(f64, &Matrix)]) -> Matrix {
        let (rows, columns) = (parts[0].1.len(), parts[0].1[0].len());
        let cell = |i: usize, j: usize| parts.iter().map(|(f, m)| f * m[i][j]).sum();
        (0..rows)
            .map(|i| (0..columns).map(|j| cell(i, j)).collect())
            .collect()
    }

    /// The same in plain loops, in f64, without turning tall matrices round.
    fn reference(matrix: &Matrix) -> Matrix {
        let norm: f64 = matrix.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
        let mut x = combined(&[(1.0 / norm, matrix)]);
        for _ in 0..5 {
            let square = product(&x, &transposed(&x));
            let fourth = product(&square, &square);
            let (third, fifth) = (product(&square, &x), product(&fourth, &x));
            x = combined(&[(3.4445, &x), (-4.775, &third), (2.0315, &fifth)]);
        }
        x
    }

    fn matrix(rows: usize, columns: usize, seed: f64) -> Matrix {
        let cell = |i: usize, j: usize| ((i * 31 + j * 7) as f64 * 0.731 + seed).sin();
        (0..rows)
            .map(|i| (0..columns).map(|j| cell(i, j)).collect())
            .collect()
    }

    fn tensor(matrix: &Matrix) -> Tensor {
        let values: Vec<f32> = matrix.iter().flatten().map(|&x| x as f32).collect();
        Tensor::from_vec(values, (matrix.len(), matrix[0].len()), &Device::Cpu).unwrap()
    }

    fn assert_close(got: &Tensor, expected: &Matrix) {
        let got: Vec<Vec<f32>> = got.to_vec2().unwrap();
        for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
            assert!(
                (f64::from(*got) - expected).abs() < 2e-4,
                "{got} {expected}"
            );
        }
    }

    #[test]
    fn wide_and_tall_matrices_are_made_orthogonal_as_in_plain_loops() {
        for (rows, columns) in [(3, 5), (5, 3), (4, 4), (1, 6)] {
            let from = matrix(rows, columns, 0.3);
            assert_close(&orthogonal(&tensor(&from)).unwrap(), &reference(&from));
        }
    }

    #[test]
    fn two_updates_equal_those_in_plain_loops() {
        let config = OptimizerConfig {
            weight_decay: 0.5,
            clip: 1.0,
            ..OptimizerConfig::default()
        };
        let start = matrix(4, 6, 1.0);
        let var = Var::from_tensor(&tensor(&start)).unwrap();
        let mut momentum = tensor(&combined(&[(0.0, &start)]));
        let (mut expected, mut buffer) = (start.clone(), combined(&[(0.0, &start)]));
        for step in 1..=2 {
            let grad = matrix(4, 6, 2.0 * step as f64);
            let coefficients = Coefficients::new(&config, step, 4.0, 0.1).for_rank(2);
            update(&var, &tensor(&grad), &mut momentum, coefficients).unwrap();
            // Clipped by 4, momentum 0.95.
            buffer = combined(&[(0.95, &buffer), (0.05 / 4.0, &grad)]);
            let direction = reference(&combined(&[(0.95, &buffer), (0.05 / 4.0, &grad)]));
            let rate = -0.1 * 0.2 * 6f64.sqrt();
            expected = combined(&[(1.0 - 0.1 * 0.5, &expected), (rate, &direction)]);
            assert_close(&var.as_detached_tensor(), &expected);
            assert_close(&momentum, &buffer);
        }
    }
}
