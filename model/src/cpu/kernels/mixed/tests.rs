#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

/// A matrix of numbers between -1 and 1, its rows or its columns without gaps, with some numbers
/// between them that nobody should read.
fn numbers(rows: usize, columns: usize, by_rows: bool, seed: usize) -> (Vec<f32>, [usize; 2]) {
    let (lines, length) = if by_rows {
        (rows, columns)
    } else {
        (columns, rows)
    };
    let stride = length + 3;
    let mut values = vec![f32::NAN; (lines * stride).saturating_sub(3)];
    for line in 0..lines {
        for at in 0..length {
            values[line * stride + at] = ((line * 31 + at * 17 + seed) as f32 * 0.37).sin();
        }
    }
    let strides = if by_rows { [stride, 1] } else { [1, stride] };
    (values, strides)
}

fn matrix(values: &[f32], rows: usize, columns: usize, strides: [usize; 2]) -> Matrix<'_> {
    Matrix {
        values,
        rows,
        columns,
        row_stride: strides[0],
        column_stride: strides[1],
    }
}

fn rounded(x: f32) -> f64 {
    f64::from(half::bf16::from_f32(x).to_f32())
}

/// The largest difference from sums in f64 of rounded factors.
fn difference(a: Matrix<'_>, b: Matrix<'_>, start: &[f32], out: &[f32]) -> f64 {
    let mut most = 0.0f64;
    for r in 0..a.rows {
        for c in 0..b.columns {
            let term = |i: usize| {
                rounded(a.values[r * a.row_stride + i * a.column_stride])
                    * rounded(b.values[i * b.row_stride + c * b.column_stride])
            };
            let at = r * b.columns + c;
            let sum: f64 = (0..a.columns).map(term).sum::<f64>() + f64::from(start[at]);
            most = most.max((sum - f64::from(out[at])).abs());
        }
    }
    most
}

#[test]
fn every_unit_multiplies_matrices_of_any_size_and_order() {
    let sizes = [
        (1, 1, 1),
        (5, 7, 3),
        (16, 32, 16),
        (33, 65, 31),
        (64, 512, 48),
        (40, 1100, 70),
        (530, 33, 17),
    ];
    for unit in Unit::available() {
        for (m, k, n) in sizes {
            for (left, right) in [(true, true), (true, false), (false, true), (false, false)] {
                let (a, a_strides) = numbers(m, k, left, 1);
                let (b, b_strides) = numbers(k, n, right, 2);
                let (a, b) = (matrix(&a, m, k, a_strides), matrix(&b, k, n, b_strides));
                let mut out = vec![f32::NAN; m * n];
                product(unit, a, b, &mut out, false);
                let error = difference(a, b, &vec![0.0; m * n], &out);
                assert!(
                    error < 1e-4 * (k as f64).sqrt(),
                    "{unit:?} {m} {k} {n}: {error}"
                );
                let start = out.clone();
                product(unit, a, b, &mut out, true);
                let error = difference(a, b, &start, &out);
                assert!(
                    error < 1e-4 * (k as f64).sqrt(),
                    "{unit:?} {m} {k} {n}, added: {error}"
                );
            }
        }
    }
}

#[test]
fn every_unit_multiplies_matrices_with_gaps_everywhere_and_none_at_all() {
    let values: Vec<f32> = (0..200).map(|i| (i as f32 * 0.1).cos()).collect();
    let (a, b) = (
        matrix(&values, 5, 6, [12, 2]),
        matrix(&values, 6, 4, [20, 3]),
    );
    for unit in Unit::available() {
        let mut out = vec![f32::NAN; 20];
        product(unit, a, b, &mut out, false);
        assert!(difference(a, b, &[0.0; 20], &out) < 1e-4);
        let (a, b) = (matrix(&[], 2, 0, [0, 1]), matrix(&[], 0, 3, [3, 1]));
        let mut out = [f32::NAN; 6];
        product(unit, a, b, &mut out, false);
        assert_eq!(out, [0.0; 6]);
    }
}

#[test]
fn what_is_no_number_stays_none() {
    for unit in Unit::available() {
        let a = [1.0, f32::NAN, 1.0, 1.0];
        let b = [1.0, 1.0, f32::INFINITY, 1.0];
        let mut out = [0.0; 4];
        product(
            unit,
            Matrix::new(&a, 2, 2),
            Matrix::new(&b, 2, 2),
            &mut out,
            false,
        );
        assert!(out[0].is_nan() && out[1].is_nan(), "{unit:?}: {out:?}");
        assert_eq!(out[2..], [f32::INFINITY, 2.0], "{unit:?}");
    }
}
