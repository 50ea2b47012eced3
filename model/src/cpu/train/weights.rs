//! Gradients of one layer's weights.

use super::backward::Grads;
use super::flat::{FlatBlock, FlatLinear};
use crate::cpu::block::Activations;
use crate::cpu::kernels::gemm::{Matrix, add_gemm};
use crate::layout::WeightLayout;
use crate::precision::Precision;
use rayon::prelude::*;

/// Rows of a weight whose gradient one task sums. With factors in bf16 each task packs what it
/// multiplies.
fn rows_of_a_task(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 64,
        Precision::Bf16 => 256,
    }
}

/// A group's share in the gradients of a layer's weights.
pub(super) struct Part<'a> {
    pub(super) rows: usize,
    pub(super) saved: Activations<&'a [f32]>,
    pub(super) grads: Grads<&'a [f32]>,
}

/// Input and output gradient of a linear layer, for one group.
type Pair<'a> = (usize, &'a [f32], &'a [f32]);

/// Rows of one weight's gradient to be summed over the groups.
struct Task<'a> {
    linear: &'a FlatLinear,
    first: usize,
    pairs: &'a [Pair<'a>],
    out: &'a mut [f32],
}

/// Gradients of one layer's weights: products of what went in and what came back, summed over
/// the groups in order.
pub(super) fn weight_gradients(flat: &FlatBlock, parts: &[Part<'_>], dweights: &mut [f32]) {
    let qkv: Vec<Pair<'_>> = parts
        .iter()
        .map(|p| (p.rows, p.saved.attention_normed, p.grads.joint))
        .collect();
    let output: Vec<Pair<'_>> = parts
        .iter()
        .map(|p| (p.rows, p.saved.mixed, p.grads.middle))
        .collect();
    let inner: Vec<Pair<'_>> = parts
        .iter()
        .map(|p| (p.rows, p.saved.mlp_normed, p.grads.inner))
        .collect();
    let down: Vec<Pair<'_>> = parts
        .iter()
        .map(|p| (p.rows, p.saved.activated, p.grads.out))
        .collect();
    norm_gradients(flat, parts, dweights);
    let layers = [
        (&flat.qkv, &qkv),
        (&flat.output, &output),
        (&flat.inner, &inner),
        (&flat.down, &down),
    ];
    for (linear, pairs) in layers {
        if let Some(bias) = &linear.bias {
            bias_gradient(pairs, &mut dweights[bias.clone()]);
        }
    }
    let task_rows = rows_of_a_task(flat.precision);
    let mut tasks = Vec::new();
    let mut rest = dweights;
    let mut cut_off = 0;
    for (linear, pairs) in layers {
        let (_, tail) = rest.split_at_mut(linear.weight.start - cut_off);
        let (out, tail) = tail.split_at_mut(linear.weight.len());
        (rest, cut_off) = (tail, linear.weight.end);
        let columns = match flat.layout {
            WeightLayout::OutIn => linear.inputs,
            WeightLayout::InOut => linear.outputs,
        };
        for (i, out) in out.chunks_mut(task_rows * columns).enumerate() {
            tasks.push(Task {
                linear,
                first: i * task_rows,
                pairs,
                out,
            });
        }
    }
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| task.run(flat));
}

impl Task<'_> {
    fn run(self, flat: &FlatBlock) {
        let (inputs, outputs) = (self.linear.inputs, self.linear.outputs);
        for &(n, x, grad) in self.pairs {
            // The rows of this task are columns of one of the two.
            let (left, columns, right) = match flat.layout {
                WeightLayout::OutIn => (grad, outputs, Matrix::new(x, n, inputs)),
                WeightLayout::InOut => (x, inputs, Matrix::new(grad, n, outputs)),
            };
            let left = Matrix {
                values: &left[self.first..],
                rows: self.out.len() / right.columns,
                columns: n,
                row_stride: 1,
                column_stride: columns,
            };
            add_gemm(left, right, self.out, flat.precision);
        }
    }
}

fn bias_gradient(pairs: &[Pair<'_>], out: &mut [f32]) {
    for (_, _, grad) in pairs {
        for row in grad.chunks(out.len()) {
            for (out, g) in out.iter_mut().zip(row) {
                *out += g;
            }
        }
    }
}

fn norm_gradients(flat: &FlatBlock, parts: &[Part<'_>], dweights: &mut [f32]) {
    let len = flat.norm_len();
    for part in parts {
        for (i, norm) in [&flat.attention_norm, &flat.mlp_norm]
            .into_iter()
            .enumerate()
        {
            // Weight and bias follow each other in weights and gradients.
            let start = norm.weight.start;
            let from = &part.grads.norms[i * len..(i + 1) * len];
            for (to, g) in dweights[start..start + len].iter_mut().zip(from) {
                *to += g;
            }
        }
    }
}
