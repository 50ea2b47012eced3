//! Matrix products whose results do not depend on the number of rows.

use super::LANES;
use super::math::sum_lanes;
use crate::layout::WeightLayout;
use pulp::{Arch, Simd, WithSimd};
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

/// Where a product goes: some columns of rows that have others besides.
pub(crate) struct Columns<'a> {
    pub(crate) rows: &'a mut [f32],
    /// Numbers of a row.
    pub(crate) width: usize,
    /// First column written.
    pub(crate) first: usize,
}

/// `x (N, in)` times the weight, plus the bias, into `out` columns of N rows. `scratch` is memory
/// to be used again.
pub(crate) fn matmul(
    x: &[f32],
    weight: Weight<'_>,
    bias: Option<&[f32]>,
    out: Columns<'_>,
    scratch: &mut Vec<f32>,
) {
    let (rows, outputs) = (x.len() / weight.inputs.max(1), weight.outputs);
    if rows == 1 {
        let row = &mut out.rows[out.first..out.first + outputs];
        blocks(x, 1, weight, row);
        add_bias(row, bias);
        return;
    }
    // Output-major, so that each task owns one stretch of it.
    scratch.resize(rows * outputs, 0.0);
    blocks(x, rows, weight, scratch);
    for (row, to) in out.rows.chunks_mut(out.width).enumerate() {
        let to = &mut to[out.first..out.first + outputs];
        for (to, column) in to.iter_mut().zip(scratch.chunks(rows)) {
            *to = column[row];
        }
        add_bias(to, bias);
    }
}

/// All outputs, output-major, shared out over the threads when that pays.
fn blocks(x: &[f32], rows: usize, weight: Weight<'_>, out: &mut [f32]) {
    let task = |(i, out): (usize, &mut [f32])| {
        Arch::new().dispatch(Block {
            x,
            rows,
            weight,
            first: i * BLOCK,
            out,
        });
    };
    let size = out.len().min(BLOCK * rows).max(1);
    if x.len() * weight.outputs >= PARALLEL {
        out.par_chunks_mut(size).enumerate().for_each(task);
    } else {
        out.chunks_mut(size).enumerate().for_each(task);
    }
}

fn add_bias(row: &mut [f32], bias: Option<&[f32]>) {
    for (y, b) in row.iter_mut().zip(bias.into_iter().flatten()) {
        *y += b;
    }
}

/// Outputs from `first` on, as many as `out` has columns of `rows` numbers.
struct Block<'a> {
    x: &'a [f32],
    rows: usize,
    weight: Weight<'a>,
    first: usize,
    out: &'a mut [f32],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (x, rows, weight) = (self.x, self.rows, self.weight);
        match weight.layout {
            WeightLayout::OutIn => block_out_in(simd, x, rows, weight, self.first, self.out),
            WeightLayout::InOut => block_in_out(simd, x, rows, weight, self.first, self.out),
        }
    }
}

/// Each output is a dot product of contiguous rows, in [`LANES`] partial sums.
#[inline(always)]
fn block_out_in<S: Simd>(
    simd: S,
    x: &[f32],
    rows: usize,
    weight: Weight<'_>,
    first: usize,
    out: &mut [f32],
) {
    let n = weight.inputs;
    let row = |i: usize| &x[i * n..(i + 1) * n];
    for (o, column) in out.chunks_mut(rows).enumerate() {
        let w = &weight.values[(first + o) * n..(first + o + 1) * n];
        let mut i = 0;
        while i + ROWS <= rows {
            let x = [row(i), row(i + 1), row(i + 2), row(i + 3)];
            column[i..i + ROWS].copy_from_slice(&dots(simd, w, x));
            i += ROWS;
        }
        while i < rows {
            column[i] = dots(simd, w, [row(i)])[0];
            i += 1;
        }
    }
}

/// Dot products of one weight row with R rows; the order of each sum is that of
/// [`super::math::dot`], whatever R is and however wide the machine's vectors are.
#[inline(always)]
fn dots<S: Simd, const R: usize>(simd: S, w: &[f32], x: [&[f32]; R]) -> [f32; R] {
    let parts = LANES / S::F32_LANES;
    let whole = w.len() / LANES * LANES;
    let vectors = S::as_simd_f32s(&w[..whole]).0;
    let columns = x.map(|x| S::as_simd_f32s(&x[..whole]).0);
    let mut lanes = [[0.0f32; LANES]; R];
    for part in 0..parts {
        let mut sums = [simd.splat_f32s(0.0); R];
        for i in (part..vectors.len()).step_by(parts) {
            for r in 0..R {
                sums[r] = simd.mul_add_f32s(columns[r][i], vectors[i], sums[r]);
            }
        }
        for (lanes, sum) in lanes.iter_mut().zip(sums) {
            S::as_mut_simd_f32s(lanes).0[part] = sum;
        }
    }
    for (lanes, x) in lanes.iter_mut().zip(x) {
        for ((lane, x), w) in lanes.iter_mut().zip(&x[whole..]).zip(&w[whole..]) {
            *lane = x.mul_add(*w, *lane);
        }
    }
    lanes.map(sum_lanes)
}

/// Each output is summed over the inputs in order, sixteen outputs at a time.
#[inline(always)]
fn block_in_out<S: Simd>(
    simd: S,
    x: &[f32],
    rows: usize,
    weight: Weight<'_>,
    first: usize,
    out: &mut [f32],
) {
    let columns = out.len() / rows.max(1);
    let row = |i: usize| &x[i * weight.inputs..(i + 1) * weight.inputs];
    for start in (0..columns).step_by(LANES) {
        let out = &mut out[start * rows..];
        let column = first + start;
        let mut i = 0;
        while i + ROWS <= rows {
            let x = [row(i), row(i + 1), row(i + 2), row(i + 3)];
            let sums = columns_in_order(simd, weight, column, x);
            store(&sums, i, rows, out);
            i += ROWS;
        }
        while i < rows {
            let sums = columns_in_order(simd, weight, column, [row(i)]);
            store(&sums, i, rows, out);
            i += 1;
        }
    }
}

/// Sums for sixteen outputs, from `first` on, of R rows. Those beyond the last output are zero.
#[inline(always)]
fn columns_in_order<S: Simd, const R: usize>(
    simd: S,
    weight: Weight<'_>,
    first: usize,
    x: [&[f32]; R],
) -> [[f32; LANES]; R] {
    let mut lanes = [[0.0f32; LANES]; R];
    let rows = weight.values.chunks_exact(weight.outputs);
    if first + LANES > weight.outputs {
        for (i, w) in rows.enumerate() {
            for (lanes, x) in lanes.iter_mut().zip(x) {
                for (lane, w) in lanes.iter_mut().zip(&w[first..]) {
                    *lane = x[i].mul_add(*w, *lane);
                }
            }
        }
        return lanes;
    }
    for part in 0..LANES / S::F32_LANES {
        let start = first + part * S::F32_LANES;
        let mut sums = [simd.splat_f32s(0.0); R];
        for (i, w) in rows.clone().enumerate() {
            let w = S::as_simd_f32s(&w[start..start + S::F32_LANES]).0[0];
            for r in 0..R {
                sums[r] = simd.mul_add_f32s(simd.splat_f32s(x[r][i]), w, sums[r]);
            }
        }
        for (lanes, sum) in lanes.iter_mut().zip(sums) {
            S::as_mut_simd_f32s(lanes).0[part] = sum;
        }
    }
    lanes
}

/// Writes sums of rows from `first` on into output-major columns.
#[inline(always)]
fn store<const R: usize>(sums: &[[f32; LANES]; R], first: usize, rows: usize, out: &mut [f32]) {
    for (o, column) in out.chunks_mut(rows).take(LANES).enumerate() {
        for (r, sums) in sums.iter().enumerate() {
            column[first + r] = sums[o];
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
                let product = |x: &[f32]| {
                    let width = outputs + 3;
                    let mut rows = vec![9.0; x.len() / inputs * width];
                    let out = Columns {
                        rows: &mut rows,
                        width,
                        first: 2,
                    };
                    matmul(x, weight, Some(&bias), out, &mut Vec::new());
                    let mut product = Vec::new();
                    for row in rows.chunks(width) {
                        assert_eq!([row[0], row[1], row[width - 1]], [9.0; 3]);
                        product.extend_from_slice(&row[2..width - 1]);
                    }
                    product
                };
                let all = product(&x);
                for (row, x) in x.chunks(inputs).enumerate() {
                    let alone = product(x);
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

    /// The same bits on machines with other vectors, or none.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (rows, inputs, outputs) = (5, 53, 32);
        let (x, values) = (
            numbers(rows * inputs, 0.31),
            numbers(inputs * outputs, 0.17),
        );
        for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
            let mut results = vec![vec![0.0f32; rows * outputs]; 3];
            let block = |out| Block {
                x: &x,
                rows,
                weight: Weight {
                    values: &values,
                    layout,
                    inputs,
                    outputs,
                },
                first: 0,
                out,
            };
            let [best, scalar, avx2] = &mut results[..] else {
                unreachable!()
            };
            Arch::new().dispatch(block(best));
            block(scalar).with_simd(pulp::Scalar);
            #[cfg(target_arch = "x86_64")]
            if let Some(v3) = pulp::x86::V3::try_new() {
                pulp::Simd::vectorize(v3, block(avx2));
                assert_eq!(results[0], results[2]);
            }
            assert_eq!(results[0], results[1]);
        }
    }
}
