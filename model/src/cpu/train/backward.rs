//! Backward pass of one block for one group of rows, on one thread.

use super::flat::{FlatBlock, FlatLinear, FlatNorm};
use super::pass::{Attending, Scratch};
use crate::config::Family;
use crate::cpu::block::Activations;
use crate::cpu::kernels::gemm::{Matrix, Threads, gemm};
use crate::cpu::kernels::{gradients, simd};

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
    /// Numbers of a group's [`Grads`].
    pub(crate) fn grads_len(&self, rows: usize) -> usize {
        rows * (2 * self.sizes.width + self.sizes.inner_width() + self.sizes.heads.width())
            + 2 * self.norm_len()
    }

    /// Numbers of one norm.
    pub(crate) fn norm_len(&self) -> usize {
        match self.sizes.family {
            Family::Llama => self.sizes.width,
            Family::Gpt2 => 2 * self.sizes.width,
        }
    }

    pub(crate) fn grads_mut<'a>(
        &self,
        mut buffer: &'a mut [f32],
        n: usize,
    ) -> Grads<&'a mut [f32]> {
        Grads {
            out: cut_mut(&mut buffer, n * self.sizes.width),
            inner: cut_mut(&mut buffer, n * self.sizes.inner_width()),
            middle: cut_mut(&mut buffer, n * self.sizes.width),
            joint: cut_mut(&mut buffer, n * self.sizes.heads.width()),
            norms: buffer,
        }
    }

    pub(crate) fn grads<'a>(&self, mut buffer: &'a [f32], n: usize) -> Grads<&'a [f32]> {
        Grads {
            out: cut(&mut buffer, n * self.sizes.width),
            inner: cut(&mut buffer, n * self.sizes.inner_width()),
            middle: cut(&mut buffer, n * self.sizes.width),
            joint: cut(&mut buffer, n * self.sizes.heads.width()),
            norms: buffer,
        }
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
        attend: Attending<'_>,
        s: &Activations<&[f32]>,
        g: Grads<&mut [f32]>,
        spare: &mut [f32],
        scratch: &mut Scratch,
        dx: &mut [f32],
    ) {
        let n = s.x.len() / self.sizes.width;
        let (attention_norms, mlp_norms) = g.norms.split_at_mut(self.norm_len());
        let f = self.sizes.intermediate;
        let dactivated = &mut spare[..n * f];
        self.linear_back(weights, &self.down, g.out, dactivated);
        simd(
            #[inline(always)]
            || match self.sizes.family {
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
        let dnormed = &mut spare[..n * self.sizes.width];
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
        let dmixed = &mut spare[..n * self.sizes.heads.q_width()];
        self.linear_back(weights, &self.output, g.middle, dmixed);
        match attend {
            Attending::Sequence { angles } => {
                let causal = &mut scratch.causal;
                causal.backward(self.sizes.heads, s.joint, angles, dmixed, g.joint);
            }
            Attending::Tree { tree, nodes } => {
                g.joint.fill(0.0);
                let rows = (s.joint, &*dmixed);
                simd(
                    #[inline(always)]
                    || {
                        scratch
                            .tree
                            .backward(self.sizes.heads, tree, nodes, rows, g.joint)
                    },
                );
            }
        }
        let dnormed = &mut spare[..n * self.sizes.width];
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
            .sizes
            .width
            .max(self.sizes.intermediate)
            .max(self.sizes.heads.q_width())
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
        let (w, d) = (&weights[norm.weight.clone()], self.sizes.width);
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

    fn linear_back(&self, weights: &[f32], linear: &FlatLinear, grad: &[f32], dx: &mut [f32]) {
        let n = grad.len() / linear.outputs;
        let grad = Matrix::new(grad, n, linear.outputs);
        gemm(
            grad,
            self.matrix(weights, linear).transposed(),
            dx,
            (self.precision, Threads::One),
        );
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
