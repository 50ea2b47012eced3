//! A block's products, norms and attention for training, for one group of rows on one thread.

use super::flat::{FlatBlock, FlatLinear, FlatNorm};
use crate::cpu::block::{NormOf, Pass, Product, add};
use crate::cpu::kernels::gemm::{Matrix, Threads, gemm};
use crate::cpu::kernels::{causal, simd, tree};
use crate::cpu::weights::norm_rows;
use crate::layout::WeightLayout;
use crate::prefix_tree::PrefixTree;
use std::ops::Range;

/// How the rows of a group attend.
#[derive(Clone, Copy)]
pub(crate) enum Attending<'a> {
    /// One sequence; rotary angles of its positions, if any.
    Sequence { angles: Option<&'a [f32]> },
    /// These nodes of a tree.
    Tree {
        tree: &'a PrefixTree,
        nodes: &'a Range<usize>,
    },
}

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(super) causal: causal::Scratch,
    pub(super) tree: tree::Scratch,
    pub(super) norm: Vec<f32>,
}

/// One group through one block.
pub(crate) struct Training<'a> {
    pub(crate) flat: &'a FlatBlock,
    /// The weights of the block.
    pub(crate) weights: &'a [f32],
    pub(crate) attend: Attending<'a>,
    pub(crate) scratch: &'a mut Scratch,
}

impl Training<'_> {
    fn norm_numbers(&self, which: NormOf) -> &FlatNorm {
        match which {
            NormOf::Attention => &self.flat.attention_norm,
            NormOf::Mlp => &self.flat.mlp_norm,
        }
    }
}

impl Pass for Training<'_> {
    fn norm(&mut self, which: NormOf, x: &[f32], out: &mut [f32]) {
        let norm = self.norm_numbers(which);
        let weight = &self.weights[norm.weight.clone()];
        let bias = norm.bias.as_ref().map(|bias| &self.weights[bias.clone()]);
        norm_rows(x, weight, bias, self.flat.eps, out);
    }

    fn product(&mut self, which: Product, x: &[f32], out: &mut [f32]) {
        let linear = match which {
            Product::Qkv => &self.flat.qkv,
            Product::Output => &self.flat.output,
            Product::Inner => &self.flat.inner,
            Product::Down => &self.flat.down,
        };
        let rows = Matrix::new(x, x.len() / linear.inputs, linear.inputs);
        gemm(
            rows,
            self.flat.matrix(self.weights, linear),
            out,
            (self.flat.precision, Threads::One),
        );
        if let Some(bias) = &linear.bias {
            let bias = &self.weights[bias.clone()];
            for row in out.chunks_mut(linear.outputs) {
                add(row, bias);
            }
        }
    }

    fn attend(&mut self, joint: &mut [f32], mixed: &mut [f32]) {
        let heads = self.flat.sizes.heads;
        match self.attend {
            Attending::Sequence { angles } => {
                let causal = &mut self.scratch.causal;
                causal.forward(heads, joint, angles, mixed);
            }
            Attending::Tree { tree, nodes } => simd(
                #[inline(always)]
                || self.scratch.tree.forward(heads, tree, nodes, joint, mixed),
            ),
        }
    }
}

impl FlatBlock {
    /// The weight as an (in, out) matrix.
    pub(super) fn matrix<'a>(&self, weights: &'a [f32], linear: &FlatLinear) -> Matrix<'a> {
        let values = &weights[linear.weight.clone()];
        match self.layout {
            WeightLayout::OutIn => Matrix::new(values, linear.outputs, linear.inputs).transposed(),
            WeightLayout::InOut => Matrix::new(values, linear.inputs, linear.outputs),
        }
    }
}
