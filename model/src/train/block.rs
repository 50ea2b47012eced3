//! Forward and backward of one block for one group of rows, on one thread.

use super::flat::{FlatBlock, FlatLinear, FlatNorm};
use crate::config::Family;
use crate::fgram_model::PrefixTree;
use crate::kernels::gemm::{Matrix, Threads, gemm};
use crate::kernels::{causal, gradients, rows, simd, tree};
use crate::ops::WeightLayout;
use std::ops::Range;

/// How the rows of a group attend.
#[derive(Clone, Copy)]
pub(crate) enum Attend<'a> {
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
    causal: causal::Scratch,
    tree: tree::Scratch,
    norm: Vec<f32>,
}

/// What the backward pass needs of a block's forward pass, for one group: slices of one buffer.
pub(crate) struct Saved<B> {
    /// Input of the block.
    pub(crate) x: B,
    pub(crate) attention_normed: B,
    /// Queries, keys and values.
    pub(crate) joint: B,
    /// Attention's result, before the output layer.
    pub(crate) mixed: B,
    /// After the first residual addition.
    pub(crate) middle: B,
    pub(crate) mlp_normed: B,
    /// Before and after the activation.
    pub(crate) inner: B,
    pub(crate) activated: B,
}

/// Gradients that the weights' gradients are made of.
pub(crate) struct Grads<B> {
    /// Of the block's output.
    pub(crate) out: B,
    pub(crate) inner: B,
    pub(crate) middle: B,
    pub(crate) joint: B,
    /// Of the norms' weights (and biases), summed over the group.
    pub(crate) norms: B,
}

impl FlatBlock {
    fn saved_widths(&self) -> [usize; 8] {
        let (d, f) = (self.width, self.intermediate);
        let mixed = self.joint.out_width();
        [d, d, self.joint.width(), mixed, d, d, self.inner_width(), f]
    }

    /// Numbers of a group's [`Saved`].
    pub(crate) fn saved_len(&self, rows: usize) -> usize {
        rows * self.saved_widths().iter().sum::<usize>()
    }

    /// Numbers of a group's [`Grads`].
    pub(crate) fn grads_len(&self, rows: usize) -> usize {
        rows * (2 * self.width + self.inner_width() + self.joint.width()) + 2 * self.norm_len()
    }

    /// Numbers of one norm.
    pub(crate) fn norm_len(&self) -> usize {
        match self.family {
            Family::Llama => self.width,
            Family::Gpt2 => 2 * self.width,
        }
    }

    pub(crate) fn saved_mut<'a>(
        &self,
        mut buffer: &'a mut [f32],
        n: usize,
    ) -> Saved<&'a mut [f32]> {
        let [
            x,
            attention_normed,
            joint,
            mixed,
            middle,
            mlp_normed,
            inner,
            activated,
        ] = self
            .saved_widths()
            .map(|width| cut_mut(&mut buffer, n * width));
        Saved {
            x,
            attention_normed,
            joint,
            mixed,
            middle,
            mlp_normed,
            inner,
            activated,
        }
    }

    pub(crate) fn saved<'a>(&self, mut buffer: &'a [f32], n: usize) -> Saved<&'a [f32]> {
        let [
            x,
            attention_normed,
            joint,
            mixed,
            middle,
            mlp_normed,
            inner,
            activated,
        ] = self.saved_widths().map(|width| cut(&mut buffer, n * width));
        Saved {
            x,
            attention_normed,
            joint,
            mixed,
            middle,
            mlp_normed,
            inner,
            activated,
        }
    }

    pub(crate) fn grads_mut<'a>(
        &self,
        mut buffer: &'a mut [f32],
        n: usize,
    ) -> Grads<&'a mut [f32]> {
        Grads {
            out: cut_mut(&mut buffer, n * self.width),
            inner: cut_mut(&mut buffer, n * self.inner_width()),
            middle: cut_mut(&mut buffer, n * self.width),
            joint: cut_mut(&mut buffer, n * self.joint.width()),
            norms: buffer,
        }
    }

    pub(crate) fn grads<'a>(&self, mut buffer: &'a [f32], n: usize) -> Grads<&'a [f32]> {
        Grads {
            out: cut(&mut buffer, n * self.width),
            inner: cut(&mut buffer, n * self.inner_width()),
            middle: cut(&mut buffer, n * self.width),
            joint: cut(&mut buffer, n * self.joint.width()),
            norms: buffer,
        }
    }

    /// `s.x` through the block; the result is in `out`.
    pub(crate) fn forward(
        &self,
        weights: &[f32],
        attend: Attend<'_>,
        s: Saved<&mut [f32]>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        self.norm_forward(weights, &self.attention_norm, s.x, s.attention_normed);
        self.linear(weights, &self.qkv, s.attention_normed, s.joint);
        match attend {
            Attend::Sequence { angles } => {
                let causal = &mut scratch.causal;
                causal.forward(self.joint, s.joint, angles, s.mixed);
            }
            Attend::Tree { tree, nodes } => simd(
                #[inline(always)]
                || {
                    scratch
                        .tree
                        .forward(self.joint, tree, nodes, s.joint, s.mixed)
                },
            ),
        }
        self.linear(weights, &self.output, s.mixed, s.middle);
        add(s.middle, s.x);
        self.norm_forward(weights, &self.mlp_norm, s.middle, s.mlp_normed);
        self.linear(weights, &self.inner, s.mlp_normed, s.inner);
        let (inner, f) = (&*s.inner, self.intermediate);
        simd(
            #[inline(always)]
            || match self.family {
                Family::Llama => {
                    let rows = inner.chunks(2 * f).zip(s.activated.chunks_mut(f));
                    for (inner, out) in rows {
                        rows::swiglu(&inner[..f], &inner[f..], out);
                    }
                }
                Family::Gpt2 => rows::gelu(inner, s.activated),
            },
        );
        self.linear(weights, &self.down, s.activated, out);
        add(out, s.middle);
    }

    /// From the gradient of the block's output, `g.out`, to that of its input, `dx`, filling in
    /// the rest of `g` on the way. `spare` is scratch of the widest row times the rows.
    #[expect(
        clippy::too_many_arguments,
        reason = "gradients come in, gradients and activations go out"
    )]
    pub(crate) fn backward(
        &self,
        weights: &[f32],
        attend: Attend<'_>,
        s: &Saved<&[f32]>,
        g: Grads<&mut [f32]>,
        spare: &mut [f32],
        scratch: &mut Scratch,
        dx: &mut [f32],
    ) {
        let n = s.x.len() / self.width;
        let (attention_norms, mlp_norms) = g.norms.split_at_mut(self.norm_len());
        let f = self.intermediate;
        let dactivated = &mut spare[..n * f];
        self.linear_back(weights, &self.down, g.out, dactivated);
        simd(
            #[inline(always)]
            || match self.family {
                Family::Llama => {
                    let rows = s.inner.chunks(2 * f).zip(dactivated.chunks(f));
                    for ((inner, grad), d) in rows.zip(g.inner.chunks_mut(2 * f)) {
                        let (dgate, dup) = d.split_at_mut(f);
                        gradients::swiglu(&inner[..f], &inner[f..], grad, dgate, dup);
                    }
                }
                Family::Gpt2 => gradients::gelu(s.inner, dactivated, g.inner),
            },
        );
        let dnormed = &mut spare[..n * self.width];
        self.linear_back(weights, &self.inner, g.inner, dnormed);
        g.middle.copy_from_slice(g.out);
        let norm = &self.mlp_norm;
        self.norm_back(
            weights,
            norm,
            (s.middle, dnormed),
            scratch,
            (g.middle, mlp_norms),
        );
        let dmixed = &mut spare[..n * self.joint.out_width()];
        self.linear_back(weights, &self.output, g.middle, dmixed);
        match attend {
            Attend::Sequence { angles } => {
                let causal = &mut scratch.causal;
                causal.backward(self.joint, s.joint, angles, dmixed, g.joint);
            }
            Attend::Tree { tree, nodes } => {
                g.joint.fill(0.0);
                let rows = (s.joint, &*dmixed);
                simd(
                    #[inline(always)]
                    || {
                        scratch
                            .tree
                            .backward(self.joint, tree, nodes, rows, g.joint)
                    },
                );
            }
        }
        let dnormed = &mut spare[..n * self.width];
        self.linear_back(weights, &self.qkv, g.joint, dnormed);
        dx.copy_from_slice(g.middle);
        let norm = &self.attention_norm;
        self.norm_back(
            weights,
            norm,
            (s.x, dnormed),
            scratch,
            (dx, attention_norms),
        );
    }

    /// Numbers of the scratch that [`backward`](Self::backward) asks for.
    pub(crate) fn spare_len(&self, rows: usize) -> usize {
        rows * self
            .width
            .max(self.intermediate)
            .max(self.joint.out_width())
    }

    fn norm_forward(&self, weights: &[f32], norm: &FlatNorm, x: &[f32], out: &mut [f32]) {
        let (w, d) = (&weights[norm.weight.clone()], self.width);
        simd(
            #[inline(always)]
            || match &norm.bias {
                None => {
                    for (x, out) in x.chunks(d).zip(out.chunks_mut(d)) {
                        rows::rms_norm(x, w, self.eps, out);
                    }
                }
                Some(bias) => {
                    let b = &weights[bias.clone()];
                    for (x, out) in x.chunks(d).zip(out.chunks_mut(d)) {
                        rows::layer_norm(x, w, b, self.eps, out);
                    }
                }
            },
        );
    }

    /// Adds to the gradient of the rows, and sets that of the weights.
    fn norm_back(
        &self,
        weights: &[f32],
        norm: &FlatNorm,
        (x, g): (&[f32], &[f32]),
        scratch: &mut Scratch,
        (dx, dw): (&mut [f32], &mut [f32]),
    ) {
        let (w, d) = (&weights[norm.weight.clone()], self.width);
        scratch.norm.resize(2 * d, 0.0);
        let spare = &mut scratch.norm;
        dw.fill(0.0);
        simd(
            #[inline(always)]
            || {
                let rows = x.chunks(d).zip(g.chunks(d));
                for ((x, g), dx) in rows.zip(dx.chunks_mut(d)) {
                    match &norm.bias {
                        None => gradients::rms_norm(x, w, g, self.eps, dx, dw, &mut spare[..d]),
                        Some(_) => gradients::layer_norm(x, w, g, self.eps, dx, dw, spare),
                    }
                }
            },
        );
    }

    /// The weight as an (in, out) matrix.
    fn matrix<'a>(&self, weights: &'a [f32], linear: &FlatLinear) -> Matrix<'a> {
        let values = &weights[linear.weight.clone()];
        match self.layout {
            WeightLayout::OutIn => Matrix::new(values, linear.outputs, linear.inputs).transposed(),
            WeightLayout::InOut => Matrix::new(values, linear.inputs, linear.outputs),
        }
    }

    fn linear(&self, weights: &[f32], linear: &FlatLinear, x: &[f32], out: &mut [f32]) {
        let n = x.len() / linear.inputs;
        let x = Matrix::new(x, n, linear.inputs);
        gemm(x, self.matrix(weights, linear), out, Threads::One);
        if let Some(bias) = &linear.bias {
            let bias = &weights[bias.clone()];
            for row in out.chunks_mut(linear.outputs) {
                add(row, bias);
            }
        }
    }

    fn linear_back(&self, weights: &[f32], linear: &FlatLinear, grad: &[f32], dx: &mut [f32]) {
        let n = grad.len() / linear.outputs;
        let grad = Matrix::new(grad, n, linear.outputs);
        gemm(
            grad,
            self.matrix(weights, linear).transposed(),
            dx,
            Threads::One,
        );
    }
}

fn add(to: &mut [f32], x: &[f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += x;
    }
}

fn cut_mut<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (head, tail) = std::mem::take(rest).split_at_mut(n);
    *rest = tail;
    head
}

fn cut<'a>(rest: &mut &'a [f32], n: usize) -> &'a [f32] {
    let (head, tail) = rest.split_at(n);
    *rest = tail;
    head
}
