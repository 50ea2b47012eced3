//! Matrix products whose results do not depend on the number of rows.

use super::math::sum_lanes;
use super::{LANES, simd};
use crate::ops::WeightLayout;
use rayon::prelude::*;

/// Outputs one task computes: its weights stay in the cache while the rows pass by.
const BLOCK: usize = 32;
/// Multiplications below which threads cost more than they bring.
const PARALLEL: usize = 1 << 17;
/// Rows that share one read of the weights.
const ROWS: usize = 4;

/// A weight and where its elements are.
#[derive(Clone, Copy)]
pub(crate) struct Weight<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) layout: WeightLayout,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// `x (N, in)` times the weight, plus the bias: `(N, out)`.
pub(crate) fn matmul(x: &[f32], weight: Weight<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let rows = x.len() / weight.inputs.max(1);
    // Output-major, so that each task owns one stretch of it.
    let mut transposed = vec![0.0f32; rows * weight.outputs];
    let task = |(i, out): (usize, &mut [f32])| {
        simd(
            #[inline(always)]
            || block(x, rows, weight, i * BLOCK, out),
        )
    };
    let blocks = transposed.len().min(BLOCK * rows).max(1);
    if x.len() * weight.outputs >= PARALLEL {
        transposed.par_chunks_mut(blocks).enumerate().for_each(task);
    } else {
        transposed.chunks_mut(blocks).enumerate().for_each(task);
    }
    let mut out = if rows == 1 {
        transposed
    } else {
        transpose(&transposed, weight.outputs, rows)
    };
    if let Some(bias) = bias {
        for row in out.chunks_mut(weight.outputs) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
    out
}

fn transpose(values: &[f32], columns: usize, rows: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; values.len()];
    for (row, out) in out.chunks_mut(columns).enumerate() {
        for (out, column) in out.iter_mut().zip(values.chunks(rows)) {
            *out = column[row];
        }
    }
    out
}

/// Outputs from `first` on, as many as `out` has columns of `rows` numbers.
#[inline(always)]
fn block(x: &[f32], rows: usize, weight: Weight<'_>, first: usize, out: &mut [f32]) {
    match weight.layout {
        WeightLayout::OutIn => block_out_in(x, rows, weight, first, out),
        WeightLayout::InOut => block_in_out(x, rows, weight, first, out),
    }
}

/// Each output is a dot product of contiguous rows, in [`LANES`] partial sums.
#[inline(always)]
fn block_out_in(x: &[f32], rows: usize, weight: Weight<'_>, first: usize, out: &mut [f32]) {
    let n = weight.inputs;
    let row = |i: usize| &x[i * n..(i + 1) * n];
    for (o, column) in out.chunks_mut(rows).enumerate() {
        let w = &weight.values[(first + o) * n..(first + o + 1) * n];
        let mut i = 0;
        while i + ROWS <= rows {
            let sums = dots(w, [row(i), row(i + 1), row(i + 2), row(i + 3)]);
            column[i..i + ROWS].copy_from_slice(&sums);
            i += ROWS;
        }
        while i < rows {
            column[i] = dots(w, [row(i)])[0];
            i += 1;
        }
    }
}

/// Dot products of one weight row with R rows; the order of each sum is that of
/// [`super::math::dot`], whatever R is.
#[inline(always)]
fn dots<const R: usize>(w: &[f32], x: [&[f32]; R]) -> [f32; R] {
    let mut lanes = [[0.0f32; LANES]; R];
    let (w, w_rest) = w.as_chunks::<LANES>();
    let chunks: [(&[[f32; LANES]], &[f32]); R] = x.map(|x| x.as_chunks::<LANES>());
    for (c, w) in w.iter().enumerate() {
        for r in 0..R {
            let x = &chunks[r].0[c];
            for i in 0..LANES {
                lanes[r][i] = x[i].mul_add(w[i], lanes[r][i]);
            }
        }
    }
    for r in 0..R {
        for (i, w) in w_rest.iter().enumerate() {
            lanes[r][i] = chunks[r].1[i].mul_add(*w, lanes[r][i]);
        }
    }
    lanes.map(sum_lanes)
}

/// Each output is summed over the inputs in order, [`BLOCK`] outputs at a time.
#[inline(always)]
fn block_in_out(x: &[f32], rows: usize, weight: Weight<'_>, first: usize, out: &mut [f32]) {
    let columns = out.len() / rows.max(1);
    for row in 0..rows {
        let x = &x[row * weight.inputs..(row + 1) * weight.inputs];
        let mut sums = [0.0f32; BLOCK];
        if columns == BLOCK {
            for (x, w) in x.iter().zip(weight.values.chunks_exact(weight.outputs)) {
                let w = &w[first..first + BLOCK];
                for i in 0..BLOCK {
                    sums[i] = x.mul_add(w[i], sums[i]);
                }
            }
        } else {
            for (x, w) in x.iter().zip(weight.values.chunks_exact(weight.outputs)) {
                for (sum, w) in sums.iter_mut().zip(&w[first..first + columns]) {
                    *sum = x.mul_add(*w, *sum);
                }
            }
        }
        for (column, sum) in out.chunks_mut(rows).zip(sums) {
            column[row] = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn a_row_does_not_depend_on_its_company_and_is_right() {
        for (rows, inputs, outputs) in [(7, 37, 70), (1, 16, 32), (9, 128, 300), (130, 64, 33)] {
            for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
                let x = numbers(rows * inputs, 0.31);
                let values = numbers(inputs * outputs, 0.17);
                let bias = numbers(outputs, 0.5);
                let weight = Weight {
                    values: &values,
                    layout,
                    inputs,
                    outputs,
                };
                let all = matmul(&x, weight, Some(&bias));
                for (row, x) in x.chunks(inputs).enumerate() {
                    let alone = matmul(x, weight, Some(&bias));
                    assert_eq!(alone, all[row * outputs..(row + 1) * outputs]);
                    for (o, got) in alone.iter().enumerate() {
                        let w = |i: usize| match layout {
                            WeightLayout::OutIn => values[o * inputs + i],
                            WeightLayout::InOut => values[i * outputs + o],
                        };
                        let expected: f64 = (0..inputs)
                            .map(|i| f64::from(x[i]) * f64::from(w(i)))
                            .sum::<f64>()
                            + f64::from(bias[o]);
                        assert!((f64::from(*got) - expected).abs() < 1e-4);
                    }
                }
            }
        }
    }
}
